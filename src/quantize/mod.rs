//! Writing models smaller: what weights matter, and in which types they are stored.

mod imatrix;
mod statistics;

pub use imatrix::{Entry, Imatrix};
pub use statistics::{LayerStatistics, Statistics};

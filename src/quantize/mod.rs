//! Writing models smaller: what weights matter, and in which types they are stored.

mod imatrix;

pub use imatrix::{Entry, Imatrix};

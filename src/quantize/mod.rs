//! Writing models smaller: what weights matter, which tensor gets which type, and what the file says about itself. Formats
//! alone: the work is done by [`crate::pipelines::Quantizer`].

pub mod budget;
mod file_type;
mod imatrix;
mod importance;
pub mod mix;
mod plan;
mod statistics;

pub use file_type::FileType;
pub use imatrix::{Entry, Imatrix};
pub use importance::Importance;
pub use plan::{Goal, Plan, Planned, Request, Rule, floor, parse_dtype, parse_override};
pub use statistics::{LayerStatistics, Statistics};

//! Kernels for the dot product instructions of ARMv8.2, where those pay; the others stay those of NEON.
//!
//! The entries are private to this folder and reach a table through [`extend`] only.

pub(super) mod dot;
mod few;

use crate::Kernels;

/// Overrides entries of `table`. Only for processors with NEON and dot products.
pub(super) fn extend(table: &mut Kernels) {
    table.dot = dot::dot;
    table.dot_few = few::dot_few;
}

//! Kernels for the products of matrices of 8-bit integers of ARMv8.6, where those pay; the others stay those of the dot
//! products. A few tokens are bound by the memory.
//!
//! The entries are private to this folder and reach a table through [`extend`] only.

mod dot;

use crate::Kernels;

/// Overrides entries of `table`. Only for processors with NEON, dot products and these.
pub(super) fn extend(table: &mut Kernels) {
    table.dot = dot::dot;
}

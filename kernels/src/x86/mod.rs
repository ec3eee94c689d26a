//! Kernels for x86-64.

pub(crate) mod avx2;

use crate::Kernels;

/// Adds the table of each level that this processor supports to `tables`, which holds the scalar one.
pub fn extend(tables: &mut Vec<Kernels>) {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        let mut table = tables[tables.len() - 1];
        avx2::extend_math(&mut table);
        tables.push(table);
    }
}

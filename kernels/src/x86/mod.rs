//! Kernels for x86-64: one folder for each instruction set.

mod avx2;

use crate::{Kernels, Level};

/// Appends the table of each level that this processor supports. Each level starts from the one before it.
pub(crate) fn extend(tables: &mut Vec<Kernels>) {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        let mut table = Kernels { level: Level::Avx2, ..tables[tables.len() - 1] };
        avx2::extend(&mut table);
        tables.push(table);
    }
}

//! What the parity tests share: the tables of this processor's levels, and the same random inputs on every machine.

use mmq_kernels::{Kernels, levels};

/// The tables of all levels, the scalar one first. Prints the levels; one that `MMQ_REQUIRE_LEVEL` names must be there.
pub fn tables() -> Vec<Kernels> {
    let tables = levels();
    let names: Vec<_> = tables.iter().map(|t| t.level.name()).collect();
    println!("levels: {}", names.join(", "));
    if let Ok(required) = std::env::var("MMQ_REQUIRE_LEVEL") {
        assert!(names.contains(&required.as_str()), "MMQ_REQUIRE_LEVEL={required}: this machine has only {names:?}");
    }
    tables
}

/// A SplitMix64 generator.
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

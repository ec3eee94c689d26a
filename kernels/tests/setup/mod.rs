//! What the parity tests share: the tables of this processor's levels, and the same random inputs on every machine.

// No test uses all of it.
#![allow(dead_code)]

use mmq_kernels::Kernels;

/// Whether the processor is emulated, as the environment says: then it is a hundred times slower, and fewer sizes are tried.
fn emulated() -> bool {
    std::env::var_os("MMQ_EMULATED").is_some()
}

/// The levels to be tested: all of them, or the best alone where the processor is emulated.
pub fn levels() -> Vec<Kernels> {
    let mut tables = mmq_kernels::levels();
    if emulated() {
        tables.drain(..tables.len() - 1);
    }
    tables
}

/// The tables of the levels to be tested, the scalar one first. Prints the levels; one that `MMQ_REQUIRE_LEVEL` names must be
/// there.
pub fn tables() -> Vec<Kernels> {
    let mut tables = mmq_kernels::levels();
    if emulated() {
        tables.drain(1..tables.len() - 1);
    }
    let names: Vec<_> = tables.iter().map(|t| t.level.name()).collect();
    println!("levels: {}", names.join(", "));
    if let Ok(required) = std::env::var("MMQ_REQUIRE_LEVEL") {
        assert!(names.contains(&required.as_str()), "MMQ_REQUIRE_LEVEL={required}: this machine has only {names:?}");
    }
    tables
}

/// `all`; where the processor is emulated, at most `n > 1` of them: the first, the last, and some evenly between.
pub fn some<T: Clone>(n: usize, all: impl IntoIterator<Item = T>) -> Vec<T> {
    let all: Vec<T> = all.into_iter().collect();
    if !emulated() || all.len() <= n {
        return all;
    }
    (0..n).map(|i| all[i * (all.len() - 1) / (n - 1)].clone()).collect()
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

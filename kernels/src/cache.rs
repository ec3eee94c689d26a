//! The size of the second-level cache: what a thread works on again and again should fit.

use std::sync::OnceLock;

/// Bytes of the second-level cache of a core; a small one is assumed where the processor does not say.
pub(crate) fn level_2() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| told().unwrap_or(512 * 1024).clamp(256 * 1024, 4 * 1024 * 1024))
}

/// What leaf 4 of CPUID (Intel) or leaf 0x8000001D (AMD) says: both describe one cache for each subleaf in the same way.
#[cfg(target_arch = "x86_64")]
fn told() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const MOST_CACHES: u32 = 8;
    for (base, leaf) in [(0, 4), (0x8000_0000, 0x8000_001d)] {
        if __cpuid(base).eax < leaf {
            continue;
        }
        for cache in (0..MOST_CACHES).map(|i| __cpuid_count(leaf, i)) {
            let (kind, level) = (cache.eax & 31, cache.eax >> 5 & 7);
            let (line, parts, ways) = (cache.ebx & 0xfff, cache.ebx >> 12 & 0x3ff, cache.ebx >> 22);
            let instructions = kind == 2;
            if kind != 0 && !instructions && level == 2 {
                return [line, parts, ways, cache.ecx].iter().try_fold(1, |n: usize, x| n.checked_mul(*x as usize + 1));
            }
        }
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn told() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_plausible() {
        let bytes = super::level_2();
        assert!((256 * 1024..=4 * 1024 * 1024).contains(&bytes), "{bytes}");
        assert!(super::told().is_none_or(|bytes| bytes.is_multiple_of(1024)));
    }
}

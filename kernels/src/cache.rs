//! The size of the second-level cache: what a thread works on again and again should fit.

use std::sync::OnceLock;

/// Bytes of the second-level cache that a core has for itself; a small one is assumed where nothing tells.
pub(crate) fn level_2() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| told().unwrap_or(512 * 1024).clamp(256 * 1024, 4 * 1024 * 1024))
}

/// What leaf 4 of CPUID (Intel) or leaf 0x8000001D (AMD) says: both describe one cache for each subleaf in the same way.
#[cfg(target_arch = "x86_64")]
fn told() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const MOST_CACHES: u32 = 8;
    // Miri's machine has no such instruction.
    if cfg!(miri) {
        return None;
    }
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

#[cfg(all(any(target_os = "linux", target_os = "android"), not(target_arch = "x86_64")))]
fn told() -> Option<usize> {
    crate::cores::strong().into_iter().filter_map(linux::share).min()
}

#[cfg(all(any(target_os = "linux", target_os = "android"), any(test, not(target_arch = "x86_64"))))]
mod linux {
    /// Bytes of a processor's second-level cache, of a shared one its part. Android's kernels often do not tell.
    pub(super) fn share(core: usize) -> Option<usize> {
        const MOST_CACHES: usize = 8;
        (0..MOST_CACHES).find_map(|i| {
            let file = |name| format!("/sys/devices/system/cpu/cpu{core}/cache/index{i}/{name}");
            let read = |name| Some(std::fs::read_to_string(file(name)).ok()?.trim().to_owned());
            let found = read("level")? == "2" && read("type")? != "Instruction";
            found.then(|| Some(bytes(&read("size")?)? / listed(&read("shared_cpu_list")?)?))?
        })
    }

    /// `512K` or `2M` in bytes.
    pub(super) fn bytes(size: &str) -> Option<usize> {
        let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
        let unit = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(unit)
    }

    /// How many processors `0-3,6` names.
    pub(super) fn listed(list: &str) -> Option<usize> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
        };
        list.split(',').map(range).sum()
    }
}

/// What the system tells of the strongest kind of core.
#[cfg(all(target_vendor = "apple", not(target_arch = "x86_64")))]
fn told() -> Option<usize> {
    let number = |name: &std::ffi::CStr| {
        let (mut value, mut size) = (0u64, size_of::<u64>());
        let (to, size) = ((&raw mut value).cast(), &raw mut size);
        // SAFETY: the name ends in a zero, and `size` says how many bytes may be written at `to`: these numbers have 4 or 8.
        let told = unsafe { libc::sysctlbyname(name.as_ptr(), to, size, std::ptr::null_mut(), 0) } == 0;
        usize::try_from(value).ok().filter(|_| told)
    };
    number(c"hw.perflevel0.l2cachesize")?.checked_div(number(c"hw.perflevel0.cpusperl2")?)
}

#[cfg(not(any(target_arch = "x86_64", target_os = "linux", target_os = "android", target_vendor = "apple")))]
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

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn what_linux_tells_is_understood() {
        use super::linux::{bytes, listed, share};
        assert_eq!((bytes("512K"), bytes("2M"), bytes("2"), bytes("K")), (Some(512 << 10), Some(2 << 20), None, None));
        assert_eq!((listed("3"), listed("0-3"), listed("0-1,4,6-7")), (Some(1), Some(4), Some(5)));
        assert_eq!((listed(""), listed("3-1"), listed("a")), (None, None, None));
        for core in crate::cores::strong() {
            assert!(share(core).is_none_or(|bytes| (16 << 10..=64 << 20).contains(&bytes)), "{:?}", share(core));
        }
    }
}

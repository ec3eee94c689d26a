//! The processors of the system: which there are and how strong, where a thread stays, how often it was interrupted.

/// A processor that this process may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// As the system counts it.
    pub id: usize,
    /// How strong it is, on a scale of the system's own.
    pub capacity: u64,
}

/// The processors that this process may run on, each with its capacity: of unequal ones (Arm's big.LITTLE) the kernel tells
/// `cpu_capacity`, else the highest frequency. Empty where the system does not tell.
pub fn cores() -> Vec<Core> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let capacity = |id: usize| {
            let read = |name: &str| {
                let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{id}/{name}")).ok()?;
                text.trim().parse::<u64>().ok()
            };
            read("cpu_capacity").or_else(|| read("cpufreq/cpuinfo_max_freq"))
        };
        allowed().into_iter().filter_map(|id| Some(Core { id, capacity: capacity(id)? })).collect()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Vec::new()
}

/// Those that are at least half as strong as the strongest, which do most of the work; all of them where the system does not
/// tell how strong they are.
#[cfg(all(any(target_os = "linux", target_os = "android"), any(test, not(target_arch = "x86_64"))))]
pub(crate) fn strong() -> Vec<usize> {
    let cores = cores();
    let Some(best) = cores.iter().map(|core| core.capacity).max() else { return allowed() };
    cores.into_iter().filter(|core| core.capacity >= best / 2).map(|core| core.id).collect()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn allowed() -> Vec<usize> {
    // SAFETY: a set of processors is plain bits, of which zeros are an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a set of the size that is given; 0 is the calling thread.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    let n = if got == 0 { 8 * size_of_val(&set) } else { 0 };
    // SAFETY: `id` is below the number of bits of a set.
    (0..n).filter(|id| unsafe { libc::CPU_ISSET(*id, &set) }).collect()
}

/// Keeps the calling thread on these processors; on none of them, or where the system cannot, it stays as free as it is.
pub(crate) fn stay_on(cores: &[usize]) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !cores.is_empty() {
        // SAFETY: a set of processors is plain bits, of which zeros are an empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for id in cores.iter().filter(|id| **id < 8 * size_of::<libc::cpu_set_t>()) {
            // SAFETY: `id` is below the number of bits of a set.
            unsafe { libc::CPU_SET(*id, &mut set) };
        }
        // SAFETY: the pointer is to a set of the size that is given; 0 is the calling thread. A refusal changes nothing.
        unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = cores;
}

/// How often the system took a processor away from threads of this process that would have gone on.
pub(crate) fn interruptions() -> u64 {
    #[cfg(all(unix, not(miri)))]
    {
        // SAFETY: the structure is plain numbers, for which zeros are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a structure of the type that the call fills.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
        usage.ru_nivcsw as u64
    }
    #[cfg(not(all(unix, not(miri))))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_thread_stays_where_it_is_put() {
        let all = allowed();
        assert!(!all.is_empty());
        let last = *all.last().unwrap();
        let seen = std::thread::spawn(move || {
            stay_on(&[last]);
            allowed()
        });
        assert_eq!(seen.join().unwrap(), [last]);
        assert_eq!(allowed(), all, "another thread is not touched");
        let seen = std::thread::spawn(|| {
            stay_on(&[]);
            allowed()
        });
        assert_eq!(seen.join().unwrap(), all);
        assert!(cores().iter().all(|core| all.contains(&core.id) && core.capacity > 0));
    }
}

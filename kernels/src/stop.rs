//! Work that another thread may end early.
//!
//! [`until`] runs a closure under a flag. Loops that take long, on its thread and in the regions that it starts, ask
//! [`stopped`] and leave early, whatever they have by then: what they return is thrown away by [`until`].

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// What this thread works under; null: nothing.
    static WATCH: Cell<*const Watch> = const { Cell::new(ptr::null()) };
}

/// A call of [`until`].
struct Watch {
    flag: *const AtomicBool,
    /// Whether someone may have left early. Stays set when the flag is taken back.
    seen: AtomicBool,
    /// The call that this one is inside of, or null.
    outer: *const Watch,
}

/// A watch as the threads of a team take it over from the thread that starts a region.
#[derive(Clone, Copy)]
pub(crate) struct Inherited(*const Watch);

// SAFETY: all that a watch points to is read and written by atomic operations, and it lives until `until` returns: after
// every region that was started inside.
unsafe impl Send for Inherited {}

impl Watch {
    fn is_stopped(&self) -> bool {
        // SAFETY: `until` borrows the flag for as long as its watch is reachable.
        if self.seen.load(Ordering::Relaxed) || unsafe { &*self.flag }.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
            return true;
        }
        // SAFETY: a watch is reachable only inside its call of `until`, so that outer ones are alive.
        unsafe { self.outer.as_ref() }.is_some_and(Watch::is_stopped)
    }
}

/// Runs `f`, which another thread may stop by setting `flag`: then, and also if it is too late to spare anything, `None`.
pub fn until<T>(flag: &AtomicBool, f: impl FnOnce() -> T) -> Option<T> {
    let watch = Watch { flag, seen: AtomicBool::new(false), outer: WATCH.get() };
    let result = Inherited(&watch).during(f);
    (!watch.is_stopped()).then_some(result)
}

/// Whether the work that this thread does is to end at once. Costs a few nanoseconds.
pub fn stopped() -> bool {
    // SAFETY: `Inherited::during` resets the pointer before what it points to dies.
    unsafe { WATCH.get().as_ref() }.is_some_and(Watch::is_stopped)
}

/// What this thread works under.
pub(crate) fn inherited() -> Inherited {
    Inherited(WATCH.get())
}

impl Inherited {
    /// Runs `f` under this watch, which must outlive the call.
    pub(crate) fn during<T>(self, f: impl FnOnce() -> T) -> T {
        /// Puts back what was there, also when `f` panics.
        struct Restore(*const Watch);
        impl Drop for Restore {
            fn drop(&mut self) {
                WATCH.set(self.0);
            }
        }
        let _restore = Restore(WATCH.replace(self.0));
        f()
    }

    /// Whether there is a flag that may be set.
    pub(crate) fn is_watched(self) -> bool {
        !self.0.is_null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Team;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_stopped_gives_nothing() {
        let flag = AtomicBool::new(false);
        assert!(!stopped());
        assert_eq!(until(&flag, stopped), Some(false));
        assert_eq!(until(&flag, || flag.store(true, Ordering::Relaxed)), None);
        assert_eq!(until(&flag, || assert!(stopped())), None);
        assert!(!stopped());
        // Someone has left early: setting the flag back does not make the result whole.
        assert_eq!(until(&flag, || assert!(stopped() && flag.swap(false, Ordering::Relaxed))), None);
        assert_eq!(until(&flag, || 1), Some(1));
    }

    #[test]
    fn an_outer_flag_stops_what_is_inside() {
        let (outer, inner) = (AtomicBool::new(true), AtomicBool::new(false));
        assert_eq!(until(&outer, || assert_eq!(until(&inner, || assert!(stopped())), None)), None);
    }

    #[test]
    fn a_panic_leaves_no_watch_behind() {
        let flag = AtomicBool::new(true);
        assert!(catch_unwind(AssertUnwindSafe(|| until(&flag, || std::panic::resume_unwind(Box::new(()))))).is_err());
        assert!(!stopped());
    }

    #[test]
    fn parts_that_nobody_has_begun_are_not_run() {
        for n_threads in [1, 3] {
            let (team, flag, count) = (Team::new(n_threads), AtomicBool::new(false), AtomicUsize::new(0));
            let part = |_| {
                count.fetch_add(1, Ordering::Relaxed);
                flag.store(true, Ordering::Relaxed);
                while !stopped() {}
            };
            assert_eq!(until(&flag, || team.run(1000, &part)), None);
            assert!((1..=n_threads).contains(&count.into_inner()));
            let count = AtomicUsize::new(0);
            team.run(100, &|_| assert!(!stopped() && count.fetch_add(1, Ordering::Relaxed) < 100));
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn who_waits_for_a_team_can_be_stopped() {
        let (team, flag, begun) = (Team::new(2), AtomicBool::new(false), AtomicBool::new(false));
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                team.run(2, &|_| {
                    begun.store(true, Ordering::Relaxed);
                    while !end.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                });
            });
            while !begun.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            let waiting = scope.spawn(|| until(&flag, || team.run(2, &|_| panic!("the team is taken"))));
            thread::sleep(Duration::from_millis(20));
            let start = Instant::now();
            flag.store(true, Ordering::Relaxed);
            assert!(waiting.join().expect("no panic").is_none());
            let waited = start.elapsed();
            end.store(true, Ordering::Relaxed);
            assert!(waited < Duration::from_secs(5), "{waited:?}");
        });
    }
}

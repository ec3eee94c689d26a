//! The thread team: a fixed number of threads that run one region at a time.
//!
//! A region costs well under a microsecond when its workers still spin from the one before, which is what a forward pass
//! of hundreds of regions needs. Workers that find nothing to do for some microseconds park, so that an idle team costs
//! nothing. Whoever is there takes the next part: a region does not wait for a thread that the system does not run, be it
//! that there are more threads than processors or that other programs are busy.

use crate::cores;
use crate::stop::{self, Inherited, stopped};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it parks, unless the caller wants otherwise.
const SPIN: Duration = Duration::from_micros(20);
/// More threads than this are not started.
const MAX_THREADS: usize = 256;
/// How often a caller who waits for others looks whether it is stopped.
const WAIT: Duration = Duration::from_millis(2);
/// In [`Shared::state`]: the workers shall end.
const STOP: u64 = u32::MAX as u64;

thread_local! {
    /// Whether this thread is inside a part.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Threads that work on one region together. Results never depend on how many there are.
///
/// Parts are taken in order, each by a thread that is free. Regions of several callers run one after the other; a region
/// that is started from inside a part runs on the thread that started it.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Turn,

    /// Gives way to other programs, if there.
    giving_way: Option<GivingWay>,
}

/// How the threads of a team behave beside other programs.
#[derive(Clone, Debug)]
pub struct Manners {
    /// How long a thread that waits for work spins before it parks.
    pub spin: Duration,
    /// The processors that threads are started on, as the system counts them; empty: where the system likes. The thread
    /// that calls is left where it is.
    pub cores: Vec<usize>,
    /// Whether fewer threads work while other programs take the processors away from them.
    pub gives_way: bool,
}

/// Callers take turns.
#[derive(Default)]
struct Turn {
    /// Whether a caller's region runs.
    taken: Mutex<bool>,
    free: Condvar,
}

impl Turn {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other region runs; `false` if the caller is [`stopped`] meanwhile.
    fn take(&self) -> bool {
        let mut taken = self.lock();
        while *taken {
            if stopped() {
                return false;
            }
            taken = if stop::inherited().is_watched() {
                self.free.wait_timeout(taken, WAIT).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.free.wait(taken).unwrap_or_else(PoisonError::into_inner)
            };
        }
        *taken = true;
        true
    }

    fn give(&self) {
        *self.lock() = false;
        self.free.notify_one();
    }
}

impl Default for Manners {
    fn default() -> Manners {
        Manners { spin: SPIN, cores: Vec::new(), gives_way: false }
    }
}

struct Shared {
    /// How long a thread spins before it parks.
    spin: Duration,
    /// Count of regions in the upper half, parts of the newest one that nobody has taken in the lower half.
    state: AtomicU64,
    /// The newest region. Written by the caller while no part is pending.
    region: UnsafeCell<Option<Region>>,
    /// Parts of the newest region that are not finished.
    pending: AtomicUsize,
    /// Whether a part of the newest region has panicked.
    panicked: AtomicBool,
    /// What the first part to panic panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Region {
    f: *const (dyn Fn(usize) + Sync),
    n_parts: usize,
    caller: Thread,
    watch: Inherited,
}

// SAFETY: `region` is written only while no part is pending, and read only by threads that have taken a part and not
// finished it; the release store to `state` and the release decrement of `pending` order the two. `Region::f` points to a
// `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer in `region` is not used outside a region.
unsafe impl Send for Shared {}

impl Shared {
    /// Runs parts of the newest region until all are taken. A panic is kept for the caller; parts that are taken after it,
    /// or after the caller was stopped, are not run.
    fn work(&self) {
        let mut state = self.state.load(Ordering::Acquire);
        while state & STOP != 0 && state & STOP != STOP {
            // The count in the upper half makes sure that the part is one of the region whose state was read.
            if let Err(newer) = self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire)
            {
                state = newer;
                continue;
            }
            // SAFETY: this thread has taken a part that it has not finished.
            let region = unsafe { (*self.region.get()).as_ref() }.expect("a region was written before its parts");
            let caller = region.caller.clone();
            let watch = region.watch;
            let part = region.n_parts - (state & STOP) as usize;
            // SAFETY: the caller keeps the closure alive until `pending` is zero.
            self.run_part(unsafe { &*region.f }, part, watch);
            if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 && caller.id() != thread::current().id() {
                caller.unpark();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    fn run_part(&self, f: &(dyn Fn(usize) + Sync), part: usize, watch: Inherited) {
        if self.panicked.load(Ordering::Relaxed) {
            return;
        }
        let outer = INSIDE.replace(true);
        let run = || {
            if !stopped() {
                f(part);
            }
        };
        let result = catch_unwind(AssertUnwindSafe(|| watch.during(run)));
        INSIDE.set(outer);
        if let Err(payload) = result {
            self.panicked.store(true, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            match *first {
                None => *first = Some(payload),
                // Dropping it might panic, and nothing may unwind from here while other threads run.
                Some(_) => std::mem::forget(payload),
            }
        }
    }

    /// The life of a worker.
    fn serve(&self) {
        loop {
            wait(self.spin, || self.state.load(Ordering::Acquire) & STOP != 0);
            if self.state.load(Ordering::Acquire) & STOP == STOP {
                return;
            }
            self.work();
        }
    }
}

/// Spins for a while, then parks, until `ready`. Whoever makes it ready unparks this thread.
fn wait(spin: Duration, ready: impl Fn() -> bool) {
    let mut start = None;
    loop {
        for _ in 0..64 {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= spin {
            while !ready() {
                thread::park();
            }
            return;
        }
    }
}

impl Team {
    /// A team of `n_threads`, the caller included: at least one, and fewer than asked for where the system refuses to
    /// start more.
    pub fn new(n_threads: usize) -> Team {
        Team::with(n_threads, &Manners::default())
    }

    /// [`Team::new`] with threads that behave as `manners` says.
    pub fn with(n_threads: usize, manners: &Manners) -> Team {
        let shared = Arc::new(Shared {
            spin: manners.spin,
            state: AtomicU64::new(0),
            region: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..n_threads.min(MAX_THREADS)).map_while(|index| {
            let (shared, cores) = (Arc::clone(&shared), manners.cores.clone());
            let serve = move || {
                cores::stay_on(&cores);
                shared.serve();
            };
            thread::Builder::new().name(format!("mmq-{index}")).spawn(serve).ok()
        });
        let workers: Vec<_> = workers.collect();
        let giving_way = manners.gives_way.then(|| GivingWay::new(workers.len() + 1));
        Team { workers, shared, turn: Turn::default(), giving_way }
    }

    /// How many threads take part.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(part)` once for every part in `0..n_parts` and returns when all are done. A single part runs on the caller.
    /// A part must not wait for another thread that uses the same team: the team is taken until the region ends.
    /// Once the caller is [`stopped`], parts that no thread has taken are not run.
    ///
    /// # Panics
    /// If a part panics: with its payload, once every thread has stopped. Parts that no thread has taken by then are not
    /// run. The team stays usable.
    pub fn run(&self, n_parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let n_threads = self.giving_way.as_ref().map_or(self.n_threads(), GivingWay::n_threads).min(n_parts);
        if n_threads <= 1 || INSIDE.get() {
            return (0..n_parts).take_while(|_| !stopped()).for_each(f);
        }
        assert!(n_parts < STOP as usize, "{n_parts} parts");
        if !self.turn.take() {
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; this function returns after the last part is finished.
        let f: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        // SAFETY: this thread holds the turn and the region before has ended, so no worker reads.
        unsafe {
            *shared.region.get() = Some(Region { f, n_parts, caller: thread::current(), watch: stop::inherited() })
        };
        shared.panicked.store(false, Ordering::Relaxed);
        shared.pending.store(n_parts, Ordering::Relaxed);
        let count = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store(count << 32 | n_parts as u64, Ordering::Release);
        for worker in &self.workers[..n_threads - 1] {
            worker.thread().unpark();
        }
        shared.work();
        wait(shared.spin, || shared.pending.load(Ordering::Acquire) == 0);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.turn.give();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `0..n` into at most [`Team::n_threads`] contiguous ranges whose bounds are multiples of `step`, and runs
    /// `f` on each of them at the same time.
    ///
    /// # Panics
    /// If `step` is zero, and as [`Team::run`].
    pub fn split(&self, n: usize, step: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let steps = n.div_ceil(step);
        let parts = self.n_threads().min(steps);
        self.run(parts, &|i| f(steps * i / parts * step..(steps * (i + 1) / parts * step).min(n)));
    }

    /// Runs `f(row, chunk)` for each chunk of `len` elements of `data`, in parallel: rows of a matrix. The last one is
    /// shorter if `len` does not divide the length.
    ///
    /// # Panics
    /// If `len` is zero, and as [`Team::run`].
    pub fn rows<T: Send>(&self, data: &mut [T], len: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let n = data.len();
        let data = Disjoint::new(data);
        self.split(n.div_ceil(len), 1, &|rows| {
            for row in rows.take_while(|_| !stopped()) {
                // SAFETY: rows do not overlap, and `split` gives each to one part.
                f(row, unsafe { data.get(row * len..((row + 1) * len).min(n)) });
            }
        });
    }
}

/// How many threads work, which follows from how often the system took a processor away from this process.
struct GivingWay {
    most: usize,
    now: AtomicUsize,
    since: Mutex<(Instant, u64)>,
}

impl GivingWay {
    /// Between two looks.
    const PERIOD: Duration = Duration::from_millis(100);
    /// Interruptions of a thread in a second that show that another wants its processor: schedulers change threads of like
    /// weight each few milliseconds, and idle systems hardly ever interrupt one.
    const CROWDED: f64 = 60.0;
    /// So few that one more thread may be tried.
    const QUIET: f64 = 5.0;

    fn new(most: usize) -> GivingWay {
        GivingWay { most, now: AtomicUsize::new(most), since: Mutex::new((Instant::now(), cores::interruptions())) }
    }

    fn n_threads(&self) -> usize {
        // Whoever looks already will tell the others.
        if let Ok(mut since) = self.since.try_lock() {
            let elapsed = since.0.elapsed();
            if elapsed >= GivingWay::PERIOD {
                let count = cores::interruptions();
                let rate = count.saturating_sub(since.1) as f64 / elapsed.as_secs_f64();
                self.now.store(self.after(rate), Ordering::Relaxed);
                *since = (Instant::now(), count);
            }
        }
        self.now.load(Ordering::Relaxed)
    }

    /// Threads after a period with so many interruptions of the process in a second.
    fn after(&self, rate: f64) -> usize {
        let now = self.now.load(Ordering::Relaxed);
        match rate / now as f64 {
            each if each > GivingWay::CROWDED => (now - 1).max(1),
            each if each < GivingWay::QUIET => (now + 1).min(self.most),
            _ => now,
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.state.store(STOP, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker catches what its parts panic with, so there is no payload to pass on.
            let _ = worker.join();
        }
    }
}

/// A slice that several parts write at once, each to elements of its own.
pub(crate) struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access is by `get` alone, whose caller promises that no two threads reach the same element.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { data: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other slice that is in use may overlap it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the range lies inside the borrowed slice, and the caller vouches that nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// Asserts that `run` reaches each part exactly once.
    fn assert_once(team: &Team, n_parts: usize) {
        let counts: Vec<AtomicU32> = (0..n_parts).map(|_| AtomicU32::new(0)).collect();
        team.run(n_parts, &|part| {
            counts[part].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n_parts} parts, {} threads", team.n_threads());
    }

    #[test]
    fn each_part_runs_once() {
        for n_threads in [0, 1, 2, 3, 8] {
            let team = Team::new(n_threads);
            assert_eq!(team.n_threads(), n_threads.max(1));
            for n_parts in [0, 1, 2, 3, 7, 8, 9, 100] {
                assert_once(&team, n_parts);
            }
        }
    }

    #[test]
    fn many_tiny_regions_with_more_threads_than_processors() {
        for (n_threads, n_regions) in [(2, 3000), (8, 400)] {
            let team = Team::new(n_threads);
            for region in 0..n_regions {
                // Borrowed data that dies with the region: a late worker would be caught by a sanitizer, a lost one here.
                let data: Vec<u64> = (0..n_threads as u64 + region % 5).collect();
                let sum = AtomicU64::new(0);
                team.run(data.len(), &|part| {
                    sum.fetch_add(data[part] + 1, Ordering::Relaxed);
                });
                let n = data.len() as u64;
                assert_eq!(sum.into_inner(), n * (n + 1) / 2);
                if region % 100 == 0 {
                    // Long enough for every worker to park.
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn fewer_threads_work_while_others_want_the_processors() {
        let way = GivingWay::new(4);
        let steps =
            [(1000.0, 3), (1000.0, 2), (1000.0, 1), (1000.0, 1), (30.0, 1), (0.0, 2), (0.0, 3), (0.0, 4), (0.0, 4)];
        for (rate, n) in steps {
            way.now.store(way.after(rate), Ordering::Relaxed);
            assert_eq!(way.now.load(Ordering::Relaxed), n, "{rate} interruptions a second");
        }
        let team = Team::with(3, &Manners { spin: Duration::ZERO, gives_way: true, ..Manners::default() });
        for n_parts in [1, 2, 3, 40] {
            assert_once(&team, n_parts);
        }
    }

    #[test]
    fn parts_run_at_the_same_time() {
        let team = Team::new(4);
        let barrier = std::sync::Barrier::new(4);
        team.run(4, &|_| {
            barrier.wait();
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_usable() {
        let team = Team::new(3);
        for culprit in 0..6 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(6, &|part| {
                    if part == culprit {
                        resume_unwind(Box::new(part));
                    }
                })
            }));
            assert_eq!(result.expect_err("a part panicked").downcast_ref::<usize>(), Some(&culprit));
            assert_once(&team, 10);
        }
        let all = catch_unwind(AssertUnwindSafe(|| team.run(3, &|part| resume_unwind(Box::new(part)))));
        assert!(all.is_err());
        assert_once(&team, 10);
    }

    #[test]
    fn a_nested_region_runs_on_its_own_thread() {
        let (team, other) = (Team::new(3), Team::new(2));
        let count = AtomicUsize::new(0);
        team.run(5, &|_| {
            let id = thread::current().id();
            for team in [&team, &other] {
                team.run(4, &|_| {
                    assert_eq!(thread::current().id(), id);
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(count.into_inner(), 5 * 8);
        assert_once(&team, 7);
    }

    #[test]
    fn callers_take_turns() {
        let team = Team::new(3);
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mine = AtomicUsize::new(0);
                        team.run(6, &|_| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 3, "two regions at once");
                            mine.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                        assert_eq!(mine.into_inner(), 6);
                    }
                });
            }
        });
    }

    #[test]
    fn a_team_is_shared_and_ends_cleanly() {
        fn assert_shared<T: Send + Sync>() {}
        assert_shared::<Team>();
        for n_threads in [1, 2, 8] {
            drop(Team::new(n_threads));
            let team = Team::new(n_threads);
            assert_once(&team, 20);
            thread::spawn(move || drop(team)).join().expect("dropping on another thread works");
        }
    }

    #[test]
    fn ranges_and_rows_cover_all() {
        for n_threads in [1, 2, 5] {
            let team = Team::new(n_threads);
            for (n, step) in [(0, 4), (1, 4), (4, 4), (17, 4), (100, 1), (100, 7), (3, 100)] {
                let hits: Vec<AtomicU32> = (0..n).map(|_| AtomicU32::new(0)).collect();
                team.split(n, step, &|range| {
                    assert!(range.start % step == 0 && (range.end % step == 0 || range.end == n) && !range.is_empty());
                    range.for_each(|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{n} by {step}");

                let mut data = vec![0; n];
                team.rows(&mut data, step, &|row, chunk| {
                    assert_eq!(chunk.len(), step.min(n - row * step));
                    chunk.iter_mut().enumerate().for_each(|(i, x)| *x += row * step + i + 1);
                });
                assert!(data.iter().enumerate().all(|(i, x)| *x == i + 1), "{n} in rows of {step}");
            }
        }
    }
}

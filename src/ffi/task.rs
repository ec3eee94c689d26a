//! A task: who watches a call that takes long, and stops it.

use super::edge::{self, Result};
use super::error::c_string;
use crate::pipelines::Cancel;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// Told how far a call is. `mmq_progress_fn` of `mmq.h`.
#[allow(non_camel_case_types)]
pub type mmq_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, phase: i32, done: f32)>;
/// Told what may interest a developer. `mmq_log_fn` of `mmq.h`.
#[allow(non_camel_case_types)]
pub type mmq_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char)>;

/// What a call is busy with, in the order in which it comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Phase {
    Load = 1,
    Encode = 2,
    Prefill = 3,
    Save = 4,
    Restore = 5,
}

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Level {
    Info = 1,
    Warning = 2,
}

/// Who watches and stops calls.
#[allow(non_camel_case_types)]
pub struct mmq_task {
    inner: Arc<Task>,
}

pub(super) struct Task {
    pub cancel: Cancel,
    progress: mmq_progress_fn,
    log: mmq_log_fn,
    user: *mut c_void,
}

// SAFETY: `user` is handed to the caller's own functions and never read here; `mmq.h` says on which threads they are called.
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

impl Task {
    /// The task of a call; one that nobody watches if `pointer` is null.
    pub unsafe fn of(pointer: *const mmq_task) -> Result<Arc<Task>> {
        if pointer.is_null() {
            let (cancel, user) = (Cancel::default(), std::ptr::null_mut());
            return Ok(Arc::new(Task { cancel, progress: None, log: None, user }));
        }
        // SAFETY: the caller gives null or a task that is not freed.
        Ok(unsafe { edge::object("task", pointer) }?.inner.clone())
    }

    /// An error if it is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(crate::Error::stopped().into()) } else { Ok(()) }
    }

    /// Passes progress on: each fraction from 0 to 1 and not below the one before.
    pub fn progress(&self, phase: Phase) -> impl FnMut(f32) {
        let mut last = -1.0;
        move |done: f32| {
            let done = done.clamp(0.0, 1.0);
            if let Some(progress) = self.progress
                && done > last
            {
                last = done;
                // SAFETY: the caller's function with the caller's pointer.
                unsafe { progress(self.user, phase as i32, done) };
            }
        }
    }

    pub fn log(&self, level: Level, message: impl FnOnce() -> String) {
        if let Some(log) = self.log {
            let message = c_string(message());
            // SAFETY: as above; the message lives until the call returns.
            unsafe { log(self.user, level as i32, message.as_ptr()) };
        }
    }
}

/// See `mmq.h`.
#[unsafe(no_mangle)]
pub extern "C" fn mmq_task_new(progress: mmq_progress_fn, log: mmq_log_fn, user: *mut c_void) -> *mut mmq_task {
    let inner = Arc::new(Task { cancel: Cancel::default(), progress, log, user });
    Box::into_raw(Box::new(mmq_task { inner }))
}

/// See `mmq.h`.
///
/// # Safety
/// `task` is null or from [`mmq_task_new`], and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_task_cancel(task: *const mmq_task) {
    // SAFETY: the caller's promise.
    if let Some(task) = unsafe { task.as_ref() } {
        task.inner.cancel.cancel();
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As [`mmq_task_cancel`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_task_is_cancelled(task: *const mmq_task) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { task.as_ref() }.is_some_and(|task| task.inner.cancel.is_cancelled()).into()
}

/// See `mmq.h`.
///
/// # Safety
/// As [`mmq_task_cancel`]; it is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_task_free(task: *mut mmq_task) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(task) }
}

//! The edge between C and Rust: arguments become references or errors, results become statuses, panics stop.

use super::error::{Failure, OK, mmq_error, mmq_status};
use crate::{Error, ErrorKind};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// What calls behind the edge return.
pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

thread_local! {
    /// Whether this thread is behind the edge.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of this thread behind the edge was.
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Marks the thread as one behind the edge: its panics print nothing.
pub(super) struct Inside(bool);

impl Inside {
    pub(super) fn enter() -> Inside {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let outer = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let is_worker = std::thread::current().name().is_some_and(|name| name.starts_with("mmq-"));
                if !INSIDE.get() && !is_worker {
                    return outer(info);
                }
                if let Some(at) = info.location() {
                    PANICKED_AT.set(format!(" ({}:{})", at.file(), at.line()));
                }
            }));
        });
        Inside(INSIDE.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(self.0);
    }
}

/// Runs a call. `error` is null or a place for an error object.
pub(super) unsafe fn run(error: *mut *mut mmq_error, call: impl FnOnce() -> Result<()>) -> mmq_status {
    match quietly(call) {
        Ok(()) => OK,
        Err(failure) => {
            let status = failure.status();
            if !error.is_null() && error.is_aligned() {
                // SAFETY: the caller gives a place that can be written, or null.
                unsafe { *error = Box::into_raw(failure.into_object()) };
            }
            status
        }
    }
}

/// Runs `call`; a panic becomes a failure.
pub(super) fn quietly<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(Failure::Panic(describe(payload))))
}

fn describe(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned();
    // Dropping what a panic carries might panic.
    std::mem::forget(payload);
    format!("a bug in mmq: {text}{}", PANICKED_AT.take())
}

/// A `Usage` failure.
pub(super) fn usage(message: String) -> Failure {
    Failure::Error(Error::new(ErrorKind::Usage, message))
}

/// The object behind a pointer.
pub(super) unsafe fn object<'a, T>(what: &str, pointer: *const T) -> Result<&'a T> {
    if !pointer.is_aligned() {
        return Err(usage(format!("{what} is no pointer of this library")));
    }
    // SAFETY: the caller of the C function gives null or what the library gave out.
    unsafe { pointer.as_ref() }.ok_or_else(|| usage(format!("{what} is NULL")))
}

/// A place that a result goes to.
pub(super) unsafe fn place<'a, T>(what: &str, pointer: *mut T) -> Result<&'a mut T> {
    if !pointer.is_aligned() {
        return Err(usage(format!("the place for {what} is not aligned")));
    }
    // SAFETY: the caller of the C function gives null or a place that can be written.
    unsafe { pointer.as_mut() }.ok_or_else(|| usage(format!("the place for {what} is NULL")))
}

/// A place for a new object, which is null until the call succeeds.
pub(super) unsafe fn new_place<'a, T>(what: &str, pointer: *mut *mut T) -> Result<&'a mut *mut T> {
    // SAFETY: as for `place`.
    let place = unsafe { place(what, pointer) }?;
    *place = std::ptr::null_mut();
    Ok(place)
}

/// `n` elements from `pointer` on, which may be null if there are none.
pub(super) unsafe fn slice<'a, T>(what: &str, pointer: *const T, n: usize) -> Result<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(usage(format!("{what} is NULL")));
    }
    if !pointer.is_aligned() || n > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(usage(format!("{what}: {n} elements cannot be")));
    }
    // SAFETY: the caller of the C function gives as much memory as it says.
    Ok(unsafe { std::slice::from_raw_parts(pointer, n) })
}

/// UTF-8 text that ends with NUL.
pub(super) unsafe fn text<'a>(what: &str, pointer: *const c_char) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(usage(format!("{what} is NULL")));
    }
    // SAFETY: the caller of the C function gives text that ends with NUL.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|e| usage(format!("{what} is no UTF-8: byte {} is wrong", e.valid_up_to())))
}

/// Frees an object; null is none.
pub(super) unsafe fn free<T>(pointer: *mut T) {
    if pointer.is_null() {
        return;
    }
    // A panic in a destructor leaves a leak, not a dead program.
    let _ = quietly(|| {
        // SAFETY: the caller gives back what the library gave out, for the last time.
        drop(unsafe { Box::from_raw(pointer) });
        Ok(())
    });
}

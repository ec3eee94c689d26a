//! Statuses and error objects.

use crate::{Error, ErrorKind};
use std::ffi::{CString, c_char};

/// `mmq_status` of `mmq.h`.
#[allow(non_camel_case_types)]
pub type mmq_status = i32;

/// `MMQ_OK`.
pub const OK: mmq_status = 0;
/// `MMQ_BUSY`: an object is in use by another thread, or by the call whose callback this is.
pub const BUSY: mmq_status = 10;
/// `MMQ_PANIC`: a bug of ours.
pub const PANIC: mmq_status = 11;

/// What went wrong.
#[allow(non_camel_case_types)]
pub struct mmq_error {
    status: mmq_status,
    message: CString,
}

/// Why a call fails: an [`Error`], or what only this interface knows.
pub(super) enum Failure {
    Error(Error),
    Busy(&'static str),
    Panic(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

impl Failure {
    pub(super) fn status(&self) -> mmq_status {
        match self {
            Failure::Error(error) => match error.kind() {
                ErrorKind::Usage => 1,
                ErrorKind::Io => 2,
                ErrorKind::Format => 3,
                ErrorKind::Unsupported => 4,
                ErrorKind::Mismatch => 5,
                ErrorKind::ContextFull => 6,
                ErrorKind::Memory => 7,
                ErrorKind::Cancelled => 8,
                ErrorKind::Failed => 9,
            },
            Failure::Busy(_) => BUSY,
            Failure::Panic(_) => PANIC,
        }
    }

    pub(super) fn into_object(self) -> Box<mmq_error> {
        let status = self.status();
        let message = match self {
            Failure::Error(error) => error.to_string(),
            Failure::Busy(what) => format!("the {what} is in use by another thread, or by the call that calls back"),
            Failure::Panic(message) => message,
        };
        Box::new(mmq_error { status, message: c_string(message) })
    }
}

/// `text` for C; a NUL in it becomes a replacement character.
pub(super) fn c_string(text: String) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).expect("NULs are replaced")
}

/// See `mmq.h`.
///
/// # Safety
/// `error` is null or from a call that failed, and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_error_status(error: *const mmq_error) -> mmq_status {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(OK, |error| error.status)
}

/// See `mmq.h`.
///
/// # Safety
/// As [`mmq_error_status`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_error_message(error: *const mmq_error) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// See `mmq.h`.
///
/// # Safety
/// As [`mmq_error_status`]; it is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_error_free(error: *mut mmq_error) {
    // SAFETY: the caller's promise.
    unsafe { super::edge::free(error) }
}

//! The C interface: `mmq.h` says what each function does; here are the objects behind its handles, and the edge at which
//! panics stop and arguments are checked. Swift and Kotlin stand on it. Nothing here knows a tensor.
#![allow(unsafe_code)]

mod chat;
mod edge;
mod engine;
mod error;
mod image;
mod options;
mod plan;
mod session;
mod task;

#[cfg(all(test, feature = "nano"))]
mod tests;

pub use chat::mmq_session;
pub use engine::*;
pub use error::*;
pub use image::*;
pub use options::mmq_option;
pub use plan::*;
pub use session::*;
pub use task::*;

use std::ffi::{CStr, c_char};

/// The version of the interface: that of `MMQ_ABI_VERSION` in `mmq.h`. Grows when programs have to be compiled again.
pub const ABI_VERSION: u32 = 1;

/// See `mmq.h`.
#[unsafe(no_mangle)]
pub extern "C" fn mmq_abi_version() -> u32 {
    ABI_VERSION
}

/// See `mmq.h`.
#[unsafe(no_mangle)]
pub extern "C" fn mmq_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version without NUL"),
    };
    VERSION.as_ptr()
}

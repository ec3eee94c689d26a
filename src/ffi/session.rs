//! The functions on sessions.

use super::chat::{Part, Role, mmq_session};
use super::edge::{self, usage};
use super::engine::{mmq_engine, whole};
use super::error::{mmq_error, mmq_status};
use super::image::{mmq_embedding, mmq_image};
use super::options::{self, mmq_option};
use super::task::{Phase, Task, mmq_task};
use crate::pipelines::{Cancel, Finish, Session};
use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;

/// Told each piece of an answer; anything but 0 ends it. `mmq_text_fn` of `mmq.h`.
#[allow(non_camel_case_types)]
pub type mmq_text_fn = Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, size: usize) -> i32>;

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_new(
    engine: *const mmq_engine,
    options: *const mmq_option,
    n_options: usize,
    session: *mut *mut mmq_session,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the session", session)?;
            let engine = &edge::object("engine", engine)?.engine;
            let (options, generation) = options::session(&options::pairs(options, n_options)?)?;
            let session = Session::new(engine, &options, &Cancel::default())?;
            *place = Box::into_raw(Box::new(mmq_session::new(session, generation)));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_free(session: *mut mmq_session) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(session) }
}

/// Appends what `part` reads from a call's arguments.
unsafe fn add(
    session: *mut mmq_session,
    role: i32,
    error: *mut *mut mmq_error,
    part: impl FnOnce() -> edge::Result<Part>,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let session = edge::object("session", session)?;
            let (part, role) = (part()?, Role::from_c(role)?);
            session.with(|chat| chat.add(role, part))
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_add_text(
    session: *mut mmq_session,
    role: i32,
    text: *const c_char,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe { add(session, role, error, || Ok(Part::Text(edge::text("text", text)?.to_owned()))) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_add_image(
    session: *mut mmq_session,
    role: i32,
    image: *const mmq_image,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe { add(session, role, error, || Ok(Part::Picture(edge::object("image", image)?.pixels.clone()))) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_add_embedding(
    session: *mut mmq_session,
    role: i32,
    embedding: *const mmq_embedding,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe { add(session, role, error, || Ok(Part::Encoded(edge::object("embedding", embedding)?.encoded.clone()))) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_count_tokens(
    session: *mut mmq_session,
    task: *const mmq_task,
    n_tokens: *mut usize,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let session = edge::object("session", session)?;
            let (task, n_tokens) = (Task::of(task)?, edge::place("the number of tokens", n_tokens)?);
            *n_tokens = session.with(|chat| chat.n_tokens(&task))?;
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_prefill(
    session: *mut mmq_session,
    task: *const mmq_task,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let (session, task) = (edge::object("session", session)?, Task::of(task)?);
            session.with(|chat| chat.prefill(&task))
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_generate(
    session: *mut mmq_session,
    task: *const mmq_task,
    on_text: mmq_text_fn,
    user: *mut c_void,
    finish: *mut i32,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let (session, task) = (edge::object("session", session)?, Task::of(task)?);
            // C wants a NUL behind the text.
            let mut piece = Vec::new();
            let mut on_text = |text: &str| {
                let Some(on_text) = on_text else { return ControlFlow::Continue(()) };
                piece.clear();
                piece.extend_from_slice(text.as_bytes());
                piece.push(0);
                match on_text(user, piece.as_ptr().cast(), text.len()) {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            };
            let made = session.with(|chat| chat.generate(&task, &mut on_text))?;
            if !finish.is_null() {
                *edge::place("the reason of the end", finish)? = match made {
                    Finish::EndOfTurn => 1,
                    Finish::Stop => 2,
                    Finish::Length => 3,
                    Finish::ContextFull => 4,
                    Finish::Cancelled => 5,
                };
            }
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_truncate(
    session: *mut mmq_session,
    n_messages: usize,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            edge::object("session", session)?.with(|chat| {
                chat.truncate(n_messages);
                Ok(())
            })
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_get(
    session: *mut mmq_session,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let session = edge::object("session", session)?;
            let (key, value) = (edge::text("key", key)?, edge::place("the value", value)?);
            *value = session.with(|chat| {
                Ok(match key {
                    "n_answer" => whole(chat.n_answer),
                    "n_ctx" => whole(chat.session.n_ctx()),
                    "n_messages" => whole(chat.n_messages()),
                    "n_past" => whole(chat.session.n_past()),
                    "n_read" => whole(chat.n_read),
                    "seed" => i64::from(chat.session.seed()),
                    _ => {
                        let known = "n_answer, n_ctx, n_messages, n_past, n_read, seed";
                        return Err(usage(format!("a session has no {key:?}; it has {known}")));
                    }
                })
            })?;
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_trim(session: *mut mmq_session, error: *mut *mut mmq_error) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            edge::object("session", session)?.with(|chat| {
                chat.session.trim();
                Ok(())
            })
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_save(
    session: *mut mmq_session,
    path: *const c_char,
    task: *const mmq_task,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let (session, path) = (edge::object("session", session)?, edge::text("path", path)?);
            let task = Task::of(task)?;
            session.with(|chat| {
                let mut show = task.progress(Phase::Save);
                Ok(task.cancel.guard(|| chat.session.save_watched(path.as_ref(), &mut show))?)
            })
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_session_restore(
    session: *mut mmq_session,
    path: *const c_char,
    task: *const mmq_task,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let (session, path) = (edge::object("session", session)?, edge::text("path", path)?);
            let task = Task::of(task)?;
            session.with(|chat| {
                let mut show = task.progress(Phase::Restore);
                Ok(task.cancel.guard(|| chat.session.restore_watched(path.as_ref(), &mut show))?)
            })
        })
    }
}

//! Files, and the engine that is loaded from them.

use super::edge::{self, Result, usage};
use super::error::{c_string, mmq_error, mmq_status};
use super::options::{self, mmq_option};
use super::task::{Level, Phase, Task, mmq_task};
use crate::gguf::Gguf;
use crate::pipelines::Engine;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Where a model lies.
#[allow(non_camel_case_types)]
pub struct mmq_file(Source);

enum Source {
    Path(PathBuf),
    Open { name: String, file: File, offset: u64, n_bytes: Option<u64> },
    Memory(Arc<Block>),
}

/// Memory of the caller's.
struct Block {
    data: *const u8,
    len: usize,
    release: mmq_release_fn,
    user: *mut c_void,
}

/// Called when memory is no longer needed. `mmq_release_fn` of `mmq.h`.
#[allow(non_camel_case_types)]
pub type mmq_release_fn = Option<unsafe extern "C" fn(user: *mut c_void)>;

// SAFETY: the caller promises that the memory stays as it is until `release`, which may be called on any thread.
unsafe impl Send for Block {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: the caller's function with the caller's pointer, once.
            unsafe { release(self.user) };
        }
    }
}

/// A block as what the reader keeps.
struct Shared(Arc<Block>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `mmq_file_memory` has checked the pointer, and the caller promises the memory behind it.
        unsafe { std::slice::from_raw_parts(self.0.data, self.0.len) }
    }
}

impl mmq_file {
    fn open(&self) -> Result<Gguf, crate::Error> {
        match &self.0 {
            Source::Path(path) => Gguf::open(path),
            Source::Open { name, file, offset, n_bytes } => Gguf::from_file(name, file, *offset, *n_bytes),
            Source::Memory(block) => Gguf::from_owner("memory", Shared(block.clone())),
        }
    }
}

/// A text model and its mmproj; none: those that are compiled into the library.
pub(super) struct Files<'a>(Option<(&'a mmq_file, Option<&'a mmq_file>)>);

impl Files<'_> {
    pub unsafe fn of<'a>(model: *const mmq_file, mmproj: *const mmq_file) -> Result<Files<'a>> {
        let file = |what, file: *const mmq_file| {
            // SAFETY: the caller of the C function gives null or files that are not freed.
            (!file.is_null()).then(|| unsafe { edge::object(what, file) }).transpose()
        };
        match (file("model", model)?, file("mmproj", mmproj)?) {
            (None, Some(_)) => Err(usage("an mmproj without the text model that it belongs to".into())),
            (model, mmproj) => Ok(Files(model.map(|model| (model, mmproj)))),
        }
    }

    pub fn open(&self) -> Result<(Gguf, Option<Gguf>), crate::Error> {
        match self.0 {
            Some((model, mmproj)) => Ok((model.open()?, mmproj.map(mmq_file::open).transpose()?)),
            None => built_in(),
        }
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_file_path(
    path: *const c_char,
    file: *mut *mut mmq_file,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the file", file)?;
            let path = edge::text("path", path)?;
            *place = Box::into_raw(Box::new(mmq_file(Source::Path(path.into()))));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_file_descriptor(
    descriptor: c_int,
    offset: u64,
    size: u64,
    file: *mut *mut mmq_file,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the file", file)?;
            let name = format!("descriptor {descriptor}");
            let file = duplicate(descriptor).map_err(|e| crate::Error::io(&name, &e))?;
            let n_bytes = (size > 0).then_some(size);
            *place = Box::into_raw(Box::new(mmq_file(Source::Open { name, file, offset, n_bytes })));
            Ok(())
        })
    }
}

#[cfg(unix)]
fn duplicate(descriptor: c_int) -> std::io::Result<File> {
    use std::os::fd::BorrowedFd;
    if descriptor < 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    // SAFETY: the number is no -1, and duplicating a descriptor that is not open is an error of the system's.
    unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().map(File::from)
}

#[cfg(not(unix))]
fn duplicate(_: c_int) -> std::io::Result<File> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_file_memory(
    data: *const c_void,
    size: usize,
    release: mmq_release_fn,
    user: *mut c_void,
    file: *mut *mut mmq_file,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the file", file)?;
            if data.is_null() || size == 0 || size > isize::MAX as usize {
                return Err(usage(format!("a file of {size} bytes in memory at {data:?} cannot be")));
            }
            let block = Block { data: data.cast(), len: size, release, user };
            *place = Box::into_raw(Box::new(mmq_file(Source::Memory(Arc::new(block)))));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_file_free(file: *mut mmq_file) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(file) }
}

/// A loaded model.
#[allow(non_camel_case_types)]
pub struct mmq_engine {
    pub(super) engine: Arc<Engine>,
    description: CString,
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_open(
    model: *const mmq_file,
    mmproj: *const mmq_file,
    options: *const mmq_option,
    n_options: usize,
    task: *const mmq_task,
    engine: *mut *mut mmq_engine,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the engine", engine)?;
            let options = options::engine(&options::pairs(options, n_options)?)?;
            let (files, task) = (Files::of(model, mmproj)?, Task::of(task)?);
            let start = Instant::now();
            let mut show = task.progress(Phase::Load);
            show(0.0);
            let loaded = task.cancel.guard(|| {
                let (model, mmproj) = files.open()?;
                Engine::build(&model, mmproj.as_ref(), &options, Some(&mut show))
            })?;
            show(1.0);
            task.log(Level::Info, || {
                let (name, what, level) = (loaded.name(), loaded.describe(), loaded.level());
                let (n_threads, template) = (loaded.n_threads(), loaded.template().name());
                let time = start.elapsed().as_secs_f64();
                format!("{name}: {what}; {level}, {n_threads} threads, template {template}; loaded in {time:.2} s")
            });
            let description = c_string(loaded.describe());
            *place = Box::into_raw(Box::new(mmq_engine { engine: Arc::new(loaded), description }));
            Ok(())
        })
    }
}

#[cfg(feature = "nano")]
fn built_in() -> Result<(Gguf, Option<Gguf>), crate::Error> {
    let [text, vision] = Engine::built_in_files()?;
    Ok((text, Some(vision)))
}

#[cfg(not(feature = "nano"))]
fn built_in() -> Result<(Gguf, Option<Gguf>), crate::Error> {
    crate::bail!(Unsupported, "no model given, and none is compiled into this library (feature \"nano\")")
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_free(engine: *mut mmq_engine) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(engine) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_trim(engine: *const mmq_engine) {
    // SAFETY: the caller's promise.
    if let Some(engine) = unsafe { engine.as_ref() } {
        let _ = edge::quietly(|| {
            engine.engine.trim();
            Ok(())
        });
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_describe(engine: *const mmq_engine) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { engine.as_ref() }.map_or(c"".as_ptr(), |engine| engine.description.as_ptr())
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_get(
    engine: *const mmq_engine,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let engine = &edge::object("engine", engine)?.engine;
            let (key, value) = (edge::text("key", key)?, edge::place("the value", value)?);
            *value = match key {
                "has_vision" => engine.has_vision().into(),
                "n_bytes" => whole(engine.info().n_bytes),
                "n_ctx_train" => whole(engine.n_ctx_train()),
                "n_embd" => whole(engine.n_embd()),
                "n_params" => whole(engine.info().n_params),
                "n_threads" => whole(engine.n_threads()),
                "n_vocab" => whole(engine.tokenizer().n_vocab()),
                _ => {
                    let known = "has_vision, n_bytes, n_ctx_train, n_embd, n_params, n_threads, n_vocab";
                    return Err(usage(format!("an engine has no {key:?}; it has {known}")));
                }
            };
            Ok(())
        })
    }
}

/// `n` as C's numbers are; what is beyond them cannot be in memory.
pub(super) fn whole(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_tokenize(
    engine: *const mmq_engine,
    text: *const c_char,
    task: *const mmq_task,
    tokens: *mut u32,
    capacity: usize,
    n_tokens: *mut usize,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let engine = &edge::object("engine", engine)?.engine;
            let text = edge::text("text", text)?;
            let task = Task::of(task)?;
            let n_tokens = edge::place("the number of tokens", n_tokens)?;
            if capacity > 0 && (tokens.is_null() || !tokens.is_aligned()) {
                return Err(usage(format!("there is no place for {capacity} tokens")));
            }
            let found = task.cancel.guard(|| Ok(engine.tokenizer().encode(text, true, true)))?;
            *n_tokens = found.len();
            let n = found.len().min(capacity);
            if n > 0 {
                std::ptr::copy_nonoverlapping(found.as_ptr(), tokens, n);
            }
            Ok(())
        })
    }
}

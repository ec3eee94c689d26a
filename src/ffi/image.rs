//! Pictures, and what an engine makes of them.

use super::edge::{self, Result, usage};
use super::engine::mmq_engine;
use super::error::{mmq_error, mmq_status};
use super::task::{Phase, Task, mmq_task};
use crate::media::decode::over;
use crate::media::{self, DecodeOptions, Image};
use crate::pipelines::EncodedImage;
use crate::{Error, ErrorKind};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// A picture's pixels.
#[allow(non_camel_case_types)]
pub struct mmq_image {
    pub(super) pixels: Arc<Image>,
}

/// What stands for a picture in a prompt.
#[allow(non_camel_case_types)]
pub struct mmq_embedding {
    pub(super) encoded: Arc<EncodedImage>,
    n_embd: usize,
}

/// How often a caller who waits for a decoder looks whether it is cancelled.
const WAIT: Duration = Duration::from_millis(5);

/// Decodes on a thread of its own: decoders cannot be interrupted, but who waits for one can go away.
fn decode(data: &[u8], task: &Task) -> Result<Image> {
    task.check()?;
    let data = data.to_vec();
    let (send, receive) = mpsc::sync_channel(1);
    let work = move || {
        let decoded = edge::quietly(|| Ok(media::decode("picture", &data, &DecodeOptions::default())?));
        // Nobody waits any more if the task was cancelled.
        let _ = send.send(decoded);
    };
    std::thread::Builder::new()
        .name("mmq-decode".into())
        .spawn(work)
        .map_err(|e| Error::new(ErrorKind::Memory, format!("no thread to decode a picture on: {e}")))?;
    loop {
        match receive.recv_timeout(WAIT) {
            Ok(decoded) => {
                task.check()?;
                return decoded;
            }
            Err(RecvTimeoutError::Timeout) => task.check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(usage("the decoder's thread is gone".into())),
        }
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_image_decode(
    data: *const c_void,
    size: usize,
    task: *const mmq_task,
    image: *mut *mut mmq_image,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the picture", image)?;
            let data = edge::slice("the picture's file", data.cast::<u8>(), size)?;
            let pixels = decode(data, &*Task::of(task)?)?;
            *place = Box::into_raw(Box::new(mmq_image { pixels: Arc::new(pixels) }));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_image_raw(
    pixels: *const c_void,
    width: usize,
    height: usize,
    stride: usize,
    format: i32,
    image: *mut *mut mmq_image,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the picture", image)?;
            let size = Raw::check(width, height, stride, format)?;
            let bytes = edge::slice("pixels", pixels.cast::<u8>(), size.n_bytes)?;
            *place = Box::into_raw(Box::new(mmq_image { pixels: Arc::new(size.read(bytes)) }));
            Ok(())
        })
    }
}

/// The layout of a raw picture.
struct Raw {
    width: usize,
    height: usize,
    stride: usize,
    /// Bytes of a pixel.
    n_channels: usize,
    /// Where red, green and blue lie in a pixel.
    rgb: [usize; 3],
    /// Bytes from the first pixel to the end of the last.
    n_bytes: usize,
}

impl Raw {
    fn check(width: usize, height: usize, stride: usize, format: i32) -> Result<Raw> {
        let (n_channels, rgb) = match format {
            1 => (3, [0, 1, 2]),
            2 => (4, [0, 1, 2]),
            3 => (4, [2, 1, 0]),
            _ => return Err(usage(format!("pixel format {format}: expected MMQ_RGB, MMQ_RGBA or MMQ_BGRA"))),
        };
        let most = DecodeOptions::default().max_pixels;
        let n = width.checked_mul(height).filter(|n| *n as u64 <= most);
        if width == 0 || height == 0 || n.is_none() {
            return Err(usage(format!("a picture of {width}x{height}: expected 1 to {most} pixels")));
        }
        let row = width * n_channels;
        let stride = if stride == 0 { row } else { stride };
        let n_bytes = stride.checked_mul(height - 1).and_then(|n| n.checked_add(row));
        match n_bytes.filter(|_| stride >= row) {
            Some(n_bytes) => Ok(Raw { width, height, stride, n_channels, rgb, n_bytes }),
            None => Err(usage(format!("stride {stride}: rows of {width} pixels have {row} bytes"))),
        }
    }

    /// The picture, transparent pixels laid over white.
    fn read(&self, bytes: &[u8]) -> Image {
        let mut rgb = Vec::with_capacity(self.width * self.height * 3);
        for row in bytes.chunks(self.stride) {
            for pixel in row.chunks_exact(self.n_channels).take(self.width) {
                let over_white = |value: u8| match pixel.get(3) {
                    None | Some(255) => value,
                    Some(&alpha) => over(value, 255, alpha),
                };
                rgb.extend(self.rgb.map(|at| over_white(pixel[at])));
            }
        }
        Image { width: self.width, height: self.height, rgb }
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_image_size(
    image: *const mmq_image,
    width: *mut usize,
    height: *mut usize,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let pixels = &edge::object("image", image)?.pixels;
            *edge::place("the width", width)? = pixels.width;
            *edge::place("the height", height)? = pixels.height;
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_image_free(image: *mut mmq_image) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(image) }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_count_image_tokens(
    engine: *const mmq_engine,
    width: usize,
    height: usize,
    n_tokens: *mut usize,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let engine = &edge::object("engine", engine)?.engine;
            *edge::place("the number of tokens", n_tokens)? = engine.n_image_tokens(width, height)?;
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_engine_encode(
    engine: *const mmq_engine,
    image: *const mmq_image,
    task: *const mmq_task,
    embedding: *mut *mut mmq_embedding,
    error: *mut *mut mmq_error,
) -> mmq_status {
    // SAFETY: the caller's pointers, as `mmq.h` says.
    unsafe {
        edge::run(error, || {
            let place = edge::new_place("the embedding", embedding)?;
            let engine = &edge::object("engine", engine)?.engine;
            let pixels = &edge::object("image", image)?.pixels;
            let task = Task::of(task)?;
            let mut show = task.progress(Phase::Encode);
            let encoded = engine.encode_image(pixels, Some(&task.cancel), Some(&mut show))?;
            show(1.0);
            *place = Box::into_raw(Box::new(mmq_embedding { encoded, n_embd: engine.n_embd() }));
            Ok(())
        })
    }
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_embedding_data(
    embedding: *const mmq_embedding,
    n_tokens: *mut usize,
    n_embd: *mut usize,
) -> *const f32 {
    // SAFETY: the caller's promise.
    let (embedding, n_tokens, n_embd) = unsafe { (embedding.as_ref(), n_tokens.as_mut(), n_embd.as_mut()) };
    if let Some(n) = n_tokens {
        *n = embedding.map_or(0, |e| e.encoded.n_tokens());
    }
    if let Some(n) = n_embd {
        *n = embedding.map_or(0, |e| e.n_embd);
    }
    embedding.map_or(std::ptr::null(), |e| e.encoded.rows().as_ptr())
}

/// See `mmq.h`.
///
/// # Safety
/// As `mmq.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmq_embedding_free(embedding: *mut mmq_embedding) {
    // SAFETY: the caller's promise.
    unsafe { edge::free(embedding) }
}

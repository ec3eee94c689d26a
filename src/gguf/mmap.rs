//! Mapping a file into memory: the one place of the library's formats that needs `unsafe`.
#![allow(unsafe_code)]

use super::Bytes;
use crate::bail;
use crate::{Error, Result};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps the whole of `path`, read-only.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    // Asked before opening: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
    if about.is_dir() {
        bail!(Io, "{}: is a folder, not a GGUF file", path.display());
    }
    if !about.is_file() {
        bail!(Io, "{}: is no regular file, and only those can be mapped", path.display());
    }
    let file = File::open(path).map_err(|e| Error::io(path, &e))?;
    // Mapping nothing is an error on some systems; the reader has a better one.
    if about.len() == 0 {
        return Ok(Bytes::from(Vec::new()));
    }
    // SAFETY: the mapping is private to `Bytes`, read-only and unmapped with its last clone. Another program may change
    // the file meanwhile, which `Gguf::open` documents: metadata are copied out as they are checked, and tensor data
    // are numbers of which every bit pattern is valid.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
    let len = map.len();
    Ok(Bytes { owner: Arc::new(map), start: 0, len })
}

//! Memory from the system: mapped files and fresh pages. The one place of the library's formats that needs `unsafe`.
#![allow(unsafe_code)]

use super::{Bytes, Storage};
use crate::bail;
use crate::{Error, ErrorKind, Result};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Maps the whole of `path`, read-only.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    // Asked before opening: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
    if about.is_dir() {
        bail!(Io, "{}: is a folder, not a file", path.display());
    }
    if !about.is_file() {
        bail!(Io, "{}: is no regular file, and only those can be mapped", path.display());
    }
    let file = File::open(path).map_err(|e| Error::io(path, &e))?;
    map_part(path, &file, 0..about.len())
}

/// Maps `range` of a file that is open already and was checked to be a regular one, read-only; `name` stands for it in
/// messages.
pub(super) fn map_part(name: &Path, file: &File, range: Range<u64>) -> Result<Bytes> {
    let len = usize::try_from(range.end - range.start)
        .map_err(|_| Error::new(ErrorKind::Memory, format!("{}: more than can be addressed", name.display())))?;
    // Mapping nothing is an error on some systems; the reader has a better one.
    if len == 0 {
        return Ok(Bytes::from(Vec::new()));
    }
    // SAFETY: the mapping is private to `Bytes`, read-only and unmapped with its last clone. Another program may change
    // the file meanwhile, which `Gguf::open` documents: metadata are copied out as they are checked, and tensor data
    // are numbers of which every bit pattern is valid.
    let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(file) }.map_err(|e| Error::io(name, &e))?;
    Ok(Bytes { owner: Arc::new(MappedFile(map)), start: 0, len })
}

/// A file that is mapped read-only.
struct MappedFile(Mmap);

impl Storage for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(unix)]
    fn give_back(&self, range: Range<usize>) {
        // SAFETY: pages of a file that is mapped read-only hold nothing but the file's content; dropped ones are read
        // from the file again when they are next touched.
        let given =
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        // A system that declines keeps the pages, which costs memory and nothing else.
        let _ = given;
    }

    #[cfg(unix)]
    fn read_ahead(&self, range: Range<usize>) {
        // What is read in passing is to leave the system's cache before what stays in use.
        let _ = self.0.advise_range(memmap2::Advice::Sequential, range.start, range.len());
        // Without it the pages are read one by one, when they are touched.
        let _ = self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    }
}

/// Pages that belong to the process alone.
struct Pages(Mmap);

impl Storage for Pages {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Drop for Pages {
    /// Empties the pages piece by piece: unmapping full ones keeps all other threads from mapping anything meanwhile, and
    /// gigabytes take a tenth of a second.
    fn drop(&mut self) {
        const PIECE: usize = 4 << 20;
        // Pieces begin where huge pages do, which would be broken up otherwise.
        let start = self.0.as_ptr().addr();
        let mut at = 0;
        while at < self.0.len() {
            let end = ((start + at) / PIECE * PIECE + PIECE - start).min(self.0.len());
            // SAFETY: nobody can read the pages any more.
            let emptied = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, end - at) };
            // Unmapping empties what is left.
            let _ = emptied;
            at = end;
        }
    }
}

/// Fresh pages of `len` bytes, not yet touched. Large ones are huge where the system has such on demand.
pub(super) fn pages(len: usize) -> Result<MmapMut> {
    let pages = MmapMut::map_anon(len)
        .map_err(|e| Error::new(ErrorKind::Memory, format!("{len} bytes of memory cannot be had: {e}")))?;
    #[cfg(target_os = "linux")]
    {
        // Ordinary pages do as well.
        let _ = pages.advise(memmap2::Advice::HugePage);
    }
    Ok(pages)
}

/// Pages that will not be written again.
pub(super) fn finished(pages: MmapMut) -> Result<Bytes> {
    let len = pages.len();
    let pages = pages
        .make_read_only()
        .map_err(|e| Error::new(ErrorKind::Memory, format!("{len} bytes of memory cannot be protected: {e}")))?;
    Ok(Bytes { owner: Arc::new(Pages(pages)), start: 0, len })
}

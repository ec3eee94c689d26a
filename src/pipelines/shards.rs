//! Models cut into several files, and put together again. Weights are copied as they are.

use super::Cancel;
use crate::gguf::{Gguf, SPLIT_KEYS, Writer};
use crate::{Error, ErrorKind, Result, bail};
use std::path::Path;

/// Bytes that are copied between two looks at who wants to stop.
const CHUNK: usize = 8 << 20;

/// Where one file ends and the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many tensors in each file.
    Tensors(usize),
    /// As many bytes of tensors in a file at most, or one tensor if that is larger.
    Bytes(u64),
}

/// The files that a model shall be.
#[derive(Debug)]
pub struct Shards<'a> {
    gguf: &'a Gguf,
    files: Vec<Writer>,
}

impl<'a> Shards<'a> {
    /// Cuts `gguf` as llama.cpp's gguf-split does: tensors in their order, metadata in the first file, which with
    /// `bare_first` holds nothing else.
    ///
    /// # Errors
    /// `Usage` for a model that is split or packed, for a limit of nothing or one that leaves too many files.
    pub fn split(gguf: &'a Gguf, limit: Limit, bare_first: bool) -> Result<Shards<'a>> {
        not_packed(gguf)?;
        if gguf.n_shards() > 1 {
            bail!(
                Usage,
                "{}: is split already, into {} files: `mmq merge` makes one of them",
                gguf.name(),
                gguf.n_shards()
            );
        }
        if matches!(limit, Limit::Tensors(0) | Limit::Bytes(0)) {
            bail!(Usage, "files of no tensors: expected a limit of at least 1");
        }
        let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
        if bare_first {
            groups.push(Vec::new());
        }
        let mut size = 0;
        for (i, info) in gguf.tensors().iter().enumerate() {
            let bytes = (info.n_bytes as u64).next_multiple_of(crate::gguf::DEFAULT_ALIGNMENT as u64);
            let group = groups.last().expect("there is one at least");
            let is_full = match limit {
                Limit::Tensors(n) => group.len() == n,
                Limit::Bytes(n) => !group.is_empty() && size + bytes > n,
            };
            if is_full {
                groups.push(Vec::new());
                size = 0;
            }
            size += bytes;
            groups.last_mut().expect("there is one at least").push(i);
        }
        let (Ok(count), Ok(n_tensors)) = (u16::try_from(groups.len()), i32::try_from(gguf.tensors().len())) else {
            bail!(Usage, "{}: {} files are too many: expected at most {}", gguf.name(), groups.len(), u16::MAX);
        };
        let mut files = Vec::with_capacity(groups.len());
        for (i, group) in groups.iter().enumerate() {
            let mut file = if i == 0 { Writer::like(gguf) } else { Writer::new() };
            if i > 0
                && let Some(alignment) = gguf.metadata().get("general.alignment")
            {
                file.set("general.alignment", alignment.clone());
            }
            let [no_key, count_key, tensors_key] = SPLIT_KEYS;
            for key in SPLIT_KEYS {
                file.remove(key);
            }
            file.set(no_key, i as u16).set(tensors_key, n_tensors).set(count_key, count);
            for &at in group {
                let info = &gguf.tensors()[at];
                file.tensor(&info.name, info.dtype, &info.shape)?;
            }
            files.push(file);
        }
        Ok(Shards { gguf, files })
    }

    /// Makes one file of a split model.
    ///
    /// # Errors
    /// `Usage` for a model that is not split, or packed.
    pub fn merge(gguf: &'a Gguf) -> Result<Shards<'a>> {
        not_packed(gguf)?;
        if gguf.n_shards() == 1 {
            bail!(Usage, "{}: is one file already, or says so", gguf.name());
        }
        let mut file = Writer::like(gguf);
        for info in gguf.tensors() {
            file.tensor(&info.name, info.dtype, &info.shape)?;
        }
        Ok(Shards { gguf, files: vec![file] })
    }

    /// For each file the number of its tensors and its size in bytes.
    ///
    /// # Errors
    /// `Format` if a file could not be read again.
    pub fn files(&self) -> Result<Vec<(usize, u64)>> {
        let name = self.gguf.name();
        self.files.iter().map(|file| Ok((file.tensors().len(), file.file_bytes(name)?))).collect()
    }

    /// Writes the files to `paths`; all of them appear when the last is complete. `progress` is told the fraction done.
    ///
    /// # Errors
    /// Files that cannot be written; `cancel` used by another thread.
    pub fn write(&self, paths: &[impl AsRef<Path>], cancel: &Cancel, progress: &mut dyn FnMut(f32)) -> Result<()> {
        assert_eq!(paths.len(), self.files.len());
        let total = self.gguf.n_bytes() as f32;
        let mut done = 0;
        let mut staged = Vec::with_capacity(paths.len());
        for (file, path) in self.files.iter().zip(paths) {
            staged.push(file.stage(path, |info, sink| {
                let bytes = self.gguf.bytes(self.gguf.tensor(&info.name).expect("its own tensor"));
                for at in (0..bytes.len()).step_by(CHUNK) {
                    if cancel.is_cancelled() {
                        return Err(Error::new(ErrorKind::Cancelled, "stopped"));
                    }
                    let part = at..(at + CHUNK).min(bytes.len());
                    bytes.read_ahead(part.end..(part.end + CHUNK).min(bytes.len()));
                    sink.put(&bytes[part.clone()])?;
                    done += part.len();
                    bytes.give_back(part);
                    progress(done as f32 / total);
                }
                Ok(())
            })?);
        }
        staged.into_iter().try_for_each(|file| file.commit())
    }
}

fn not_packed(gguf: &Gguf) -> Result<()> {
    if gguf.packed().is_some() {
        let name = gguf.name();
        bail!(Usage, "{name}: is packed for mmq; turn it back first: mmq pack --unpack {name} -o FILE");
    }
    Ok(())
}

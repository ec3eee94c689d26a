//! Encoded pictures that are kept: in memory up to a bound, the least recently used leaving first; and in a folder, so that the
//! next run need not encode them again. Its files are checked like any other; a damaged one is removed.

use super::prompt::{EncodedImage, ImageHeader, ImageId};
use super::sealed::{self, Format, Source};
use crate::{Error, Result, bail};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

const FORMAT: Format = Format { magic: b"mmqimage", version: 1, what: "cached picture" };
/// What the names of its files end in.
const EXTENSION: &str = "mmq-image";

/// Where encoded pictures are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageCacheOptions {
    /// Most bytes in memory; 0: none are kept.
    pub n_bytes: usize,
    /// A folder of their own, made if it is not there; `None`: they are kept in memory only.
    pub dir: Option<PathBuf>,
    /// Most bytes in the folder.
    pub dir_bytes: u64,
}

impl Default for ImageCacheOptions {
    /// 128 MiB in memory, no folder.
    fn default() -> ImageCacheOptions {
        ImageCacheOptions { n_bytes: 128 << 20, dir: None, dir_bytes: 1 << 30 }
    }
}

/// How often pictures were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageCacheStats {
    /// Found in memory.
    pub memory_hits: usize,
    /// Found in the folder.
    pub disk_hits: usize,
    /// Found nowhere, and encoded.
    pub misses: usize,
    /// Pictures in memory.
    pub n_images: usize,
    /// Bytes that they take.
    pub n_bytes: usize,
}

#[derive(Default)]
struct State {
    /// Most recently used last.
    kept: VecDeque<Arc<EncodedImage>>,
    stats: ImageCacheStats,
    warnings: Vec<String>,
}

/// The pictures that an engine keeps.
pub(super) struct ImageCache {
    options: ImageCacheOptions,
    state: Mutex<State>,
}

impl ImageCache {
    pub fn new(options: &ImageCacheOptions) -> ImageCache {
        ImageCache { options: options.clone(), state: Mutex::default() }
    }

    /// The picture, if it is kept somewhere; `n_embd` wide, as the model makes it.
    pub fn find(&self, id: ImageId, n_embd: usize) -> Option<Arc<EncodedImage>> {
        let mut state = self.state();
        if let Some(at) = state.kept.iter().position(|image| image.id() == id) {
            let image = state.kept.remove(at)?;
            state.kept.push_back(image.clone());
            state.stats.memory_hits += 1;
            return Some(image);
        }
        drop(state);
        let path = self.path(id)?;
        match read(&path, id, n_embd) {
            Ok(image) => {
                let image = Arc::new(image);
                // The folder's least recently used leave first. Where the time cannot be set, they leave by age.
                let _ = fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
                self.keep(&image);
                self.state().stats.disk_hits += 1;
                Some(image)
            }
            Err(None) => None,
            Err(Some(error)) => {
                let _ = fs::remove_file(&path);
                self.warn(format!("{error}; the picture is encoded again"));
                None
            }
        }
    }

    /// Keeps a picture that was encoded.
    pub fn insert(&self, image: &Arc<EncodedImage>) {
        self.keep(image);
        self.state().stats.misses += 1;
        let Some(path) = self.path(image.id()) else { return };
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| Error::io(&path, &e));
        let written = written.and_then(|()| {
            sealed::write(&path, &FORMAT, &image.header(), |sink| sink.put_floats(&image.rows))?;
            self.make_room()
        });
        if let Err(error) = written {
            self.warn(format!("the picture could not be kept: {error}"));
        }
    }

    /// Keeps a picture in memory.
    pub fn keep(&self, image: &Arc<EncodedImage>) {
        let mut state = self.state();
        state.kept.retain(|kept| kept.id() != image.id());
        state.kept.push_back(image.clone());
        let mut n_bytes: usize = state.kept.iter().map(|image| image.n_bytes()).sum();
        while n_bytes > self.options.n_bytes {
            let Some(oldest) = state.kept.pop_front() else { break };
            n_bytes -= oldest.n_bytes();
        }
    }

    /// Forgets what is in memory.
    pub fn clear(&self) {
        self.state().kept.clear();
    }

    pub fn stats(&self) -> ImageCacheStats {
        let state = self.state();
        let n_bytes = state.kept.iter().map(|image| image.n_bytes()).sum();
        ImageCacheStats { n_images: state.kept.len(), n_bytes, ..state.stats }
    }

    /// What went wrong since the last call, without which pictures were encoded all the same.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.state().warnings)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Whatever panicked, what is kept is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, text: String) {
        self.state().warnings.push(text);
    }

    fn path(&self, id: ImageId) -> Option<PathBuf> {
        Some(self.options.dir.as_ref()?.join(format!("{id}.{EXTENSION}")))
    }

    /// Removes the files that were used longest ago until the rest fits; others than its own are left alone.
    fn make_room(&self) -> Result<()> {
        let Some(dir) = &self.options.dir else { return Ok(()) };
        let failed = |e: std::io::Error| Error::io(dir, &e);
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == EXTENSION)
                && let Ok(about) = fs::metadata(&path)
            {
                files.push((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, n, _)| n).sum();
        for (_, n, path) in files {
            if total <= self.options.dir_bytes {
                break;
            }
            // Another process may have removed it.
            let _ = fs::remove_file(path);
            total -= n;
        }
        Ok(())
    }
}

/// Reads a file of the folder; `Err(None)` if it is not there.
fn read(path: &Path, id: ImageId, n_embd: usize) -> Result<EncodedImage, Option<Error>> {
    if !path.exists() {
        return Err(None);
    }
    let read = || {
        let (mut data, n_bytes) = sealed::open(path)?;
        let name = path.display().to_string();
        let (header, mut source) = Source::open::<ImageHeader>(&name, &FORMAT, &mut data, n_bytes)?;
        if header.id != id {
            bail!(Format, "{name}: expected picture {id}, got {}", header.id);
        }
        let n = header.n_tokens.checked_mul(n_embd).filter(|n| *n > 0);
        source.expect(n.and_then(|n| (n as u64).checked_mul(4)))?;
        let rows = source.take_floats(n.unwrap_or(0))?;
        source.finish()?;
        Ok(EncodedImage::restored(header, rows))
    };
    read().map_err(Some)
}

//! Writes GGUF files, one tensor after the other, so that memory need hold no more than the caller does.

use super::{Array, Gguf, TensorInfo, Value, index, quote, reader};
use crate::{Dtype, Error, Result, bail};
use mmq_kernels::Layout;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::{
    fs,
    io::{self, BufWriter, Write},
};

/// A GGUF file to be: metadata and tensor entries, in the order in which they are given. The data come with
/// [`Writer::write`].
///
/// Reading a file and writing it again with [`Writer::like`] and its tensors gives the same bytes, if that file has no
/// gaps between tensors, has them in the order of their entries, pads with zeros and ends where its data end.
#[derive(Clone, Debug)]
pub struct Writer {
    version: u32,
    /// Whether the last tensor is padded to the alignment as the others are.
    pad_end: bool,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    /// A file of version 3 with neither metadata nor tensors.
    pub fn new() -> Writer {
        Writer { version: 3, pad_end: true, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// A file with the version, metadata and kind of padding of `gguf`, but no tensors. It is one file, even if `gguf`
    /// is split: the keys that say so are left out.
    pub fn like(gguf: &Gguf) -> Writer {
        let split = gguf.n_shards() > 1;
        let keep = |key: &str| !(split && key.starts_with("split."));
        let metadata = gguf.metadata().iter().filter(|(key, _)| keep(key));
        let alignment = reader::alignment(gguf.name(), gguf.metadata().get(reader::ALIGNMENT));
        let alignment = alignment.expect("the reader has checked it") as u64;
        let mut writer = Writer {
            version: gguf.version(),
            pad_end: split || gguf.file_bytes().is_multiple_of(alignment),
            metadata: metadata.map(|(key, value)| (key.to_string(), value.clone())).collect(),
            tensors: Vec::new(),
        };
        if gguf.packed().is_some() {
            writer.tag(gguf.metadata());
        }
        writer
    }

    /// Sets `key`, in its old place if it is there, else after the others. `general.alignment` (a power of two, as
    /// `u32`) is the alignment of tensors, else [`super::DEFAULT_ALIGNMENT`].
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Writer {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_string(), value)),
        }
        self
    }

    /// Removes `key`, if it is there.
    pub fn remove(&mut self, key: &str) -> &mut Writer {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Adds a tensor, whose data are asked for later. `shape` is outermost first.
    ///
    /// # Errors
    /// `Format` if a reader would refuse it: a dimension of 0, rows that are no whole number of blocks.
    pub fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&mut Writer> {
        let in_tensor = |e: Error| e.context(format!("tensor {}", quote(name)));
        let n_bytes = reader::n_bytes(dtype, shape).map_err(in_tensor)?;
        self.tensors.push(TensorInfo {
            name: name.to_string(),
            dtype,
            shape: shape.to_vec(),
            n_bytes,
            layout: Layout::Rows,
            shard: 0,
            offset: 0,
        });
        Ok(self)
    }

    /// The tensors added so far.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Writes the file to `path`, asking `data` for each tensor's bytes in turn.
    ///
    /// It is written beside `path` under a temporary name and renamed when it is complete, so that `path` is never half
    /// a file, and may be the file that the data come from.
    ///
    /// # Errors
    /// `Io` if it cannot be written, `Format` if a reader would refuse it, and whatever `data` returns.
    pub fn write(&self, path: impl AsRef<Path>, data: impl FnMut(&TensorInfo, &mut Sink) -> Result<()>) -> Result<()> {
        self.stage(path, data)?.commit()
    }

    /// As [`Writer::write`], but the file keeps its temporary name until [`Staged::commit`]: of several files that belong
    /// together, all or none take their places.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn stage(
        &self,
        path: impl AsRef<Path>,
        data: impl FnMut(&TensorInfo, &mut Sink) -> Result<()>,
    ) -> Result<Staged> {
        let path = path.as_ref();
        stage(path, |out| self.write_to(&path.display().to_string(), out, data))
    }

    /// Writes the file to `out`, which messages call `name`, asking `data` for each tensor's bytes in turn.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn write_to(
        &self,
        name: &str,
        out: &mut dyn Write,
        mut data: impl FnMut(&TensorInfo, &mut Sink) -> Result<()>,
    ) -> Result<()> {
        let alignment = self.check(name)?;
        let mut out = Counted { out, name, at: 0 };
        self.write_entries(&mut out, alignment)?;
        for t in &self.tensors {
            out.pad(alignment)?;
            let mut sink = Sink { out: &mut out, tensor: t, left: t.n_bytes };
            data(t, &mut sink)?;
            if sink.left > 0 {
                let n = t.n_bytes - sink.left;
                bail!(Format, "{name}: tensor {}: expected {} bytes of data, got {n}", quote(&t.name), t.n_bytes);
            }
        }
        if self.pad_end {
            out.pad(alignment)?;
        }
        out.out.flush().map_err(|e| Error::io(name, &e))
    }

    /// The size that the file will have, in bytes; `name` stands for it in messages.
    ///
    /// # Errors
    /// `Format` if a reader would refuse it.
    pub fn file_bytes(&self, name: &str) -> Result<u64> {
        let alignment = self.check(name)?;
        let mut nowhere = std::io::sink();
        let mut out = Counted { out: &mut nowhere, name, at: 0 };
        self.write_entries(&mut out, alignment)?;
        let end = self.tensors.iter().fold(out.at, |at, t| at.next_multiple_of(alignment) + t.n_bytes as u64);
        Ok(if self.pad_end { end.next_multiple_of(alignment) } else { end })
    }

    /// Writes what comes before the tensors' data.
    fn write_entries(&self, out: &mut Counted<'_>, alignment: u64) -> Result<()> {
        out.put(b"GGUF")?;
        out.u32(self.version)?;
        out.u64(self.tensors.len() as u64)?;
        out.u64(self.metadata.len() as u64)?;
        for (key, value) in &self.metadata {
            out.string(key)?;
            out.value(value)?;
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            out.string(&t.name)?;
            out.u32(t.shape.len() as u32)?;
            for &d in t.shape.iter().rev() {
                out.u64(d as u64)?;
            }
            out.u32(t.dtype as u32)?;
            out.u64(offset)?;
            offset = (offset + t.n_bytes as u64).next_multiple_of(alignment);
        }
        Ok(())
    }

    /// Checks that what is written can be read; gives the alignment.
    fn check(&self, name: &str) -> Result<u64> {
        for (key, value) in &self.metadata {
            if key.is_empty() {
                bail!(Format, "{name}: a key is empty");
            }
            if matches!(value, Value::Array(array) if depth(array) > reader::MAX_DEPTH) {
                bail!(Format, "{name}: key {}: arrays nest deeper than {} levels", quote(key), reader::MAX_DEPTH);
            }
        }
        if let Err(key) = index(self.metadata.len(), |i| &self.metadata[i].0) {
            bail!(Format, "{name}: key {} comes twice", quote(key));
        }
        if self.tensors.iter().any(|t| t.name.is_empty()) {
            bail!(Format, "{name}: a tensor's name is empty");
        }
        if let Err(tensor) = index(self.tensors.len(), |i| &self.tensors[i].name) {
            bail!(Format, "{name}: tensor {} comes twice", quote(tensor));
        }
        let alignment = self.metadata.iter().find(|(key, _)| key == reader::ALIGNMENT).map(|(_, value)| value);
        let alignment = reader::alignment(name, alignment)? as u64;
        let total = self.tensors.iter().try_fold(0u64, |sum, t| {
            sum.checked_add(t.n_bytes as u64).filter(|&s| s < i64::MAX as u64)?.checked_next_multiple_of(alignment)
        });
        if total.is_none() {
            bail!(Format, "{name}: the tensors are too large for one file");
        }
        Ok(alignment)
    }
}

/// Writes `path` anew: `write` fills a file beside it, which is renamed when it is complete.
///
/// # Errors
/// `Io` if it cannot be written, and whatever `write` returns; `path` is as it was then.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    stage(path, write)?.commit()
}

/// As [`replace`], without the last step.
fn stage(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Staged> {
    let failed = |e| Error::io(path, &e);
    // Renaming onto a link would replace the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if target.exists() && !target.is_file() {
        bail!(Io, "{}: is no regular file, and cannot be replaced by one", path.display());
    }
    let (temporary, file) = Temporary::beside(&target).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, Syncing::new(file));
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.finish().map_err(failed)?;
    Ok(Staged { temporary, target })
}

/// How many arrays lie within each other.
fn depth(array: &Array) -> usize {
    match array {
        Array::Array(inner) => 1 + inner.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

/// Takes one tensor's bytes.
pub struct Sink<'a, 'b> {
    out: &'a mut Counted<'b>,
    tensor: &'a TensorInfo,
    left: usize,
}

impl Sink<'_, '_> {
    /// Writes the tensor's next bytes.
    ///
    /// # Errors
    /// `Io` if they cannot be written, `Format` if they are more than the tensor has.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.left {
            let t = self.tensor;
            bail!(Format, "{}: tensor {}: more than its {} bytes of data", self.out.name, quote(&t.name), t.n_bytes);
        }
        self.left -= bytes.len();
        self.out.put(bytes)
    }
}

/// An output that knows how far it is.
struct Counted<'a> {
    out: &'a mut dyn Write,
    name: &'a str,
    at: u64,
}

impl Counted<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| Error::io(self.name, &e))
    }

    fn u32(&mut self, v: u32) -> Result<()> {
        self.put(&v.to_le_bytes())
    }

    fn u64(&mut self, v: u64) -> Result<()> {
        self.put(&v.to_le_bytes())
    }

    fn string(&mut self, v: &str) -> Result<()> {
        self.u64(v.len() as u64)?;
        self.put(v.as_bytes())
    }

    /// A value's type and the value.
    fn value(&mut self, value: &Value) -> Result<()> {
        self.u32(value.kind() as u32)?;
        match value {
            Value::U8(v) => self.put(&v.to_le_bytes()),
            Value::I8(v) => self.put(&v.to_le_bytes()),
            Value::U16(v) => self.put(&v.to_le_bytes()),
            Value::I16(v) => self.put(&v.to_le_bytes()),
            Value::U32(v) => self.put(&v.to_le_bytes()),
            Value::I32(v) => self.put(&v.to_le_bytes()),
            Value::F32(v) => self.put(&v.to_le_bytes()),
            Value::Bool(v) => self.put(&[u8::from(*v)]),
            Value::String(v) => self.string(v),
            Value::Array(v) => self.array(v),
            Value::U64(v) => self.put(&v.to_le_bytes()),
            Value::I64(v) => self.put(&v.to_le_bytes()),
            Value::F64(v) => self.put(&v.to_le_bytes()),
        }
    }

    fn array(&mut self, array: &Array) -> Result<()> {
        self.u32(array.element_type() as u32)?;
        self.u64(array.len() as u64)?;
        macro_rules! numbers {
            ($v:expr) => {
                $v.iter().try_for_each(|v| self.put(&v.to_le_bytes()))
            };
        }
        match array {
            Array::U8(v) => self.put(v),
            Array::I8(v) => numbers!(v),
            Array::U16(v) => numbers!(v),
            Array::I16(v) => numbers!(v),
            Array::U32(v) => numbers!(v),
            Array::I32(v) => numbers!(v),
            Array::F32(v) => numbers!(v),
            Array::Bool(v) => v.iter().try_for_each(|&v| self.put(&[u8::from(v)])),
            Array::String(v) => v.iter().try_for_each(|v| self.string(v)),
            Array::Array(v) => v.iter().try_for_each(|v| self.array(v)),
            Array::U64(v) => numbers!(v),
            Array::I64(v) => numbers!(v),
            Array::F64(v) => numbers!(v),
        }
    }

    /// Zeros up to the next multiple of `alignment`.
    fn pad(&mut self, alignment: u64) -> Result<()> {
        let zeros = [0; 4096];
        let mut left = self.at.next_multiple_of(alignment) - self.at;
        while left > 0 {
            let n = left.min(zeros.len() as u64);
            self.put(&zeros[..n as usize])?;
            left -= n;
        }
        Ok(())
    }
}

/// Bytes after which what is written is sent on to the disk.
const SYNC_EVERY: usize = 32 << 20;

/// A file that goes to the disk while more of it is made, so that the wait at the end is short.
struct Syncing {
    file: fs::File,
    /// Bytes since the disk was last asked for.
    since: usize,
    wake: Option<SyncSender<()>>,
    /// `None` where the system gives no thread: all waiting is at the end then.
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Syncing {
    fn new(file: fs::File) -> Syncing {
        // One request may wait while another is at work; more would say nothing new.
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = file.try_clone().and_then(|file| {
            let work = move || woken.iter().try_for_each(|()| file.sync_data());
            thread::Builder::new().name("mmq-sync".into()).spawn(work)
        });
        Syncing { file, since: 0, wake: Some(wake), thread: thread.ok() }
    }

    /// Waits until all of it is on the disk.
    fn finish(mut self) -> io::Result<()> {
        // An error that the thread was told of would not be told again.
        self.stop()?;
        self.file.sync_all()
    }

    fn stop(&mut self) -> io::Result<()> {
        drop(self.wake.take());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // Panics have been reported on standard error; the file is synced as a whole.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

impl Write for Syncing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.since += n;
        if self.since >= SYNC_EVERY {
            self.since = 0;
            if let Some(wake) = &self.wake {
                // Full: it is at work already. Closed: it has failed, which the end tells.
                let _ = wake.try_send(());
            }
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        // The file is given up; its name can go when nobody uses it.
        let _ = self.stop();
    }
}

/// A complete file under a temporary name, which goes away unless it is committed.
pub struct Staged {
    temporary: Temporary,
    target: PathBuf,
}

impl Staged {
    /// Gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// `Io` if it cannot be renamed.
    pub fn commit(self) -> Result<()> {
        let Staged { temporary, target } = self;
        temporary.rename(&target).map_err(|e| Error::io(&target, &e))
    }
}

/// A file that goes away unless it is renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// A new file in the folder of `target`.
    fn beside(target: &Path) -> std::io::Result<(Temporary, fs::File)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = target.file_name().ok_or_else(|| std::io::Error::other("the path names no file"))?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{}.{}-{number}.tmp", name.to_string_lossy(), std::process::id());
        let path = target.with_file_name(name);
        let file = fs::File::create_new(&path)?;
        Ok((Temporary { path }, file))
    }

    fn rename(self, target: &Path) -> std::io::Result<()> {
        fs::rename(&self.path, target)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already if it was renamed; if it cannot be removed, the error that led here matters more.
        let _ = fs::remove_file(&self.path);
    }
}

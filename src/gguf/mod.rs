//! GGUF files: a checked, memory-mapped, zero-copy reader and a writer.
//!
//! A file is data from a stranger: every length, offset, count and type is checked before use. What is wrong comes back
//! as an [`crate::Error`] that names the file and the key or tensor; nothing in a file can make the reader panic, or
//! allocate more than a small multiple of the file's size.

mod metadata;
mod mmap;
mod origin;
mod packed;
mod reader;
mod sniff;
mod split;
mod value;
mod writer;

pub use metadata::Metadata;
pub use origin::Origin;
pub use split::{SPLIT_KEYS, shard_path};
pub use value::{Array, Value};
pub(crate) use writer::replace;
pub use writer::{Sink, Staged, Writer};

use crate::{Dtype, Error, Result, bail};
use mmq_kernels::Layout;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most dimensions that a tensor may have: one more than ggml's, for the kernels of 3-D convolutions.
pub const MAX_DIMS: usize = 5;
/// Alignment of tensor data where `general.alignment` is absent, in bytes.
pub const DEFAULT_ALIGNMENT: usize = 32;
/// The largest `general.alignment` that is taken for sane: a huge page.
pub const MAX_ALIGNMENT: usize = 2 << 20;

/// A tensor's entry: name, type, shape and place.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first (the reverse of GGUF's `ne`). Empty for a scalar; never holds a zero.
    pub shape: Vec<usize>,
    /// Its size in bytes.
    pub n_bytes: usize,
    /// How its rows lie: [`Layout::Panels`] in packed files only.
    pub layout: Layout,
    /// Which shard holds it.
    shard: usize,
    /// Where its bytes start, from the start of that shard.
    offset: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Which file of a split model holds it, from 0.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Where its bytes start, from the start of that file.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// What bytes lie in.
trait Storage: Send + Sync {
    /// All of its bytes.
    fn bytes(&self) -> &[u8];
    /// See [`Bytes::give_back`].
    fn give_back(&self, _range: Range<usize>) {}
    /// See [`Bytes::read_ahead`].
    fn read_ahead(&self, _range: Range<usize>) {}
}

/// Memory that the program has, whatever it is.
struct Held<T>(T);

impl<T: AsRef<[u8]> + Send + Sync> Storage for Held<T> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// Bytes of a mapped file (or of other memory), kept alive by what they came from. Cloning copies no bytes.
///
/// They are aligned as the file aligns them (`general.alignment`, from the start of the file) if the memory they lie in
/// is: a mapped file is, a static slice need not be. Readers of the bytes must not rely on it.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Storage>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// The whole of the file `path`, mapped, not read: it must not change while the bytes are in use, as
    /// [`Gguf::open`] explains.
    ///
    /// # Errors
    /// `Io` if it cannot be opened or is no regular file.
    pub fn map(path: &Path) -> Result<Bytes> {
        mmap::map(path)
    }

    /// The part `range` of these bytes, without copying.
    ///
    /// # Panics
    /// If `range` does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        let place = self.place(range);
        Bytes { owner: self.owner.clone(), start: place.start, len: place.len() }
    }

    /// New memory of `len` bytes, zeros that `fill` writes over. It is aligned to a page.
    ///
    /// # Errors
    /// `Memory` if there is not as much; what `fill` returns.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        let mut pages = mmap::pages(len)?;
        fill(&mut pages)?;
        mmap::finished(pages)
    }

    /// Tells the system that the part `range` will not be read soon: pages of a mapped file are dropped from this process
    /// and come back from the file when they are read after all.
    ///
    /// # Panics
    /// If `range` does not lie within the bytes.
    pub fn give_back(&self, range: Range<usize>) {
        self.owner.give_back(self.place(range));
    }

    /// Tells the system that the part `range` of a mapped file will be read soon.
    ///
    /// # Panics
    /// If `range` does not lie within the bytes.
    pub fn read_ahead(&self, range: Range<usize>) {
        self.owner.read_ahead(self.place(range));
    }

    /// Where the part `range` lies within the owner.
    fn place(&self, range: Range<usize>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        self.start + range.start..self.start + range.end
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(data: Vec<u8>) -> Bytes {
        let len = data.len();
        Bytes { owner: Arc::new(Held(data)), start: 0, len }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

/// An opened model: one file, or the shards of a split one. Cloning copies metadata, but no weights.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: Option<PathBuf>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Places in `tensors`, sorted by name.
    by_name: Vec<usize>,
    /// Each shard's whole content.
    shards: Vec<Bytes>,
}

impl Gguf {
    /// Opens and checks `path`; if it is a shard (`-00001-of-0000N`), its siblings too.
    ///
    /// Any shard of a split model will do; metadata are those of the first, tensors those of all.
    ///
    /// The file is mapped, not read. Metadata are copied out here and never read again; tensor data are read in place,
    /// so the file must not change while it is open: changed bytes become wrong weights, and on Unix a file that is cut
    /// short kills the process (SIGBUS) when the lost part is read. Replacing a file by renaming another one over it,
    /// as [`Writer`] does, is harmless.
    ///
    /// # Errors
    /// `Io` if it cannot be opened, `Format` if it is damaged or no GGUF file, `Unsupported` if it is one of a version,
    /// byte order or tensor type that this reader does not know.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        split::open(path.as_ref())
    }

    /// Reads a file that lies in memory; `name` stands for it in messages.
    ///
    /// `data` needs no alignment. Where it has any (say, 64 bytes), so have the tensors.
    ///
    /// # Errors
    /// As [`Gguf::open`]; a shard of a split model is `Unsupported`.
    pub fn from_static(name: &str, data: &'static [u8]) -> Result<Gguf> {
        Gguf::from_owner(name, data)
    }

    /// Reads a file that lies in memory that the program owns; `name` stands for it in messages.
    ///
    /// `data` must be the same bytes each time that it is asked.
    ///
    /// # Errors
    /// As [`Gguf::from_static`].
    pub fn from_owner(name: &str, data: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Gguf> {
        let len = data.as_ref().len();
        let file = reader::read(name, Bytes { owner: Arc::new(Held(data)), start: 0, len })?;
        split::single(file)
    }

    /// Reads `n_bytes` bytes from `offset` on (`None`: all the rest) of a file that is open already; `name` stands for it in
    /// messages. They are mapped, as by [`Gguf::open`].
    ///
    /// # Errors
    /// As [`Gguf::open`], and `Usage` for a part that goes beyond the end of the file; a shard of a split model is
    /// `Unsupported`.
    pub fn from_file(name: &str, file: &File, offset: u64, n_bytes: Option<u64>) -> Result<Gguf> {
        let about = file.metadata().map_err(|e| Error::io(name, &e))?;
        if !about.is_file() {
            bail!(Io, "{name}: is no regular file, and only those can be mapped");
        }
        let end = n_bytes.map_or(Some(about.len()), |n| offset.checked_add(n));
        let Some(end) = end.filter(|end| offset <= *end && *end <= about.len()) else {
            let n = n_bytes.unwrap_or(0);
            bail!(Usage, "{name}: {n} bytes from {offset} on go beyond the end of the file ({} bytes)", about.len());
        };
        split::single(reader::read(name, mmap::map_part(Path::new(name), file, offset..end)?)?)
    }

    /// The file's name, for messages: the path as it was given.
    pub fn name(&self) -> &str {
        self.metadata.file()
    }

    /// The file's path (of a split model, the first shard's); `None` if it lies in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Number of files.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Number of weights in all tensors.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_elements() as u64).sum()
    }

    /// Size of all tensors in bytes, without padding.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_bytes as u64).sum()
    }

    /// Size of all files in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.len as u64).sum()
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors[self.place(name)?])
    }

    /// The place of the tensor called `name` among [`Gguf::tensors`].
    fn place(&self, name: &str) -> Option<usize> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name)).ok()?;
        Some(self.by_name[at])
    }

    /// A tensor's bytes, without copying.
    ///
    /// # Panics
    /// If `tensor` is not one of [`Gguf::tensors`] and does not lie within the file.
    pub fn bytes(&self, tensor: &TensorInfo) -> Bytes {
        self.shards[tensor.shard].slice(tensor.offset..tensor.offset + tensor.n_bytes)
    }
}

/// `text` as messages show it: quoted, control characters escaped, cut after 80 characters.
fn quote(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// The places of `names` sorted by name, or the first name (in that order) that comes twice.
fn index<'a>(n: usize, name: impl Fn(usize) -> &'a str) -> std::result::Result<Vec<usize>, &'a str> {
    let mut places: Vec<usize> = (0..n).collect();
    places.sort_unstable_by_key(|&i| name(i));
    match places.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
        Some(pair) => Err(name(pair[0])),
        None => Ok(places),
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Gguf>();
    shared::<Bytes>();
};

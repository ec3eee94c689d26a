//! Files that mmq writes for itself: a header in JSON, numbers behind it, and a checksum over all of it.
//!
//! ```text
//! magic [8]   version u32   header's length u32   header   payload   SHA-256 of all before [32]
//! ```
//!
//! Numbers are little-endian. A file is read only if it is of its format and version, as long as its header makes it, and
//! not damaged; nothing in it can make the reader allocate more than a small multiple of its size.

use crate::gguf::replace;
use crate::{Error, Result, bail, unless_stopped};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;

/// Bytes between two looks at who wants to stop.
const PIECE: usize = 1 << 20;
const CHECKSUM: usize = 32;
/// What comes in front of the header.
const FRONT: usize = 16;
/// Most bytes of a header: a timeline of a million tokens.
const MAX_HEADER: u64 = 16 << 20;

/// A format of such files.
pub(super) struct Format {
    /// What files of it begin with.
    pub magic: &'static [u8; 8],
    /// The version that is read and written.
    pub version: u32,
    /// What they are called in messages: `session file`.
    pub what: &'static str,
}

/// Takes the payload of a file that is being written.
pub(super) struct Sink<'a> {
    name: &'a Path,
    out: &'a mut dyn Write,
    hasher: Sha256,
}

impl Sink<'_> {
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        for bytes in bytes.chunks(PIECE) {
            unless_stopped()?;
            self.hasher.update(bytes);
            self.out.write_all(bytes).map_err(|e| Error::io(self.name, &e))?;
        }
        Ok(())
    }

    pub fn put_floats(&mut self, x: &[f32]) -> Result<()> {
        let mut bytes = [0; 4096];
        for x in x.chunks(bytes.len() / 4) {
            for (to, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *to = x.to_le_bytes();
            }
            self.put(&bytes[..4 * x.len()])?;
        }
        Ok(())
    }
}

/// Writes `path`: whole, or not at all.
pub(super) fn write(
    path: &Path,
    format: &Format,
    header: &impl Serialize,
    payload: impl FnOnce(&mut Sink<'_>) -> Result<()>,
) -> Result<()> {
    let header = serde_json::to_vec(header).expect("headers are plain data");
    if header.len() as u64 > MAX_HEADER {
        bail!(Unsupported, "{}: a header of {} bytes is too long to be read again", path.display(), header.len());
    }
    replace(path, |out| {
        let mut sink = Sink { name: path, out, hasher: Sha256::new() };
        sink.put(format.magic)?;
        sink.put(&format.version.to_le_bytes())?;
        sink.put(&(header.len() as u32).to_le_bytes())?;
        sink.put(&header)?;
        payload(&mut sink)?;
        let Sink { out, hasher, .. } = sink;
        out.write_all(&hasher.finalize()).map_err(|e| Error::io(path, &e))
    })
}

/// A file that is being read: its payload comes next.
pub(super) struct Source<'a> {
    name: String,
    what: &'static str,
    data: &'a mut dyn Read,
    /// Bytes of the payload that have not been read.
    left: u64,
    hasher: Sha256,
}

impl<'a> Source<'a> {
    /// Reads the header of a file of `n_bytes` that `data` yields; `name` stands for it in messages.
    pub fn open<H: DeserializeOwned>(
        name: &str,
        format: &Format,
        data: &'a mut dyn Read,
        n_bytes: u64,
    ) -> Result<(H, Source<'a>)> {
        let what = format.what;
        let mut source = Source { name: name.to_owned(), what, data, left: n_bytes, hasher: Sha256::new() };
        if n_bytes < (FRONT + CHECKSUM) as u64 {
            bail!(Format, "{name}: is no {what}: {n_bytes} bytes are too few");
        }
        source.left -= CHECKSUM as u64;
        let mut front = [0; FRONT];
        source.take(&mut front)?;
        let (magic, rest) = front.split_at(8);
        if magic != format.magic {
            bail!(Format, "{name}: is no {what}: expected it to begin with {:?}, got {magic:?}", format.magic);
        }
        let [version, header] = [0, 4].map(|at| u32::from_le_bytes(rest[at..at + 4].try_into().expect("4 bytes")));
        if version != format.version {
            bail!(Unsupported, "{name}: expected a {what} of version {}, got version {version}", format.version);
        }
        if u64::from(header) > source.left.min(MAX_HEADER) {
            bail!(Format, "{name}: damaged: a header of {header} bytes in a file of {n_bytes}");
        }
        let mut text = vec![0; header as usize];
        source.take(&mut text)?;
        match serde_json::from_slice(&text) {
            Ok(header) => Ok((header, source)),
            Err(e) => bail!(Format, "{name}: damaged: the header of this {what} cannot be read: {e}"),
        }
    }

    /// Refuses a file whose payload is not of `n` bytes.
    pub fn expect(&self, n: Option<u64>) -> Result<()> {
        match n {
            Some(n) if n == self.left => Ok(()),
            Some(n) => bail!(Format, "{}: damaged: expected {n} bytes after the header, got {}", self.name, self.left),
            None => bail!(Format, "{}: damaged: the header's sizes are beyond all measure", self.name),
        }
    }

    /// The next bytes.
    pub fn take(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 > self.left {
            bail!(Format, "{}: damaged: this {} is cut short", self.name, self.what);
        }
        for out in out.chunks_mut(PIECE) {
            unless_stopped()?;
            self.data.read_exact(out).map_err(|e| Error::io(&self.name, &e))?;
            self.left -= out.len() as u64;
            self.hasher.update(&*out);
        }
        Ok(())
    }

    /// The next `n` floats, once it is certain that the file holds them.
    pub fn take_floats(&mut self, n: usize) -> Result<Vec<f32>> {
        if n as u64 > self.left / 4 {
            bail!(Format, "{}: damaged: this {} is cut short", self.name, self.what);
        }
        let mut floats = Vec::with_capacity(n);
        let mut bytes = [0; 4096];
        while floats.len() < n {
            let part = (4 * (n - floats.len())).min(bytes.len());
            self.take(&mut bytes[..part])?;
            floats.extend(bytes[..part].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(floats)
    }

    /// Checks that all was read, and that it is what was written.
    pub fn finish(self) -> Result<()> {
        let mut wanted = [0; CHECKSUM];
        self.data.read_exact(&mut wanted).map_err(|e| Error::io(&self.name, &e))?;
        let got: [u8; CHECKSUM] = self.hasher.finalize().into();
        if self.left != 0 || got != wanted {
            let (wanted, got) = (hex(&wanted[..8]), hex(&got[..8]));
            bail!(Format, "{}: damaged: expected checksum {wanted}…, got {got}…", self.name);
        }
        Ok(())
    }
}

/// Opens `path` for [`Source::open`], with its size.
pub(super) fn open(path: &Path) -> Result<(impl Read + use<>, u64)> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
    if !about.is_file() {
        bail!(Io, "{}: is no regular file", path.display());
    }
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    Ok((std::io::BufReader::with_capacity(1 << 18, file), about.len()))
}

/// Bytes as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

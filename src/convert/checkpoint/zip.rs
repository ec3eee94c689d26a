//! Zip archives as PyTorch writes them: every entry stored, none compressed. Read by the central directory, ZIP64 included.
//!
//! The format: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.

use crate::{Result, bail};
use std::collections::HashMap;
use std::ops::Range;

/// The most entries that are read.
const MAX_ENTRIES: u64 = 1 << 20;

/// Where the data of each entry lie in the file.
pub(super) struct Archive {
    entries: HashMap<String, Range<usize>>,
}

/// Little-endian numbers at places that may not exist.
struct View<'a>(&'a [u8]);

impl View<'_> {
    fn u16(&self, at: usize) -> Option<usize> {
        Some(u16::from_le_bytes(*self.0.get(at..)?.first_chunk()?).into())
    }

    fn u32(&self, at: usize) -> Option<u64> {
        Some(u32::from_le_bytes(*self.0.get(at..)?.first_chunk()?).into())
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
}

/// What the central directory says of an entry.
struct Entry<'a> {
    name: &'a [u8],
    flags: usize,
    method: usize,
    stored: u64,
    size: u64,
    header: u64,
    /// Bytes that it takes in the directory.
    length: usize,
}

impl Archive {
    /// Reads the directory of the archive `bytes`; `file` is for messages.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Archive> {
        let broken = "is no whole zip archive";
        let Some((n, mut at)) = directory(bytes) else {
            bail!(Format, "{file}: {broken}: its directory is missing: it is cut short")
        };
        if n > MAX_ENTRIES {
            bail!(Format, "{file}: {broken}: {n} entries");
        }
        let mut entries = HashMap::new();
        let mut taken = Vec::new();
        for _ in 0..n {
            let Some(entry) = entry(bytes, at) else { bail!(Format, "{file}: {broken}: its directory is damaged") };
            at += entry.length;
            let Ok(name) = std::str::from_utf8(entry.name) else {
                bail!(Format, "{file}: {broken}: an entry's name is not UTF-8");
            };
            if entry.flags & 1 != 0 {
                bail!(Unsupported, "{file}: entry {name:?} is encrypted");
            }
            if entry.method != 0 || entry.stored != entry.size {
                bail!(Unsupported, "{file}: entry {name:?} is compressed; PyTorch's are stored as they are");
            }
            let Some(data) = data(bytes, entry.header, entry.size) else {
                bail!(Format, "{file}: {broken}: entry {name:?} lies outside of the file");
            };
            if !data.is_empty() {
                taken.push((data.start, data.end, name));
            }
            if entries.insert(name.to_string(), data).is_some() {
                bail!(Format, "{file}: entry {name:?} comes twice");
            }
        }
        taken.sort_unstable();
        if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            bail!(Format, "{file}: entries {:?} and {:?} overlap", pair[0].2, pair[1].2);
        }
        Ok(Archive { entries })
    }

    /// Where the data of the entry `name` lie.
    pub fn get(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// The names of the entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// Number of entries and place of the central directory.
fn directory(bytes: &[u8]) -> Option<(u64, usize)> {
    let view = View(bytes);
    let last = bytes.len().checked_sub(22)?;
    let end = (last.saturating_sub(0xFFFF)..=last).rev().find(|&at| {
        bytes[at..].starts_with(b"PK\x05\x06")
            && view.u16(at + 20).is_some_and(|comment| at + 22 + comment <= bytes.len())
    })?;
    let (n, at) = (view.u16(end + 10)? as u64, view.u32(end + 16)?);
    let locator = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else { return Some((n, usize::try_from(at).ok()?)) };
    let end64 = usize::try_from(view.u64(locator + 8)?).ok()?;
    if !bytes.get(end64..)?.starts_with(b"PK\x06\x06") {
        return None;
    }
    Some((view.u64(end64.checked_add(32)?)?, usize::try_from(view.u64(end64 + 48)?).ok()?))
}

/// The entry that is described at `at`.
fn entry(bytes: &[u8], at: usize) -> Option<Entry<'_>> {
    let view = View(bytes.get(at..)?);
    if !view.0.starts_with(b"PK\x01\x02") {
        return None;
    }
    let (name, extra, comment) = (view.u16(28)?, view.u16(30)?, view.u16(32)?);
    let mut entry = Entry {
        name: view.0.get(46..46 + name)?,
        flags: view.u16(8)?,
        method: view.u16(10)?,
        stored: view.u32(20)?,
        size: view.u32(24)?,
        header: view.u32(42)?,
        length: 46 + name + extra + comment,
    };
    // ZIP64: what does not fit stands in the extra field, in this order.
    let mut fields = View(view.0.get(46 + name..46 + name + extra)?);
    while let (Some(id), Some(length)) = (fields.u16(0), fields.u16(2)) {
        let body = View(fields.0.get(4..4 + length)?);
        if id == 1 {
            let mut at = 0;
            for value in [&mut entry.size, &mut entry.stored, &mut entry.header] {
                if *value == u64::from(u32::MAX) {
                    *value = body.u64(at)?;
                    at += 8;
                }
            }
        }
        fields = View(&fields.0[4 + length..]);
    }
    Some(entry)
}

/// Where `size` bytes of data lie behind the local header at `header`.
fn data(bytes: &[u8], header: u64, size: u64) -> Option<Range<usize>> {
    let header = usize::try_from(header).ok()?;
    let view = View(bytes.get(header..)?);
    if !view.0.starts_with(b"PK\x03\x04") {
        return None;
    }
    let start = header + 30 + view.u16(26)? + view.u16(28)?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= bytes.len()).then_some(start..end)
}

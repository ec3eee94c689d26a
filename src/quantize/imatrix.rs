//! Importance matrices: how strongly each input of each weight matrix is driven, so that a quantizer errs where it matters
//! least. Reads and writes the files of llama.cpp's `llama-imatrix`.
//!
//! In GGUF, for each tensor `NAME` of a model that was seen at work, `NAME.in_sum2: [n_mat, n_cols]` are sums of squared
//! inputs and `NAME.counts: [n_mat, 1]` the numbers of rows that went into them, all F32; `n_mat` is 1 except for experts.
//! `NAME.in_sum: [n_cols]`, sums of the inputs themselves, is ours: `mmq imatrix` adds it for layers with a bias, and llama.cpp
//! passes over it. Keys: `general.type` (`imatrix`), `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size` (tokens of a chunk).
//!
//! The older `.dat`, little-endian, has means, scaled by a number of chunks:
//! ```text
//! n_entries i32
//! n_entries × len i32, name; n_chunks i32; n i32; n × f32
//! n_chunks i32; len i32, name of the text                      (absent in the oldest)
//! ```

use crate::gguf::{Bytes, Gguf, Writer, replace};
use crate::{Dtype, Error, ErrorKind, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const INPUTS: &str = ".in_sum";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const N_CHUNKS: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// The longest name of a tensor or of a text that is taken for sane, in bytes.
const MAX_NAME: usize = 1 << 16;
/// Counts are F32 in the file; no run has seen as many rows as this.
const MAX_COUNT: f32 = 1e18;

/// What went into one weight matrix, or into each of several experts that one tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    sums: Vec<f64>,
    /// Sums of the inputs themselves, `[n_cols]`, if they are known; of single matrices only.
    inputs: Option<Vec<f64>>,
    counts: Vec<u64>,
}

impl Entry {
    /// Sums of squared inputs, `[n_mat, n_cols]`, finite and not negative.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Rows that went into each matrix: `[n_mat]`, or one number for all.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Sums with the count of rows that each belongs to.
    fn with_counts(&self) -> impl Iterator<Item = (f64, u64)> {
        let width = self.sums.len() / self.counts.len();
        self.sums.chunks_exact(width).zip(&self.counts).flat_map(|(sums, n)| sums.iter().map(|sum| (*sum, *n)))
    }

    /// Means of squared inputs, as long as [`Entry::sums`]; 1 for a matrix that no row has gone into.
    pub fn means(&self) -> impl Iterator<Item = f32> {
        self.with_counts().map(|(sum, n)| if n == 0 { 1.0 } else { (sum / n as f64).min(f64::from(f32::MAX)) as f32 })
    }

    /// Means of squared inputs of the matrices that rows have gone into.
    pub(super) fn seen(&self) -> impl Iterator<Item = f64> {
        self.with_counts().filter(|(_, n)| *n > 0).map(|(sum, n)| sum / n as f64)
    }

    /// The mean input, `[n_cols]`, if it is known.
    pub fn mean_input(&self) -> Option<Vec<f64>> {
        let inputs = self.inputs.as_ref().filter(|_| self.counts[0] > 0)?;
        Some(inputs.iter().map(|sum| sum / self.counts[0] as f64).collect())
    }

    /// Whether some matrix, but not all of them, has seen no rows.
    pub fn is_partial(&self) -> bool {
        let unseen = self.counts.iter().filter(|n| **n == 0).count();
        unseen > 0 && unseen < self.counts.len()
    }

    /// The same sums as if they were of `factor` times as many rows.
    fn scaled(&self, factor: u64) -> Entry {
        Entry {
            sums: self.sums.iter().map(|sum| sum * factor as f64).collect(),
            inputs: self.inputs.as_ref().map(|sums| sums.iter().map(|sum| sum * factor as f64).collect()),
            counts: self.counts.iter().map(|n| n.saturating_mul(factor)).collect(),
        }
    }

    /// Adds `other`, which is of the same tensor.
    fn add(&mut self, other: &Entry) {
        let n = self.counts.len().max(other.counts.len());
        // Old files have one count for all experts.
        if self.counts.len() == 1 {
            self.counts.resize(n, self.counts[0]);
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        // A mean of a part is no mean.
        self.inputs = self.inputs.take().zip(other.inputs.as_ref()).map(|(mut sums, more)| {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            sums
        });
        for (i, count) in self.counts.iter_mut().enumerate() {
            *count = count.saturating_add(other.counts[i.min(other.counts.len() - 1)]);
        }
    }
}

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Entry>,
    datasets: Vec<String>,
    n_chunks: usize,
    /// 0: counts are numbers of chunks, whose size is not known, as in a `.dat`.
    chunk_size: usize,
}

impl Imatrix {
    /// One that has seen nothing, for chunks of `chunk_size` tokens.
    pub fn new(chunk_size: usize) -> Imatrix {
        Imatrix { chunk_size: chunk_size.max(1), ..Imatrix::default() }
    }

    /// Reads a file of either format, whatever its name.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Format` if it is damaged or something else, with sums that are negative or no numbers,
    /// for one.
    pub fn read(path: impl AsRef<Path>) -> Result<Imatrix> {
        let path = path.as_ref();
        let failed = |e: std::io::Error| Error::io(path, &e);
        let mut file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            bail!(Io, "{}: is no regular file", path.display());
        }
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic).map_err(failed)?;
        if magic == b"GGUF" {
            return Imatrix::from_gguf(&Gguf::open(path)?);
        }
        let mut data = magic;
        file.read_to_end(&mut data).map_err(failed)?;
        from_dat(&data).map_err(|e| e.context(path.display()))
    }

    /// What a GGUF file holds.
    ///
    /// # Errors
    /// As [`Imatrix::read`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Imatrix> {
        let (file, meta) = (gguf.name(), gguf.metadata());
        if let Some(kind) = meta.str("general.type")?.filter(|kind| *kind != "imatrix") {
            bail!(Format, "{file}: expected an importance matrix (general.type \"imatrix\"), got {kind:?}");
        }
        let named =
            |suffix: &'static str| gguf.tensors().iter().filter_map(move |t| Some((t.name.strip_suffix(suffix)?, t)));
        let mut entries = BTreeMap::new();
        for (name, sums) in named(SUMS) {
            let Some(counts) = gguf.tensor(&format!("{name}{COUNTS}")) else {
                bail!(Format, "{file}: tensor {name:?} has sums ({SUMS}), but no counts ({COUNTS})");
            };
            for t in [sums, counts] {
                if t.dtype != Dtype::F32 {
                    bail!(Format, "{file}: tensor {:?}: expected F32, got {}", t.name, t.dtype);
                }
            }
            if !sums.n_elements().is_multiple_of(counts.n_elements()) {
                let (n, n_mat) = (sums.n_elements(), counts.n_elements());
                bail!(Format, "{file}: tensor {:?}: {n} sums of {n_mat} matrices ({COUNTS})", sums.name);
            }
            let inputs = gguf.tensor(&format!("{name}{INPUTS}"));
            if let Some(t) = inputs
                && (t.dtype != Dtype::F32 || t.n_elements() != sums.n_elements() || counts.n_elements() != 1)
            {
                bail!(
                    Format,
                    "{file}: tensor {:?}: expected F32 [{}], one matrix, got {} {:?}",
                    t.name,
                    sums.n_elements(),
                    t.dtype,
                    t.shape
                );
            }
            let finite = |x: f32| match x.is_finite() {
                true => Ok(f64::from(x)),
                false => bail!(Format, "{file}: tensor {name:?}: {x} is no sum of inputs ({INPUTS})"),
            };
            let inputs = inputs.map(|t| floats(&gguf.bytes(t)).map(finite).collect::<Result<_>>()).transpose()?;
            let entry = Entry {
                inputs,
                sums: squares(floats(&gguf.bytes(sums))).map_err(|e| e.context(format!("{file}: tensor {name:?}")))?,
                counts: floats(&gguf.bytes(counts))
                    .map(|n| match n {
                        0.0..MAX_COUNT => Ok(n.round() as u64),
                        _ => bail!(Format, "{file}: tensor {:?}: {n} is no number of rows", counts.name),
                    })
                    .collect::<Result<_>>()?,
            };
            entries.insert(name.to_owned(), entry);
        }
        if entries.is_empty() {
            bail!(Format, "{file}: no importance matrix: there is no tensor \"….weight{SUMS}\"");
        }
        if let Some((name, _)) = named(COUNTS).find(|(name, _)| !entries.contains_key(*name)) {
            bail!(Format, "{file}: tensor {name:?} has counts ({COUNTS}), but no sums ({SUMS})");
        }
        let datasets = meta.require(DATASETS, meta.strings(DATASETS))?.to_vec();
        let n_chunks = meta.require(N_CHUNKS, meta.usize(N_CHUNKS))?;
        let chunk_size = meta.require(CHUNK_SIZE, meta.usize(CHUNK_SIZE))?;
        for (key, n) in [(N_CHUNKS, n_chunks), (CHUNK_SIZE, chunk_size)] {
            if u32::try_from(n).is_err() || key == CHUNK_SIZE && n == 0 {
                bail!(Format, "{file}: key {key:?}: {n} is no sensible number");
            }
        }
        Ok(Imatrix { entries, datasets, n_chunks, chunk_size })
    }

    /// Writes GGUF. `path` is replaced when the file is complete.
    ///
    /// # Errors
    /// `Io` if it cannot be written, `Format` if it is empty.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut writer = Writer::new();
        writer
            .set("general.type", "imatrix")
            .set(DATASETS, self.datasets.clone())
            .set(N_CHUNKS, u32::try_from(self.n_chunks).unwrap_or(u32::MAX))
            .set(CHUNK_SIZE, u32::try_from(self.chunk_size.max(1)).unwrap_or(u32::MAX));
        // ggml leaves outer dimensions of 1 away.
        let shape = |n_mat: usize, n: usize| if n_mat == 1 { vec![n] } else { vec![n_mat, n] };
        let mut data: Vec<Vec<u8>> = Vec::new();
        for (name, entry) in self.entries_to_write(path.as_ref())? {
            let n_mat = entry.counts.len();
            writer.tensor(&format!("{name}{SUMS}"), Dtype::F32, &shape(n_mat, entry.sums.len() / n_mat))?;
            writer.tensor(&format!("{name}{COUNTS}"), Dtype::F32, &shape(n_mat, 1))?;
            data.push(entry.sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect());
            data.push(entry.counts.iter().flat_map(|n| (*n as f32).to_le_bytes()).collect());
            if let Some(inputs) = &entry.inputs {
                writer.tensor(&format!("{name}{INPUTS}"), Dtype::F32, &shape(1, inputs.len()))?;
                data.push(inputs.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect());
            }
        }
        let mut data = data.iter();
        writer.write(path, |_, sink| sink.put(data.next().expect("as many as there are tensors")))
    }

    /// Writes the older format, for tools that know no other. `path` is replaced when the file is complete.
    ///
    /// # Errors
    /// `Io` if it cannot be written, `Format` if it is empty or too large for the format.
    pub fn write_dat(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let int = |n: u64| match i32::try_from(n) {
            Ok(n) => Ok(n.to_le_bytes()),
            Err(_) => bail!(Format, "{}: {n} is more than a .dat can hold", path.display()),
        };
        let entries = self.entries_to_write(path)?;
        let mut out = int(entries.len() as u64)?.to_vec();
        for (name, entry) in entries {
            let rows = *entry.counts.iter().max().expect("an entry has a count");
            let n_chunks = rows.div_ceil(self.chunk_size.max(1) as u64).max(1);
            out.extend(int(name.len() as u64)?);
            out.extend(name.as_bytes());
            out.extend(int(n_chunks)?);
            out.extend(int(entry.sums.len() as u64)?);
            out.extend(entry.means().flat_map(|mean| (mean * n_chunks as f32).to_le_bytes()));
        }
        out.extend(int(self.n_chunks as u64)?);
        let dataset = self.datasets.last().map_or("", String::as_str);
        out.extend(int(dataset.len() as u64)?);
        out.extend(dataset.as_bytes());
        replace(path, |file| file.write_all(&out).map_err(|e| Error::io(path, &e)))
    }

    /// What can be written: entries that have seen something, with sums that F32 holds.
    fn entries_to_write(&self, path: &Path) -> Result<Vec<(&str, &Entry)>> {
        let seen = self.entries().filter(|(_, entry)| entry.counts.iter().any(|n| *n > 0));
        let entries: Vec<_> = seen.collect();
        if entries.is_empty() {
            bail!(Format, "{}: the importance matrix is empty", path.display());
        }
        if let Some((name, _)) = entries
            .iter()
            .find(|(_, e)| e.sums.iter().chain(e.inputs.iter().flatten()).any(|sum| !(*sum as f32).is_finite()))
        {
            bail!(Format, "{}: tensor {name:?}: a sum is beyond what F32 holds", path.display());
        }
        Ok(entries)
    }

    /// How much an error in each column of a tensor matters: the mean squared input, finite and not negative; `[n_cols]`, or
    /// `[n_mat, n_cols]` for the experts of one tensor. `None` if the tensor was not seen; an expert that was not counts 1
    /// in every column.
    pub fn importance(&self, tensor: &str) -> Option<Vec<f32>> {
        let entry = self.entries.get(tensor).filter(|entry| entry.counts.iter().any(|n| *n > 0))?;
        Some(entry.means().collect())
    }

    /// Tensors and what went into them, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// What went into a tensor.
    pub fn entry(&self, tensor: &str) -> Option<&Entry> {
        self.entries.get(tensor)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it knows no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names of the texts and samples that it was collected on.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// Number of chunks of text, and of samples, that it was collected on.
    pub fn n_chunks(&self) -> usize {
        self.n_chunks
    }

    /// Tokens of a chunk; 0 if not known.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// Adds a name to [`Imatrix::datasets`].
    pub fn add_dataset(&mut self, name: &str) {
        self.datasets.push(name.to_owned());
    }

    /// Adds `n` to [`Imatrix::n_chunks`].
    pub fn add_chunks(&mut self, n: usize) {
        self.n_chunks = self.n_chunks.saturating_add(n);
    }

    /// Adds `count` rows of inputs of `tensor`, whose squares sum up to `sums: [n_cols]`, and they themselves to `inputs`, if that
    /// is known.
    ///
    /// # Errors
    /// `Format` for sums that are no numbers, `Mismatch` if the tensor is known with another width.
    pub fn add(&mut self, tensor: &str, sums: &[f64], inputs: Option<&[f64]>, count: u64) -> Result<()> {
        let in_tensor = |e: Error| e.context(format!("tensor {tensor:?}"));
        let sums = squares(sums.iter().copied()).map_err(in_tensor)?;
        assert!(inputs.is_none_or(|inputs| inputs.len() == sums.len()), "{tensor} has one width");
        let inputs = inputs.map(<[f64]>::to_vec);
        self.add_entry(tensor, &Entry { sums, inputs, counts: vec![count] })
    }

    /// Adds what another one has seen. Counts of chunks, in a `.dat`, are taken for counts of chunks as large as the other
    /// side's.
    ///
    /// # Errors
    /// `Mismatch` if they are of different models: a tensor has another width there.
    pub fn merge(&mut self, other: &Imatrix) -> Result<()> {
        if self.chunk_size == 0 && other.chunk_size > 0 {
            self.entries.values_mut().for_each(|entry| *entry = entry.scaled(other.chunk_size as u64));
            self.chunk_size = other.chunk_size;
        }
        let factor = if other.chunk_size == 0 { self.chunk_size.max(1) } else { 1 };
        for (name, entry) in &other.entries {
            self.add_entry(name, &entry.scaled(factor as u64))?;
        }
        self.datasets.extend_from_slice(&other.datasets);
        self.add_chunks(other.n_chunks);
        Ok(())
    }

    fn add_entry(&mut self, tensor: &str, entry: &Entry) -> Result<()> {
        let Some(known) = self.entries.get_mut(tensor) else {
            self.entries.insert(tensor.to_owned(), entry.clone());
            return Ok(());
        };
        let (counts, more) = (known.counts.len(), entry.counts.len());
        if known.sums.len() != entry.sums.len() || counts != more && counts != 1 && more != 1 {
            bail!(
                Mismatch,
                "tensor {tensor:?}: expected sums of {counts} x {} inputs, got {more} x {}: they are of different models",
                known.sums.len() / counts,
                entry.sums.len() / more
            );
        }
        known.add(entry);
        Ok(())
    }
}

/// The floats of a tensor.
fn floats(data: &Bytes) -> impl Iterator<Item = f32> {
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// `values` if they can be sums of squares.
fn squares<T: Into<f64>>(values: impl Iterator<Item = T>) -> Result<Vec<f64>> {
    let square = |value: T| match value.into() {
        sum if sum.is_finite() && sum >= 0.0 => Ok(sum),
        sum => bail!(Format, "{sum} is no sum of squares"),
    };
    values.map(square).collect()
}

/// Reads the older format.
fn from_dat(data: &[u8]) -> Result<Imatrix> {
    let mut r = Dat { data, at: 0 };
    let n_entries = r.length("entries", MAX_NAME)?;
    if n_entries == 0 {
        bail!(Format, "no importance matrix: it has no entries");
    }
    let mut imatrix = Imatrix::default();
    for i in 0..n_entries {
        let (name, entry) = r.entry().map_err(|e| e.context(format!("entry {i} of {n_entries}")))?;
        if imatrix.entries.insert(name.clone(), entry).is_some() {
            bail!(Format, "tensor {name:?} comes twice");
        }
    }
    if r.at < data.len() {
        imatrix.n_chunks = r.length("chunks", usize::MAX)?;
        let dataset = r.string()?;
        imatrix.datasets.extend((!dataset.is_empty()).then_some(dataset));
    }
    match data.len() - r.at {
        0 => Ok(imatrix),
        n => bail!(Format, "{n} bytes behind the end of the importance matrix"),
    }
}

/// A place in a file of the older format.
struct Dat<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Dat<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let Some(bytes) = self.data[self.at..].get(..n) else {
            bail!(
                Format,
                "no importance matrix, or cut short: {n} bytes ({what}) at {} of {}",
                self.at,
                self.data.len()
            );
        };
        self.at += n;
        Ok(bytes)
    }

    /// An i32 from 0 to `most`.
    fn length(&mut self, what: &str, most: usize) -> Result<usize> {
        let bytes = self.take(4, what)?;
        let n = i32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        match usize::try_from(n) {
            Ok(n) if n <= most => Ok(n),
            _ => bail!(Format, "no importance matrix, or damaged: {n} {what} at {}", self.at - 4),
        }
    }

    fn string(&mut self) -> Result<String> {
        let n = self.length("bytes of a name", MAX_NAME)?;
        let name = self.take(n, "a name")?;
        let name = String::from_utf8(name.to_vec());
        name.map_err(|_| Error::new(ErrorKind::Format, "no importance matrix: a name is no UTF-8"))
    }

    fn entry(&mut self) -> Result<(String, Entry)> {
        let name = self.string()?;
        if name.is_empty() {
            bail!(Format, "its name is empty");
        }
        let n_chunks = self.length("chunks", usize::MAX)?;
        let n = self.length("values", usize::MAX)?;
        let Some(n_bytes) = n.checked_mul(4).filter(|n| *n > 0) else {
            bail!(Format, "tensor {name:?}: {n} values");
        };
        let values = self.take(n_bytes, "values")?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let sums = squares(values).map_err(|e| e.context(format!("tensor {name:?}")))?;
        // Where the oldest say 0, the values are means.
        Ok((name, Entry { sums, inputs: None, counts: vec![n_chunks.max(1) as u64] }))
    }
}

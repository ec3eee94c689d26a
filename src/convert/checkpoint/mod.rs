//! The tensors of a checkpoint's folder: safetensors or PyTorch files, one or several, mapped and checked.

mod pickle;
mod safetensors;
mod torch;
mod zip;

#[cfg(test)]
mod tests;

use super::config;
use crate::gguf::Bytes;
use crate::{Dtype, Result, bail};
use mmq_kernels::kernels;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most dimensions that a tensor may have.
const MAX_DIMS: usize = 8;

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    /// One that holds no weights here: its name and its size in bytes.
    Other(&'static str, usize),
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Element::F64 => 8,
            Element::F32 => 4,
            Element::F16 | Element::BF16 => 2,
            Element::Other(_, size) => size,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Element::F64 => "F64",
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::BF16 => "BF16",
            Element::Other(name, _) => name,
        }
    }

    /// The type of a GGUF tensor with the same bytes.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Element::F32 => Some(Dtype::F32),
            Element::F16 => Some(Dtype::F16),
            Element::BF16 => Some(Dtype::BF16),
            Element::F64 | Element::Other(..) => None,
        }
    }
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub element: Element,
    /// Outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    file: Arc<str>,
    /// Steps between elements, if they do not lie one after the other.
    strides: Option<Vec<usize>>,
    /// From its first element on; to its last, if they lie one after the other.
    bytes: Bytes,
}

impl Tensor {
    /// File and name, as messages begin.
    pub fn at(&self) -> String {
        format!("{}: tensor {:?}", self.file, self.name)
    }

    /// The tensor, if it holds weights of this shape.
    pub fn expect(&self, shape: &[usize], why: &str) -> Result<&Tensor> {
        if self.shape != shape {
            bail!(Mismatch, "{}: expected {shape:?}, got {:?}{why}", self.at(), self.shape);
        }
        if let Element::Other(name, _) = self.element {
            bail!(Unsupported, "{}: expected F32, F16, BF16 or F64, got {name}", self.at());
        }
        Ok(self)
    }

    /// Elements of a row: the last dimension.
    pub fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: the product of all dimensions but the last.
    pub fn n_rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// The bytes of `rows`, if its elements lie one after the other.
    pub fn row_bytes(&self, rows: Range<usize>) -> Option<&[u8]> {
        let row = self.n_cols() * self.element.size();
        self.strides.is_none().then(|| &self.bytes[rows.start * row..rows.end * row])
    }

    /// Reads row `row` to `out: [n_cols]`. The tensor must hold weights ([`Tensor::expect`]).
    pub fn read(&self, row: usize, out: &mut [f32]) {
        let size = self.element.size();
        if let Some(bytes) = self.row_bytes(row..row + 1) {
            return decode(self.element, bytes, out);
        }
        let strides = self.strides.as_deref().expect("there are strides where no row is whole");
        let (mut at, mut rest) = (0, row);
        for (n, stride) in self.shape.iter().zip(strides).rev().skip(1) {
            at += rest % n * stride;
            rest /= n;
        }
        let step = strides.last().copied().unwrap_or(1);
        for out in out.iter_mut() {
            decode(self.element, &self.bytes[at * size..(at + 1) * size], std::slice::from_mut(out));
            at += step;
        }
    }

    /// The matrix with rows and columns in each other's place, read where it lies.
    pub fn transposed(&self) -> Tensor {
        let mut tensor = self.clone();
        let steps = |shape: &[usize]| (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let mut strides = tensor.strides.take().unwrap_or_else(|| steps(&self.shape));
        strides.reverse();
        tensor.shape.reverse();
        Tensor { strides: Some(strides), ..tensor }
    }

    /// Tells the system that `rows` will not be read again.
    pub fn give_back(&self, rows: Range<usize>) {
        if self.strides.is_none() {
            let row = self.n_cols() * self.element.size();
            self.bytes.give_back(rows.start * row..rows.end * row);
        }
    }

    /// Whether both hold the same weights. Reads them all.
    pub fn same_as(&self, other: &Tensor) -> bool {
        let (mut a, mut b) = (vec![0.0; self.n_cols()], vec![0.0; self.n_cols()]);
        self.shape == other.shape
            && (0..self.n_rows()).all(|row| {
                self.read(row, &mut a);
                other.read(row, &mut b);
                a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits())
            })
    }
}

fn decode(element: Element, bytes: &[u8], out: &mut [f32]) {
    match element.dtype() {
        Some(dtype) => (kernels().dequantize)(dtype, bytes, out),
        None => {
            assert_eq!(element, Element::F64, "only weights are read");
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *out = f64::from_le_bytes(*bytes) as f32;
            }
        }
    }
}

/// Number of elements of `shape`, or none if it is no shape that a file could hold.
fn n_elements(shape: &[usize]) -> Option<usize> {
    if shape.len() > MAX_DIMS {
        return None;
    }
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n < isize::MAX as usize / 8)
}

/// A checkpoint's tensors by name.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// The folder or file, for messages.
    pub name: String,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens the weights in `dir`: safetensors if there are any, else PyTorch's.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let files = files(dir)?;
        let mut checkpoint = Checkpoint { name: dir.display().to_string(), tensors: BTreeMap::new() };
        for path in &files.paths {
            checkpoint.add(path)?;
        }
        for (tensor, file) in &files.index {
            match checkpoint.tensors.get(tensor) {
                Some(found) if found.file.rsplit(['/', '\\']).next() == Some(file) => {}
                _ => bail!(
                    Format,
                    "{}: tensor {tensor:?}, which the index promises there, is missing",
                    dir.join(file).display()
                ),
            }
        }
        Ok(checkpoint)
    }

    /// Adds the tensors of one file, whatever its name.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = Bytes::map(path)?;
        let file: Arc<str> = path.display().to_string().into();
        let tensors = if bytes.starts_with(b"PK\x03\x04") {
            torch::read(&file, bytes)?
        } else if bytes.starts_with(torch::LEGACY_MAGIC) {
            bail!(
                Unsupported,
                "{file}: was written by PyTorch before 1.6, in a format that is no zip archive; save it again with a newer one"
            )
        } else if bytes.starts_with(b"version https://git-lfs") {
            bail!(Format, "{file}: is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            safetensors::read(&file, bytes)?
        } else {
            bail!(Format, "{file}: is neither a safetensors file nor a zip archive of PyTorch's")
        };
        for tensor in tensors {
            if let Some(other) = self.tensors.get(&tensor.name) {
                bail!(Format, "{}: is also in {}", tensor.at(), other.file);
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        Ok(())
    }

    /// The one tensor whose name ends with `suffix`, as a whole part between dots, and what comes before that.
    pub fn find(&self, suffix: &str) -> Result<Option<(&str, &Tensor)>> {
        let ends = |name: &str| name.strip_suffix(suffix).is_some_and(|head| head.is_empty() || head.ends_with('.'));
        let mut found = self.tensors.iter().filter(|(name, _)| ends(name));
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some((name, tensor)), None) => Ok(Some((&name[..name.len() - suffix.len()], tensor))),
            (Some((a, _)), Some((b, _))) => {
                bail!(Unsupported, "{}: both {a:?} and {b:?} could be the model's {suffix}", self.name)
            }
        }
    }

    /// The tensor called `name`.
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => bail!(Format, "{}: tensor {name:?} is missing", self.name),
        }
    }
}

/// The files of a checkpoint, and which tensor its index, if there is one, says is in which.
struct Files {
    paths: Vec<PathBuf>,
    index: Vec<(String, String)>,
}

/// The files with the weights of `dir`.
fn files(dir: &Path) -> Result<Files> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| crate::Error::io(dir, &e))? {
        let entry = entry.map_err(|e| crate::Error::io(dir, &e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    for (prefix, ext) in [("model", ".safetensors"), ("pytorch_model", ".bin")] {
        let index = format!("{prefix}{ext}.index.json");
        if names.contains(&index) {
            return indexed(dir, &index);
        }
        let parts: Vec<&String> = names.iter().filter(|n| n.starts_with(prefix) && n.ends_with(ext)).collect();
        if !parts.is_empty() {
            check_count(dir, &parts)?;
            return Ok(Files { paths: parts.iter().map(|n| dir.join(n)).collect(), index: Vec::new() });
        }
    }
    if names.iter().any(|n| n.starts_with("consolidated.") && n.ends_with(".pth"))
        && names.contains(&"params.json".into())
    {
        bail!(Unsupported, "{}: holds Meta's own format; convert it with transformers first", dir.display());
    }
    if names.iter().any(|n| n.starts_with("adapter_model.") || n == "adapter_config.json") {
        bail!(Unsupported, "{}: holds a LoRA adapter, not a model; merge it into its base first", dir.display());
    }
    let is_projector = |n: &String| n.starts_with("mm_projector.");
    let lonely = |ext: &str| {
        let mut found = names.iter().filter(|n| n.ends_with(ext) && !is_projector(n));
        found.next().filter(|_| found.next().is_none())
    };
    if let Some(name) = [".safetensors", ".pth", ".bin"].into_iter().find_map(lonely) {
        return Ok(Files { paths: vec![dir.join(name)], index: Vec::new() });
    }
    match names.iter().find(|n| is_projector(n)) {
        // A projector alone: `--base` brings the rest.
        Some(name) => Ok(Files { paths: vec![dir.join(name)], index: Vec::new() }),
        None => bail!(
            Io,
            "{}: holds no weights: expected model*.safetensors, pytorch_model*.bin or mm_projector.bin",
            dir.display()
        ),
    }
}

/// The files that an index names.
fn indexed(dir: &Path, name: &str) -> Result<Files> {
    let json = config::Json::read(&dir.join(name))?;
    let map = json.require_section("weight_map")?;
    let mut index = Vec::new();
    for (tensor, file) in map.entries() {
        let Some(file) = file.as_str() else {
            bail!(Format, "{}: weight_map: {tensor:?}: expected the name of a file, got {file}", json.file());
        };
        if file.contains(['/', '\\', ':']) || file.starts_with('.') {
            bail!(Format, "{}: weight_map: {tensor:?}: {file:?} is no name of a file beside it", json.file());
        }
        index.push((tensor.to_string(), file.to_string()));
    }
    let mut paths: Vec<PathBuf> = index.iter().map(|(_, file)| dir.join(file)).collect();
    paths.sort();
    paths.dedup();
    if paths.is_empty() {
        bail!(Format, "{}: weight_map: names no tensors", json.file());
    }
    Ok(Files { paths, index })
}

/// Whether all of the shards `…-00001-of-0000N` are there.
fn check_count(dir: &Path, names: &[&String]) -> Result<()> {
    let numbers = |name: &str| -> Option<(usize, usize)> {
        let (head, n) = name.rsplit_once('.')?.0.rsplit_once("-of-")?;
        Some((head.rsplit_once('-')?.1.parse().ok()?, n.parse().ok()?))
    };
    let numbered: Vec<(usize, usize)> = names.iter().filter_map(|name| numbers(name)).collect();
    let Some(&(_, n)) = numbered.first() else { return Ok(()) };
    if n != numbered.len() || numbered.iter().enumerate().any(|(i, shard)| *shard != (i + 1, n)) {
        let names = names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        bail!(Format, "{}: expected {n} shards of the model, found {names}", dir.display());
    }
    Ok(())
}

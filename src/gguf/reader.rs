//! Reads one GGUF file: header, metadata, tensor entries. Checks everything before using it.
//!
//! ```text
//! "GGUF"  version u32  n_tensors u64  n_kv u64
//! n_kv ×      key string, type u32, value
//! n_tensors × name string, n_dims u32, ne u64 × n_dims (innermost first), dtype u32, offset u64
//! padding to the alignment; tensor data, each offset counted from here
//! ```
//! A string is its length as u64 and its bytes; an array is its elements' type as u32, its length as u64 and its elements.
//! All little-endian. Version 1 had 32-bit lengths; 2 and 3 differ in nothing but 3's allowing for big-endian files.

use super::value::Type;
use super::{Array, Bytes, DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, Metadata, TensorInfo, Value, quote, sniff};
use crate::bail;
use crate::{Dtype, Result, unless_stopped};
use mmq_kernels::Layout;
use std::fmt::Display;

/// How deep arrays of arrays may nest.
pub(super) const MAX_DEPTH: usize = 8;
/// The key of the alignment of tensor data.
pub(super) const ALIGNMENT: &str = "general.alignment";

/// One file, checked.
pub(super) struct File {
    pub version: u32,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    pub bytes: Bytes,
}

/// Reads `bytes`, which messages call `name`.
pub(super) fn read(name: &str, bytes: Bytes) -> Result<File> {
    let data: &[u8] = &bytes;
    let mut r = Reader { data, at: 0 };
    let in_file = |e: crate::Error| e.context(name);

    let version = sniff::version(data).map_err(in_file)?;
    r.at = 8;
    let n_tensors = r.u64("the tensor count").map_err(in_file)?;
    let n_kv = r.u64("the metadata count").map_err(in_file)?;
    // A key, its type and a value take at least 8 + 1 + 4 + 1 bytes; a tensor's entry 8 + 4 + 4 + 8.
    let n_kv = r.count(n_kv, 14, "metadata keys").map_err(in_file)?;
    let n_tensors = r.count(n_tensors, 24, "tensors").map_err(in_file)?;

    let mut entries = Vec::new();
    for i in 0..n_kv {
        let key = r.string().map_err(|e| e.context(format!("metadata key {i} of {n_kv}")).context(name))?;
        let value = r.value().map_err(|e| e.context(format!("key {}", quote(&key))).context(name))?;
        entries.push((key, value));
    }
    let metadata = Metadata::new(name, entries)?;
    let alignment = alignment(name, metadata.get(ALIGNMENT))?;

    let mut tensors = Vec::new();
    for i in 0..n_tensors {
        let tensor_name = r.string().map_err(|e| e.context(format!("tensor name {i} of {n_tensors}")).context(name))?;
        let tensor = r.tensor(&tensor_name, alignment);
        tensors.push(tensor.map_err(|e| e.context(format!("tensor {}", quote(&tensor_name))).context(name))?);
    }
    place(&mut tensors, r.at, alignment, data.len()).map_err(in_file)?;
    Ok(File { version, metadata, tensors, bytes })
}

/// The value of [`ALIGNMENT`] in `file`, checked.
pub(super) fn alignment(file: &str, value: Option<&Value>) -> Result<usize> {
    let Some(value) = value else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_integer().and_then(|v| usize::try_from(v).ok()) {
        Some(v) if v.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&v) => Ok(v),
        _ => bail!(
            Format,
            "{file}: key \"{ALIGNMENT}\": expected a power of two from 8 to {MAX_ALIGNMENT}, got {}",
            value.describe()
        ),
    }
}

/// Bytes of a tensor of `dtype` and `shape` (outermost first), or what is wrong with them.
pub(super) fn n_bytes(dtype: Dtype, shape: &[usize]) -> Result<usize> {
    if shape.len() > MAX_DIMS {
        bail!(Format, "{} dimensions, where at most {MAX_DIMS} are known", shape.len());
    }
    if shape.contains(&0) {
        bail!(Format, "shape {shape:?} has a dimension of size 0");
    }
    let row = shape.last().copied().unwrap_or(1);
    let overflow = || crate::Error::new(crate::ErrorKind::Format, format!("shape {shape:?} is too large"));
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let (weights, _) = dtype.block();
    if row % weights != 0 {
        bail!(Format, "rows of {row} are no whole number of {dtype} blocks, which hold {weights} weights each");
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    dtype.row_bytes(row).and_then(|bytes| bytes.checked_mul(rows)).ok_or_else(overflow)
}

/// Turns offsets within the data section, which starts at the first aligned place after `end_of_entries`, into offsets
/// within the file, and checks that each tensor lies within it and no two overlap.
fn place(tensors: &mut [TensorInfo], end_of_entries: usize, alignment: usize, len: usize) -> Result<()> {
    let Some(start) = end_of_entries.checked_next_multiple_of(alignment) else {
        bail!(Format, "the tensor data start beyond what can be addressed");
    };
    for t in tensors.iter_mut() {
        let range = start.checked_add(t.offset).and_then(|at| Some((at, at.checked_add(t.n_bytes)?)));
        match range {
            Some((at, end)) if end <= len => t.offset = at,
            _ => bail!(
                Format,
                "tensor {}: its {} bytes at {start} + {} go beyond the end of the file ({len} bytes), which must be cut \
                 short or damaged",
                quote(&t.name),
                t.n_bytes,
                t.offset
            ),
        }
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_unstable_by_key(|&i| tensors[i].offset);
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
        if a.offset + a.n_bytes > b.offset {
            bail!(
                Format,
                "tensors {} ({} bytes at {}) and {} ({} bytes at {}) overlap",
                quote(&a.name),
                a.n_bytes,
                a.offset,
                quote(&b.name),
                b.n_bytes,
                b.offset
            );
        }
    }
    Ok(())
}

/// A place in a file's bytes. Messages leave the file's name to the caller.
struct Reader<'a> {
    data: &'a [u8],
    /// Never beyond `data`'s end.
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    /// The next `n` bytes, which hold `what`.
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            bail!(
                Format,
                "{what} of {n} bytes at {} goes beyond the end of the file ({} bytes), which must be cut short or damaged",
                self.at,
                self.data.len()
            );
        }
        let bytes = &self.data[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("take gives N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// `n` as a count of `what`, each of at least `min_bytes`, that the rest of the file can hold.
    fn count(&self, n: u64, min_bytes: usize, what: impl Display) -> Result<usize> {
        match usize::try_from(n) {
            Ok(n) if n <= self.left() / min_bytes => Ok(n),
            _ => bail!(
                Format,
                "{n} {what} cannot fit in the {} bytes from {} to the end of the file, which must be cut short or damaged",
                self.left(),
                self.at
            ),
        }
    }

    fn string(&mut self) -> Result<String> {
        let n = self.u64("a string's length")?;
        let n = self.count(n, 1, "bytes of a string")?;
        let at = self.at;
        // Copied before it is checked: the file might change in between.
        match String::from_utf8(self.take(n, "a string")?.to_vec()) {
            Ok(text) => Ok(text),
            Err(e) => bail!(
                Format,
                "the string of {n} bytes at {at} is not UTF-8 (byte {}): {}",
                e.utf8_error().valid_up_to(),
                quote(&String::from_utf8_lossy(&e.as_bytes()[..n.min(256)]))
            ),
        }
    }

    fn bool(&mut self) -> Result<bool> {
        let [byte] = self.array("a bool")?;
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => bail!(Format, "a bool is {byte}, expected 0 or 1"),
        }
    }

    fn kind(&mut self) -> Result<Type> {
        let id = self.u32("a type")?;
        match Type::from_id(id) {
            Some(kind) => Ok(kind),
            None => bail!(Format, "unknown value type {id}, expected 0 to 12"),
        }
    }

    fn value(&mut self) -> Result<Value> {
        Ok(match self.kind()? {
            Type::U8 => Value::U8(u8::from_le_bytes(self.array("a u8")?)),
            Type::I8 => Value::I8(i8::from_le_bytes(self.array("an i8")?)),
            Type::U16 => Value::U16(u16::from_le_bytes(self.array("a u16")?)),
            Type::I16 => Value::I16(i16::from_le_bytes(self.array("an i16")?)),
            Type::U32 => Value::U32(self.u32("a u32")?),
            Type::I32 => Value::I32(i32::from_le_bytes(self.array("an i32")?)),
            Type::F32 => Value::F32(f32::from_le_bytes(self.array("an f32")?)),
            Type::Bool => Value::Bool(self.bool()?),
            Type::String => Value::String(self.string()?),
            Type::Array => Value::Array(self.values(1)?),
            Type::U64 => Value::U64(self.u64("a u64")?),
            Type::I64 => Value::I64(i64::from_le_bytes(self.array("an i64")?)),
            Type::F64 => Value::F64(f64::from_le_bytes(self.array("an f64")?)),
        })
    }

    /// An array that lies within `depth - 1` others.
    fn values(&mut self, depth: usize) -> Result<Array> {
        if depth > MAX_DEPTH {
            bail!(Format, "arrays nest deeper than {MAX_DEPTH} levels");
        }
        let kind = self.kind()?;
        let n = self.u64("an array's length")?;
        let n = self.count(n, kind.min_bytes(), format_args!("elements of type {}", kind.name()))?;
        Ok(match kind {
            Type::U8 => Array::U8(self.take(n, "an array")?.to_vec()),
            Type::I8 => Array::I8(self.numbers(n, i8::from_le_bytes)?),
            Type::U16 => Array::U16(self.numbers(n, u16::from_le_bytes)?),
            Type::I16 => Array::I16(self.numbers(n, i16::from_le_bytes)?),
            Type::U32 => Array::U32(self.numbers(n, u32::from_le_bytes)?),
            Type::I32 => Array::I32(self.numbers(n, i32::from_le_bytes)?),
            Type::F32 => Array::F32(self.numbers(n, f32::from_le_bytes)?),
            Type::U64 => Array::U64(self.numbers(n, u64::from_le_bytes)?),
            Type::I64 => Array::I64(self.numbers(n, i64::from_le_bytes)?),
            Type::F64 => Array::F64(self.numbers(n, f64::from_le_bytes)?),
            Type::Bool => Array::Bool(self.elements(n, Reader::bool)?),
            Type::String => Array::String(self.elements(n, Reader::string)?),
            Type::Array => Array::Array(self.elements(n, |r| r.values(depth + 1))?),
        })
    }

    fn numbers<T, const N: usize>(&mut self, n: usize, from: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        // No overflow: `count` has seen that the file holds n elements.
        let bytes = self.take(n * N, "an array")?;
        Ok(bytes.chunks_exact(N).map(|c| from(c.try_into().expect("chunks of N bytes"))).collect())
    }

    fn elements<T>(&mut self, n: usize, mut read: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        // Grows as elements come: n elements of the least size fit in the file, but nested arrays could each claim that.
        let mut elements = Vec::new();
        for i in 0..n {
            unless_stopped()?;
            elements.push(read(self).map_err(|e| e.context(format!("element {i} of {n}")))?);
        }
        elements.shrink_to_fit();
        Ok(elements)
    }

    /// The rest of the entry of tensor `name`; its offset is still one within the data section.
    fn tensor(&mut self, name: &str, alignment: usize) -> Result<TensorInfo> {
        if name.is_empty() {
            bail!(Format, "the name is empty");
        }
        let n_dims = self.u32("the number of dimensions")?;
        if n_dims as usize > MAX_DIMS {
            bail!(Format, "{n_dims} dimensions, where at most {MAX_DIMS} are known");
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let d = self.u64("a dimension")?;
            match usize::try_from(d) {
                Ok(d) => shape.push(d),
                Err(_) => bail!(Format, "a dimension of {d} is too large"),
            }
        }
        shape.reverse();
        let id = self.u32("the type")?;
        let Some(dtype) = Dtype::from_id(id) else {
            match id {
                4 | 5 => bail!(Unsupported, "type {id} (Q4_2 or Q4_3) was removed from GGUF; convert the model again"),
                31..=33 | 36..=38 => bail!(
                    Unsupported,
                    "type {id} (a repacked Q4_0 or IQ4_NL) was removed from GGUF; quantize the model again, to Q4_0 or IQ4_NL"
                ),
                _ => bail!(Unsupported, "unknown tensor type {id}: the file is damaged, or newer than mmq"),
            }
        };
        let n_bytes = n_bytes(dtype, &shape)?;
        let offset = self.u64("the offset")?;
        let Ok(offset) = usize::try_from(offset) else { bail!(Format, "an offset of {offset} is too large") };
        if offset % alignment != 0 {
            bail!(Format, "offset {offset} is no multiple of the alignment, {alignment}");
        }
        Ok(TensorInfo { name: name.to_string(), dtype, shape, n_bytes, layout: Layout::Rows, shard: 0, offset })
    }
}

//! GGUF files: a checked, memory-mapped, zero-copy reader and a writer.
//!
//! A file is data from a stranger: every length, offset, count and type is checked before use.

use crate::{Dtype, Result};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values, all of one type; typed, so that a vocabulary of 150,000 strings costs no enum each.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Metadata in file order, with getters whose errors name the file and the key.
#[derive(Clone, Debug)]
pub struct Metadata {}

#[allow(unused_variables)]
impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        todo!()
    }
    /// All keys and values, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        std::iter::empty()
    }
    /// A non-negative integer of any width; `Ok(None)` if absent, an error if it is something else.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        todo!()
    }
    /// A float of any width (integers convert).
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        todo!()
    }
    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        todo!()
    }
    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        todo!()
    }
    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        todo!()
    }
    /// An array of floats.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        todo!()
    }
    /// An array of integers of any width.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        todo!()
    }
    /// The value that a getter gave, or an error that says that `file` lacks `key`.
    pub fn require<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        todo!()
    }
    /// The name of the file, for messages.
    pub fn file(&self) -> &str {
        todo!()
    }
}

/// A tensor's entry: name, type, shape and place.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first (the reverse of GGUF's `ne`).
    pub shape: Vec<usize>,
    /// Its size in bytes.
    pub n_bytes: usize,
    // plus private fields: shard index, absolute offset
}

/// Bytes of a mapped file (or of static memory), kept alive by what they came from.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    len: usize,
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }
}

/// An opened model: one file, or the shards of a split one.
pub struct Gguf {}

#[allow(unused_variables)]
impl Gguf {
    /// Opens and checks `path`; if it is a shard (`-00001-of-0000N`), its siblings too.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        todo!()
    }
    /// Reads a file that lies in memory; `name` stands for it in messages.
    pub fn from_static(name: &str, data: &'static [u8]) -> Result<Gguf> {
        todo!()
    }
    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        todo!()
    }
    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        todo!()
    }
    /// Its tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        todo!()
    }
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        todo!()
    }
    /// A tensor's bytes, without copying.
    pub fn bytes(&self, tensor: &TensorInfo) -> Bytes {
        todo!()
    }
}

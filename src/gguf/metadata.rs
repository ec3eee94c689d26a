//! Metadata: keys and values in file order, and getters whose errors name the file and the key.

use super::{Array, Value, index, quote};
use crate::bail;
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;

/// Metadata in file order, with getters whose errors name the file and the key.
///
/// A getter gives `Ok(None)` for a key that is absent and an error for one of another type.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: Arc<str>,
    entries: Vec<(String, Value)>,
    /// Places in `entries`, sorted by key.
    by_key: Vec<usize>,
}

impl Metadata {
    /// Metadata of a file that messages call `file`.
    ///
    /// # Errors
    /// `Format` if a key comes twice or is empty.
    pub fn new(file: &str, entries: Vec<(String, Value)>) -> Result<Metadata> {
        let by_key = match index(entries.len(), |i| &entries[i].0) {
            Ok(by_key) => by_key,
            Err(key) => bail!(Format, "{file}: key {} comes twice", quote(key)),
        };
        if by_key.first().is_some_and(|&i| entries[i].0.is_empty()) {
            bail!(Format, "{file}: a key is empty");
        }
        Ok(Metadata { file: file.into(), entries, by_key })
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.by_key.binary_search_by(|&i| self.entries[i].0.as_str().cmp(key)).ok()?;
        Some(&self.entries[self.by_key[at]].1)
    }

    /// All keys and values, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A non-negative integer of any width; `Ok(None)` if absent, an error if it is something else.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a non-negative integer", |v| usize::try_from(v.as_integer()?).ok())
    }

    /// A float of any width (integers convert).
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |v| match *v {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => v.as_integer().map(|v| v as f32),
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match *v {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of floats of any width (integers convert).
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(key, "an array of numbers", |v| {
            let Value::Array(array) = v else { return None };
            Some(match array {
                Array::F32(v) => v.clone(),
                Array::F64(v) => v.iter().map(|&v| v as f32).collect(),
                _ => integers(array)?.map(|v| v as f32).collect(),
            })
        })
    }

    /// An array of integers of any width.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of 64-bit integers", |v| {
            let Value::Array(array) = v else { return None };
            integers(array)?.map(|v| i64::try_from(v).ok()).collect()
        })
    }

    /// An array of booleans.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of bools", |v| match v {
            Value::Array(Array::Bool(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// The value that a getter gave, or an error that says that `file` lacks `key`.
    pub fn require<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| Error::new(ErrorKind::Format, format!("{}: key {} is missing", self.file, quote(key))))
    }

    /// The name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What `read` makes of `key`'s value, or an error that says what was expected.
    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => bail!(Format, "{}: key {}: expected {expected}, got {}", self.file, quote(key), value.describe()),
        }
    }
}

/// An array's elements if they are integers.
fn integers(array: &Array) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
    Some(match array {
        Array::U8(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::I8(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::U16(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::I16(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::U32(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::I32(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::U64(v) => Box::new(v.iter().map(|&v| v.into())),
        Array::I64(v) => Box::new(v.iter().map(|&v| v.into())),
        _ => return None,
    })
}

//! JSON files of a model's folder, with getters whose errors name the file and the key.

use crate::{Error, ErrorKind, Result, bail};
use serde_json::{Map, Value};
use std::path::Path;

/// The longest file that is read: several times the largest vocabulary's.
const MAX_BYTES: u64 = 256 << 20;

/// An object of a JSON file.
#[derive(Clone, Debug)]
pub(super) struct Json {
    file: String,
    /// The keys that lead to it, with a dot after each.
    path: String,
    map: Map<String, Value>,
}

/// The text of a file of at most [`MAX_BYTES`].
pub(super) fn read_text(path: &Path) -> Result<String> {
    let failed = |e| Error::io(path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        bail!(Unsupported, "{}: {length} bytes, more than {MAX_BYTES}", path.display());
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes)
        .map_err(|_| Error::new(ErrorKind::Format, format!("{}: expected UTF-8 text", path.display())))
}

impl Json {
    /// Reads the object that is the file `path`.
    pub fn read(path: &Path) -> Result<Json> {
        let text = read_text(path)?;
        let file = path.display().to_string();
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(map)) => Ok(Json { file, path: String::new(), map }),
            Ok(_) => bail!(Format, "{file}: expected a JSON object"),
            Err(e) => bail!(Format, "{file}: {e}"),
        }
    }

    /// The same, or an empty object if there is no such file.
    pub fn read_optional(path: &Path) -> Result<Json> {
        match path.try_exists() {
            Ok(true) => Json::read(path),
            _ => Ok(Json::empty(&path.display().to_string())),
        }
    }

    /// An object with no keys.
    pub fn empty(file: &str) -> Json {
        Json { file: file.to_string(), path: String::new(), map: Map::new() }
    }

    /// The file that it is from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The file and `key`, as messages begin.
    pub fn at(&self, key: &str) -> String {
        format!("{}: {}{key}", self.file, self.path)
    }

    /// All keys and values, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, unless it is null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, get: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match get(value) {
            Some(value) => Ok(Some(value)),
            None => {
                let shown: String = value.to_string().chars().take(80).collect();
                bail!(Format, "{}: expected {what}, got {shown}", self.at(key))
            }
        }
    }

    /// A whole number from 0 on.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// A size: a whole number from 1 to 2^31 - 1, or `default`.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.usize(key)?.unwrap_or(default) {
            n if n > 0 && n <= i32::MAX as usize => Ok(n),
            n => bail!(Format, "{}: {n} is no sensible size", self.at(key)),
        }
    }

    /// A whole number.
    pub fn i64(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "a whole number", Value::as_i64)
    }

    /// A finite number.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|v| (*v as f32).is_finite()))
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A list.
    pub fn list(&self, key: &str) -> Result<Option<&[Value]>> {
        self.typed(key, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    /// The object under `key`.
    pub fn section(&self, key: &str) -> Result<Option<Json>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Json { file: self.file.clone(), path: format!("{}{key}.", self.path), map: map.clone() }))
    }

    /// The object under `key`, which must be there.
    pub fn require_section(&self, key: &str) -> Result<Json> {
        match self.section(key)? {
            Some(section) => Ok(section),
            None => bail!(Format, "{}: is missing", self.at(key)),
        }
    }
}

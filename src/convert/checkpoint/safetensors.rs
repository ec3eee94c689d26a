//! safetensors files: a JSON header of names, types, shapes and offsets, then the data.
//!
//! The format: <https://github.com/huggingface/safetensors#format>.

use super::{Element, MAX_DIMS, Tensor, n_elements};
use crate::gguf::Bytes;
use crate::{Error, ErrorKind, Result, bail};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use std::sync::Arc;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor as the header describes it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in order, so that one that comes twice is seen.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Header, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The tensors of a file.
pub(super) fn read(file: &Arc<str>, bytes: Bytes) -> Result<Vec<Tensor>> {
    let Some(length) = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)) else {
        bail!(Format, "{file}: is no safetensors file: {} bytes", bytes.len());
    };
    let start = match usize::try_from(length) {
        Ok(n) if length <= MAX_HEADER && n <= bytes.len() - 8 => 8 + n,
        _ => bail!(
            Format,
            "{file}: is no whole safetensors file: a header of {length} bytes in a file of {}",
            bytes.len()
        ),
    };
    let header: Header = serde_json::from_slice(&bytes[8..start])
        .map_err(|e| Error::new(ErrorKind::Format, format!("{file}: header of the safetensors file: {e}")))?;
    let mut taken: Vec<(usize, usize, usize)> = Vec::with_capacity(header.0.len());
    let mut tensors = Vec::with_capacity(header.0.len());
    for (i, (name, entry)) in header.0.into_iter().enumerate() {
        let at = || format!("{file}: tensor {name:?}");
        let Some(element) = element(&entry.dtype) else {
            bail!(Unsupported, "{}: unknown type {:?}", at(), entry.dtype);
        };
        let [begin, end] = entry.data_offsets;
        let n = n_elements(&entry.shape).and_then(|n| n.checked_mul(element.size()));
        let Some(n) = n else {
            bail!(Format, "{}: {:?} is no shape of up to {MAX_DIMS} dimensions", at(), entry.shape);
        };
        if begin > end || end - begin != n {
            bail!(
                Format,
                "{}: expected {n} bytes for {} {:?}, got data_offsets {begin}..{end}",
                at(),
                element.name(),
                entry.shape
            );
        }
        if end > bytes.len() - start {
            bail!(
                Format,
                "{}: ends at byte {end} of the data, of which the file has {}: it is cut short",
                at(),
                bytes.len() - start
            );
        }
        taken.push((begin, end, i));
        let bytes = bytes.slice(start + begin..start + end);
        tensors.push(Tensor {
            element,
            shape: entry.shape,
            file: file.clone(),
            strides: None,
            bytes,
            lora: None,
            name,
        });
    }
    taken.retain(|(begin, end, _)| begin < end);
    taken.sort_unstable();
    if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        let (a, b) = (&tensors[pair[0].2].name, &tensors[pair[1].2].name);
        bail!(Format, "{file}: tensors {a:?} and {b:?} overlap");
    }
    Ok(tensors)
}

fn element(name: &str) -> Option<Element> {
    Some(match name {
        "F64" => Element::F64,
        "F32" => Element::F32,
        "F16" => Element::F16,
        "BF16" => Element::BF16,
        "I64" => Element::Other("I64", 8),
        "U64" => Element::Other("U64", 8),
        "I32" => Element::Other("I32", 4),
        "U32" => Element::Other("U32", 4),
        "I16" => Element::Other("I16", 2),
        "U16" => Element::Other("U16", 2),
        "I8" => Element::Other("I8", 1),
        "U8" => Element::Other("U8", 1),
        "BOOL" => Element::Other("BOOL", 1),
        "F8_E4M3" => Element::Other("F8_E4M3", 1),
        "F8_E5M2" => Element::Other("F8_E5M2", 1),
        "F8_E8M0" => Element::Other("F8_E8M0", 1),
        _ => return None,
    })
}

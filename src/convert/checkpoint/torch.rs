//! PyTorch's files: a zip archive of a pickle (`data.pkl`), which describes tensors, and the storages that they are views of.

use super::pickle::{self, Pickle, Value};
use super::zip::Archive;
use super::{MAX_DIMS, Tensor, n_elements};
use crate::gguf::Bytes;
use crate::{Result, bail};
use std::sync::Arc;

/// How a file from before PyTorch 1.6 begins: a pickle of a magic number.
pub(super) const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The tensors of a file.
pub(super) fn read(file: &Arc<str>, bytes: Bytes) -> Result<Vec<Tensor>> {
    let archive = Archive::read(file, &bytes)?;
    let mut roots = archive.names().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        bail!(Format, "{file}: is no file of PyTorch's: expected one entry data.pkl in the archive");
    };
    if let Some(order) = archive.get(&format!("{root}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        bail!(Unsupported, "{file}: byte order {:?}", String::from_utf8_lossy(&bytes[order]));
    }
    let name = format!("{file}: {root}data.pkl");
    let place = archive.get(&format!("{root}data.pkl")).expect("its name was found");
    let pickle = pickle::read(&name, &bytes[place])?;
    let mut tensors = Vec::new();
    for (key, value) in state_dict(&pickle, &name)? {
        let (Value::Str(key), Value::Tensor(i)) = (key, value) else { continue };
        let view = &pickle.tensors[*i];
        let storage = pickle.storages[view.storage];
        let at = || format!("{file}: tensor {key:?}");
        let entry = format!("{root}data/{}", storage.key);
        let Some(data) = archive.get(&entry) else {
            bail!(Format, "{}: its data are missing: there is no entry {entry:?} in the archive", at());
        };
        let size = storage.element.size();
        if storage.len.checked_mul(size).is_none_or(|n| n > data.len()) {
            bail!(Format, "{}: expected {} elements in entry {entry:?}, got {} bytes", at(), storage.len, data.len());
        }
        let n = n_elements(&view.shape).filter(|_| view.strides.len() == view.shape.len());
        let Some(n) = n else {
            bail!(
                Format,
                "{}: {:?} with steps of {:?} is no shape of up to {MAX_DIMS} dimensions",
                at(),
                view.shape,
                view.strides
            );
        };
        // Where the last element ends. A view may show elements twice, but not more of them than there are.
        let extent = view
            .shape
            .iter()
            .zip(&view.strides)
            .try_fold(0usize, |sum, (n, stride)| sum.checked_add(n.checked_sub(1)?.checked_mul(*stride)?));
        let end = match extent {
            Some(extent) => view.offset.checked_add(extent).and_then(|last| last.checked_add(1)),
            // One of the dimensions is 0, or nothing that could lie in memory.
            None => (n == 0).then_some(view.offset),
        };
        if n > storage.len || end.is_none_or(|end| end > storage.len) {
            bail!(
                Format,
                "{}: {:?} with steps of {:?} from element {} lies outside of its storage of {}",
                at(),
                view.shape,
                view.strides,
                view.offset,
                storage.len
            );
        }
        let start = data.start + view.offset * size;
        let contiguous = is_contiguous(&view.shape, &view.strides);
        let end = if contiguous { start + n * size } else { data.start + storage.len * size };
        tensors.push(Tensor {
            name: key.to_string(),
            element: storage.element,
            shape: view.shape.clone(),
            file: file.clone(),
            strides: (!contiguous).then(|| view.strides.clone()),
            bytes: bytes.slice(start..end),
            lora: None,
        });
    }
    if tensors.is_empty() {
        bail!(Format, "{file}: holds no tensors by name");
    }
    Ok(tensors)
}

/// The dictionary of tensors: the whole, or what training programs put under `model` or `state_dict`.
fn state_dict<'p, 'a>(pickle: &'p Pickle<'a>, name: &str) -> Result<&'p [(Value<'a>, Value<'a>)]> {
    let Value::Dict(i) = pickle.value else {
        bail!(Unsupported, "{name}: expected a dictionary of tensors, got {:?}", pickle.value);
    };
    let dict = &pickle.dicts[i];
    let inner = dict.iter().find_map(|(key, value)| match (key, value) {
        (Value::Str("model" | "state_dict" | "module"), Value::Dict(i)) => Some(*i),
        _ => None,
    });
    Ok(match inner {
        Some(i) => &pickle.dicts[i],
        None => dict,
    })
}

/// Whether the elements lie one after the other.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(strides).rev().all(|(n, stride)| {
        let fits = *n == 1 || *stride == step;
        step *= n;
        fits
    })
}

//! Packed files: matrices already lie in the layout that kernels read without transposing, so that a mapped file runs as
//! it is. Sizes, types, shapes and names are those of the file that was packed.
//!
//! Another reader would compute nonsense from such a file, and must not take it for an ordinary one: its
//! `general.architecture` (and a vision encoder's `clip.projector_type`) is `mmq-packed`, which nobody runs. These keys
//! tell what it is; the names that messages and other layers see are the real ones.
//!
//! | key | value |
//! |---|---|
//! | `mmq.packed.architecture`, `mmq.packed.projector_type` | what the file was before |
//! | `mmq.packed.alignment` | its `general.alignment`, if it had one |
//! | `mmq.packed.layout` | `rows16.v1`: each 16 rows interleaved, as [`mmq_kernels::interleave`] says |
//! | `mmq.packed.tensors` | names of the tensors that are interleaved |

use super::{Gguf, Metadata, Value, Writer, quote, reader};
use crate::{Result, bail};
use mmq_kernels::Layout;
use mmq_kernels::panel::PANEL_ROWS;

/// The architecture that packed files show to the world.
const TAG: &str = "mmq-packed";
/// The one layout that there is.
const LAYOUT: &str = "rows16.v1";
const LAYOUT_KEY: &str = "mmq.packed.layout";
const TENSORS_KEY: &str = "mmq.packed.tensors";
const ALIGNMENT_KEY: &str = "mmq.packed.alignment";
/// Keys that are tagged, and where their values are kept.
const TAGGED: [(&str, &str); 2] =
    [("general.architecture", "mmq.packed.architecture"), ("clip.projector_type", "mmq.packed.projector_type")];
/// Alignment of tensors in packed files: a cache line, which is also the longest vector.
const ALIGNMENT: usize = 64;

/// Takes the tags off a packed model's metadata and marks its interleaved tensors.
pub(super) fn restore(model: &mut Gguf) -> Result<()> {
    let name = model.name().to_owned();
    let (architecture, kept) = TAGGED[0];
    if model.metadata.get(architecture) != Some(&Value::from(TAG)) {
        if let Some((key, _)) = model.metadata.iter().find(|(key, _)| key.starts_with("mmq.packed.")) {
            bail!(Format, "{name}: key {}: only packed files have it, and {architecture} is not {TAG:?}", quote(key));
        }
        return Ok(());
    }
    let meta = &model.metadata;
    let layout = meta.require(LAYOUT_KEY, meta.str(LAYOUT_KEY))?;
    if layout != LAYOUT {
        bail!(
            Unsupported,
            "{name}: packed in layout {}, mmq knows {LAYOUT}: pack the original file again",
            quote(layout)
        );
    }
    if meta.require(kept, meta.str(kept))? == TAG {
        bail!(Format, "{name}: key {}: {TAG:?} is no architecture to restore", quote(kept));
    }
    let (projector, kept) = TAGGED[1];
    let tagged = meta.get(projector).map(|value| *value == Value::from(TAG));
    if tagged == Some(false) || tagged.is_none() && meta.get(kept).is_some() {
        bail!(Format, "{name}: key {}: expected {TAG:?}, as in every packed file", quote(projector));
    }
    for tensor in meta.require(TENSORS_KEY, meta.strings(TENSORS_KEY))? {
        let Some(at) = model.place(tensor) else {
            bail!(Format, "{name}: key {}: there is no tensor {}", quote(TENSORS_KEY), quote(tensor));
        };
        let info = &mut model.tensors[at];
        if info.layout == Layout::Panels {
            bail!(Format, "{name}: key {}: tensor {} comes twice", quote(TENSORS_KEY), quote(tensor));
        }
        if !info.can_be_interleaved() {
            bail!(
                Format,
                "{name}: key {}: tensor {} of {} {:?} cannot be interleaved",
                quote(TENSORS_KEY),
                quote(tensor),
                info.dtype,
                info.shape
            );
        }
        info.layout = Layout::Panels;
    }
    model.metadata = untagged(&model.metadata)?;
    Ok(())
}

/// Metadata without tags.
fn untagged(meta: &Metadata) -> Result<Metadata> {
    let mut entries = Vec::with_capacity(meta.len());
    for (key, value) in meta.iter() {
        let kept = TAGGED.iter().find(|(tagged, _)| *tagged == key && *value == Value::from(TAG));
        match kept {
            Some((_, kept)) => entries.extend(meta.get(kept).map(|value| (key.to_owned(), value.clone()))),
            None => entries.push((key.to_owned(), value.clone())),
        }
    }
    Metadata::new(meta.file(), entries)
}

impl super::TensorInfo {
    /// Whether it is a matrix of 16 rows or more of a type with kernels. A tensor of more dimensions is a matrix of its
    /// outermost one.
    pub fn can_be_interleaved(&self) -> bool {
        self.shape.len() >= 2 && self.shape[0] >= PANEL_ROWS && self.dtype.is_runnable()
    }
}

impl Gguf {
    /// The layout that the file is packed in; `None` for an ordinary file.
    pub fn packed(&self) -> Option<&str> {
        self.metadata.str(LAYOUT_KEY).ok().flatten()
    }
}

impl Writer {
    /// A file with the metadata of `gguf`, an ordinary one, tagged as a packed one of which `tensors` are interleaved.
    ///
    /// # Errors
    /// `Usage` if `gguf` is packed, `Format` if it has no architecture.
    pub fn packing(gguf: &Gguf, tensors: Vec<String>) -> Result<Writer> {
        if gguf.packed().is_some() {
            bail!(Usage, "{}: is packed already", gguf.name());
        }
        let meta = gguf.metadata();
        let (architecture, _) = TAGGED[0];
        meta.require(architecture, meta.str(architecture))?;
        let mut writer = Writer::like(gguf);
        for (key, kept) in TAGGED.into_iter().chain([(reader::ALIGNMENT, ALIGNMENT_KEY)]) {
            if let Some(value) = meta.get(key) {
                writer.set(kept, value.clone());
            }
        }
        writer.tag(meta);
        let alignment = reader::alignment(gguf.name(), meta.get(reader::ALIGNMENT))?.max(ALIGNMENT);
        writer.set(reader::ALIGNMENT, alignment as u32);
        writer.set(LAYOUT_KEY, LAYOUT).set(TENSORS_KEY, tensors);
        Ok(writer)
    }

    /// A file with the metadata that `gguf`, a packed one, had before.
    ///
    /// # Errors
    /// `Usage` if `gguf` is not packed.
    pub fn unpacking(gguf: &Gguf) -> Result<Writer> {
        if gguf.packed().is_none() {
            bail!(Usage, "{}: is not packed", gguf.name());
        }
        let meta = gguf.metadata();
        let mut writer = Writer::like(gguf);
        for (key, kept) in TAGGED.into_iter().chain([(reader::ALIGNMENT, ALIGNMENT_KEY)]) {
            match meta.get(kept) {
                Some(value) => writer.set(key, value.clone()),
                None => writer.remove(key),
            };
            writer.remove(kept);
        }
        writer.remove(LAYOUT_KEY).remove(TENSORS_KEY);
        Ok(writer)
    }

    /// Puts the tags of a packed file on; `meta` are the metadata without them.
    pub(super) fn tag(&mut self, meta: &Metadata) {
        let sees = meta.iter().any(|(key, _)| key.starts_with("clip."));
        for (key, _) in TAGGED.iter().take(if sees { 2 } else { 1 }) {
            self.set(key, TAG);
        }
    }
}

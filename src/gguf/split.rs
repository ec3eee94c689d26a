//! Models in one file or in several: `NAME-00001-of-00003.gguf` and its siblings.
//!
//! Each shard is a GGUF file with `split.no` (from 0), `split.count` and `split.tensors.count` (of all shards). The first
//! holds the model's metadata.

use super::reader::{self, File};
use super::{Gguf, index, mmap, packed, quote};
use crate::Result;
use crate::bail;
use std::path::{Path, PathBuf};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The keys that say which part of a split model a file is: its number, the count of parts, the count of tensors in all.
pub const SPLIT_KEYS: [&str; 3] = [NO, COUNT, TENSORS];

/// The path of shard `no` (from 0) of `count`: `prefix` and `-00001-of-0000N.gguf`, as llama.cpp names it. An end of
/// `.gguf` is taken off `prefix`.
pub fn shard_path(prefix: &Path, no: usize, count: usize) -> PathBuf {
    let prefix = prefix.as_os_str();
    let mut name = match prefix.to_str().and_then(|text| text.strip_suffix(".gguf")) {
        Some(stem) => stem.into(),
        None => prefix.to_owned(),
    };
    name.push(suffix(no, count));
    name.into()
}

/// Opens `path` and, if it is a shard, its siblings.
pub(super) fn open(path: &Path) -> Result<Gguf> {
    let file = read(path)?;
    let n_shards = file.metadata.usize(COUNT)?.unwrap_or(1);
    if n_shards <= 1 {
        let mut gguf = single(file)?;
        gguf.path = Some(path.to_path_buf());
        return Ok(gguf);
    }
    let name = path.display();
    let no = file.metadata.require(NO, file.metadata.usize(NO))?;
    if no >= n_shards {
        bail!(Format, "{name}: key \"{NO}\": shard {no} of {n_shards}, counted from 0");
    }
    let Some(prefix) = prefix(path, no, n_shards) else {
        bail!(
            Format,
            "{name}: shard {} of {n_shards} of a split model; its name must end in {}, so that the others can be found",
            no + 1,
            suffix(no, n_shards)
        );
    };
    let shard_path = |i: usize| path.with_file_name(format!("{prefix}{}", suffix(i, n_shards)));

    // All must be there before any is read, so that the message comes at once and names each missing one.
    let missing: Vec<PathBuf> = (0..n_shards).map(shard_path).filter(|p| !p.exists()).take(4).collect();
    if let [first, more @ ..] = missing.as_slice() {
        let more = if more.is_empty() { "" } else { " (and others)" };
        bail!(Io, "{name}: shard {} of the split model is missing{more}", first.display());
    }

    let mut opened = Some(file);
    let mut model: Option<Gguf> = None;
    for i in 0..n_shards {
        let shard = match opened.take_if(|_| i == no) {
            Some(file) => file,
            None => read(&shard_path(i))?,
        };
        check(&shard, i, n_shards)?;
        match &mut model {
            None => {
                model = Some(Gguf {
                    path: Some(shard_path(0)),
                    version: shard.version,
                    metadata: shard.metadata,
                    tensors: shard.tensors,
                    by_name: Vec::new(),
                    shards: vec![shard.bytes],
                })
            }
            Some(model) => {
                model.tensors.extend(shard.tensors.into_iter().map(|t| super::TensorInfo { shard: i, ..t }));
                model.shards.push(shard.bytes);
            }
        }
    }
    let mut model = model.expect("there are at least two shards");
    let expected = model.metadata.require(TENSORS, model.metadata.usize(TENSORS))?;
    if expected != model.tensors.len() {
        bail!(
            Format,
            "{}: key \"{TENSORS}\": expected {expected} tensors in all shards, got {}",
            model.name(),
            model.tensors.len()
        );
    }
    model.by_name = by_name(&model)?;
    packed::restore(&mut model)?;
    Ok(model)
}

/// The model that `file` alone is.
pub(super) fn single(file: File) -> Result<Gguf> {
    let n_shards = file.metadata.usize(COUNT)?.unwrap_or(1);
    if n_shards > 1 {
        bail!(Unsupported, "{}: a shard of a split model, which cannot be read from memory", file.metadata.file());
    }
    let mut model = Gguf {
        path: None,
        version: file.version,
        metadata: file.metadata,
        tensors: file.tensors,
        by_name: Vec::new(),
        shards: vec![file.bytes],
    };
    model.by_name = by_name(&model)?;
    packed::restore(&mut model)?;
    Ok(model)
}

fn read(path: &Path) -> Result<File> {
    reader::read(&path.display().to_string(), mmap::map(path)?)
}

fn by_name(model: &Gguf) -> Result<Vec<usize>> {
    match index(model.tensors.len(), |i| &model.tensors[i].name) {
        Ok(places) => Ok(places),
        Err(name) => bail!(Format, "{}: tensor {} comes twice", model.name(), quote(name)),
    }
}

/// Checks that `shard` is the one with number `no` of `count`.
fn check(shard: &File, no: usize, count: usize) -> Result<()> {
    for (key, expected) in [(NO, no), (COUNT, count)] {
        let got = shard.metadata.require(key, shard.metadata.usize(key))?;
        if got != expected {
            bail!(Format, "{}: key \"{key}\": expected {expected}, got {got}", shard.metadata.file());
        }
    }
    Ok(())
}

/// How the name of shard `no` of `count` ends.
fn suffix(no: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

/// What comes before the suffix in the name of `path`, which is shard `no` of `count`.
fn prefix(path: &Path, no: usize, count: usize) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(&suffix(no, count))
}

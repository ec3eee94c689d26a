//! Where the weights of a loaded model come from: what tells the model apart from others, and pages that can be given back.

use super::{Bytes, Gguf};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::OnceLock;

/// Bytes of a tensor that are hashed at its beginning, and as many again in its middle.
const SAMPLE: usize = 1024;

/// The files of a model that is open.
pub struct Origin {
    shards: Vec<Bytes>,
    /// Of each tensor: its shard and its place in it.
    tensors: Vec<(usize, Range<usize>)>,
    hash: OnceLock<[u8; 32]>,
}

impl Origin {
    /// The files of `gguf`.
    pub fn of(gguf: &Gguf) -> Origin {
        let place = |t: &super::TensorInfo| (t.shard, t.offset..t.offset + t.n_bytes);
        Origin { shards: gguf.shards.clone(), tensors: gguf.tensors.iter().map(place).collect(), hash: OnceLock::new() }
    }

    /// A SHA-256 of all metadata, names, types and shapes, and of samples of every tensor: models that differ by training
    /// differ in it, and weights of gigabytes need not be read. Copies of a file have the same.
    pub fn hash(&self) -> &[u8; 32] {
        self.hash.get_or_init(|| {
            let mut hasher = Sha256::new();
            for (i, shard) in self.shards.iter().enumerate() {
                let starts = self.tensors.iter().filter(|(s, _)| *s == i).map(|(_, place)| place.start);
                let head = starts.min().unwrap_or(shard.len());
                hasher.update((head as u64).to_le_bytes());
                hasher.update(&shard[..head]);
            }
            for (i, place) in &self.tensors {
                let n = SAMPLE.min(place.len());
                for start in [place.start, place.start + (place.len() - n) / 2] {
                    hasher.update(&self.shards[*i][start..start + n]);
                }
            }
            hasher.finalize().into()
        })
    }

    /// Gives the pages of all tensors back to the system: they come from the file again when they are next read.
    pub fn give_back(&self) {
        for (i, place) in &self.tensors {
            self.shards[*i].give_back(place.clone());
        }
    }
}

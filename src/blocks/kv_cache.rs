//! Keys and values of the tokens so far, one pair of stores for each layer.

use crate::{Result, bail};
use mmq_kernels::attention::KEY_TILE;
use mmq_kernels::{Kv, KvTiles, Side, kernels};

pub use mmq_kernels::KvType;

/// The types of a cache's keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvTypes {
    /// Of the keys.
    pub k: KvType,
    /// Of the values.
    pub v: KvType,
}

/// The cache of a session: grows with the text, up to `n_ctx` tokens.
pub struct KvCache {
    layers: Vec<(KvTiles, KvTiles)>,
    n_ctx: usize,
    len: usize,
    /// What the keys' rotations are stretched by ([`Rope::stretch`](super::rope::Rope::stretch)).
    stretch: u32,
}

impl KvCache {
    /// An empty cache of `n_layer` layers with `n_head_kv` heads of `head_dim` elements.
    ///
    /// # Errors
    /// Heads that are no multiple of a type's blocks.
    pub fn new(n_layer: usize, n_head_kv: usize, head_dim: usize, n_ctx: usize, types: KvTypes) -> Result<KvCache> {
        for (option, what, kind) in [("cache-type-k", "keys", types.k), ("cache-type-v", "values", types.v)] {
            if !head_dim.is_multiple_of(kind.block()) {
                let (name, block) = (kind.name(), kind.block());
                bail!(
                    Unsupported,
                    "{option} {name}: {what} are stored in blocks of {block}, but this model's heads have {head_dim} \
                     elements: use f16"
                );
            }
        }
        let store = |kind, side| KvTiles::new(kind, side, n_head_kv, head_dim);
        let layers = (0..n_layer).map(|_| (store(types.k, Side::Keys), store(types.v, Side::Values))).collect();
        Ok(KvCache { layers, n_ctx, len: 0, stretch: 1 })
    }

    /// Tokens that are in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens that it may hold.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// What the rotations of its keys are stretched by: 1 until [`KvCache::restretch`].
    pub fn stretch(&self) -> u32 {
        self.stretch
    }

    /// Stretches the rotations of the keys to come; keys that were stretched otherwise are forgotten.
    pub fn restretch(&mut self, stretch: u32) {
        if self.stretch != stretch {
            self.truncate(0);
            self.stretch = stretch;
        }
    }

    /// Forgets everything from token `len` on, including what an interrupted pass has left behind.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for (k, v) in &mut self.layers {
            k.truncate(self.len);
            v.truncate(self.len);
        }
    }

    /// Appends keys and values of new tokens to layer `layer`: `[n_tokens, n_head_kv, head_dim]` each.
    pub fn push(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let (k_tiles, v_tiles) = &mut self.layers[layer];
        k_tiles.push(kernels(), k, self.n_ctx);
        v_tiles.push(kernels(), v, self.n_ctx);
        assert!(k_tiles.len() <= self.n_ctx, "the caller checks that the context has room");
    }

    /// All keys and values of layer `layer`, the newly pushed ones included.
    pub fn layer(&self, layer: usize) -> (Kv<'_>, Kv<'_>) {
        let (k, v) = &self.layers[layer];
        (k.view(), v.view())
    }

    /// How it is stored: layers, heads, elements of a head, types.
    pub fn shape(&self) -> (usize, usize, usize, KvTypes) {
        let (k, v) = self.layers.first().expect("a model has layers");
        let (n_head, head_dim) = k.shape();
        (self.layers.len(), n_head, head_dim, KvTypes { k: k.kind(), v: v.kind() })
    }

    /// Bytes that `n` tokens take; `None` if no memory could hold them.
    pub fn n_bytes(&self, n: usize) -> Option<usize> {
        let (k, v) = self.layers.first().expect("a model has layers");
        let tile = k.n_bytes(KEY_TILE) + v.n_bytes(KEY_TILE);
        n.div_ceil(KEY_TILE).checked_mul(tile)?.checked_mul(self.layers.len())
    }

    /// Passes everything that is stored to `put`: [`KvCache::n_bytes`] of its length, in pieces.
    ///
    /// # Errors
    /// What `put` returns.
    pub fn write(&self, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.layers.iter().try_for_each(|(k, v)| put(k.bytes()).and_then(|()| put(v.bytes())))
    }

    /// Puts `n` tokens in place of what is stored, of which `take` yields the pieces that [`KvCache::write`] has put. Where
    /// that fails the cache is empty.
    ///
    /// # Errors
    /// What `take` returns.
    pub fn read(&mut self, n: usize, take: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        assert!(n <= self.n_ctx, "the caller checks that the context has room");
        for (k, v) in &mut self.layers {
            let read = k.restore(n, &mut *take).and_then(|()| v.restore(n, &mut *take));
            if let Err(error) = read {
                self.truncate(0);
                return Err(error);
            }
        }
        self.len = n;
        Ok(())
    }

    /// Counts `n` tokens in, after every layer has pushed theirs.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

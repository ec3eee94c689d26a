//! Keys and values of the tokens so far, one pair of buffers for each layer.

use mmq_kernels::{Kv, kernels};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 32-bit floats.
    F32,
}

enum Rows {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Rows {
    fn new(kv_type: KvType) -> Rows {
        match kv_type {
            KvType::F16 => Rows::F16(Vec::new()),
            KvType::F32 => Rows::F32(Vec::new()),
        }
    }

    fn truncate(&mut self, n: usize) {
        match self {
            Rows::F16(rows) => rows.truncate(n),
            Rows::F32(rows) => rows.truncate(n),
        }
    }

    /// Appends `x`; grows by doubling, but never past `max` elements.
    fn push(&mut self, x: &[f32], max: usize) {
        fn reserve<T>(rows: &mut Vec<T>, n: usize, max: usize) {
            if rows.capacity() < rows.len() + n {
                rows.reserve_exact((rows.len() + n).next_power_of_two().min(max) - rows.len());
            }
        }
        match self {
            Rows::F16(rows) => {
                reserve(rows, x.len(), max);
                let start = rows.len();
                rows.resize(start + x.len(), 0);
                (kernels().to_f16)(x, &mut rows[start..]);
            }
            Rows::F32(rows) => {
                reserve(rows, x.len(), max);
                rows.extend_from_slice(x);
            }
        }
    }

    fn view(&self) -> Kv<'_> {
        match self {
            Rows::F16(rows) => Kv::F16(rows),
            Rows::F32(rows) => Kv::F32(rows),
        }
    }
}

/// The cache of a session: grows with the text, up to `n_ctx` tokens.
pub struct KvCache {
    layers: Vec<(Rows, Rows)>,
    width: usize,
    n_ctx: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache of `n_layer` layers whose keys and values are `width` wide (`n_head_kv · head_dim`).
    pub fn new(n_layer: usize, width: usize, n_ctx: usize, kv_type: KvType) -> KvCache {
        let layers = (0..n_layer).map(|_| (Rows::new(kv_type), Rows::new(kv_type))).collect();
        KvCache { layers, width, n_ctx, len: 0 }
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

    /// Forgets everything from token `len` on, including what an interrupted pass has left behind.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for (k, v) in &mut self.layers {
            k.truncate(self.len * self.width);
            v.truncate(self.len * self.width);
        }
    }

    /// Appends keys and values of new tokens to layer `layer`: `[n_tokens, width]` each.
    pub fn push(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let max = self.n_ctx.saturating_mul(self.width);
        assert!(self.len * self.width + k.len() <= max, "the caller checks that the context has room");
        self.layers[layer].0.push(k, max);
        self.layers[layer].1.push(v, max);
    }

    /// All keys and values of layer `layer`, the newly pushed ones included.
    pub fn layer(&self, layer: usize) -> (Kv<'_>, Kv<'_>) {
        (self.layers[layer].0.view(), self.layers[layer].1.view())
    }

    /// Counts `n` tokens in, after every layer has pushed theirs.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

//! How keys and values are stored: tiles of [`KEY_TILE`] tokens, head by head.
//!
//! The part of one head in one tile is a run of bytes, little-endian; the heads of a tile follow each
//! other, then comes the next tile. Keys lie element by element with the keys of the tile together, so that a score is a
//! lane of a vector and needs no sum across lanes; values lie key by key. With `width` = `head_dim` rounded up to
//! [`ROW_STEP`]:
//!
//! ```text
//!              keys                                                       values
//! F32, F16     [width][32 keys]                                           [32 keys][width]
//! Q8_0         for each 32 elements: d [32 keys], q [32][32 keys] i8      [32 keys][head_dim / 32] blocks as in GGUF
//! Q4_0         for each 32 elements: d [32 keys], q [32][16]; byte j of   the same
//!              an element: key j (low nibble), key j + 16 (high)
//! ```
//!
//! Quants and factors are those that GGUF's reference quantization makes of 32 elements of a key or value that was
//! [rotated](rotate): a few large elements then spread over all of them, and the steps become finer (QuaRot, Ashkboos et
//! al. 2024). Queries are rotated alike, which leaves their products with keys as they are; sums of values are turned back.

use crate::attention::{KEY_TILE, ROW_STEP};
use crate::block::Dtype;
use crate::{Kernels, Kv};
use half::f16;

/// How keys or values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 32-bit floats.
    F32,
    /// Blocks of 32 elements in 8 bits with an F16 factor: 8.5 bits an element.
    Q8_0,
    /// Blocks of 32 elements in 4 bits with an F16 factor: 4.5 bits an element.
    Q4_0,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0];

    /// The GGUF type of its elements.
    pub const fn dtype(self) -> Dtype {
        match self {
            KvType::F16 => Dtype::F16,
            KvType::F32 => Dtype::F32,
            KvType::Q8_0 => Dtype::Q8_0,
            KvType::Q4_0 => Dtype::Q4_0,
        }
    }

    /// Its name on command lines: `q8_0`.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// Whether what is stored are blocks of [rotated](rotate) elements.
    pub const fn is_quantized(self) -> bool {
        matches!(self, KvType::Q8_0 | KvType::Q4_0)
    }

    /// Elements of a block: `head_dim` must be a multiple.
    pub const fn block(self) -> usize {
        self.dtype().block().0
    }

    /// Bytes of one head in one tile.
    pub const fn tile_bytes(self, head_dim: usize) -> usize {
        let (elements, bytes) = self.dtype().block();
        match self {
            KvType::F16 | KvType::F32 => KEY_TILE * head_dim.next_multiple_of(ROW_STEP) * bytes,
            KvType::Q8_0 | KvType::Q4_0 => KEY_TILE * head_dim / elements * bytes,
        }
    }
}

/// Whether keys or values are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

/// Multiplies a head by the orthonormal Walsh-Hadamard matrix, `H[i][j] = (-1)^popcount(i & j) / √n`, which is its own inverse:
/// `n` elements at a time, the largest power of two that divides their number.
pub fn rotate(head: &mut [f32]) {
    let n = 1 << head.len().trailing_zeros();
    let factor = 1.0 / (n as f32).sqrt();
    for block in head.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in block.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|x| *x *= factor);
    }
}

/// A cache line, so that tiles begin at one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// The bytes of floats.
pub(crate) fn float_bytes(x: &[f32]) -> &[u8] {
    // SAFETY: the slice covers `4 * len` bytes, all of them initialized, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

fn line_bytes(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: the slice covers `64 * len` initialized bytes without padding, and any bytes make lines.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// The stored keys, or values, of one layer. They grow with the text.
pub struct KvTiles {
    kind: KvType,
    side: Side,
    n_head: usize,
    head_dim: usize,
    lines: Vec<Line>,
    /// Tokens.
    len: usize,
    /// A tile of keys, or a rotated head, on its way.
    turned: Vec<f32>,
}

impl KvTiles {
    /// An empty store of `n_head` heads of `head_dim` elements.
    ///
    /// # Panics
    /// If `head_dim` is no multiple of [`KvType::block`].
    pub fn new(kind: KvType, side: Side, n_head: usize, head_dim: usize) -> KvTiles {
        assert!(head_dim.is_multiple_of(kind.block()), "heads of {head_dim} in blocks of {}", kind.block());
        KvTiles { kind, side, n_head, head_dim, lines: Vec::new(), len: 0, turned: Vec::new() }
    }

    /// Tokens that are stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.lines.truncate(self.n_lines(self.len));
    }

    /// Cache lines that `n` tokens take.
    fn n_lines(&self, n: usize) -> usize {
        n.div_ceil(KEY_TILE) * self.n_head * self.kind.tile_bytes(self.head_dim) / size_of::<Line>()
    }

    /// Appends `x: [n_tokens, n_head, head_dim]`. The memory doubles as it grows, but holds no more than `n_max` tokens
    /// need.
    pub fn push(&mut self, table: &Kernels, x: &[f32], n_max: usize) {
        let width = self.n_head * self.head_dim;
        assert!(x.len().is_multiple_of(width), "{} elements of heads {} x {}", x.len(), self.n_head, self.head_dim);
        let end = self.len + x.len() / width;
        let n_lines = self.n_lines(end);
        if self.lines.capacity() < n_lines {
            let wanted = self.n_lines(end.next_power_of_two().min(n_max.max(end)));
            self.lines.reserve_exact(wanted - self.lines.len());
        }
        self.lines.resize(n_lines, Line([0; 64]));
        let mut done = 0;
        while self.len < end {
            let n = (KEY_TILE - self.len % KEY_TILE).min(end - self.len);
            self.write(table, &x[done * width..(done + n) * width], n);
            done += n;
            self.len += n;
        }
    }

    /// Writes `n` tokens of one tile behind those that are there.
    fn write(&mut self, table: &Kernels, x: &[f32], n: usize) {
        let (dim, size) = (self.head_dim, self.kind.tile_bytes(self.head_dim));
        let (tile, j) = (self.len / KEY_TILE, self.len % KEY_TILE);
        let bytes = &mut line_bytes(&mut self.lines)[tile * self.n_head * size..][..self.n_head * size];
        let stride = self.n_head * dim;
        for (head, bytes) in bytes.chunks_exact_mut(size).enumerate() {
            let x = &x[head * dim..];
            match (self.side, self.kind) {
                (Side::Values, KvType::F16 | KvType::F32) => {
                    let row_bytes = size / KEY_TILE;
                    for (i, to) in bytes.chunks_exact_mut(row_bytes).skip(j).take(n).enumerate() {
                        write_floats(table, self.kind, &x[i * stride..][..dim], to);
                    }
                }
                (_, KvType::Q8_0 | KvType::Q4_0) => {
                    for i in 0..n {
                        self.turned.clear();
                        self.turned.extend_from_slice(&x[i * stride..][..dim]);
                        rotate(&mut self.turned);
                        if self.side == Side::Keys {
                            write_key_blocks(self.kind, &self.turned, j + i, bytes);
                        } else {
                            let row_bytes = size / KEY_TILE;
                            write_blocks(self.kind, &self.turned, &mut bytes[(j + i) * row_bytes..][..row_bytes]);
                        }
                    }
                }
                (Side::Keys, KvType::F16 | KvType::F32) if n == KEY_TILE => {
                    self.turned.resize(KEY_TILE * dim, 0.0);
                    (table.transpose)(x, stride, KEY_TILE, &mut self.turned);
                    write_floats(table, self.kind, &self.turned, bytes);
                }
                (Side::Keys, KvType::F16 | KvType::F32) => {
                    let one = self.kind.dtype().block().1;
                    let mut row = [0; 4 * ROW_STEP];
                    for i in 0..n {
                        for (part, x) in x[i * stride..][..dim].chunks(ROW_STEP).enumerate() {
                            write_floats(table, self.kind, x, &mut row);
                            for (d, value) in row.chunks_exact(one).take(x.len()).enumerate() {
                                let at = ((part * ROW_STEP + d) * KEY_TILE + j + i) * one;
                                bytes[at..at + one].copy_from_slice(value);
                            }
                        }
                    }
                }
            }
        }
    }

    /// All that is stored.
    pub fn view(&self) -> Kv<'_> {
        Kv::Tiles(self.kind, self.bytes())
    }

    /// How it is stored.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Heads, and elements of each.
    pub fn shape(&self) -> (usize, usize) {
        (self.n_head, self.head_dim)
    }

    /// Bytes that `n` tokens take.
    pub fn n_bytes(&self, n: usize) -> usize {
        self.n_lines(n) * size_of::<Line>()
    }

    /// All that is stored, as the head of this file draws it. Places behind the last token hold anything.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the slice covers `64 * len` initialized bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), size_of_val(self.lines.as_slice())) }
    }

    /// Puts `n` tokens in place of what is stored, whose [`KvTiles::bytes`] `fill` writes. Where that fails nothing is
    /// stored any more.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn restore<E>(&mut self, n: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        self.truncate(0);
        let n_lines = self.n_lines(n);
        self.lines.reserve_exact(n_lines);
        self.lines.resize(n_lines, Line([0; 64]));
        let filled = fill(line_bytes(&mut self.lines));
        match filled {
            Ok(()) => self.len = n,
            Err(_) => self.lines.clear(),
        }
        filled
    }
}

/// Writes floats as F16 or F32 to the beginning of `to`.
fn write_floats(table: &Kernels, kind: KvType, x: &[f32], to: &mut [u8]) {
    match kind {
        KvType::F32 => to[..4 * x.len()].copy_from_slice(float_bytes(x)),
        _ => {
            let mut halves = [0u16; 64];
            for (x, to) in x.chunks(64).zip(to.chunks_mut(128)) {
                (table.to_f16)(x, &mut halves[..x.len()]);
                for (to, h) in to.as_chunks_mut::<2>().0.iter_mut().zip(&halves[..x.len()]) {
                    *to = h.to_le_bytes();
                }
            }
        }
    }
}

/// The quants of a block and its factor, as GGUF's reference makes them: Q8_0 rounds half away from zero; Q4_0 gives the
/// element of largest magnitude the quant −8 and rounds half up. The quants of Q4_0 come without their offset, −8 to 7.
fn quantize_block(kind: KvType, x: &[f32; 32], q: &mut [i8; 32]) -> f16 {
    let largest = x.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let d = if kind == KvType::Q8_0 { largest.abs() / 127.0 } else { largest / -8.0 };
    let factor = if d == 0.0 { 0.0 } else { 1.0 / d };
    match kind {
        KvType::Q8_0 => q.iter_mut().zip(x).for_each(|(q, x)| *q = (x * factor).round() as i8),
        _ => q.iter_mut().zip(x).for_each(|(q, x)| *q = ((x * factor + 8.5) as u8).min(15) as i8 - 8),
    }
    // A block with a NaN shows it, as one with an infinity does.
    if x.iter().any(|x| x.is_nan()) { f16::NAN } else { f16::from_f32(d) }
}

/// A value as blocks of GGUF.
fn write_blocks(kind: KvType, x: &[f32], to: &mut [u8]) {
    let mut q = [0; 32];
    for (x, to) in x.as_chunks::<32>().0.iter().zip(to.chunks_exact_mut(kind.dtype().block().1)) {
        let d = quantize_block(kind, x, &mut q);
        to[..2].copy_from_slice(&d.to_le_bytes());
        if kind == KvType::Q8_0 {
            to[2..].iter_mut().zip(q).for_each(|(to, q)| *to = q as u8);
        } else {
            let (low, high) = q.split_at(16);
            let codes = low.iter().zip(high).map(|(l, h)| (l + 8) as u8 | ((h + 8) as u8) << 4);
            to[2..].iter_mut().zip(codes).for_each(|(to, code)| *to = code);
        }
    }
}

/// Key `j` of a tile.
fn write_key_blocks(kind: KvType, x: &[f32], j: usize, to: &mut [u8]) {
    let mut q = [0; 32];
    for (x, to) in x.as_chunks::<32>().0.iter().zip(to.chunks_exact_mut(KEY_TILE * kind.dtype().block().1)) {
        let d = quantize_block(kind, x, &mut q);
        let (factors, to) = to.split_at_mut(2 * KEY_TILE);
        factors[2 * j..2 * j + 2].copy_from_slice(&d.to_le_bytes());
        let element = to.len() / 32;
        for (to, q) in to.chunks_exact_mut(element).zip(q) {
            if kind == KvType::Q8_0 {
                to[j] = q as u8;
            } else {
                let (byte, shift) = (&mut to[j % 16], j / 16 * 4);
                *byte = *byte & !(15 << shift) | ((q + 8) as u8) << shift;
            }
        }
    }
}

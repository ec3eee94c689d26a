//! Attention of a batch of queries over stored keys and values, without an n² buffer.
//!
//! Keys are taken in tiles of [`KEY_TILE`], and each query row keeps a running maximum, sum of exponentials and weighted
//! sum of values (online softmax; Milakov and Gimelshein 2018, Dao et al. 2022). Many rows share one expansion of a tile
//! to floats; few rows read it as it is stored, to the same bits. Tiles form chunks of [`KEY_CHUNK`] keys with a state of
//! their own, merged in order of the keys, so that one query can be shared by several threads. Tiles and chunks begin at
//! fixed positions: a result depends on nothing but the query and its keys and values.

use crate::kv::{KvType, Side, float_bytes, rotate};
use crate::team::Disjoint;
use crate::{Kernels, Team, kernels, stopped};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys or values of all tokens.
#[derive(Clone, Copy)]
pub enum Kv<'a> {
    /// Floats, `[n_kv, n_head_kv, head_dim]`.
    F32(&'a [f32]),
    /// Tiles, as [`crate::kv`] lays them out. The last one may have room for more tokens.
    Tiles(KvType, &'a [u8]),
}

impl Kv<'_> {
    fn is_quantized(self) -> bool {
        matches!(self, Kv::Tiles(kind, _) if kind.is_quantized())
    }
}

/// The shape of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// With `Some(n_past)`, query `i` sees keys `0..=n_past + i` only.
    pub causal: Option<usize>,
}

/// Keys in a tile.
pub const KEY_TILE: usize = 32;
/// Keys in a chunk.
pub const KEY_CHUNK: usize = 8 * KEY_TILE;
/// Rows of values and results are padded with zeros to a multiple of this many floats.
pub const ROW_STEP: usize = 8;
/// Query rows that share one expansion of a tile: enough to make it cheap, few enough that they and what they gather stay
/// in a level-2 cache.
const ROW_BLOCK: usize = 144;
/// Blocks are not cut smaller than this to give each thread something to do.
const MIN_ROW_BLOCK: usize = 24;
/// With fewer rows to a key head than this, chunks are shared out instead of rows.
const FEW_ROWS: usize = 2 * MIN_ROW_BLOCK;
/// As many rows as make it worth to expand a tile.
const EXPAND_ROWS: usize = 7;

/// Keys and values of one head in one tile, as [`crate::kv`] lays them out. Keys that no query sees may hold anything.
pub struct Tile<'a> {
    /// Keys.
    pub k: (KvType, &'a [u8]),
    /// Values.
    pub v: (KvType, &'a [u8]),
    /// Elements of a head.
    pub head_dim: usize,
}

/// Query rows and what they have gathered so far; `width` is `head_dim` rounded up to [`ROW_STEP`].
pub struct Rows<'a> {
    /// Queries times scale and `log2 e`, `[n_rows, head_dim]`: weights are powers of two.
    pub q: &'a [f32],
    /// `Σ 2^(score - max) · v`, `[n_rows, width]`.
    pub acc: &'a mut [f32],
    /// Largest score, `[n_rows]`; `-inf` before the first key.
    pub max: &'a mut [f32],
    /// `Σ 2^(score - max)`, `[n_rows]`.
    pub sum: &'a mut [f32],
    /// How many keys of the tile each row sees, at most [`KEY_TILE`].
    pub n_keys: &'a [usize],
}

impl Rows<'_> {
    /// Asserts that all lengths agree, and returns the width.
    pub(crate) fn check(&self, tile: &Tile<'_>) -> usize {
        let (n, dim) = (self.max.len(), tile.head_dim);
        let width = dim.next_multiple_of(ROW_STEP);
        assert_eq!((self.q.len(), self.acc.len()), (n * dim, n * width));
        assert_eq!((self.sum.len(), self.n_keys.len()), (n, n));
        for (kind, bytes) in [tile.k, tile.v] {
            assert!(bytes.len() == kind.tile_bytes(dim) && dim.is_multiple_of(kind.block()), "{kind:?} of {dim}");
        }
        assert!(self.n_keys.iter().all(|&n| n <= KEY_TILE));
        width
    }
}

/// `out = softmax(scale · q kᵀ) v` for each head; `q` and `out` are `[n_tokens, n_head, head_dim]`.
///
/// A query's result depends on its keys and values alone, not on the batch it came in, nor on the number of threads.
/// A query that sees no key yields zeros.
///
/// # Panics
/// If the lengths do not fit the shape, or if a causal query is to see more than `n_kv` keys.
pub fn attention(team: &Team, a: Attention, q: &[f32], k: Kv<'_>, v: Kv<'_>, n_kv: usize, out: &mut [f32]) {
    attention_with(kernels(), team, a, q, k, v, n_kv, out);
}

/// [`attention`] with the kernels of a chosen level.
#[allow(clippy::too_many_arguments)]
pub fn attention_with(
    table: &Kernels,
    team: &Team,
    a: Attention,
    q: &[f32],
    k: Kv<'_>,
    v: Kv<'_>,
    n_kv: usize,
    out: &mut [f32],
) {
    assert!(a.n_head_kv > 0 && a.n_head.is_multiple_of(a.n_head_kv) && a.head_dim > 0, "{a:?}");
    let width = a.n_head.checked_mul(a.head_dim).expect("a row fits in memory");
    let n_tokens = q.len() / width;
    assert_eq!((q.len(), out.len()), (n_tokens * width, q.len()), "{a:?}");
    for kv in [k, v] {
        let fits = match kv {
            Kv::F32(x) => Some(x.len()) == n_kv.checked_mul(a.n_head_kv * a.head_dim),
            Kv::Tiles(kind, bytes) => {
                let n_tiles = n_kv.div_ceil(KEY_TILE);
                let wanted = n_tiles.checked_mul(a.n_head_kv * kind.tile_bytes(a.head_dim));
                a.head_dim.is_multiple_of(kind.block()) && wanted.is_some_and(|n| n <= bytes.len())
            }
        };
        assert!(fits, "{a:?}, {n_kv} keys");
    }
    if n_tokens == 0 {
        return;
    }
    if let Some(n_past) = a.causal {
        assert!(n_past + n_tokens <= n_kv, "{a:?}: {n_tokens} queries over {n_kv} keys");
    }
    let job = Job { table, a, q, k, v, n_kv, n_rows: n_tokens * (a.n_head / a.n_head_kv) };
    let out = Disjoint::new(out);
    if job.n_rows < FEW_ROWS { job.run_by_chunk(team, &out) } else { job.run_by_block(team, &out) }
}

/// What rows have gathered: see [`Rows`].
struct State<'a> {
    acc: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl State<'_> {
    /// Floats that the state of `n_rows` rows takes.
    fn floats(n_rows: usize, width: usize) -> usize {
        n_rows * (width + 2)
    }

    /// Takes [`State::floats`] floats for `n_rows` rows.
    fn over(floats: &mut [f32], n_rows: usize) -> State<'_> {
        let (acc, rest) = floats.split_at_mut(floats.len() - 2 * n_rows);
        let (max, sum) = rest.split_at_mut(n_rows);
        State { acc, max, sum }
    }

    fn reset(&mut self) {
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Takes in the state of the same rows over later keys.
    fn merge(&mut self, later: &State<'_>) {
        let width = self.acc.len() / self.max.len();
        for r in 0..self.max.len() {
            let (acc, later_acc) = (&mut self.acc[r * width..][..width], &later.acc[r * width..][..width]);
            if later.sum[r] == 0.0 {
                continue;
            }
            if self.sum[r] == 0.0 {
                (self.max[r], self.sum[r]) = (later.max[r], later.sum[r]);
                acc.copy_from_slice(later_acc);
                continue;
            }
            let max = self.max[r].max(later.max[r]);
            let (before, after) = ((self.max[r] - max).exp2(), (later.max[r] - max).exp2());
            (self.max[r], self.sum[r]) = (max, self.sum[r] * before + later.sum[r] * after);
            for (x, y) in acc.iter_mut().zip(later_acc) {
                *x = *x * before + y * after;
            }
        }
    }
}

/// Queries, one tile expanded, and states.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    n_keys: Vec<usize>,
    states: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// The states of all chunks of a call that shares them out.
    static CHUNKS: RefCell<Vec<f32>> = RefCell::default();
}

/// `n` floats of a buffer, from a cache line's beginning on.
fn aligned(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    const LINE: usize = 16;
    buffer.resize(buffer.len().max(n + LINE), 0.0);
    let start = buffer.as_ptr().align_offset(size_of::<[f32; LINE]>()).min(LINE);
    &mut buffer[start..start + n]
}

/// Runs `f(part)` for each part on all threads, in order, each thread taking the next that is left.
fn in_turn(team: &Team, n_parts: usize, f: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    team.run(team.n_threads().min(n_parts), &|_| {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= n_parts {
                break;
            }
            f(part);
        }
    });
}

/// One call. The rows of a key head are the queries of all heads that share it: row `r` is token `r / n_group`, query
/// head `kv_head · n_group + r % n_group`.
struct Job<'a> {
    table: &'a Kernels,
    a: Attention,
    q: &'a [f32],
    k: Kv<'a>,
    v: Kv<'a>,
    n_kv: usize,
    n_rows: usize,
}

impl Job<'_> {
    fn width(&self) -> usize {
        self.a.head_dim.next_multiple_of(ROW_STEP)
    }

    fn n_group(&self) -> usize {
        self.a.n_head / self.a.n_head_kv
    }

    /// Where the head of row `r` lies in `q` and `out`.
    fn head(&self, kv_head: usize, r: usize) -> Range<usize> {
        let (token, i) = (r / self.n_group(), r % self.n_group());
        let start = (token * self.a.n_head + kv_head * self.n_group() + i) * self.a.head_dim;
        start..start + self.a.head_dim
    }

    /// Keys that row `r` sees.
    fn seen(&self, r: usize) -> usize {
        self.a.causal.map_or(self.n_kv, |n_past| n_past + r / self.n_group() + 1)
    }

    /// Many rows: key heads and blocks of rows are shared out, and each block goes through all keys.
    fn run_by_block(&self, team: &Team, out: &Disjoint<'_, f32>) {
        let n_heads = self.a.n_head_kv;
        let wanted = (4 * team.n_threads()).div_ceil(n_heads).min(self.n_rows / MIN_ROW_BLOCK);
        let n_blocks = self.n_rows.div_ceil(ROW_BLOCK).max(wanted);
        in_turn(team, n_heads * n_blocks, |part| {
            // The last blocks, which see the most keys, come first.
            let (head, b) = (part % n_heads, n_blocks - 1 - part / n_heads);
            let rows = self.n_rows * b / n_blocks..self.n_rows * (b + 1) / n_blocks;
            let size = State::floats(rows.len(), self.width());
            SCRATCH.with_borrow_mut(|scratch| {
                let mut states = std::mem::take(&mut scratch.states);
                states.resize((2 * size).max(states.len()), 0.0);
                let (total, partial) = states[..2 * size].split_at_mut(size);
                let (mut total, mut partial) = (State::over(total, rows.len()), State::over(partial, rows.len()));
                self.queries(head, rows.clone(), &mut scratch.q);
                self.chunk(head, rows.clone(), 0, scratch, &mut total);
                for c in 1..self.seen(rows.end - 1).div_ceil(KEY_CHUNK) {
                    self.chunk(head, rows.clone(), c, scratch, &mut partial);
                    total.merge(&partial);
                }
                self.write(head, rows, &total, out);
                scratch.states = states;
            });
        });
    }

    /// Few rows, as when one token is decoded: chunks of keys are shared out too. Whoever finishes the last chunk of a
    /// head merges them all.
    fn run_by_chunk(&self, team: &Team, out: &Disjoint<'_, f32>) {
        let (n_heads, n_chunks) = (self.a.n_head_kv, self.n_kv.div_ceil(KEY_CHUNK).max(1));
        let size = State::floats(self.n_rows, self.width());
        CHUNKS.with_borrow_mut(|states| {
            states.resize((n_heads * n_chunks * size).max(states.len()), 0.0);
            let states = Disjoint::new(states);
            let left: Vec<AtomicUsize> = (0..n_heads).map(|_| AtomicUsize::new(n_chunks)).collect();
            in_turn(team, n_heads * n_chunks, |part| {
                let (head, c) = (part % n_heads, part / n_heads);
                let at = |c: usize| (head * n_chunks + c) * size..(head * n_chunks + c + 1) * size;
                {
                    // SAFETY: this chunk's state belongs to this part until the count below says that it is finished.
                    let mut state = State::over(unsafe { states.get(at(c)) }, self.n_rows);
                    SCRATCH.with_borrow_mut(|scratch| {
                        self.queries(head, 0..self.n_rows, &mut scratch.q);
                        self.chunk(head, 0..self.n_rows, c, scratch, &mut state);
                    });
                }
                if left[head].fetch_sub(1, Ordering::AcqRel) > 1 {
                    return;
                }
                // SAFETY: all chunks of this head are finished, and this part alone has seen the count reach zero.
                let mut total = State::over(unsafe { states.get(at(0)) }, self.n_rows);
                for c in 1..n_chunks {
                    // SAFETY: as above; chunks do not overlap.
                    total.merge(&State::over(unsafe { states.get(at(c)) }, self.n_rows));
                }
                self.write(head, 0..self.n_rows, &total, out);
            });
        });
    }

    /// The queries of `rows` as [`Rows`] has them.
    fn queries(&self, head: usize, rows: Range<usize>, q: &mut Vec<f32>) {
        let factor = self.a.scale * std::f32::consts::LOG2_E;
        q.clear();
        for r in rows {
            let start = q.len();
            q.extend_from_slice(&self.q[self.head(head, r)]);
            if self.k.is_quantized() {
                rotate(&mut q[start..]);
            }
            q[start..].iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// The state of `rows` over the keys of chunk `c` alone; their queries are in `scratch.q`.
    fn chunk(&self, head: usize, rows: Range<usize>, c: usize, scratch: &mut Scratch, state: &mut State<'_>) {
        state.reset();
        let (dim, width) = (self.a.head_dim, self.width());
        let Scratch { q, k, v, n_keys, .. } = scratch;
        let expand = rows.len() >= EXPAND_ROWS;
        let end = ((c + 1) * KEY_CHUNK).min(self.seen(rows.end - 1));
        for start in (c * KEY_CHUNK..end).step_by(KEY_TILE).take_while(|_| !stopped()) {
            n_keys.clear();
            // Rows see more keys the later they are: the first ones may see none of the tile.
            let first = match self.a.causal {
                Some(n_past) if n_past + rows.start / self.n_group() + 1 < start + KEY_TILE => {
                    let first = (start.saturating_sub(n_past) * self.n_group()).max(rows.start);
                    n_keys.extend((first..rows.end).map(|r| (self.seen(r) - start).min(KEY_TILE)));
                    first - rows.start
                }
                _ => {
                    n_keys.resize(rows.len(), (end - start).min(KEY_TILE));
                    0
                }
            };
            let tile = Tile {
                k: self.tile(Side::Keys, head, start, end, expand, k),
                v: self.tile(Side::Values, head, start, end, expand, v),
                head_dim: dim,
            };
            let mut rows = Rows {
                q: &q[first * dim..],
                acc: &mut state.acc[first * width..],
                max: &mut state.max[first..],
                sum: &mut state.sum[first..],
                n_keys,
            };
            (self.table.attend)(&mut rows, &tile);
        }
    }

    /// Keys or values of one head from key `start` on: as they are stored, or as floats in `buffer`.
    fn tile<'b>(
        &'b self,
        side: Side,
        head: usize,
        start: usize,
        end: usize,
        expand: bool,
        buffer: &'b mut Vec<f32>,
    ) -> (KvType, &'b [u8]) {
        let (dim, width, n_heads) = (self.a.head_dim, self.width(), self.a.n_head_kv);
        let size = KEY_TILE * width;
        match if side == Side::Keys { self.k } else { self.v } {
            Kv::Tiles(kind, bytes) => {
                let n = kind.tile_bytes(dim);
                let bytes = &bytes[(start / KEY_TILE * n_heads + head) * n..][..n];
                if !expand || kind == KvType::F32 {
                    return (kind, bytes);
                }
                let floats = aligned(buffer, size);
                match kind {
                    KvType::Q8_0 | KvType::Q4_0 if side == Side::Keys => (self.table.expand_keys)(kind, bytes, floats),
                    _ => (self.table.dequantize)(kind.dtype(), bytes, floats),
                }
                (KvType::F32, float_bytes(floats))
            }
            Kv::F32(x) => {
                let (n, stride) = ((end - start).min(KEY_TILE), n_heads * dim);
                let x = &x[start * stride + head * dim..];
                let floats = aligned(buffer, size);
                if side == Side::Keys {
                    (self.table.transpose)(x, stride, n, &mut floats[..dim * KEY_TILE]);
                } else {
                    for (y, x) in floats.chunks_exact_mut(width).zip(x.chunks(stride)).take(n) {
                        y[..dim].copy_from_slice(&x[..dim]);
                        y[dim..].fill(0.0);
                    }
                }
                (KvType::F32, float_bytes(floats))
            }
        }
    }

    fn write(&self, head: usize, rows: Range<usize>, state: &State<'_>, out: &Disjoint<'_, f32>) {
        for ((acc, sum), r) in state.acc.chunks(self.width()).zip(&*state.sum).zip(rows) {
            // SAFETY: the heads of different rows and key heads do not overlap, and each is written by one part.
            let out = unsafe { out.get(self.head(head, r)) };
            let factor = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
            for (y, x) in out.iter_mut().zip(acc) {
                *y = x * factor;
            }
            if self.v.is_quantized() {
                rotate(out);
            }
        }
    }
}

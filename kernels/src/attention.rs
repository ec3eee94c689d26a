//! Attention of a batch of queries over stored keys and values, without an n² buffer.
//!
//! Keys are taken in tiles of [`KEY_TILE`]: a tile is expanded to floats once for a block of query rows, and each row
//! keeps a running maximum, sum of exponentials and weighted sum of values (online softmax; Milakov and Gimelshein
//! 2018, Dao et al. 2022). Tiles form chunks of [`KEY_CHUNK`] keys with a state of their own, merged in order of the
//! keys, so that one query can be shared by several threads. Tiles and chunks begin at fixed positions: a result depends
//! on nothing but the query and its keys and values.

use crate::team::Disjoint;
use crate::{Kernels, Team, kernels};
use std::cell::RefCell;
use std::ops::Range;

/// Keys or values, `[n_kv, n_head_kv, head_dim]`.
#[derive(Clone, Copy)]
pub enum Kv<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// F16 bits.
    F16(&'a [u16]),
}

impl Kv<'_> {
    fn len(self) -> usize {
        match self {
            Kv::F32(x) => x.len(),
            Kv::F16(x) => x.len(),
        }
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
pub const KEY_CHUNK: usize = 16 * KEY_TILE;
/// Rows of tiles and queries are padded with zeros to a multiple of this many floats.
pub const ROW_STEP: usize = 8;
/// Query rows that share one expansion of a tile: enough to make it cheap, few enough to stay in a level-2 cache.
const ROW_BLOCK: usize = 64;
/// Fewer rows than this are not worth a block of their own.
const MIN_ROW_BLOCK: usize = 12;

/// Keys and values of one head, `[KEY_TILE, width]` each. Rows that no query sees may hold anything.
pub struct Tile<'a> {
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Floats of a row, a multiple of [`ROW_STEP`].
    pub width: usize,
}

/// Query rows and what they have gathered so far, `[n_rows, width]` and `[n_rows]`.
pub struct Rows<'a> {
    /// Scaled queries.
    pub q: &'a [f32],
    /// `Σ exp(score - max) · v`.
    pub acc: &'a mut [f32],
    /// Largest score; `-inf` before the first key.
    pub max: &'a mut [f32],
    /// `Σ exp(score - max)`.
    pub sum: &'a mut [f32],
    /// How many keys of the tile each row sees, at most [`KEY_TILE`].
    pub n_keys: &'a [usize],
}

impl Rows<'_> {
    /// Asserts that all lengths agree, and returns the width.
    pub(crate) fn check(&self, tile: &Tile<'_>) -> usize {
        let (n, width) = (self.max.len(), tile.width);
        assert_eq!((self.q.len(), self.acc.len()), (n * width, n * width));
        assert_eq!((self.sum.len(), self.n_keys.len()), (n, n));
        assert_eq!((tile.k.len(), tile.v.len(), width % ROW_STEP), (KEY_TILE * width, KEY_TILE * width, 0));
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
    let n_tokens = q.len() / (a.n_head * a.head_dim);
    assert_eq!((q.len(), out.len()), (n_tokens * a.n_head * a.head_dim, q.len()), "{a:?}");
    assert_eq!((k.len(), v.len()), (n_kv * a.n_head_kv * a.head_dim, k.len()), "{a:?}, {n_kv} keys");
    if n_tokens == 0 {
        return;
    }
    if let Some(n_past) = a.causal {
        assert!(n_past + n_tokens <= n_kv, "{a:?}: {n_tokens} queries over {n_kv} keys");
    }
    let job = Job { table, a, q, k, v, n_kv, n_rows: n_tokens * (a.n_head / a.n_head_kv) };
    let n_chunks = n_kv.div_ceil(KEY_CHUNK);
    // Blocks are cut smaller only to give each thread something to do.
    let wanted = (2 * team.n_threads()).div_ceil(a.n_head_kv).min(job.n_rows / MIN_ROW_BLOCK);
    let n_blocks = job.n_rows.div_ceil(ROW_BLOCK).max(wanted);
    let n_items = n_blocks * a.n_head_kv;
    let out = Disjoint::new(out);
    if n_chunks > 1 && team.n_threads() > 1 && n_items < 4 * team.n_threads() {
        job.run_by_chunk(team, n_blocks, n_chunks, &out);
    } else {
        team.run(n_items, &|i| {
            let (kv_head, rows) = (i / n_blocks, job.block(n_blocks, i % n_blocks));
            SCRATCH.with_borrow_mut(|scratch| {
                let (total, partial) = (&mut scratch.total, &mut scratch.partial);
                total.reset(rows.len(), job.width());
                for c in 0..n_chunks {
                    job.chunk(kv_head, rows.clone(), c, &mut scratch.buffers, partial);
                    total.merge(partial);
                }
                job.write(kv_head, rows, total, &out);
            });
        });
    }
}

/// What a row has gathered: see [`Rows`].
#[derive(Default)]
struct State {
    acc: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl State {
    fn reset(&mut self, n_rows: usize, width: usize) {
        refill(&mut self.acc, n_rows * width, 0.0);
        refill(&mut self.max, n_rows, f32::NEG_INFINITY);
        refill(&mut self.sum, n_rows, 0.0);
    }

    /// Takes in the state of the same rows over later keys.
    fn merge(&mut self, later: &State) {
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
            let (before, after) = ((self.max[r] - max).exp(), (later.max[r] - max).exp());
            (self.max[r], self.sum[r]) = (max, self.sum[r] * before + later.sum[r] * after);
            for (x, y) in acc.iter_mut().zip(later_acc) {
                *x = *x * before + y * after;
            }
        }
    }
}

fn refill<T: Copy>(buffer: &mut Vec<T>, n: usize, value: T) {
    buffer.clear();
    buffer.resize(n, value);
}

/// Queries and one tile, expanded.
#[derive(Default)]
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    n_keys: Vec<usize>,
}

#[derive(Default)]
struct Scratch {
    buffers: Buffers,
    partial: State,
    total: State,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
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

    /// Rows of block `b` of `n_blocks`.
    fn block(&self, n_blocks: usize, b: usize) -> Range<usize> {
        self.n_rows * b / n_blocks..self.n_rows * (b + 1) / n_blocks
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

    /// The state of `rows` over the keys of chunk `c` alone.
    fn chunk(&self, kv_head: usize, rows: Range<usize>, c: usize, buffers: &mut Buffers, state: &mut State) {
        let width = self.width();
        state.reset(rows.len(), width);
        let keys = c * KEY_CHUNK..((c + 1) * KEY_CHUNK).min(self.seen(rows.end - 1));
        if keys.is_empty() {
            return;
        }
        refill(&mut buffers.q, rows.len() * width, 0.0);
        for (row, r) in buffers.q.chunks_mut(width).zip(rows.clone()) {
            for (y, x) in row.iter_mut().zip(&self.q[self.head(kv_head, r)]) {
                *y = x * self.a.scale;
            }
        }
        buffers.k.resize(KEY_TILE * width, 0.0);
        buffers.v.resize(KEY_TILE * width, 0.0);
        if width != self.a.head_dim {
            buffers.k.fill(0.0);
            buffers.v.fill(0.0);
        }
        for start in keys.clone().step_by(KEY_TILE) {
            let tile = start..(start + KEY_TILE).min(keys.end);
            self.expand(self.k, kv_head, tile.clone(), &mut buffers.k);
            self.expand(self.v, kv_head, tile, &mut buffers.v);
            buffers.n_keys.clear();
            buffers.n_keys.extend(rows.clone().map(|r| self.seen(r).saturating_sub(start).min(KEY_TILE)));
            (self.table.attend)(
                &mut Rows {
                    q: &buffers.q,
                    acc: &mut state.acc,
                    max: &mut state.max,
                    sum: &mut state.sum,
                    n_keys: &buffers.n_keys,
                },
                &Tile { k: &buffers.k, v: &buffers.v, width },
            );
        }
    }

    /// Writes rows `keys` of one head as floats to the rows of `tile`.
    fn expand(&self, from: Kv<'_>, kv_head: usize, keys: Range<usize>, tile: &mut [f32]) {
        let (n, stride) = (self.a.head_dim, self.a.n_head_kv * self.a.head_dim);
        for (row, key) in tile.chunks_mut(self.width()).zip(keys) {
            let at = key * stride + kv_head * n;
            match from {
                Kv::F32(x) => row[..n].copy_from_slice(&x[at..at + n]),
                Kv::F16(x) => (self.table.from_f16)(&x[at..at + n], &mut row[..n]),
            }
        }
    }

    fn write(&self, kv_head: usize, rows: Range<usize>, state: &State, out: &Disjoint<'_, f32>) {
        for (i, r) in rows.enumerate() {
            // SAFETY: the heads of different rows and key heads do not overlap, and each is written by one part.
            let out = unsafe { out.get(self.head(kv_head, r)) };
            let factor = if state.sum[i] == 0.0 { 0.0 } else { 1.0 / state.sum[i] };
            for (y, x) in out.iter_mut().zip(&state.acc[i * self.width()..]) {
                *y = x * factor;
            }
        }
    }

    /// Few rows and many keys, as when one token is decoded: chunks are shared out too.
    fn run_by_chunk(&self, team: &Team, n_blocks: usize, n_chunks: usize, out: &Disjoint<'_, f32>) {
        let n_items = n_blocks * self.a.n_head_kv;
        let mut states: Vec<State> = Vec::new();
        states.resize_with(n_items * n_chunks, State::default);
        team.rows(&mut states, 1, &|i, state| {
            let (item, c) = (i / n_chunks, i % n_chunks);
            let rows = self.block(n_blocks, item % n_blocks);
            SCRATCH.with_borrow_mut(|scratch| {
                self.chunk(item / n_blocks, rows, c, &mut scratch.buffers, &mut state[0]);
            });
        });
        team.rows(&mut states, n_chunks, &|item, states| {
            let rows = self.block(n_blocks, item % n_blocks);
            let (total, later) = states.split_at_mut(1);
            later.iter().for_each(|state| total[0].merge(state));
            self.write(item / n_blocks, rows, &total[0], out);
        });
    }
}

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
/// With fewer rows to a key head than this, chunks are shared out instead of rows.
const FEW_ROWS: usize = 2 * MIN_ROW_BLOCK;
/// Floats of the key tiles of heads that are expanded together: with as many for values, they stay in a level-2 cache.
const GROUP_FLOATS: usize = 32 * 1024;

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
    let width = a.n_head.checked_mul(a.head_dim).expect("a row fits in memory");
    let n_tokens = q.len() / width;
    assert_eq!((q.len(), out.len()), (n_tokens * width, q.len()), "{a:?}");
    let n_stored = n_kv.checked_mul(a.n_head_kv * a.head_dim);
    assert_eq!((Some(k.len()), v.len()), (n_stored, k.len()), "{a:?}, {n_kv} keys");
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

    fn n_chunks(&self) -> usize {
        self.n_kv.div_ceil(KEY_CHUNK)
    }

    /// Many rows: key heads and blocks of rows are shared out, and each block goes through all keys.
    fn run_by_block(&self, team: &Team, out: &Disjoint<'_, f32>) {
        // Blocks are cut smaller only to give each thread something to do.
        let wanted = (2 * team.n_threads()).div_ceil(self.a.n_head_kv).min(self.n_rows / MIN_ROW_BLOCK);
        let n_blocks = self.n_rows.div_ceil(ROW_BLOCK).max(wanted);
        team.run(self.a.n_head_kv * n_blocks, &|part| {
            let (head, b) = (part / n_blocks, part % n_blocks);
            let (heads, rows) = (head..head + 1, self.n_rows * b / n_blocks..self.n_rows * (b + 1) / n_blocks);
            SCRATCH.with_borrow_mut(|Scratch { buffers, partial, total }| {
                total.reset(rows.len(), self.width());
                for c in 0..self.n_chunks() {
                    self.chunk(heads.clone(), rows.clone(), c, buffers, partial);
                    total.merge(partial);
                }
                self.write(heads, rows, total, out);
            });
        });
    }

    /// Few rows, as when one token is decoded: groups of key heads and chunks of keys are shared out. Neighbouring heads
    /// go together because their keys lie together.
    fn run_by_chunk(&self, team: &Team, out: &Disjoint<'_, f32>) {
        let (n_heads, n_chunks) = (self.a.n_head_kv, self.n_chunks().max(1));
        let most = (GROUP_FLOATS / (KEY_TILE * self.width())).max(1);
        let n_groups = n_heads.div_ceil(most).max((2 * team.n_threads()).div_ceil(n_chunks)).min(n_heads);
        let heads = |g: usize| n_heads * g / n_groups..n_heads * (g + 1) / n_groups;
        let mut states: Vec<State> = Vec::new();
        states.resize_with(n_groups * n_chunks, State::default);
        team.rows(&mut states, 1, &|part, state| {
            SCRATCH.with_borrow_mut(|scratch| {
                self.chunk(
                    heads(part / n_chunks),
                    0..self.n_rows,
                    part % n_chunks,
                    &mut scratch.buffers,
                    &mut state[0],
                );
            });
        });
        team.rows(&mut states, n_chunks, &|group, states| {
            let (total, later) = states.split_at_mut(1);
            later.iter().for_each(|state| total[0].merge(state));
            self.write(heads(group), 0..self.n_rows, &total[0], out);
        });
    }

    /// The state of `rows` of each of `heads`, `[n_heads, n_rows]`, over the keys of chunk `c` alone.
    fn chunk(&self, heads: Range<usize>, rows: Range<usize>, c: usize, buffers: &mut Buffers, state: &mut State) {
        let (n, width) = (rows.len(), self.width());
        state.reset(heads.len() * n, width);
        let keys = c * KEY_CHUNK..((c + 1) * KEY_CHUNK).min(self.seen(rows.end - 1));
        if keys.is_empty() {
            return;
        }
        let Buffers { q, k, v, n_keys } = buffers;
        refill(q, heads.len() * n * width, 0.0);
        let all_rows = heads.clone().flat_map(|head| rows.clone().map(move |r| (head, r)));
        for (row, (head, r)) in q.chunks_mut(width).zip(all_rows) {
            for (y, x) in row.iter_mut().zip(&self.q[self.head(head, r)]) {
                *y = x * self.a.scale;
            }
        }
        for tiles in [&mut *k, &mut *v] {
            tiles.resize(heads.len() * KEY_TILE * width, 0.0);
            if width != self.a.head_dim {
                tiles.fill(0.0);
            }
        }
        for start in keys.clone().step_by(KEY_TILE) {
            let tile = start..(start + KEY_TILE).min(keys.end);
            self.expand(self.k, heads.clone(), tile.clone(), k);
            self.expand(self.v, heads.clone(), tile, v);
            n_keys.clear();
            n_keys.extend(rows.clone().map(|r| self.seen(r).saturating_sub(start).min(KEY_TILE)));
            for h in 0..heads.len() {
                let (rows, row_floats) = (h * n..(h + 1) * n, h * n * width..(h + 1) * n * width);
                let tile_floats = h * KEY_TILE * width..(h + 1) * KEY_TILE * width;
                (self.table.attend)(
                    &mut Rows {
                        q: &q[row_floats.clone()],
                        acc: &mut state.acc[row_floats],
                        max: &mut state.max[rows.clone()],
                        sum: &mut state.sum[rows],
                        n_keys,
                    },
                    &Tile { k: &k[tile_floats.clone()], v: &v[tile_floats], width },
                );
            }
        }
    }

    /// Writes rows `keys` of `heads` as floats to `tiles`, `[n_heads, KEY_TILE, width]`.
    fn expand(&self, from: Kv<'_>, heads: Range<usize>, keys: Range<usize>, tiles: &mut [f32]) {
        let (n, width) = (self.a.head_dim, self.width());
        for (j, key) in keys.enumerate() {
            for (h, head) in heads.clone().enumerate() {
                let at = (key * self.a.n_head_kv + head) * n;
                let row = &mut tiles[(h * KEY_TILE + j) * width..][..n];
                match from {
                    Kv::F32(x) => row.copy_from_slice(&x[at..at + n]),
                    Kv::F16(x) => (self.table.from_f16)(&x[at..at + n], row),
                }
            }
        }
    }

    fn write(&self, heads: Range<usize>, rows: Range<usize>, state: &State, out: &Disjoint<'_, f32>) {
        let all_rows = heads.flat_map(|head| rows.clone().map(move |r| (head, r)));
        for ((acc, sum), (head, r)) in state.acc.chunks(self.width()).zip(&state.sum).zip(all_rows) {
            // SAFETY: the heads of different rows and key heads do not overlap, and each is written by one part.
            let out = unsafe { out.get(self.head(head, r)) };
            let factor = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
            for (y, x) in out.iter_mut().zip(acc) {
                *y = x * factor;
            }
        }
    }
}

//! Products of stored weights with float activations: one input, several weights, one region of the team.
//!
//! Quantized weights multiply activations that are rounded to 8 bits in blocks of 32 (integer dot products, float scales);
//! F32, F16 and BF16 weights multiply the float activations as they are. Each output element is summed in an order that
//! depends on the row length alone: never on the number of rows, of tokens, or of threads, nor on how the weights lie.
//!
//! The rows are dealt to the team in panels of 16. A thread unpacks some columns of a panel into its first-level cache,
//! multiplies them with a block of tokens, and goes on to the next columns. The activations of a block fit the second-level
//! cache; the weights are read and unpacked once for each block.
//! A few tokens are multiplied with each group of weights as it is unpacked, which keeps up with the memory.
//! What follows a product (bias, activation, gate, residual) is done on the sums while they are in that cache.

use crate::panel::{Columns, FEW, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};
use crate::team::Disjoint;
use crate::{Dtype, Kernels, Team, cache, kernels, stopped};
use std::cell::RefCell;
use std::ops::Range;

/// How the rows of a matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One row after the other, as GGUF stores them.
    Rows,
    /// Each 16 rows interleaved, see [`crate::interleave`]; the rows that make no 16 follow one after the other.
    Panels,
}

/// A matrix of stored weights.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Element type; must be runnable.
    pub dtype: Dtype,
    /// How the rows lie.
    pub layout: Layout,
    /// Output features.
    pub n_rows: usize,
    /// Input features; a whole number of blocks.
    pub n_cols: usize,
    /// `n_rows · dtype.row_bytes(n_cols)` bytes.
    pub data: &'a [u8],
}

impl<'a> Weights<'a> {
    fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.n_cols).expect("weights hold whole blocks")
    }

    fn check(&self) {
        assert!(self.dtype.is_runnable(), "no kernels for {}", self.dtype);
        assert_eq!(Some(self.data.len()), self.n_rows.checked_mul(self.row_bytes()));
    }

    /// Most columns that are unpacked at a time.
    fn step(&self) -> usize {
        if Form::of(self.dtype) == Form::Float { FLOAT_COLS } else { PANEL_COLS }
    }

    /// The 16 rows from `row` on. A panel that is not full repeats the last row; those sums are dropped.
    fn panel(&self, row: usize) -> Source<'a> {
        let row_bytes = self.row_bytes();
        if self.layout == Layout::Panels && row + PANEL_ROWS <= self.n_rows {
            return Source::Panel(&self.data[row * row_bytes..][..PANEL_ROWS * row_bytes]);
        }
        Source::Rows(std::array::from_fn(|i| &self.data[(row + i).min(self.n_rows - 1) * row_bytes..][..row_bytes]))
    }

    /// Columns `first..` of the 16 rows from `row` on, as many as fit a panel.
    fn part(&self, row: usize, first: usize) -> Source<'a> {
        self.panel(row).columns(self.dtype, first..(first + self.step()).min(self.n_cols))
    }
}

/// What is done to each row of an input before it is multiplied.
#[derive(Clone, Copy)]
pub enum Norm<'a> {
    /// Nothing.
    None,
    /// RMSNorm.
    Rms {
        /// Scale, `[n_cols]`.
        weight: &'a [f32],
        /// Added to the mean of the squares.
        eps: f32,
    },
    /// LayerNorm.
    Layer {
        /// Scale, `[n_cols]`.
        weight: &'a [f32],
        /// Shift, `[n_cols]`.
        bias: &'a [f32],
        /// Added to the variance.
        eps: f32,
    },
}

/// The input that products share.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[n_tokens, n_cols]`.
    pub x: &'a [f32],
    /// Width of a row.
    pub n_cols: usize,
    /// What is done to the rows first.
    pub norm: Norm<'a>,
}

/// What becomes of the sums `y` of a product, bias included.
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// `out = y`.
    Store,
    /// `out = out + y`: a residual connection.
    Add,
    /// `out = f(y)`, element by element.
    Apply(fn(&mut [f32])),
    /// `out = silu(y) · (up · x)`: the gated unit of LLaMA, `up` being of the same shape.
    Gate(Weights<'a>),
}

/// One of several products of the same input.
pub struct Product<'a> {
    /// The matrix.
    pub weights: Weights<'a>,
    /// Added to each row of sums, `[n_rows]`.
    pub bias: Option<&'a [f32]>,
    /// What becomes of the sums.
    pub then: Then<'a>,
    /// `[n_tokens, n_rows]`.
    pub out: &'a mut [f32],
}

/// The input of products in the forms that they need, kept so that the buffers live from call to call.
#[derive(Default)]
pub struct Activations {
    /// Normalised rows, where a float product wants them.
    normed: Vec<f32>,
    q: Vec<i8>,
    scale: Vec<f32>,
    sum16: Vec<f32>,
    sum32: Vec<f32>,
    total: Vec<i32>,
}

impl Activations {
    /// Makes ready the floats (`floats`) or the 8-bit form (`rounded`) or both.
    fn prepare(&mut self, k: &Kernels, team: &Team, input: Input<'_>, floats: bool, rounded: bool) {
        let Input { x, n_cols, norm } = input;
        let normed = !matches!(norm, Norm::None);
        if !(normed && floats || rounded) {
            return;
        }
        self.normed.resize(if normed && floats { x.len() } else { 0 }, 0.0);
        let n = if rounded { x.len() } else { 0 };
        let stride = Columns::stride(n_cols);
        self.q.resize(n / n_cols * stride, 0);
        self.scale.resize(n / 32, 0.0);
        self.sum16.resize(n / 16, 0.0);
        self.sum32.resize(n / 32, 0.0);
        self.total.resize(n / 16, 0);
        let normed_rows = Disjoint::new(&mut self.normed);
        let q = Disjoint::new(&mut self.q);
        let scale = Disjoint::new(&mut self.scale);
        let sum16 = Disjoint::new(&mut self.sum16);
        let sum32 = Disjoint::new(&mut self.sum32);
        let total = Disjoint::new(&mut self.total);
        let part = |tokens: Range<usize>| {
            SCRATCH.with_borrow_mut(|Scratch { row, .. }| {
                row.resize(n_cols, 0.0);
                for t in tokens {
                    let at = |size: usize| t * n_cols / size..(t + 1) * n_cols / size;
                    let mut x = &x[at(1)];
                    if normed {
                        // SAFETY: each token belongs to one part.
                        let y = if floats { unsafe { normed_rows.get(at(1)) } } else { &mut row[..] };
                        match norm {
                            Norm::None => {}
                            Norm::Rms { weight, eps } => (k.rms_norm)(x, weight, eps, y),
                            Norm::Layer { weight, bias, eps } => (k.layer_norm)(x, weight, bias, eps, y),
                        }
                        x = y;
                    }
                    if rounded {
                        // SAFETY: as above.
                        let (q, scale, sum16, sum32, total) = unsafe {
                            (
                                q.get(t * stride..t * stride + n_cols),
                                scale.get(at(32)),
                                sum16.get(at(16)),
                                sum32.get(at(32)),
                                total.get(at(16)),
                            )
                        };
                        (k.quantize)(x, q, scale, sum16, sum32, total);
                    }
                }
            });
        };
        // A few thousand values are done before another thread has woken up.
        if x.len() < 16 * 1024 { part(0..x.len() / n_cols) } else { team.split(x.len() / n_cols, 1, &part) }
    }
}

/// What a thread keeps between calls.
struct Scratch {
    panel: Box<Panel>,
    floats: Box<FloatPanel>,
    sums: Vec<[f32; PANEL_ROWS]>,
    up: Vec<[f32; PANEL_ROWS]>,
    row: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        panel: Panel::new(),
        floats: FloatPanel::new(),
        sums: Vec::new(),
        up: Vec::new(),
        row: Vec::new(),
    });
}

/// Some tokens of the input as products read it. What no product reads may be empty.
#[derive(Clone, Copy)]
struct Ready<'a> {
    /// The first of the tokens, and how many there are.
    first: usize,
    n_tokens: usize,
    n_cols: usize,
    floats: &'a [f32],
    columns: Columns<'a>,
}

impl<'a> Ready<'a> {
    /// The tokens in blocks of like size, whose activations fit a third of the second-level cache, so that they stay there
    /// while panels pass through; but of so many tokens that unpacking weighs little.
    fn blocks(self) -> impl Iterator<Item = Ready<'a>> {
        const FEWEST: usize = 48;
        // Of which the widest tiles of all levels are divisors.
        const STEP: usize = 12;
        let token_bytes = size_of_val(self.floats).max(self.columns.q.len()) / self.n_tokens;
        let most = (cache::level_2() / 3 / token_bytes).max(FEWEST);
        let size = self.n_tokens.div_ceil(self.n_tokens.div_ceil(most)).next_multiple_of(STEP);
        (0..self.n_tokens).step_by(size).map(move |first| self.part(first..self.n_tokens.min(first + size)))
    }

    fn part(&self, tokens: Range<usize>) -> Ready<'a> {
        fn rows<'a, T>(x: &'a [T], tokens: &Range<usize>, width: usize) -> &'a [T] {
            if x.is_empty() { x } else { &x[tokens.start * width..tokens.end * width] }
        }
        let n_cols = self.n_cols;
        let Columns { stride, q, scale, sum16, sum32, total, .. } = self.columns;
        Ready {
            first: self.first + tokens.start,
            n_tokens: tokens.len(),
            n_cols,
            floats: rows(self.floats, &tokens, n_cols),
            columns: Columns {
                n_cols,
                stride,
                q: rows(q, &tokens, stride),
                scale: rows(scale, &tokens, n_cols / 32),
                sum16: rows(sum16, &tokens, n_cols / 16),
                sum32: rows(sum32, &tokens, n_cols / 32),
                total: rows(total, &tokens, n_cols / 16),
            },
        }
    }
}

/// `y[t, r] = Σ_c w[r, c] · x[t, c] + bias[r]` for each product, then what it asks for.
///
/// # Panics
/// If shapes do not fit together, or a type is not runnable.
pub fn matmul(team: &Team, input: Input<'_>, act: &mut Activations, products: &mut [Product<'_>]) {
    matmul_with(kernels(), team, input, act, products);
}

/// [`matmul`] with the kernels of a chosen level.
pub fn matmul_with(k: &Kernels, team: &Team, input: Input<'_>, act: &mut Activations, products: &mut [Product<'_>]) {
    let Input { x, n_cols, norm } = input;
    assert!(n_cols > 0 && x.len().is_multiple_of(n_cols), "{} floats in rows of {n_cols}", x.len());
    let n_tokens = x.len() / n_cols;
    let (mut floats, mut rounded) = (false, false);
    let mut cost = 0;
    for p in &*products {
        let up = if let Then::Gate(up) = p.then { Some(up) } else { None };
        for w in [Some(p.weights), up].into_iter().flatten() {
            assert_eq!((w.n_rows, w.n_cols), (p.weights.n_rows, n_cols));
            w.check();
            let float = Form::of(w.dtype) == Form::Float;
            floats |= float;
            rounded |= !float;
            cost += w.n_rows * n_cols * n_tokens;
        }
        assert!(p.bias.is_none_or(|b| b.len() == p.weights.n_rows));
        assert_eq!(p.out.len(), n_tokens * p.weights.n_rows);
    }
    if n_tokens == 0 {
        return;
    }
    act.prepare(k, team, input, floats, rounded);
    let stride = Columns::stride(n_cols);
    let Activations { normed, q, scale, sum16, sum32, total } = &*act;
    let ready = Ready {
        first: 0,
        n_tokens,
        n_cols,
        floats: match norm {
            _ if !floats => &[],
            Norm::None => x,
            _ => normed,
        },
        columns: if rounded {
            Columns { n_cols, stride, q, scale, sum16, sum32, total }
        } else {
            Columns { n_cols, stride, q: &[], scale: &[], sum16: &[], sum32: &[], total: &[] }
        },
    };
    let jobs: Vec<Job<'_>> = products.iter_mut().map(Job::new).collect();
    let total: usize = jobs.iter().map(|job| job.n_bytes()).sum();
    // Less work than this is done before another thread has noticed it.
    const WORTH_A_REGION: usize = 32 * 1024;
    // Several parts for each thread let one make up for another that was interrupted; a part should last longer than
    // taking it.
    const WORTH_A_PART: usize = 256 * 1024;
    let n_threads = team.n_threads();
    let parts = if cost < WORTH_A_REGION { 1 } else { n_threads * (cost / n_threads / WORTH_A_PART).clamp(1, 4) };
    team.run(parts, &|i| {
        for tokens in ready.blocks() {
            let mut bytes = total * i / parts..total * (i + 1) / parts;
            for job in &jobs {
                job.run(k, tokens, job.panels(bytes.clone()));
                let n = job.n_bytes();
                bytes = bytes.start.saturating_sub(n)..bytes.end.saturating_sub(n);
            }
        }
    });
}

/// A product whose panels several threads share.
struct Job<'a> {
    weights: Weights<'a>,
    bias: Option<&'a [f32]>,
    then: Then<'a>,
    out: Disjoint<'a, f32>,
}

impl<'a> Job<'a> {
    fn new(p: &'a mut Product<'_>) -> Job<'a> {
        Job { weights: p.weights, bias: p.bias, then: p.then, out: Disjoint::new(p.out) }
    }

    fn n_panels(&self) -> usize {
        self.weights.n_rows.div_ceil(PANEL_ROWS)
    }

    /// Bytes of a panel's weights: the measure of its work.
    fn panel_bytes(&self) -> usize {
        let up = if let Then::Gate(up) = self.then { up.row_bytes() } else { 0 };
        PANEL_ROWS * (self.weights.row_bytes() + up)
    }

    fn n_bytes(&self) -> usize {
        self.n_panels() * self.panel_bytes()
    }

    /// The panels that begin within `bytes`, counted from this product's first.
    fn panels(&self, bytes: Range<usize>) -> Range<usize> {
        let panel = |at: usize| at.div_ceil(self.panel_bytes()).min(self.n_panels());
        panel(bytes.start)..panel(bytes.end)
    }

    fn run(&self, k: &Kernels, x: Ready<'_>, panels: Range<usize>) {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { panel, floats, sums, up: up_sums, .. } = scratch;
            for p in panels.clone().take_while(|_| !stopped()) {
                let row = p * PANEL_ROWS;
                let next = Some(row + PANEL_ROWS).filter(|_| p + 1 < panels.end);
                multiply(k, &self.weights, row, next, x, panel, floats, sums);
                let n = PANEL_ROWS.min(self.weights.n_rows - row);
                if let Some(bias) = self.bias {
                    let bias = &bias[row..row + n];
                    sums.iter_mut().for_each(|sums| sums.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
                }
                match self.then {
                    Then::Store | Then::Add => {}
                    Then::Apply(f) => f(sums.as_flattened_mut()),
                    Then::Gate(up) => {
                        multiply(k, &up, row, next, x, panel, floats, up_sums);
                        (k.silu_mul)(sums.as_flattened_mut(), up_sums.as_flattened());
                    }
                }
                for (t, sums) in sums.iter().enumerate() {
                    let at = (x.first + t) * self.weights.n_rows + row;
                    // SAFETY: each panel belongs to one part, and panels do not overlap.
                    let out = unsafe { self.out.get(at..at + n) };
                    if let Then::Add = self.then {
                        out.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
                    } else if let Ok(out) = <&mut [f32; PANEL_ROWS]>::try_from(&mut *out) {
                        // Of known length: two moves in place of a call.
                        *out = *sums;
                    } else {
                        out.copy_from_slice(&sums[..n]);
                    }
                }
            }
        });
    }
}

/// The sums of the 16 rows from `row` on, for each token; `next` are the rows that will follow.
#[allow(clippy::too_many_arguments)]
fn multiply(
    k: &Kernels,
    w: &Weights<'_>,
    row: usize,
    next: Option<usize>,
    x: Ready<'_>,
    panel: &mut Panel,
    floats: &mut FloatPanel,
    sums: &mut Vec<[f32; PANEL_ROWS]>,
) {
    sums.clear();
    sums.resize(x.n_tokens, [0.0; PANEL_ROWS]);
    let form = Form::of(w.dtype);
    if x.n_tokens <= FEW {
        return match form {
            Form::Float => (k.dot_few_float)(w.dtype, &w.panel(row), x.floats, sums),
            _ => (k.dot_few)(w.dtype, &w.panel(row), x.columns, sums),
        };
    }
    let step = w.step();
    for first in (0..w.n_cols).step_by(step) {
        let n = step.min(w.n_cols - first);
        let source = w.part(row, first);
        match form {
            Form::Float => (k.unpack_float)(w.dtype, &source, floats),
            _ => (k.unpack)(w.dtype, &source, panel),
        }
        if first + step < w.n_cols {
            (k.prefetch)(&w.part(row, first + step));
        } else if let Some(next) = next {
            (k.prefetch)(&w.part(next, 0));
        }
        match form {
            Form::Float => (k.dot_float)(floats, n, x.floats, x.n_cols, first, sums),
            _ => (k.dot)(form, panel, n, x.columns, first, sums),
        }
    }
}

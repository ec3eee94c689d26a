//! Each level's block, panel and product kernels give the bits of their scalar twins, on any size, alignment and input;
//! and a product does not depend on how it is cut up.
//!
//! `MMQ_REQUIRE_LEVEL=avx2` makes a level that this machine lacks a failure.

mod setup;

use mmq_kernels::interleave::interleave;
use mmq_kernels::matmul::matmul_with;
use mmq_kernels::panel::{Columns, FEW, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};
use mmq_kernels::{Activations, Dtype, Input, Kernels, Layout, Level, Norm, Product, Team, Then, Weights};
use setup::{Random, levels, some};

/// The scalar table and every level above it.
fn tables() -> (Kernels, Vec<Kernels>) {
    let mut tables = setup::tables();
    let scalar = tables.remove(0);
    assert_eq!(scalar.level, Level::Scalar);
    (scalar, tables)
}

impl Random {
    /// Roughly normal.
    fn float(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

/// Makes `d()` the factors of a block.
fn set_factors(dtype: Dtype, block: &mut [u8], mut d: impl FnMut() -> half::f16) {
    let at: &[usize] = match dtype {
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K => &[0, 2],
        Dtype::Q2_K => &[80, 82],
        Dtype::Q3_K => &[108],
        Dtype::Q6_K => &[208],
        Dtype::TQ1_0 => &[52],
        Dtype::TQ2_0 => &[64],
        // Its factor lies in the upper nibbles of four words.
        Dtype::IQ1_M => {
            let bits = d().to_bits();
            for i in 0..4 {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((bits >> (4 * i)) as u8) << 4;
            }
            return;
        }
        // An exponent, which may be as large as that of the F16.
        Dtype::MXFP4 => {
            block[0] = (d().to_f32().to_bits() >> 23) as u8;
            return;
        }
        // Any byte is a scale.
        Dtype::NVFP4 => return,
        _ => &[0],
    };
    for at in at {
        block[*at..at + 2].copy_from_slice(&d().to_le_bytes());
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Usual,
    Zeros,
    Ones,
    Denormal,
    Largest,
    Constant,
    Bytes,
}

const KINDS: [Kind; 7] =
    [Kind::Usual, Kind::Zeros, Kind::Ones, Kind::Denormal, Kind::Largest, Kind::Constant, Kind::Bytes];

/// `n` weights of `dtype` as a file could hold them; `Bytes` is what a broken one could.
fn weights(dtype: Dtype, n: usize, kind: Kind, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..dtype.row_bytes(n).unwrap()).map(|_| random.next() as u8).collect();
    let float = |random: &mut Random| match kind {
        Kind::Denormal => f32::from_bits(random.next() as u32 & 0x801f_ffff),
        Kind::Largest => f32::MAX,
        Kind::Constant => -0.75,
        Kind::Zeros => 0.0,
        _ => random.float(),
    };
    match kind {
        Kind::Bytes => return bytes,
        Kind::Zeros => bytes.fill(0),
        Kind::Ones => bytes.fill(255),
        Kind::Constant => bytes.fill(0x5a),
        _ => {}
    }
    if Form::of(dtype) == Form::Float {
        for b in bytes.chunks_exact_mut(dtype.block().1) {
            let x = float(random);
            match dtype {
                Dtype::F32 => b.copy_from_slice(&x.to_le_bytes()),
                Dtype::F16 => b.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
                _ => b.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            }
        }
        return bytes;
    }
    for block in bytes.chunks_exact_mut(dtype.block().1) {
        set_factors(dtype, block, || match kind {
            Kind::Denormal => half::f16::from_bits(random.next() as u16 & 0x83ff),
            Kind::Largest => half::f16::from_bits(0x7bff | random.next() as u16 & 0x8000),
            Kind::Constant | Kind::Zeros => half::f16::from_f32(0.125),
            _ => half::f16::from_f32(random.float() * 0.05),
        });
    }
    bytes
}

fn floats(n: usize, kind: Kind, random: &mut Random) -> Vec<f32> {
    (0..n)
        .map(|_| match kind {
            Kind::Zeros => 0.0,
            Kind::Ones => 1.0,
            Kind::Constant => -3.25e-3,
            Kind::Denormal => f32::from_bits(random.next() as u32 & 0x807f_ffff),
            Kind::Largest => f32::MAX.copysign(random.float()),
            Kind::Bytes => f32::from_bits(random.next() as u32),
            Kind::Usual => random.float(),
        })
        .collect()
}

#[track_caller]
fn same(a: &[f32], b: &[f32], what: impl Fn() -> String) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same, "{}: element {i}: scalar {a:e}, level {b:e}", what());
    }
}

/// A copy of `x` that starts `skew` elements into its buffer.
fn skewed<T: Copy + Default>(x: &[T], skew: usize) -> Vec<T> {
    let mut v = vec![T::default(); skew];
    v.extend_from_slice(x);
    v
}

/// Row lengths: each block multiple up to the widest loop and one more, then real ones.
fn lengths(dtype: Dtype) -> Vec<usize> {
    let block = dtype.block().0;
    let small = if block == 1 { 70 } else { 5 };
    let small = some(12, 1..=small).into_iter().map(|i| i * block);
    small.chain([4096, 11008]).collect()
}

fn quantized() -> impl Iterator<Item = Dtype> {
    Dtype::RUNNABLE.into_iter().filter(|d| Form::of(*d) != Form::Float)
}

#[test]
fn dequantize() {
    let (scalar, tables) = tables();
    let mut random = Random(1);
    for table in &tables {
        for dtype in Dtype::RUNNABLE {
            for n in lengths(dtype) {
                for (i, kind) in KINDS.into_iter().enumerate() {
                    let w = weights(dtype, n, kind, &mut random);
                    let mut a = vec![0.0; n];
                    (scalar.dequantize)(dtype, &w, &mut a);
                    let skew = (i + n) % 4;
                    let mut b = vec![0.0; n + skew];
                    (table.dequantize)(dtype, &skewed(&w, skew)[skew..], &mut b[skew..]);
                    same(&a, &b[skew..], || format!("{dtype} {kind:?} n={n}"));
                }
            }
        }
    }
}

#[test]
fn unpack() {
    let (scalar, tables) = tables();
    let mut random = Random(2);
    for table in &tables {
        for dtype in quantized() {
            let block = dtype.block().0;
            for n in some(4, (1..=PANEL_COLS / block).map(|i| i * block)) {
                for (i, kind) in KINDS.into_iter().enumerate() {
                    let skew = (i + n / block) % 4;
                    let w = weights(dtype, n * PANEL_ROWS, kind, &mut random);
                    let w = skewed(&w, skew);
                    let bytes = dtype.row_bytes(n).unwrap();
                    let rows = std::array::from_fn(|r| &w[skew + r * bytes..][..bytes]);
                    let mut panel = vec![0; PANEL_ROWS * bytes];
                    interleave(dtype, &w[skew..], &mut panel);
                    let mut a = Panel::new();
                    (scalar.unpack)(dtype, &Source::Rows(rows), &mut a);
                    for (layout, source) in [("rows", Source::Rows(rows)), ("panel", Source::Panel(&panel))] {
                        let mut b = Panel::new();
                        (table.unpack)(dtype, &source, &mut b);
                        let what = || format!("{dtype} {kind:?} n={n} {layout}");
                        assert!(a.q == b.q, "{}: quants", what());
                        same(a.scale.as_flattened(), b.scale.as_flattened(), || format!("{} scale", what()));
                        if Form::of(dtype) != Form::Signed {
                            same(a.min.as_flattened(), b.min.as_flattened(), || format!("{} min", what()));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn unpack_float() {
    let (scalar, tables) = tables();
    let mut random = Random(3);
    for table in &tables {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for n in some(12, (1..=40).chain([FLOAT_COLS])) {
                for kind in KINDS {
                    let skew = n % 4;
                    let w = skewed(&weights(dtype, n * PANEL_ROWS, kind, &mut random), skew);
                    let bytes = dtype.row_bytes(n).unwrap();
                    let rows = std::array::from_fn(|r| &w[skew + r * bytes..][..bytes]);
                    let mut panel = vec![0; PANEL_ROWS * bytes];
                    interleave(dtype, &w[skew..], &mut panel);
                    let mut a = FloatPanel::new();
                    (scalar.unpack_float)(dtype, &Source::Rows(rows), &mut a);
                    for source in [Source::Rows(rows), Source::Panel(&panel)] {
                        let mut b = FloatPanel::new();
                        (table.unpack_float)(dtype, &source, &mut b);
                        same(a.0.as_flattened(), b.0.as_flattened(), || format!("{dtype} {kind:?} n={n}"));
                    }
                }
            }
        }
    }
}

/// `(q, scale, sum16, sum32, total)` of `x`.
type Rounded = (Vec<i8>, Vec<f32>, Vec<f32>, Vec<f32>, Vec<i32>);

fn rounded(table: &Kernels, x: &[f32]) -> Rounded {
    let n = x.len();
    let mut r = (vec![1; n], vec![1.0; n / 32], vec![1.0; n / 16], vec![1.0; n / 32], vec![1; n / 16]);
    (table.quantize)(x, &mut r.0, &mut r.1, &mut r.2, &mut r.3, &mut r.4);
    r
}

/// The same with the quants of tokens `stride` apart, and something else between them.
fn apart(rounded: Rounded, n_cols: usize, stride: usize) -> Rounded {
    let mut q = vec![77; rounded.0.len() / n_cols * stride];
    q.chunks_mut(stride).zip(rounded.0.chunks(n_cols)).for_each(|(to, q)| to[..n_cols].copy_from_slice(q));
    (q, rounded.1, rounded.2, rounded.3, rounded.4)
}

#[test]
fn quantize() {
    let (scalar, tables) = tables();
    let mut random = Random(4);
    for table in &tables {
        for n in [0, 32, 64, 96, 128, 4096, 11008] {
            for kind in KINDS {
                for skew in 0..4 {
                    let mut x = floats(n, kind, &mut random);
                    if n > 32 && skew == 3 {
                        (x[3], x[n - 1]) = (f32::NAN, f32::NEG_INFINITY);
                    }
                    let (a, b) = (rounded(&scalar, &x), rounded(table, &skewed(&x, skew)[skew..]));
                    let what = || format!("{kind:?} n={n}");
                    assert!(a.0 == b.0, "{}", what());
                    same(&a.1, &b.1, what);
                    same(&a.2, &b.2, what);
                    same(&a.3, &b.3, what);
                    assert!(a.4 == b.4, "{}", what());
                }
            }
        }
    }
}

/// Quants at the edges of their range: the widest sums that the integer kernels meet.
#[test]
fn dot() {
    let (scalar, tables) = tables();
    let mut random = Random(5);
    let forms = [(32, 2), (32, 4), (32, 5), (32, 6), (32, 7), (16, 2), (16, 3), (16, 5), (16, 6), (16, 7)]
        .map(|(group, bits)| (Form::Unsigned { group, bits }, 0, (1 << bits) - 1))
        .into_iter()
        .chain([(Form::Signed, -128, 127), (Form::Signed, -64, 63), (Form::Signed, -65, 63)]);
    for (form, lowest, highest) in forms {
        for table in &tables {
            for n in some(4, (1..=6).map(|i| i * 32).chain([PANEL_COLS])) {
                for n_tokens in (1..=9).chain([12, 23]) {
                    for edge in [None, Some(lowest), Some(highest)] {
                        let mut panel = Panel::new();
                        for q in panel.q.as_flattened_mut() {
                            let any = lowest + (random.next() % (highest - lowest + 1) as u64) as i32;
                            *q = edge.unwrap_or(any) as u8;
                        }
                        // Rare values count as well.
                        panel.q[n / 4 - 1][63] = lowest as u8;
                        for v in [&mut panel.scale, &mut panel.min] {
                            v.as_flattened_mut().iter_mut().for_each(|v| *v = random.float());
                        }
                        // The product starts in the middle of the tokens' columns.
                        let (n_cols, stride) = (n + 96, n + 96 + 64 * (n_tokens % 2));
                        let mut x = apart(
                            rounded(&scalar, &floats(n_tokens * n_cols, Kind::Usual, &mut random)),
                            n_cols,
                            stride,
                        );
                        if edge.is_some() {
                            x.0.iter_mut()
                                .enumerate()
                                .for_each(|(i, q)| *q = if i / stride % 2 == 0 { 127 } else { -127 });
                            x.4.iter_mut()
                                .enumerate()
                                .for_each(|(i, s)| *s = if 16 * i / n_cols % 2 == 0 { 2032 } else { -2032 });
                        }
                        let x = Columns { n_cols, stride, q: &x.0, scale: &x.1, sum16: &x.2, sum32: &x.3, total: &x.4 };
                        let mut a = vec![[0.5; PANEL_ROWS]; n_tokens];
                        let mut b = a.clone();
                        (scalar.dot)(form, &panel, n, x, 32, &mut a);
                        (table.dot)(form, &panel, n, x, 32, &mut b);
                        same(a.as_flattened(), b.as_flattened(), || format!("{form:?} n={n} n_tokens={n_tokens}"));
                    }
                }
            }
        }
    }
}

/// Products of few tokens, of rows apart and interleaved, give the bits of the scalar panels.
#[test]
fn dot_few() {
    let (scalar, tables) = tables();
    let mut random = Random(13);
    for dtype in Dtype::RUNNABLE {
        for n_cols in widths(dtype) {
            for (n_tokens, kind) in (1..=FEW).flat_map(|n| [(n, Kind::Usual), (n, Kind::Bytes)]) {
                let w = skewed(&weights(dtype, n_cols * PANEL_ROWS, kind, &mut random), n_tokens % 4);
                let w = &w[n_tokens % 4..];
                let bytes = dtype.row_bytes(n_cols).unwrap();
                let rows = std::array::from_fn(|r| &w[r * bytes..][..bytes]);
                let mut panel = vec![0; w.len()];
                interleave(dtype, w, &mut panel);
                let x = floats(n_tokens * n_cols, Kind::Usual, &mut random);
                let run = |table: &Kernels, source: Source<'_>| {
                    let mut acc = vec![[0.5; PANEL_ROWS]; n_tokens];
                    if Form::of(dtype) == Form::Float {
                        (table.dot_few_float)(dtype, &source, &x, &mut acc);
                    } else {
                        let stride = Columns::stride(n_cols);
                        let x = apart(rounded(&scalar, &x), n_cols, stride);
                        let x = Columns { n_cols, stride, q: &x.0, scale: &x.1, sum16: &x.2, sum32: &x.3, total: &x.4 };
                        (table.dot_few)(dtype, &source, x, &mut acc);
                    }
                    acc
                };
                let a = run(&scalar, Source::Rows(rows));
                for table in tables.iter().chain([&scalar]) {
                    for source in [Source::Rows(rows), Source::Panel(&panel)] {
                        let b = run(table, source);
                        let what = || format!("{} {dtype} {kind:?} {n_cols} {n_tokens}", table.level.name());
                        same(a.as_flattened(), b.as_flattened(), what);
                    }
                }
            }
        }
    }
}

#[test]
fn dot_float() {
    let (scalar, tables) = tables();
    let mut random = Random(6);
    for table in &tables {
        for n in some(6, (0..=20).chain([FLOAT_COLS])) {
            for n_tokens in (1..=13).chain([23]) {
                for kind in [Kind::Usual, Kind::Zeros, Kind::Denormal, Kind::Largest, Kind::Bytes] {
                    let mut panel = FloatPanel::new();
                    panel.0.as_flattened_mut().copy_from_slice(&floats(FLOAT_COLS * PANEL_ROWS, kind, &mut random));
                    let n_cols = n + 3;
                    let x = floats(n_tokens * n_cols, Kind::Usual, &mut random);
                    let mut a = vec![[0.5; PANEL_ROWS]; n_tokens];
                    let mut b = a.clone();
                    (scalar.dot_float)(&panel, n, &x, n_cols, 2, &mut a);
                    (table.dot_float)(&panel, n, &x, n_cols, 2, &mut b);
                    same(a.as_flattened(), b.as_flattened(), || format!("{kind:?} n={n} n_tokens={n_tokens}"));
                }
            }
        }
    }
}

struct Case {
    dtype: Dtype,
    n_cols: usize,
    w: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    fn new(dtype: Dtype, n_rows: usize, n_cols: usize, n_tokens: usize, random: &mut Random) -> Case {
        let w = weights(dtype, n_rows * n_cols, Kind::Usual, random);
        Case { dtype, n_cols, w, x: floats(n_tokens * n_cols, Kind::Usual, random) }
    }

    fn weights(&self, rows: std::ops::Range<usize>) -> Weights<'_> {
        let bytes = self.dtype.row_bytes(self.n_cols).unwrap();
        Weights {
            dtype: self.dtype,
            layout: Layout::Rows,
            n_rows: rows.len(),
            n_cols: self.n_cols,
            data: &self.w[rows.start * bytes..rows.end * bytes],
        }
    }

    /// The product of rows `rows` with tokens `tokens`.
    fn run(
        &self,
        table: &Kernels,
        n_threads: usize,
        rows: std::ops::Range<usize>,
        tokens: std::ops::Range<usize>,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; rows.len() * tokens.len()];
        let weights = self.weights(rows);
        let x = &self.x[tokens.start * self.n_cols..tokens.end * self.n_cols];
        let product = Product { weights, bias: None, then: Then::Store, out: &mut out };
        multiply(table, n_threads, x, self.n_cols, Norm::None, [product]);
        out
    }
}

fn multiply<const N: usize>(
    table: &Kernels,
    n_threads: usize,
    x: &[f32],
    n_cols: usize,
    norm: Norm<'_>,
    mut products: [Product<'_>; N],
) {
    let input = Input { x, n_cols, norm };
    matmul_with(table, &Team::new(n_threads), input, &mut Activations::default(), &mut products);
}

/// Lengths that end in the middle of a panel, in a part of one, and in several.
fn widths(dtype: Dtype) -> Vec<usize> {
    match dtype.block().0 {
        1 => some(3, [1, 7, 100, 588, 1024]),
        block => some(3, [block, 3 * block, PANEL_COLS + block, 2 * PANEL_COLS + 256]),
    }
}

/// Every way to cut a product up gives the same bits: tokens one at a time, rows from anywhere, any number of threads.
#[test]
fn matmul_does_not_depend_on_the_batch() {
    let (_, tables) = tables();
    let mut random = Random(7);
    for table in levels().iter().chain(&tables) {
        for dtype in Dtype::RUNNABLE {
            for n_cols in widths(dtype) {
                let (n_rows, n_tokens) = (53, 11);
                let case = Case::new(dtype, n_rows, n_cols, n_tokens, &mut random);
                let whole = case.run(table, 1, 0..n_rows, 0..n_tokens);
                let what = || format!("{} {dtype} n_cols={n_cols}", table.level.name());
                for n_threads in [2, 3, 8] {
                    same(&whole, &case.run(table, n_threads, 0..n_rows, 0..n_tokens), what);
                }
                for t in 0..n_tokens {
                    same(&whole[t * n_rows..][..n_rows], &case.run(table, 2, 0..n_rows, t..t + 1), what);
                }
                for first in [1, 16, 30] {
                    let part = case.run(table, 1, first..first + 20, 3..8);
                    for t in 0..5 {
                        same(&whole[(t + 3) * n_rows + first..][..20], &part[t * 20..][..20], what);
                    }
                }
            }
        }
    }
}

#[test]
fn matmul_agrees_between_levels() {
    let (scalar, tables) = tables();
    let mut random = Random(8);
    for dtype in Dtype::RUNNABLE {
        for n_cols in widths(dtype) {
            let case = Case::new(dtype, 37, n_cols, 7, &mut random);
            let a = case.run(&scalar, 1, 0..37, 0..7);
            for table in &tables {
                same(&a, &case.run(table, 2, 0..37, 0..7), || format!("{dtype} n_cols={n_cols}"));
            }
        }
    }
}

/// The product is the one of the dequantized weights, but for the rounding of the activations (half a step of 1/127 of
/// the largest of 32) and of the sums.
#[test]
fn matmul_is_the_product() {
    let mut random = Random(9);
    for table in levels() {
        for dtype in Dtype::RUNNABLE {
            for n_cols in widths(dtype) {
                let (n_rows, n_tokens) = (19, 3);
                let case = Case::new(dtype, n_rows, n_cols, n_tokens, &mut random);
                let out = case.run(&table, 1, 0..n_rows, 0..n_tokens);
                let mut w = vec![0.0; n_rows * n_cols];
                (table.dequantize)(dtype, &case.w, &mut w);
                for (i, y) in out.iter().enumerate() {
                    let (w, x) = (&w[i % n_rows * n_cols..][..n_cols], &case.x[i / n_rows * n_cols..][..n_cols]);
                    let (mut exact, mut bound) = (0.0, 0.0);
                    for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                        let max = x.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
                        let step = if Form::of(dtype) == Form::Float { 0.0 } else { f64::from(max) / 254.0 };
                        for (w, x) in w.iter().zip(x) {
                            let (w, x) = (f64::from(*w), f64::from(*x));
                            exact += w * x;
                            bound += w.abs() * step + 1e-5 * (w * x).abs();
                        }
                    }
                    let error = (f64::from(*y) - exact).abs();
                    assert!(error <= bound + 1e-6, "{dtype} n_cols={n_cols} [{i}]: {y} for {exact}, bound {bound}");
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_stay_so() {
    let mut random = Random(10);
    let mut case = Case::new(Dtype::Q4_0, 16, 64, 2, &mut random);
    case.x[5] = f32::NAN;
    let out = case.run(&levels()[0], 1, 0..16, 0..2);
    assert!(out[..16].iter().all(|y| y.is_nan()) && out[16..].iter().all(|y| y.is_finite()));
}

/// Products that share an input, and what is fused to them, give the bits of one product after the other.
#[test]
fn fused_products_are_those_apart() {
    let mut random = Random(11);
    for table in levels() {
        for dtypes in [[Dtype::Q4_K, Dtype::Q6_K], [Dtype::F16, Dtype::Q8_0], [Dtype::Q4_0, Dtype::Q4_0]] {
            for n_threads in [1, 2, 3, 8] {
                let (n_rows, n_cols, n_tokens) = (53, 512, 5);
                let cases = dtypes.map(|dtype| Case::new(dtype, n_rows, n_cols, n_tokens, &mut random));
                let (weight, bias) =
                    (floats(n_cols, Kind::Usual, &mut random), floats(n_cols, Kind::Usual, &mut random));
                let shift = floats(n_rows, Kind::Usual, &mut random);
                let x = &cases[0].x;
                for norm in [
                    Norm::None,
                    Norm::Rms { weight: &weight, eps: 1e-5 },
                    Norm::Layer { weight: &weight, bias: &bias, eps: 1e-5 },
                ] {
                    let mut normed = x.clone();
                    for (x, y) in x.chunks(n_cols).zip(normed.chunks_mut(n_cols)) {
                        match norm {
                            Norm::None => {}
                            Norm::Rms { weight, eps } => (table.rms_norm)(x, weight, eps, y),
                            Norm::Layer { weight, bias, eps } => (table.layer_norm)(x, weight, bias, eps, y),
                        }
                    }
                    let [mut a, mut b] = cases.each_ref().map(|case| {
                        Case { x: normed.clone(), w: case.w.clone(), ..*case }.run(&table, 1, 0..n_rows, 0..n_tokens)
                    });
                    let plain = b.clone();
                    a.chunks_mut(n_rows).for_each(|row| row.iter_mut().zip(&shift).for_each(|(y, b)| *y += b));
                    let mut gated = a.clone();
                    (table.silu_mul)(&mut gated, &plain);
                    (table.gelu_quick)(&mut b);
                    let residual = floats(a.len(), Kind::Usual, &mut random);
                    a.iter_mut().zip(&residual).for_each(|(y, r)| *y += r);

                    let w = cases.each_ref().map(|case| case.weights(0..n_rows));
                    let (mut added, mut applied, mut gate) = (residual.clone(), vec![0.0; b.len()], vec![0.0; b.len()]);
                    let bias = Some(&shift[..]);
                    let products = [
                        Product { weights: w[0], bias, then: Then::Add, out: &mut added },
                        Product { weights: w[1], bias: None, then: Then::Apply(table.gelu_quick), out: &mut applied },
                        Product { weights: w[0], bias, then: Then::Gate(w[1]), out: &mut gate },
                    ];
                    multiply(&table, n_threads, x, n_cols, norm, products);
                    let what = || format!("{} {dtypes:?} {n_threads} threads", table.level.name());
                    same(&a, &added, what);
                    same(&b, &applied, what);
                    same(&gated, &gate, what);
                }
            }
        }
    }
}

/// Interleaving changes nothing but the place of the weights.
#[test]
fn layouts_give_the_same_product() {
    let mut random = Random(12);
    for table in levels() {
        for dtype in Dtype::RUNNABLE {
            for n_cols in widths(dtype) {
                let (n_rows, n_tokens) = (37, 3);
                let case = Case::new(dtype, n_rows, n_cols, n_tokens, &mut random);
                let bytes = PANEL_ROWS * dtype.row_bytes(n_cols).unwrap();
                let mut data = case.w.clone();
                for (rows, panel) in case.w.chunks_exact(bytes).zip(data.chunks_exact_mut(bytes)) {
                    interleave(dtype, rows, panel);
                }
                let mut out = vec![f32::NAN; n_rows * n_tokens];
                let weights = Weights { layout: Layout::Panels, data: &data, ..case.weights(0..n_rows) };
                let product = Product { weights, bias: None, then: Then::Store, out: &mut out };
                multiply(&table, 2, &case.x, n_cols, Norm::None, [product]);
                let plain = case.run(&table, 1, 0..n_rows, 0..n_tokens);
                same(&plain, &out, || format!("{} {dtype} n_cols={n_cols}", table.level.name()));
            }
        }
    }
}

//! Every mathematical entry of the kernel table, at every level of this processor, against references in f64.
//!
//! Prints the levels that it ran; `MMQ_REQUIRE_LEVEL=avx2` turns a missing level into a failure.

mod setup;

use half::f16;
use mmq_kernels::attention::{KEY_CHUNK, KEY_TILE};
use mmq_kernels::kv::rotate;
use mmq_kernels::{Attention, Dtype, Kernels, Kv, KvTiles, KvType, Side, Team, attention_with};
use setup::{Random, levels, some};

impl Random {
    /// Uniform in ±1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize, factor: f32) -> Vec<f32> {
        (0..n).map(|_| self.float() * factor).collect()
    }
}

/// Lengths up to two unrolled vectors with every tail, then rows of real models.
fn lengths() -> Vec<usize> {
    some(14, (1..=34).chain([63, 64, 65, 576, 1000, 4096, 11008]))
}

/// Rows that are hard for floats: zeros, denormals, extremes, constants, wide ranges.
fn hard_rows(n: usize) -> Vec<Vec<f32>> {
    let mut random = Random(n as u64);
    vec![
        vec![0.0; n],
        vec![-0.0; n],
        vec![1e-40; n],
        vec![f32::MIN_POSITIVE; n],
        vec![1.0 / 3.0; n],
        vec![1000.1; n],
        (0..n).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect(),
        (0..n).map(|i| 1000.0 + i as f32 * 1e-4).collect(),
        random.floats(n, 1.0),
        random.floats(n, 8.0),
        random.floats(n, 120.0),
        (0..n).map(|_| random.float() * 10f32.powi((random.next() % 60) as i32 - 30)).collect(),
    ]
}

/// Runs `f` on a copy of `x` that begins `offset` elements after an aligned address, and returns the copy; what lies
/// around it must not change.
fn misaligned<T: Copy + PartialEq + std::fmt::Debug>(
    x: &[T],
    guard: T,
    offset: usize,
    f: impl FnOnce(&mut [T]),
) -> Vec<T> {
    let mut buffer = vec![guard; x.len() + offset + 9];
    buffer[offset..offset + x.len()].copy_from_slice(x);
    f(&mut buffer[offset..offset + x.len()]);
    assert!(buffer[..offset].iter().chain(&buffer[offset + x.len()..]).all(|v| *v == guard), "wrote outside its slice");
    buffer[offset..offset + x.len()].to_vec()
}

#[track_caller]
fn assert_close(what: &str, level: &Kernels, got: &[f32], want: &[f64], bound: impl Fn(usize, f64) -> f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let rounded = w as f32;
        let ok = if rounded.is_finite() { (f64::from(g) - w).abs() <= bound(i, w) } else { g == rounded };
        assert!(
            ok,
            "{what}, {:?}, {i} of {}: got {g:e}, expected {w:e}, bound {:e}",
            level.level,
            got.len(),
            bound(i, w)
        );
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `Φ(x)`: by its series near zero, else by the continued fraction of its tail.
fn normal_cdf(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for k in 1..80 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let tail = density / (1..200).rev().fold(x.abs(), |rest, k| x.abs() + f64::from(k) / rest);
    if x > 0.0 { 1.0 - tail } else { tail }
}

#[test]
fn levels_ran() {
    setup::tables();
}

#[test]
fn the_reference_distribution_is_sound() {
    for (x, want) in [
        (0.0, 0.5),
        (1.0, 0.841_344_746_068_542_9),
        (-3.0, 0.001_349_898_031_630_094_5),
        (-8.0, 6.220_960_574_271_785e-16),
    ] {
        assert!((normal_cdf(x) / want - 1.0).abs() < 1e-13, "{x}: {}", normal_cdf(x));
    }
    assert!((normal_cdf(-2.999_999_999_9) / normal_cdf(-3.0) - 1.0).abs() < 1e-8);
}

/// 2e-6 of the value; where the result is small because the argument is far on the negative side, 1e-9 absolutely.
fn activation_bound(x: f32, y: f64) -> f64 {
    2e-6 * y.abs() + if x < -4.0 { 1e-9 } else { 3e-45 }
}

#[test]
fn activations() {
    type Entry = (&'static str, fn(&Kernels) -> fn(&mut [f32]), fn(f64) -> f64);
    let entries: [Entry; 4] = [
        ("silu", |t| t.silu, |x| x * sigmoid(x)),
        ("gelu_erf", |t| t.gelu_erf, |x| x * normal_cdf(x.clamp(-50.0, 50.0))),
        (
            "gelu_tanh",
            |t| t.gelu_tanh,
            |x| x * sigmoid((8.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)),
        ),
        ("gelu_quick", |t| t.gelu_quick, |x| x * sigmoid(1.702 * x)),
    ];
    for table in &levels() {
        for (name, entry, reference) in entries {
            for n in lengths() {
                for (h, x) in hard_rows(n).iter().enumerate() {
                    let y = misaligned(x, 7.0, (n + h) % 9, |x| entry(table)(x));
                    let want: Vec<f64> = x.iter().map(|&x| reference(f64::from(x))).collect();
                    assert_close(name, table, &y, &want, |i, w| activation_bound(x[i], w));
                }
            }
            // A fine walk over where the function bends, and single values that overflow careless forms.
            let mut x: Vec<f32> = some(8_000, (-400_000..400_000).map(|i| i as f32 * 1e-4));
            x.extend([-100.0, 100.0, -30.0, 30.0, -89.0, 89.0, -1e4, 1e4, -1e30, 1e30, f32::MAX, f32::MIN]);
            let want: Vec<f64> = x.iter().map(|&x| reference(f64::from(x))).collect();
            let y = misaligned(&x, 7.0, 1, |x| entry(table)(x));
            assert_close(name, table, &y, &want, |i, w| activation_bound(x[i], w));
            let mut special = [f32::INFINITY, f32::NAN, 1.0];
            entry(table)(&mut special);
            assert!(special[0] == f32::INFINITY && special[1].is_nan() && special[2] > 0.5, "{name}: {special:?}");
        }
        for n in lengths() {
            let up = Random(n as u64).floats(n, 3.0);
            for (h, x) in hard_rows(n).iter().enumerate() {
                let y = misaligned(x, 7.0, h % 9, |x| (table.silu_mul)(x, &up));
                let want: Vec<f64> =
                    x.iter().zip(&up).map(|(&x, &u)| f64::from(x) * sigmoid(x.into()) * f64::from(u)).collect();
                let finite = |w: &f64| w.abs() < 1e38;
                let want: Vec<f64> =
                    want.iter().zip(&y).map(|(w, y)| if finite(w) { *w } else { f64::from(*y) }).collect();
                assert_close("silu_mul", table, &y, &want, |i, w| activation_bound(x[i], w));
            }
        }
    }
}

#[test]
fn sums_of_exponentials() {
    for table in &levels() {
        for n in lengths() {
            for (h, x) in hard_rows(n).iter().enumerate() {
                let name = format!("{:?}, row {h} of {n}", table.level);
                let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exp = |x: &f32| f64::from(x - max).exp();
                let (got_max, sum) = (table.sum_exp)(x);
                let want: f64 = x.iter().map(exp).sum();
                assert!(
                    got_max == max && (sum / want - 1.0).abs() < 5e-7,
                    "{name}: {got_max}, {sum}, not {max}, {want}"
                );

                let y: Vec<f32> = Random((n + h) as u64).floats(n, 20.0);
                let y_max = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let terms = x.iter().zip(&y).filter(|(x, _)| exp(x) > 0.0).map(|(x, y)| {
                    let difference = f64::from(x - max) - f64::from(y - y_max);
                    (exp(x) * difference, exp(x) * (difference.abs() + 1.0))
                });
                let (want, size) = terms.fold((0.0, 0.0), |sum, term| (sum.0 + term.0, sum.1 + term.1));
                let got = (table.cross_exp)(x, max, &y, y_max);
                assert!((got - want).abs() < 5e-7 * size, "{name}: {got}, not {want}");
                assert_eq!((table.cross_exp)(&y, y_max, &y, y_max), 0.0, "{name}");
            }
        }
        for n in [1, 9, 40] {
            for at in [0, n - 1] {
                let mut x = vec![1.0; n];
                x[at] = f32::NAN;
                assert!((table.sum_exp)(&x).1.is_nan());
                x[at] = f32::INFINITY;
                assert!((table.sum_exp)(&x).1.is_nan());
                x[at] = f32::NEG_INFINITY;
                let (max, sum) = (table.sum_exp)(&x);
                if n > 1 {
                    assert_eq!((max, sum), (1.0, (n - 1) as f64));
                    assert_eq!((table.cross_exp)(&x, 1.0, &x, 1.0), 0.0, "impossible in both: nothing counts");
                    assert_eq!((table.cross_exp)(&vec![1.0; n], 1.0, &x, 1.0), f64::INFINITY);
                }
            }
        }
    }
}

#[test]
fn norms() {
    for table in &levels() {
        for n in lengths() {
            let mut random = Random(n as u64);
            let (w, b) = (random.floats(n, 2.0), random.floats(n, 1.0));
            for (h, x) in hard_rows(n).iter().enumerate() {
                for eps in [1e-5f32, 1e-6, 1e-12] {
                    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    let offset = (n + h) % 9;

                    let scale = (wide.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(eps)).sqrt().recip();
                    let want: Vec<f64> = wide.iter().zip(&w).map(|(x, w)| x * scale * f64::from(*w)).collect();
                    let y = misaligned(&vec![3.0; n], 7.0, offset, |y| (table.rms_norm)(x, &w, eps, y));
                    assert_close("rms_norm", table, &y, &want, |_, w| 1e-6 * w.abs() + 3e-45);

                    let mean = wide.iter().sum::<f64>() / n as f64;
                    let var = wide.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
                    let scale = (var + f64::from(eps)).sqrt().recip();
                    let unit: Vec<f64> = wide.iter().map(|x| (x - mean) * scale).collect();
                    let want: Vec<f64> = (0..n).map(|i| unit[i] * f64::from(w[i]) + f64::from(b[i])).collect();
                    let y = misaligned(&vec![3.0; n], 7.0, offset, |y| (table.layer_norm)(x, &w, &b, eps, y));
                    // The order of summation moves the mean by 1e-16 of it, which small deviations show.
                    let noise = 1e-13 * mean.abs() * scale;
                    assert_close("layer_norm", table, &y, &want, |i, _| {
                        3e-7 * ((unit[i] * f64::from(w[i])).abs() + f64::from(b[i]).abs()) + noise
                    });
                }
            }
        }
    }
}

#[test]
fn element_wise() {
    for table in &levels() {
        for n in lengths() {
            let other = Random(n as u64 + 1).floats(n, 5.0);
            for (h, x) in hard_rows(n).iter().enumerate() {
                let y = misaligned(x, 7.0, h % 9, |x| (table.add)(x, &other));
                assert!(
                    y.iter().zip(x.iter().zip(&other)).all(|(y, (a, b))| *y == a + b),
                    "add, {:?}, {n}",
                    table.level
                );

                let y = misaligned(&vec![1u16; n], 9, h % 9, |y| (table.to_f16)(x, y));
                assert!(
                    y.iter().zip(x).all(|(y, x)| *y == f16::from_f32(*x).to_bits()),
                    "to_f16, {:?}, {n}",
                    table.level
                );
            }
        }
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        for (offset, n) in lengths().into_iter().map(|n| (n * 1369, n)).chain([(0, bits.len())]) {
            let bits = &bits[offset % 50_000..][..n];
            let y = misaligned(&vec![1.0; n], 7.0, n % 9, |y| (table.from_f16)(bits, y));
            for (y, &b) in y.iter().zip(bits) {
                let want = f16::from_bits(b).to_f32();
                assert!(
                    y.to_bits() == want.to_bits() || (y.is_nan() && want.is_nan()),
                    "from_f16, {:?}: {b:04x}",
                    table.level
                );
            }
        }
        let ties: Vec<f32> = (0..4096u32).map(|i| f32::from_bits(0x3880_0000 + (i << 12))).collect();
        let y = misaligned(&vec![1u16; ties.len()], 9, 1, |y| (table.to_f16)(&ties, y));
        assert!(y.iter().zip(&ties).all(|(y, x)| *y == f16::from_f32(*x).to_bits()), "to_f16 rounds ties to even");
    }
}

#[test]
fn rope() {
    // Where the partner of element `i` is, its angle, and whether it is the first of the two.
    type Pair = fn(usize, usize) -> (usize, usize, bool);
    let kinds: [(&str, Pair); 2] = [
        ("rope", |i, _| (i ^ 1, i / 2, i % 2 == 0)),
        ("rope_half", |i, n| if i < n { (i + n, i, true) } else { (i - n, i - n, false) }),
    ];
    for (table, (name, place)) in levels().iter().flat_map(|table| kinds.map(|kind| (table, kind))) {
        let rotate = if name == "rope" { table.rope } else { table.rope_half };
        for n in some(10, (1..=20).chain([32, 64, 2048])) {
            let mut random = Random(n as u64);
            let angles = random.floats(n, 3.2);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            for (h, x) in hard_rows(2 * n).iter().filter(|x| x.iter().all(|v| v.abs() < 1e38)).enumerate() {
                let y = misaligned(x, 7.0, h % 9, |x| rotate(x, &cos, &sin));
                let pair = |i: usize| {
                    let (other, angle, first) = place(i, n);
                    let (a, b) = if first { (x[i], x[other]) } else { (x[other], x[i]) };
                    (f64::from(a), f64::from(b), f64::from(cos[angle]), f64::from(sin[angle]), first)
                };
                let want: Vec<f64> = (0..2 * n)
                    .map(|i| {
                        let (a, b, c, s, first) = pair(i);
                        if first { a * c - b * s } else { a * s + b * c }
                    })
                    .collect();
                assert_close(name, table, &y, &want, |i, _| {
                    let (a, b, c, s, _) = pair(i);
                    2e-7 * ((a * c).abs() + (b * s).abs() + (a * s).abs() + (b * c).abs()) + 3e-45
                });
            }
        }
    }
}

/// Queries, keys and values of one case; keys and values exactly representable in F16.
#[derive(Clone)]
struct Case {
    a: Attention,
    n_tokens: usize,
    n_kv: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(n_head: usize, n_head_kv: usize, head_dim: usize, n_tokens: usize, n_kv: usize, causal: bool) -> Case {
        let mut random = Random((n_head * 31 + head_dim * 7 + n_tokens * 3 + n_kv) as u64);
        let mut halves = |n: usize, factor: f32| -> Vec<f32> {
            random.floats(n, factor).iter().map(|x| f16::from_f32(*x).to_f32()).collect()
        };
        let (k, v) = (halves(n_kv * n_head_kv * head_dim, 2.0), halves(n_kv * n_head_kv * head_dim, 1.0));
        let q = halves(n_tokens * n_head * head_dim, 4.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let causal = causal.then(|| n_kv - n_tokens);
        Case { a: Attention { n_head, n_head_kv, head_dim, scale, causal }, n_tokens, n_kv, q, k, v }
    }

    /// Keys and values as tiles, written in pieces.
    fn store(&self, table: &Kernels, kinds: [KvType; 2]) -> [KvTiles; 2] {
        let [mut k, mut v] = [(kinds[0], Side::Keys), (kinds[1], Side::Values)]
            .map(|(kind, side)| KvTiles::new(kind, side, self.a.n_head_kv, self.a.head_dim));
        let width = self.a.n_head_kv * self.a.head_dim;
        for piece in [0, 1, 6, 70, self.n_kv].windows(2) {
            let at = piece[0].min(self.n_kv) * width..piece[1].min(self.n_kv) * width;
            k.push(table, &self.k[at.clone()], self.n_kv);
            v.push(table, &self.v[at], self.n_kv);
        }
        assert_eq!((k.len(), v.len()), (self.n_kv, self.n_kv));
        [k, v]
    }

    /// With keys and values as tiles of two types, or as rows of floats.
    fn run(&self, table: &Kernels, team: &Team, kinds: Option<[KvType; 2]>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.q.len()];
        if let Some(kinds) = kinds {
            let [k, v] = self.store(table, kinds);
            attention_with(table, team, self.a, &self.q, k.view(), v.view(), self.n_kv, &mut out);
        } else {
            attention_with(table, team, self.a, &self.q, Kv::F32(&self.k), Kv::F32(&self.v), self.n_kv, &mut out);
        }
        out
    }

    fn reference(&self) -> Vec<f64> {
        let Attention { n_head, n_head_kv, head_dim, scale, causal } = self.a;
        let mut out = Vec::new();
        for row in 0..self.n_tokens * n_head {
            let (t, h) = (row / n_head, row % n_head / (n_head / n_head_kv));
            let at = |x: &[f32], j: usize, d: usize| f64::from(x[(j * n_head_kv + h) * head_dim + d]);
            let n = causal.map_or(self.n_kv, |n_past| n_past + t + 1);
            let q = &self.q[row * head_dim..][..head_dim];
            let score = |j| (0..head_dim).map(|d| f64::from(q[d]) * at(&self.k, j, d)).sum::<f64>() * f64::from(scale);
            let scores: Vec<f64> = (0..n).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = p.iter().sum();
            out.extend((0..head_dim).map(|d| (0..n).map(|j| p[j] * at(&self.v, j, d)).sum::<f64>() / sum));
        }
        out
    }
}

const F16: Option<[KvType; 2]> = Some([KvType::F16, KvType::F16]);
const F32: Option<[KvType; 2]> = Some([KvType::F32, KvType::F32]);

#[test]
fn attention_matches_the_definition() {
    let (one, three) = (Team::new(1), Team::new(3));
    let mut cases = Vec::new();
    for head_dim in [1, 7, 8, 16, 24, 40, 64, 72, 80, 96, 100, 128, 256] {
        cases.push(Case::new(4, 2, head_dim, 5, 37, true));
        cases.push(Case::new(2, 2, head_dim, 3, KEY_TILE, false));
        cases.push(Case::new(4, 2, head_dim, 50, 70, true));
    }
    for (n_tokens, n_kv) in [
        (1, 1),
        (1, 31),
        (1, 33),
        (2, 2),
        (7, 7),
        (65, 65),
        (130, 130),
        (3, 70),
        (1, KEY_CHUNK + 1),
        (9, 2 * KEY_CHUNK + 40),
    ] {
        for (n_head, n_head_kv) in [(1, 1), (3, 3), (9, 3), (8, 1)] {
            cases.push(Case::new(n_head, n_head_kv, 16, n_tokens, n_kv, true));
            cases.push(Case::new(n_head, n_head_kv, 16, n_tokens, n_kv, false));
        }
    }
    cases.push(Case::new(2, 2, 64, 577, 577, false));
    for case in &some(40, cases) {
        let want = case.reference();
        for table in &levels() {
            let (rows, half) = (case.run(table, &one, None), case.run(table, &three, F16));
            assert_eq!(rows, half, "{:?}: F16 holds the same numbers", case.a);
            assert_eq!(rows, case.run(table, &three, F32), "{:?}: so do tiles of floats", case.a);
            // Values are within ±1, and so is every mean of them.
            let what = format!("attention {:?}, {} tokens, {} keys", case.a, case.n_tokens, case.n_kv);
            assert_close(&what, table, &rows, &want, |_, _| 4e-6);
        }
    }
}

/// Blocks of GGUF as its reference makes them of rotated heads, and the floats that they hold.
fn reference_blocks(kind: KvType, x: &[f32], head_dim: usize) -> (Vec<u8>, Vec<f32>) {
    let mut x = x.to_vec();
    x.chunks_exact_mut(head_dim).for_each(rotate);
    let (mut bytes, mut floats) = (Vec::new(), Vec::new());
    for x in x.chunks(32) {
        let largest = x.iter().copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
        let d = if kind == KvType::Q8_0 { largest.abs() / 127.0 } else { largest / -8.0 };
        let factor = if d == 0.0 { 0.0 } else { 1.0 / d };
        let stored = f16::from_f32(d);
        bytes.extend(stored.to_le_bytes());
        if kind == KvType::Q8_0 {
            let q: Vec<i8> = x.iter().map(|x| (x * factor).round() as i8).collect();
            bytes.extend(q.iter().map(|q| *q as u8));
            floats.extend(q.iter().map(|q| stored.to_f32() * f32::from(*q)));
        } else {
            let q: Vec<u8> = x.iter().map(|x| ((x * factor + 8.5) as u8).min(15)).collect();
            bytes.extend((0..16).map(|i| q[i] | q[i + 16] << 4));
            floats.extend(q.iter().map(|q| stored.to_f32() * (f32::from(*q) - 8.0)));
        }
    }
    (bytes, floats)
}

#[test]
fn rotation_is_the_walsh_hadamard_matrix() {
    for (len, n) in [(1, 1), (32, 32), (64, 64), (96, 32), (128, 128), (160, 32)] {
        let x = Random(len as u64).floats(len, 2.0);
        let mut y = x.clone();
        rotate(&mut y);
        for (i, y) in y.iter().enumerate() {
            let block = &x[i / n * n..][..n];
            let signed =
                |(j, x): (usize, &f32)| f64::from(*x) * if ((i % n) & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
            let want = block.iter().enumerate().map(signed).sum::<f64>() / (n as f64).sqrt();
            assert!((f64::from(*y) - want).abs() < 3e-6, "{len}: {y} {want}");
        }
        rotate(&mut y);
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 2e-6), "its own inverse");
    }
}

#[test]
fn quantized_tiles_hold_the_blocks_of_gguf() {
    let (one, three) = (Team::new(1), Team::new(3));
    for (n_head, n_head_kv, head_dim, n_tokens, n_kv) in [
        (4, 2, 32, 5, 37),
        (4, 2, 64, 60, 60),
        (6, 2, 96, 1, 2 * KEY_CHUNK + 40),
        (3, 3, 128, 8, KEY_CHUNK),
        (2, 1, 256, 40, 200),
    ] {
        let case = Case::new(n_head, n_head_kv, head_dim, n_tokens, n_kv, true);
        for table in &levels() {
            for k_kind in KvType::ALL {
                for v_kind in KvType::ALL {
                    let floats = |kind, x: &[f32]| match kind {
                        KvType::Q8_0 | KvType::Q4_0 => reference_blocks(kind, x, head_dim).1,
                        _ => x.to_vec(),
                    };
                    // The same attention over the floats that the blocks hold, bit for bit.
                    let mut q = case.q.clone();
                    if k_kind.is_quantized() {
                        q.chunks_exact_mut(head_dim).for_each(rotate);
                    }
                    let expanded = Case { k: floats(k_kind, &case.k), v: floats(v_kind, &case.v), q, ..case };
                    let mut want = expanded.run(table, &one, None);
                    if v_kind.is_quantized() {
                        want.chunks_exact_mut(head_dim).for_each(rotate);
                    }
                    let got = case.run(table, &three, Some([k_kind, v_kind]));
                    assert_eq!(got, want, "{:?}, {k_kind:?}, {v_kind:?}", case.a);
                }
            }
        }
    }
    for kind in [KvType::Q8_0, KvType::Q4_0] {
        let mut random = Random(3);
        let mut x = random.floats(32 * 33 * 2, 3.0);
        x[..32].fill(0.0);
        x[32..64].fill(1e-30);
        x[64..96].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 16.0);
        for table in &levels() {
            let mut tiles = KvTiles::new(kind, Side::Values, 1, 64);
            tiles.push(table, &x, 100);
            let Kv::Tiles(_, bytes) = tiles.view() else { panic!("a store is made of tiles") };
            let (want, _) = reference_blocks(kind, &x, 64);
            assert_eq!(&bytes[..want.len()], want, "{kind:?}");
        }
        // A number that is none, or too large, does not vanish.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[70] = bad;
            for table in &levels() {
                let [mut k, mut v] = [Side::Keys, Side::Values].map(|side| KvTiles::new(kind, side, 1, 64));
                k.push(table, &x, 33);
                v.push(table, &x, 33);
                let a = Attention { n_head: 1, n_head_kv: 1, head_dim: 64, scale: 1.0, causal: None };
                for (k, v) in [(k.view(), Kv::F32(&x)), (Kv::F32(&x[..64 * 33]), v.view())] {
                    let v = if let Kv::F32(_) = v { Kv::F32(&[1.0; 64 * 33]) } else { v };
                    let mut out = [0.0; 64];
                    attention_with(table, &one, a, &[1.0; 64], k, v, 33, &mut out);
                    assert!(out.iter().any(|x| x.is_nan()), "{kind:?}, {bad}: {out:?}");
                }
            }
        }
    }
}

#[test]
fn tiles_forget_and_go_on() {
    for table in &levels() {
        for kind in KvType::ALL {
            for side in [Side::Keys, Side::Values] {
                let x = Random(1).floats(100 * 2 * 32, 1.0);
                let store = |pieces: &[(usize, usize)]| {
                    let mut tiles = KvTiles::new(kind, side, 2, 32);
                    for &(from, to) in pieces {
                        tiles.truncate(from);
                        assert_eq!(tiles.len(), from);
                        tiles.push(table, &x[from * 64..to * 64], 100);
                    }
                    let Kv::Tiles(_, bytes) = tiles.view() else { panic!("a store is made of tiles") };
                    bytes.to_vec()
                };
                assert!(KvTiles::new(kind, side, 2, 32).is_empty());
                let want = store(&[(0, 100)]);
                assert_eq!(want.len(), 4 * 2 * kind.tile_bytes(32), "{kind:?}");
                assert_eq!(store(&[(0, 3), (3, 4), (4, 40), (40, 100)]), want, "{kind:?}, {side:?}: in pieces");
                assert_eq!(store(&[(0, 100), (33, 100)]), want, "{kind:?}, {side:?}: after forgetting");
                assert_eq!(store(&[(0, 70), (0, 100)]), want, "{kind:?}, {side:?}: from the start");
            }
        }
    }
}

#[test]
fn transposition() {
    for table in &levels() {
        for (n, n_cols, stride) in [(32, 64, 64), (32, 17, 40), (5, 8, 9), (8, 5, 5), (31, 33, 100), (0, 4, 4)] {
            let x = Random(1).floats(n * stride, 1.0);
            let out = misaligned(&vec![3.0; n_cols * KEY_TILE], 7.0, n % 9, |out| {
                (table.transpose)(&x, stride, n, out);
            });
            for (i, y) in out.iter().enumerate() {
                let (c, j) = (i / KEY_TILE, i % KEY_TILE);
                assert_eq!(*y, if j < n { x[j * stride + c] } else { 3.0 }, "{:?}", table.level);
            }
        }
    }
}

#[test]
fn expanded_keys() {
    for table in &levels() {
        for kind in [KvType::Q8_0, KvType::Q4_0, KvType::F16] {
            for dim in [32, 64, 96, 128] {
                let x = Random(dim as u64).floats(KEY_TILE * dim, 2.0);
                let mut tiles = KvTiles::new(kind, Side::Keys, 1, dim);
                tiles.push(table, &x, KEY_TILE);
                let Kv::Tiles(_, bytes) = tiles.view() else { panic!("a store is made of tiles") };
                let floats = match kind {
                    KvType::F16 => x.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
                    _ => reference_blocks(kind, &x, dim).1,
                };
                let got = misaligned(&vec![0.0; x.len()], 7.0, dim % 9, |out| (table.expand_keys)(kind, bytes, out));
                for (i, y) in got.iter().enumerate() {
                    assert_eq!(*y, floats[i % KEY_TILE * dim + i / KEY_TILE], "{kind:?}, {:?}", table.level);
                }
            }
        }
        for kind in KvType::ALL {
            assert!(Dtype::RUNNABLE.contains(&kind.dtype()), "{kind:?} has no kernel to expand it");
        }
    }
}

#[test]
fn attention_does_not_depend_on_the_batch_or_the_threads() {
    let teams = [Team::new(1), Team::new(2), Team::new(5)];
    let kinds = [F16, Some([KvType::Q8_0, KvType::Q4_0]), Some([KvType::Q4_0, KvType::Q8_0])];
    for (table, (n_head, n_head_kv, head_dim, n), kinds) in levels().iter().flat_map(|table| {
        let shapes = [(6, 2, 20, 90), (4, 4, 64, 70), (2, 1, 32, 2 * KEY_CHUNK + 77)];
        let kinds = move |dim: usize| kinds.into_iter().take(if dim.is_multiple_of(32) { 3 } else { 1 });
        shapes.into_iter().flat_map(move |shape| kinds(shape.2).map(move |kinds| (table, shape, kinds)))
    }) {
        let whole = Case::new(n_head, n_head_kv, head_dim, n, n, true);
        let want = whole.run(table, &teams[0], kinds);
        for team in &teams[1..] {
            assert_eq!(whole.run(table, team, kinds), want, "threads");
        }
        let (row, kv_row) = (n_head * head_dim, n_head_kv * head_dim);
        for (first, n_tokens) in [(0, 1), (n - 1, 1), (n / 2, 1), (5, 2), (n - 40, 40), (11, 33), (31, 3)] {
            for team in &teams {
                // The keys after the last query are left out, and so may hold anything in the whole batch.
                let n_kv = first + n_tokens;
                let part = Case {
                    a: Attention { causal: Some(first), ..whole.a },
                    n_tokens,
                    n_kv,
                    q: whole.q[first * row..n_kv * row].to_vec(),
                    k: whole.k[..n_kv * kv_row].to_vec(),
                    v: whole.v[..n_kv * kv_row].to_vec(),
                };
                assert_eq!(part.run(table, team, kinds), want[first * row..n_kv * row], "{first} + {n_tokens}");
            }
        }
        let mut poisoned = Case::new(n_head, n_head_kv, head_dim, n, n, true);
        poisoned.k[(n - 1) * kv_row..].fill(f32::NAN);
        poisoned.v[(n - 1) * kv_row..].fill(f32::INFINITY);
        assert_eq!(poisoned.run(table, &teams[1], kinds)[..(n - 1) * row], want[..(n - 1) * row], "unseen keys");
    }
}

#[test]
fn attention_stands_hard_scores() {
    let team = Team::new(2);
    for table in &levels() {
        // Scores of up to 1e5, rising and falling over the tiles: only the largest counts.
        for rising in [false, true] {
            let n = 3 * KEY_TILE + 5;
            let k: Vec<f32> = (0..n).map(|j| 1000.0 * if rising { j as f32 } else { (n - j) as f32 }).collect();
            let v: Vec<f32> = (0..n).map(|j| j as f32).collect();
            let a = Attention { n_head: 1, n_head_kv: 1, head_dim: 1, scale: 1.0, causal: None };
            let mut out = [f32::NAN];
            attention_with(table, &team, a, &[1.0], Kv::F32(&k), Kv::F32(&v), n, &mut out);
            // The least weight that vectors know is 2^-126.
            assert!((out[0] - if rising { (n - 1) as f32 } else { 0.0 }).abs() < 1e-30, "{}", out[0]);
            let mut out = [f32::NAN];
            attention_with(table, &team, a, &[0.0], Kv::F32(&k), Kv::F32(&v), n, &mut out);
            assert!((out[0] - (n - 1) as f32 / 2.0).abs() < 1e-4, "equal scores give the mean: {}", out[0]);
        }
        let a = Attention { n_head: 2, n_head_kv: 1, head_dim: 3, scale: 1.0, causal: None };
        let mut out = [f32::NAN; 6];
        attention_with(table, &team, a, &[1.0; 6], Kv::F32(&[]), Kv::F32(&[]), 0, &mut out);
        assert_eq!(out, [0.0; 6], "no key");
        let empty = Kv::Tiles(KvType::F16, &[]);
        attention_with(table, &team, a, &[1.0; 6], empty, empty, 0, &mut out);
        assert_eq!(out, [0.0; 6], "no tile");
        attention_with(table, &team, a, &[], Kv::F32(&[0.0; 3]), Kv::F32(&[0.0; 3]), 1, &mut []);
    }
}

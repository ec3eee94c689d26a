//! Each level writes weights in the bytes of its scalar twin, for each type, search, number of blocks and hard input.

mod setup;

use mmq_kernels::{Dtype, Kernels, Search};
use setup::{Random, some};

/// Roughly normal.
fn normal(random: &mut Random) -> f32 {
    (0..4).map(|_| (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Usual,
    Outliers,
    Zeros,
    Constant,
    OneSided,
    Denormal,
    Largest,
    Steps,
    Bits,
}

const KINDS: [Kind; 9] = [
    Kind::Usual,
    Kind::Outliers,
    Kind::Zeros,
    Kind::Constant,
    Kind::OneSided,
    Kind::Denormal,
    Kind::Largest,
    Kind::Steps,
    Kind::Bits,
];

fn rows(n: usize, kind: Kind, random: &mut Random) -> Vec<f32> {
    (0..n)
        .map(|i| match kind {
            Kind::Usual => normal(random) * 0.03,
            Kind::Outliers => normal(random) * if random.next().is_multiple_of(37) { 9.0 } else { 0.02 },
            Kind::Zeros => 0.0_f32.copysign(normal(random)),
            Kind::Constant => -0.00325,
            Kind::OneSided => normal(random).abs() + 0.5,
            Kind::Denormal => f32::from_bits(random.next() as u32 & 0x807f_ffff),
            Kind::Largest => f32::MAX.copysign(normal(random)),
            Kind::Steps => normal(random) * 10.0_f32.powi((i / 16 * 7 % 23) as i32 - 18),
            Kind::Bits => f32::from_bits(random.next() as u32),
        })
        .collect()
}

fn write(table: &Kernels, dtype: Dtype, search: Search, x: &[f32], n_cols: usize, w: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; dtype.row_bytes(x.len()).unwrap()];
    table.quantize_weights()(dtype, search, x, n_cols, w, &mut out);
    out
}

#[test]
fn levels_agree() {
    let mut tables = setup::tables();
    let scalar = tables.remove(0);
    let mut random = Random(31);
    for dtype in Dtype::QUANTIZABLE {
        let block = dtype.block().0.max(8);
        for search in [Search::Best, Search::Ggml] {
            for (n_rows, n_blocks) in some(2, [(1, 1), (2, 1), (3, 3), (1, 7), (2, 8), (1, 17)]) {
                for kind in some(3, KINDS) {
                    let n_cols = n_blocks * block;
                    let x = rows(n_rows * n_cols, kind, &mut random);
                    let w: Vec<f32> =
                        (0..n_cols).map(|i| if i % 11 == 0 { 0.0 } else { normal(&mut random).abs() }).collect();
                    for w in [None, Some(&w[..])] {
                        let expected = write(&scalar, dtype, search, &x, n_cols, w);
                        for table in &tables {
                            let got = write(table, dtype, search, &x, n_cols, w);
                            let what = if w.is_some() { "with importance" } else { "" };
                            let level = table.level.name();
                            assert!(
                                got == expected,
                                "{level} {dtype} {search:?} {n_rows} × {n_blocks} {kind:?} {what}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A row's bytes do not depend on the rows beside it.
#[test]
fn rows_stand_alone() {
    let mut random = Random(32);
    for table in setup::tables() {
        for dtype in Dtype::QUANTIZABLE {
            let n_cols = dtype.block().0.max(32) * 3;
            let x = rows(11 * n_cols, Kind::Outliers, &mut random);
            let w: Vec<f32> = (0..n_cols).map(|_| normal(&mut random).abs()).collect();
            for search in [Search::Best, Search::Ggml] {
                let all = write(&table, dtype, search, &x, n_cols, Some(&w));
                let each: Vec<u8> =
                    x.chunks(n_cols).flat_map(|x| write(&table, dtype, search, x, n_cols, Some(&w))).collect();
                assert!(all == each, "{} {dtype} {search:?}", table.level.name());
            }
        }
    }
}

/// Squared errors of the blocks of `x`, summed up.
fn error(table: &Kernels, dtype: Dtype, x: &[f32], w: Option<&[f32]>, n_cols: usize, search: Search) -> f64 {
    let blocks = write(table, dtype, search, x, n_cols, w);
    let mut y = vec![0.0; x.len()];
    (table.dequantize)(dtype, &blocks, &mut y);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let mut sum = 0.0;
    // Row by row, as weights count more the larger they are, but for 4-bit floats.
    let alike = matches!(dtype, Dtype::MXFP4 | Dtype::NVFP4);
    for (x, y) in x.chunks(256).zip(y.chunks(256)) {
        let mean = x.iter().map(|x| square(*x)).sum::<f64>() / 256.0;
        for (i, (x, y)) in x.iter().zip(y).enumerate() {
            let size = if alike { 1.0 } else { (2.0 * mean + square(*x)).sqrt() };
            sum += w.map_or(1.0, |w| f64::from(w[i])) * size * square(x - y);
        }
    }
    sum
}

/// The default search leaves less error than ggml's.
#[test]
fn best_is_better() {
    let mut random = Random(33);
    let table = setup::tables().pop().unwrap();
    let laplace = |random: &mut Random| {
        let u = (random.next() >> 40) as f32 / (1 << 24) as f32;
        0.02 * (1.0 - u).ln() * if random.next().is_multiple_of(2) { 1.0 } else { -1.0 }
    };
    for dtype in some(6, Dtype::QUANTIZABLE.into_iter().filter(|d| d.block().0 > 1)) {
        for kind in ["normal", "laplace", "outliers", "one-sided"] {
            let x: Vec<f32> = (0..32 * 256)
                .map(|_| match kind {
                    "normal" => normal(&mut random) * 0.02,
                    "laplace" => laplace(&mut random),
                    "outliers" => laplace(&mut random) * if random.next().is_multiple_of(61) { 10.0 } else { 1.0 },
                    _ => normal(&mut random).abs() + 0.3,
                })
                .collect();
            let w: Vec<f32> = (0..256).map(|_| normal(&mut random).powi(2) + 1e-3).collect();
            for w in [None, Some(&w[..])] {
                let [best, ggml] = [Search::Best, Search::Ggml].map(|s| error(&table, dtype, &x, w, 256, s));
                let with = if w.is_some() { "with importance" } else { "" };
                println!("{dtype} {kind} {with}: {:.4} of ggml's error", best / ggml);
                assert!(best <= ggml, "{dtype} {kind} {with}: {best:e}, ggml {ggml:e}");
            }
        }
    }
}

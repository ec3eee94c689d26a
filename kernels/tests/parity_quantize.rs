//! Each level writes weights in the bytes of its scalar twin, for each type, search, number of blocks and hard input.

mod setup;

use mmq_kernels::{Dtype, Kernels, Search, kernels};
use setup::Random;

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
    (table.quantize_weights)(dtype, search, x, n_cols, w, &mut out);
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
            for (n_rows, n_blocks) in [(1, 1), (2, 1), (3, 3), (1, 7), (2, 8), (1, 17)] {
                for kind in KINDS {
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

/// The weighted squared error of what was written.
fn error(dtype: Dtype, bytes: &[u8], x: &[f32], w: &[f32]) -> f64 {
    let mut y = vec![0.0; x.len()];
    (kernels().dequantize)(dtype, bytes, &mut y);
    let squares = x.iter().zip(&y).zip(w.iter().cycle());
    squares.map(|((x, y), w)| f64::from(*w) * f64::from(x - y).powi(2)).sum()
}

/// The search for the least error finds less of it than ggml's.
#[test]
fn best_is_no_worse() {
    let mut random = Random(33);
    for dtype in Dtype::QUANTIZABLE {
        let n_cols = 1024;
        for kind in [Kind::Usual, Kind::Outliers, Kind::Steps] {
            let x = rows(16 * n_cols, kind, &mut random);
            let w: Vec<f32> = (0..n_cols).map(|_| (2.0 * normal(&mut random)).exp()).collect();
            for importance in [None, Some(&w[..])] {
                let ones = vec![1.0; n_cols];
                let [best, ggml] = [Search::Best, Search::Ggml].map(|search| {
                    let bytes = write(kernels(), dtype, search, &x, n_cols, importance);
                    error(dtype, &bytes, &x, importance.unwrap_or(&ones))
                });
                println!("{dtype} {kind:?} {}: {:.4}", importance.is_some(), best / ggml);
                assert!(best <= ggml * (1.0 + 1e-6), "{dtype} {kind:?} {}: {best} > {ggml}", importance.is_some());
            }
        }
    }
}

//! Dequantization gives, bit for bit, the floats of GGUF's reference package, for each runnable type and level; and
//! `Search::Ggml` writes ggml's bytes.
//!
//! `fixtures/blocks.bin` is written by `fixtures/make_blocks.py`, `fixtures/ggml.bin` by `fixtures/make_ggml.py`.

mod setup;

use mmq_kernels::{Dtype, Search};
use setup::levels;

/// The first `n` bytes of `bytes`, which then goes on behind them.
fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(n);
    *bytes = tail;
    head
}

fn word(bytes: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(bytes, 4).try_into().unwrap())
}

#[test]
fn dequantize_is_the_reference() {
    let mut bytes: &[u8] = include_bytes!("fixtures/blocks.bin");
    let mut seen = Vec::new();
    while !bytes.is_empty() {
        let dtype = Dtype::from_id(word(&mut bytes)).unwrap();
        let n = word(&mut bytes) as usize;
        let blocks = take(&mut bytes, dtype.row_bytes(n).unwrap());
        let expected: Vec<u32> = (0..n).map(|_| word(&mut bytes)).collect();
        for table in levels() {
            let mut y = vec![0.0; n];
            (table.dequantize)(dtype, blocks, &mut y);
            for (i, (y, expected)) in y.iter().zip(&expected).enumerate() {
                let (level, e) = (table.level.name(), f32::from_bits(*expected));
                assert!(y.to_bits() == *expected, "{level} {dtype} weight {i}: expected {e:e}, got {y:e}");
            }
        }
        seen.push(dtype);
    }
    let mut all = Dtype::RUNNABLE.to_vec();
    all.sort();
    seen.sort();
    assert_eq!(seen, all);
}

#[test]
fn quantized_weights_are_those_of_ggml() {
    let mut bytes: &[u8] = include_bytes!("fixtures/ggml.bin");
    let (n_rows, n_cols) = (word(&mut bytes) as usize, word(&mut bytes) as usize);
    let mut floats = |n| (0..n).map(|_| f32::from_bits(word(&mut bytes))).collect::<Vec<_>>();
    let (x, importance) = (floats(n_rows * n_cols), floats(n_cols));
    let mut seen = 0;
    while !bytes.is_empty() {
        let dtype = Dtype::from_id(word(&mut bytes)).unwrap();
        for importance in [None, Some(&importance[..])] {
            let expected = take(&mut bytes, dtype.row_bytes(x.len()).unwrap());
            for table in levels() {
                let mut blocks = vec![0; expected.len()];
                table.quantize_weights()(dtype, Search::Ggml, &x, n_cols, importance, &mut blocks);
                let differing = blocks.iter().zip(expected).filter(|(a, b)| a != b).count();
                let with = if importance.is_some() { "with" } else { "without" };
                assert_eq!(differing, 0, "bytes of {} {dtype} {with} importance", table.level.name());
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
}

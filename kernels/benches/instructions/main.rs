//! Calls one kernel some times and does nothing else, so that the instructions of a call can be counted as the difference of
//! two runs: `count` beside this file does so under qemu, for processors that are not at hand.
//!
//! `instructions LEVEL KERNEL TYPE CALLS`. Kernels of weights work on one panel of 16 rows and 1024 columns (256 of floats):
//! `unpack` (interleaved rows to a panel), `dot` (a panel with 48 tokens), `few1` and `few4` (interleaved rows with tokens).
//! `attend1` and `attend6` take query rows through a tile of keys and values of 128 elements. Those that are entries of the
//! table by their own names work on 4096 floats, whose type is F32.
//!
//! Prints two numbers: what a call works on (how often 32 weights of a row with a token, 32 floats, or 32 elements of a key
//! and of a value with a row), and the least number of instructions for each of those.

use mmq_kernels::attention::{KEY_TILE, Rows, Tile};
use mmq_kernels::interleave::interleave;
use mmq_kernels::panel::{Columns, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};
use mmq_kernels::{Dtype, Kernels, KvType, Level, levels};
use std::hint::black_box;

/// Floats that a function of a row works on.
const N_FLOATS: usize = 4096;
/// Elements of a head.
const HEAD_DIM: usize = 128;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [level, kernel, dtype, calls] = args[..] else {
        eprintln!("instructions LEVEL KERNEL TYPE CALLS");
        return;
    };
    let table = levels().into_iter().find(|t| t.level.name() == level);
    let table = table.unwrap_or_else(|| panic!("this processor has no {level}"));
    let dtype = Dtype::RUNNABLE.into_iter().find(|d| d.name() == dtype).unwrap_or_else(|| panic!("no type {dtype}"));
    let calls = calls.parse().expect("a number of calls");
    match n_tokens(kernel) {
        Some(n_tokens) => weights(&table, kernel, dtype, n_tokens, calls),
        None => floats(&table, kernel, dtype, calls),
    }
    let least = least(table.level, kernel, dtype).map_or("-".into(), |n| format!("{n:.2}"));
    println!("{} {least}", units(kernel, dtype));
}

/// Tokens of a kernel of weights.
fn n_tokens(kernel: &str) -> Option<usize> {
    match kernel {
        "unpack" | "few1" => Some(1),
        "few4" => Some(4),
        "dot" => Some(48),
        _ => None,
    }
}

/// Query rows of a kernel of attention.
fn n_rows(kernel: &str) -> Option<usize> {
    kernel.strip_prefix("attend").map(|n| n.parse().expect("a number of rows"))
}

/// Columns of a panel.
fn n_cols(dtype: Dtype) -> usize {
    if Form::of(dtype) == Form::Float { FLOAT_COLS } else { PANEL_COLS }
}

fn units(kernel: &str, dtype: Dtype) -> usize {
    match (n_tokens(kernel), n_rows(kernel)) {
        (Some(n_tokens), _) => PANEL_ROWS * n_cols(dtype) * n_tokens / 32,
        (_, Some(n_rows)) => n_rows * KEY_TILE * HEAD_DIM / 32,
        _ => N_FLOATS / 32,
    }
}

/// What the data need at `level`, in instructions of 128 bits: each byte read and written once (by tiles of the kernels'
/// size), each multiply-add, one operation to take 16 quants of fewer than 8 bits out of their bytes, and what applies
/// scales. Not counted are loops, addresses, transposing, copies between registers and prefetches.
fn least(level: Level, kernel: &str, dtype: Dtype) -> Option<f64> {
    if level == Level::Scalar {
        return None;
    }
    let form = Form::of(dtype);
    let (elements, bytes) = dtype.block();
    let stored = 32.0 * bytes as f64 / elements as f64 / 16.0;
    let Some(n_tokens) = n_tokens(kernel) else { return least_of_floats(kernel, stored) };
    if form == Form::Float {
        let widen = if dtype == Dtype::F32 { 0.0 } else { 8.0 };
        return Some(match kernel {
            "unpack" => stored + widen + 8.0,
            // Sixteen rows by six tokens: four vectors of a column, four activations in a register.
            "dot" => 8.0 + 8.0 / 6.0 + 8.0 / 16.0,
            // Loads of activations are shared by sixteen rows.
            _ => (stored + widen) / n_tokens as f64 + 8.0 + 8.0 / 16.0,
        });
    }
    let groups = 32.0 / form.group() as f64;
    let (mins, bits) = match form {
        Form::Unsigned { bits, .. } => (1.0, bits),
        _ => (0.0, 8),
    };
    // For four rows: from integers to floats, a product of scales, a multiply-add of it and one of the min.
    let apply = groups * (3.0 + mins) / 4.0;
    let extract = if dtype == Dtype::Q8_0 { 0.0 } else { 2.0 };
    // Factors to floats, and, where there are any, scales and mins of groups times them.
    let scales = groups * (2.0 + mins) / 4.0;
    let products = match level {
        // Products of 8 columns in 16 bits; sums of a chain of them in 32, and of neighbours.
        Level::Neon => {
            let chain = match bits {
                ..=5 => 8.0,
                6 => 4.0,
                _ => 2.0,
            };
            4.0 + (16.0 / f64::min(chain, 8.0 / groups) + groups) / 4.0
        }
        Level::I8mm if kernel == "dot" => 1.0,
        _ => 2.0,
    };
    Some(match kernel {
        "unpack" => stored + extract + scales + 2.0 + groups * (1.0 + mins) / 4.0,
        "dot" => {
            // Eight rows by four tokens, by two where sums take twice the registers; activations are read 16 at a time or, for
            // NEON, 4 at a time.
            let tokens = if level == Level::Neon && (bits > 6 || bits == 6 && groups == 1.0) { 2.0 } else { 4.0 };
            let activations = if level == Level::Neon { 8.0 } else { 2.0 };
            products + apply + (2.0 + groups * (1.0 + mins) / 4.0) / tokens + activations / 8.0
        }
        _ => (stored + extract + scales) / n_tokens as f64 + products + apply + 2.0 / 16.0,
    })
}

/// [`least`] of kernels of floats, of which 32 are `stored` vectors.
fn least_of_floats(kernel: &str, stored: f64) -> Option<f64> {
    if let Some(n_rows) = n_rows(kernel) {
        // A key and a value: one multiply-add for each four elements, and both read once for three rows.
        let widen = match stored {
            8.0 => 0.0,
            4.0 => 8.0,
            // To 16 bits, to 32, to floats, and the factor.
            _ => 4.0 + 8.0 + 8.0 + 8.0,
        };
        return Some(2.0 * (8.0 + (stored + widen) / f64::min(3.0, n_rows as f64)));
    }
    Some(match kernel {
        // Read; largest of absolute values; times a factor, to integers, to 16 bits and to 8; written, and both sums.
        "quantize" => 8.0 + 16.0 + 16.0 + 8.0 + 4.0 + 2.0 + 4.0,
        // Twice read and made doubles, multiply-adds of them; times a factor, back to floats; times weights, written.
        "rms_norm" => 8.0 + 16.0 + 16.0 + 8.0 + 16.0 + 16.0 + 16.0 + 16.0 + 8.0,
        // Rotations: two products and two multiply-adds for two vectors.
        "rope_half" => 8.0 + 8.0 + 16.0 + 8.0,
        "add" => 8.0 + 8.0 + 8.0 + 8.0,
        "to_f16" | "from_f16" => 8.0 + 8.0 + 4.0,
        _ => return None,
    })
}

fn weights(table: &Kernels, kernel: &str, dtype: Dtype, n_tokens: usize, calls: usize) {
    let (form, n) = (Form::of(dtype), n_cols(dtype));
    let rows = vec![0x2c; PANEL_ROWS * dtype.row_bytes(n).expect("whole blocks")];
    let mut interleaved = vec![0; rows.len()];
    interleave(dtype, &rows, &mut interleaved);
    let source = Source::Panel(&interleaved);
    let (size, stride) = (n * n_tokens, Columns::stride(n));
    let (q, scale, sum16) = (vec![1; stride * n_tokens], vec![1.0; size / 32], vec![1.0; size / 16]);
    let (sum32, total, floats) = (vec![1.0; size / 32], vec![1; size / 16], vec![1.0; size]);
    let x = Columns { n_cols: n, stride, q: &q, scale: &scale, sum16: &sum16, sum32: &sum32, total: &total };
    let (mut panel, mut float_panel) = (Panel::new(), FloatPanel::new());
    let mut acc = vec![[0.0; PANEL_ROWS]; n_tokens];
    for _ in 0..calls {
        match (kernel, form) {
            ("unpack", Form::Float) => (table.unpack_float)(dtype, &source, &mut float_panel),
            ("unpack", _) => (table.unpack)(dtype, &source, &mut panel),
            ("dot", Form::Float) => (table.dot_float)(&float_panel, n, &floats, n, 0, &mut acc),
            ("dot", _) => (table.dot)(form, &panel, n, x, 0, &mut acc),
            (_, Form::Float) => (table.dot_few_float)(dtype, &source, &floats, &mut acc),
            _ => (table.dot_few)(dtype, &source, x, &mut acc),
        }
    }
    black_box((acc, panel, float_panel));
}

fn floats(table: &Kernels, kernel: &str, dtype: Dtype, calls: usize) {
    if let Some(n) = n_rows(kernel) {
        return attend(table, dtype, n, calls);
    }
    let mut x: Vec<f32> = (0..N_FLOATS).map(|i| (i * 37 % 101) as f32 * 0.1 - 5.0).collect();
    let (other, mut y, mut halves) = (x.clone(), x.clone(), vec![0x3c00; N_FLOATS]);
    let mut q = vec![0; N_FLOATS];
    let (mut scale, mut sum16) = (vec![0.0; N_FLOATS / 32], vec![0.0; N_FLOATS / 16]);
    let (mut sum32, mut total) = (scale.clone(), vec![0; N_FLOATS / 16]);
    let (cos, sin) = (vec![0.6; N_FLOATS / 2], vec![0.8; N_FLOATS / 2]);
    for _ in 0..calls {
        match kernel {
            "quantize" => (table.quantize)(&x, &mut q, &mut scale, &mut sum16, &mut sum32, &mut total),
            "rms_norm" => (table.rms_norm)(&x, &other, 1e-5, &mut y),
            "layer_norm" => (table.layer_norm)(&x, &other, &other, 1e-5, &mut y),
            "silu_mul" => (table.silu_mul)(&mut x, &other),
            "gelu_tanh" => (table.gelu_tanh)(&mut x),
            "gelu_quick" => (table.gelu_quick)(&mut x),
            "rope" => (table.rope)(&mut x, &cos, &sin),
            "rope_half" => (table.rope_half)(&mut x, &cos, &sin),
            "add" => (table.add)(&mut x, &other),
            "to_f16" => (table.to_f16)(&x, &mut halves),
            "from_f16" => (table.from_f16)(&halves, &mut y),
            other => panic!("no kernel {other}"),
        }
    }
    black_box((x, y, q, halves));
}

fn attend(table: &Kernels, dtype: Dtype, n_rows: usize, calls: usize) {
    let kind = KvType::ALL.into_iter().find(|kind| kind.dtype() == dtype);
    let kind = kind.unwrap_or_else(|| panic!("keys and values are not stored as {dtype}"));
    let kv = vec![0x2c; kind.tile_bytes(HEAD_DIM)];
    let tile = Tile { k: (kind, &kv), v: (kind, &kv), head_dim: HEAD_DIM };
    let (q, mut acc) = (vec![0.01; n_rows * HEAD_DIM], vec![0.0; n_rows * HEAD_DIM]);
    let (mut max, mut sum, n_keys) = (vec![f32::MIN; n_rows], vec![0.0; n_rows], vec![KEY_TILE; n_rows]);
    for _ in 0..calls {
        (table.attend)(&mut Rows { q: &q, acc: &mut acc, max: &mut max, sum: &mut sum, n_keys: &n_keys }, &tile);
    }
    black_box(acc);
}

//! Calls one kernel some times and does nothing else, so that the instructions of a call can be counted as the difference of
//! two runs: `count` beside this file does so under qemu, for processors that are not at hand.
//!
//! `instructions LEVEL KERNEL TYPE CALLS`: one panel of 16 rows and 1024 columns (256 of floats). Kernels are `unpack`
//! (interleaved rows to a panel), `dot` (a panel with 48 tokens), `few1` and `few4` (interleaved rows with tokens).

use mmq_kernels::interleave::interleave;
use mmq_kernels::panel::{Columns, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};
use mmq_kernels::{Dtype, Kernels, levels};
use std::hint::black_box;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let [level, kernel, dtype, calls] = &args[..] else {
        eprintln!("instructions LEVEL KERNEL TYPE CALLS");
        return;
    };
    let table = levels().into_iter().find(|t| t.level.name() == level).unwrap_or_else(|| panic!("no level {level}"));
    let dtype = Dtype::RUNNABLE.into_iter().find(|d| d.name() == dtype).unwrap_or_else(|| panic!("no type {dtype}"));
    let calls: usize = calls.parse().expect("a number of calls");
    let n_tokens = match kernel.as_str() {
        "few1" => 1,
        "few4" => 4,
        "unpack" | "dot" => 48,
        other => panic!("no kernel {other}"),
    };
    run(&table, kernel, dtype, n_tokens, calls);
}

fn run(table: &Kernels, kernel: &str, dtype: Dtype, n_tokens: usize, calls: usize) {
    let form = Form::of(dtype);
    let n = if form == Form::Float { FLOAT_COLS } else { PANEL_COLS };
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

//! The types that mixes give: the same as llama-quantize's, which `tests/fixtures/quantize-types.txt` records.

use mmq::Dtype;
use mmq::quantize::FileType;
use mmq::quantize::mix::{Mix, Model, fitting, may_quantize};
use std::collections::HashMap;

/// A model of the recorded ones: what mixes know of it, and its tensors in llama.cpp's order.
fn shape(name: &str) -> (Model, Vec<(String, Vec<usize>)>) {
    let (n_embd, n_layer, n_ff, n_head, n_head_kv, n_vocab, n_expert, tied) = match name {
        "135m" => (576, 30, 1536, 9, 3, 49152, 0, true),
        "1.1b" => (2048, 22, 5632, 32, 4, 32000, 0, false),
        "7b" => (4096, 32, 11008, 32, 32, 32000, 0, false),
        "70b" => (8192, 80, 28672, 64, 8, 32000, 0, false),
        "8x7b" => (4096, 32, 14336, 32, 8, 32000, 8, false),
        other => panic!("no shape {other}"),
    };
    let n_kv = n_embd / n_head * n_head_kv;
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_owned(), shape.to_vec()));
    if !tied {
        add("output.weight", &[n_vocab, n_embd]);
    }
    add("output_norm.weight", &[n_embd]);
    add("token_embd.weight", &[n_vocab, n_embd]);
    for i in 0..n_layer {
        let mut add = |name: &str, shape: &[usize]| add(&format!("blk.{i}.{name}.weight"), shape);
        add("attn_k", &[n_kv, n_embd]);
        add("attn_norm", &[n_embd]);
        add("attn_output", &[n_embd, n_embd]);
        add("attn_q", &[n_embd, n_embd]);
        add("attn_v", &[n_kv, n_embd]);
        if n_expert == 0 {
            add("ffn_down", &[n_embd, n_ff]);
            add("ffn_gate", &[n_ff, n_embd]);
        } else {
            add("ffn_down_exps", &[n_expert, n_embd, n_ff]);
            add("ffn_gate_exps", &[n_expert, n_ff, n_embd]);
            add("ffn_gate_inp", &[n_expert, n_embd]);
        }
        add("ffn_norm", &[n_embd]);
        match n_expert {
            0 => add("ffn_up", &[n_ff, n_embd]),
            _ => add("ffn_up_exps", &[n_expert, n_ff, n_embd]),
        }
    }
    (Model { architecture: "llama".into(), n_layer, n_head, n_head_kv, n_expert }, tensors)
}

/// A tensor's name without what the record leaves out.
fn role(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap();
    match name.strip_prefix("blk.") {
        Some(rest) => rest.split_once('.').unwrap().1,
        None => name,
    }
}

/// The types of a line by role, each for as many layers as follow it.
fn recorded<'a>(fields: impl Iterator<Item = &'a str>) -> HashMap<&'a str, Vec<&'a str>> {
    fields
        .map(|field| {
            let (role, runs) = field.split_once(':').unwrap();
            let types = runs.split(',').flat_map(|run| match run.split_once('*') {
                Some((t, n)) => vec![t; n.parse().unwrap()],
                None => vec![run],
            });
            (role, types.collect())
        })
        .collect()
}

#[test]
fn mixes_are_those_of_llama_quantize() {
    let record = include_str!("fixtures/quantize-types.txt");
    let mut n = 0;
    for line in record.lines() {
        let mut fields = line.split(' ');
        let (name, wanted, matrix) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        let expected = recorded(fields);
        let (model, tensors) = shape(name);
        let wanted = FileType::parse(wanted).unwrap();
        let mut mix =
            Mix::new(&model, wanted, matrix == "imatrix", None, None, tensors.iter().map(|(name, _)| name.as_str()));
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (tensor, shape) in &tensors {
            // All are F16 but vectors and the choice of experts.
            let is_f32 = shape.len() == 1;
            let dtype = match wanted {
                _ if !may_quantize(tensor, shape) => {
                    if is_f32 {
                        Dtype::F32
                    } else {
                        Dtype::F16
                    }
                }
                FileType::F32 | FileType::F16 | FileType::BF16 => wanted.dtype(),
                _ => fitting(mix.next(tensor, shape).unwrap(), *shape.last().unwrap()),
            };
            let i = seen.entry(role(tensor)).or_default();
            let expected = expected.get(role(tensor)).map_or(expected["*"][0], |types| types[*i]);
            assert_eq!(dtype.name(), expected, "{line}: {tensor}");
            *i += 1;
            n += 1;
        }
    }
    assert!(n > 60_000, "{n} tensors only");
}

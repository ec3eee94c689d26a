//! Models from strangers: hostile metadata, shapes and bytes in small sound models are refused or run. Never a panic,
//! never an allocation out of all proportion to the file.
#![allow(unsafe_code)]

use mmq::architectures;
use mmq::gguf::{Array, Gguf, Value, Writer};
use mmq::media::Image;
use mmq::pipelines::{Cancel, Engine, EngineOptions, Generation, Packer, Session, SessionOptions};
use mmq::tensor::Loader;
use mmq::text::Tokenizer;
use mmq::{Dtype, Result};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Refuses what no file of a few hundred kilobytes can justify: then the process aborts and names the size.
struct Frugal;

const MOST: usize = 256 << 20;

// SAFETY: everything is passed on to the system's allocator, or answered with null, as an allocator may.
unsafe impl GlobalAlloc for Frugal {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Frugal = Frugal;

const FIXTURES: [&str; 9] = [
    "llama-gqa",
    "llama-k-quants",
    "llama-rope-yarn",
    "llava-mlp",
    "llava-next",
    "llava-feature-layers",
    "clip-gelu",
    "llama-k-quants packed",
    "llava-mlp packed",
];

static FILES: LazyLock<Vec<Gguf>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let open = |name: &str| Gguf::open(folder.join(format!("{name}.gguf"))).unwrap();
    let fixture = |name: &&str| match name.strip_suffix(" packed") {
        None => open(name),
        Some(name) => packed(&open(name)),
    };
    FIXTURES.iter().map(fixture).collect()
});

fn packed(gguf: &Gguf) -> Gguf {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("packed.gguf");
    Packer::new(gguf, Some(1), &Cancel::default(), &mut |_| ()).pack(&path).unwrap();
    Gguf::from_owner("packed.gguf", std::fs::read(path).unwrap()).unwrap()
}

/// Optional keys that the fixtures need not have.
const KEYS: &[&str] = &[
    "general.alignment",
    "general.name",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.expert_count",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scale_linear",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.attn_factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.yarn_beta_fast",
    "llama.rope.scaling.yarn_beta_slow",
    "llama.rope.scaling.yarn_ext_factor",
    "llama.rope.scaling.yarn_attn_factor",
    "clip.projector_type",
    "clip.use_gelu",
    "clip.use_silu",
    "clip.vision.feature_layer",
    "clip.vision.image_aspect_ratio",
    "clip.vision.image_grid_pinpoints",
    "clip.vision.image_mean",
    "clip.vision.image_std",
    "mmq.packed.alignment",
    "mmq.packed.architecture",
    "mmq.packed.layout",
    "mmq.packed.projector_type",
    "mmq.packed.tensors",
    "tokenizer.chat_template",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.token_type",
];

/// Values that a careful reader must be ready for.
fn values() -> Vec<Value> {
    let integers = [0, 1, 2, 3, 5, 7, 8, 33, 255, 4096, 65535, 1 << 16, 1 << 24, u32::MAX as u64, 1 << 63, u64::MAX];
    let floats = [0.0, -0.0, 1.0, 1.5, -1.0, 1e-45, 1e30, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let mut values: Vec<Value> = integers.map(Value::U64).into();
    values.extend([-1, -2, i64::MIN].map(Value::I64));
    values.extend(floats.map(Value::F32));
    values.extend([true, false].map(Value::Bool));
    let texts =
        ["", "llama", "gpt2", "default", "linear", "yarn", "none", "mlp", "pad", "square", "anyres", "mmq-packed"];
    values.extend(texts.map(Value::from));
    let templates = [
        "{% if",
        "{{ 'a' * 99999999999 }}",
        "{{ 'a'|indent(4611686018427387904) }}",
        "{{ '%4611686018427387904d'|format(1) }}",
        "{{ '%*d'|format(4611686018427387904, 1) }}",
        "{{ '{:>4611686018427387904}'.format(1) }}",
        "{{ messages|tojson(indent=4611686018427387904) }}",
        "{% for i in range(9999999) %}{{ messages }}{% endfor %}",
        "{% for m in messages %}{{ m.content|indent(4, true) }}{% endfor %}",
    ];
    values.extend(templates.map(Value::from));
    values.push(Array::I64(vec![]).into());
    values.push(Array::I64(vec![i64::MIN, -1, 0, 1, i64::MAX]).into());
    values.push(Array::I64(vec![0; 17]).into());
    values.push(Array::I64(vec![-1, -2, 1, 1]).into());
    values.push(Array::I64(vec![28, 28, 28, 28 * 64]).into());
    values.push(Array::F32(vec![f32::NAN, 0.0, f32::INFINITY]).into());
    values.push(Array::F32(vec![1e-38, -1e-38, 3.4e38]).into());
    values.push(Array::F32(vec![f32::NAN; 400]).into());
    values.push(Array::String(vec![]).into());
    values.push(Array::String(vec!["output.weight".into(), "v.patch_embd.weight".into()]).into());
    values.push(Array::String(vec!["output_norm.weight".into()]).into());
    values.push(Array::String(vec!["blk.0.attn_q.weight".into(), "blk.0.attn_q.weight".into()]).into());
    values.push(Array::String(vec!["token_embd.weight".into(), "v.position_embd.weight".into()]).into());
    values.push(Array::String(vec![String::new(), "a b".into(), " ".into(), "▁".into()]).into());
    values.push(Array::String((0..400).map(|i| format!("<0x{:02X}>", i % 256)).collect()).into());
    values.push(Array::Array(vec![Array::U8(vec![1])]).into());
    values
}

static VALUES: LazyLock<Vec<Value>> = LazyLock::new(values);

/// Changes to a sound file.
#[derive(Clone, Debug, Default)]
struct Change {
    /// New values of keys; `None` takes the key out.
    keys: Vec<(String, Option<Value>)>,
    /// New types and shapes of tensors, by place; the data are cut or repeated.
    tensors: Vec<(usize, Dtype, Vec<usize>)>,
    /// Bytes of the file, by a fraction of its length, and what they are XORed with.
    bytes: Vec<(f64, u8)>,
}

/// `file` with changes, or an error if a writer refuses them.
fn changed(file: &Gguf, change: &Change) -> Result<Vec<u8>> {
    let mut writer = Writer::like(file);
    for (key, value) in &change.keys {
        match value {
            Some(value) => writer.set(key, value.clone()),
            None => writer.remove(key),
        };
    }
    for (i, t) in file.tensors().iter().enumerate() {
        match change.tensors.iter().find(|(at, ..)| *at % file.tensors().len() == i) {
            Some((_, dtype, shape)) => writer.tensor(&t.name, *dtype, shape)?,
            None => writer.tensor(&t.name, t.dtype, &t.shape)?,
        };
    }
    let mut out = Vec::new();
    writer.write_to("changed", &mut out, |t, sink| {
        let bytes = file.bytes(file.tensor(&t.name).expect("its own tensor"));
        let repeated: Vec<u8> = bytes.iter().copied().cycle().take(t.n_bytes).collect();
        sink.put(&repeated)
    })?;
    for (at, mask) in &change.bytes {
        let at = (at * (out.len() - 1) as f64) as usize;
        out[at] ^= mask;
    }
    Ok(out)
}

/// Loads a model and asks it a little, as far as it lets itself be asked.
fn run(data: Vec<u8>) -> Result<()> {
    let gguf = Gguf::from_owner("changed", data)?;
    if let Ok(tokenizer) = Tokenizer::from_gguf(gguf.metadata()) {
        for text in ["", " ", "Hello, wörld ▁<s></s>\n\n 1234567", "\u{0}\u{fffd}"] {
            tokenizer.decode(&tokenizer.encode(text, true, true), true);
        }
    }
    if let Ok(vision) = architectures::load_vision(Loader::stored(&gguf)) {
        vision.describe();
    }
    architectures::check(&gguf)?;
    let options = EngineOptions { n_threads: Some(1), ..EngineOptions::default() };
    let engine = Arc::new(Engine::from_gguf(&gguf, None, &options)?);
    let options = SessionOptions { n_ctx: 256, n_ubatch: 16, ..SessionOptions::default() };
    let mut session = Session::new(&engine, &options, &Cancel::default())?;
    session.sync(&engine.prompt("Hello, wörld", &[])?, None)?;
    let generation = Generation { n_predict: Some(2), stop: vec!["x".into()], ..Generation::default() };
    session.generate(&generation, &mut |_| ControlFlow::Continue(()))?;
    if engine.has_vision() {
        let rgb = (0..40 * 30 * 3).map(|i: u32| i as u8).collect();
        let image = engine.encode_image(&Image { width: 40, height: 30, rgb }, None, None)?;
        session.sync(&engine.prompt("<__media__>b", &[image])?, None)?;
        session.next_token()?;
    }
    Ok(())
}

/// Whether the changed file ran; `None` if it panicked.
fn survives(file: &Gguf, change: &Change) -> Option<bool> {
    let Ok(data) = changed(file, change) else { return Some(false) };
    catch_unwind(AssertUnwindSafe(|| run(data).is_ok())).ok()
}

#[test]
fn every_key_with_every_value() {
    let (mut n_ran, mut n_refused, mut panics, mut slowest) = (0, 0, Vec::new(), (Duration::ZERO, String::new()));
    for (file, name) in FILES.iter().zip(FIXTURES) {
        let own = file.metadata().iter().map(|(key, _)| key).filter(|key| !key.starts_with("ref."));
        let mut keys: Vec<&str> = own.chain(KEYS.iter().copied()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            for value in VALUES.iter().map(Some).chain([None]) {
                let change = Change { keys: vec![(key.into(), value.cloned())], ..Change::default() };
                let start = Instant::now();
                match survives(file, &change) {
                    Some(true) => n_ran += 1,
                    Some(false) => n_refused += 1,
                    None => panics.push(format!("{name}: {key} = {value:?}")),
                }
                if start.elapsed() > slowest.0 {
                    slowest = (start.elapsed(), format!("{name}: {key} = {value:?}"));
                }
            }
        }
    }
    println!("{n_ran} ran, {n_refused} were refused; the slowest took {slowest:?}");
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
    assert!(n_ran > 100 && n_refused > 1000, "{n_ran} ran, {n_refused} were refused");
}

#[test]
fn every_tensor_with_every_shape() {
    let shapes: [&[usize]; 8] = [&[], &[1], &[32], &[256], &[1, 1], &[1, 32], &[32, 1], &[2, 2, 2, 2]];
    let mut panics = Vec::new();
    for (file, name) in FILES.iter().zip(FIXTURES) {
        let own = file.tensors().iter().enumerate().filter(|(_, t)| !t.name.starts_with("ref."));
        for (i, t) in own {
            let mut variants: Vec<(Dtype, Vec<usize>)> = shapes.iter().map(|s| (Dtype::F32, s.to_vec())).collect();
            variants.push((t.dtype, t.shape.iter().rev().copied().collect()));
            variants.push((t.dtype, vec![t.n_elements()]));
            variants.extend([Dtype::F16, Dtype::I32, Dtype::Q8_0, Dtype::IQ2_S].map(|dtype| (dtype, t.shape.clone())));
            for (dtype, shape) in variants {
                let change = Change { tensors: vec![(i, dtype, shape.clone())], ..Change::default() };
                if survives(file, &change).is_none() {
                    panics.push(format!("{name}: {} as {dtype} {shape:?}", t.name));
                }
            }
        }
    }
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
}

/// Several changes at once, so that what one check refuses alone may pass another.
fn change() -> impl Strategy<Value = (usize, Change)> {
    let key = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let tensor = (any::<usize>(), prop::sample::select(Dtype::ALL.to_vec()), prop::collection::vec(1usize..65, 0..4));
    let byte = (0.0..1.0f64, 1u8..);
    let parts = (
        0..FIXTURES.len(),
        prop::collection::vec(key, 0..3),
        prop::collection::vec(tensor, 0..2),
        // Most of a file are weights; what is in front of them deserves as many hits.
        prop::collection::vec((byte, any::<bool>()), 0..4),
    );
    parts.prop_map(|(fixture, keys, tensors, bytes)| {
        let own = FILES[fixture].metadata().iter().map(|(key, _)| key.to_owned());
        let names: Vec<String> = own.chain(KEYS.iter().map(|key| key.to_string())).collect();
        let keys = keys.iter().map(|(k, v)| (k.get(&names).clone(), Some(v.get(&VALUES).clone()))).collect();
        let bytes = bytes.into_iter().map(|((at, mask), front)| (if front { at * 0.15 } else { at }, mask)).collect();
        (fixture, Change { keys, tensors, bytes })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn several_changes_at_once((fixture, change) in change()) {
        prop_assert!(survives(&FILES[fixture], &change).is_some());
    }
}

//! `mmq convert` on small checkpoints as Hugging Face and LLaVA's authors lay them out: what comes out computes what the
//! upstream does and cuts texts as its tokenizer does; what is damaged or hostile is refused in words.

use mmq::convert::{Half, MiniGpt4, Options, Part, convert};
use mmq::gguf::{Gguf, Writer};
use mmq::media::Image;
use mmq::pipelines::verify::verify;
use mmq::pipelines::{Engine, EngineOptions, Piece, Precision};
use mmq::text::Tokenizer;
use mmq::text::template::{IMAGE_MARKER, Message, Role};
use mmq::{Dtype, Error, ErrorKind};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/convert").join(name)
}

fn options<'a>(dir: &'a Path, output: &'a Path) -> Options<'a> {
    Options {
        dir,
        output,
        mmproj: None,
        only: None,
        vision_tower: None,
        base: None,
        dtype: None,
        pre: None,
        name: None,
        minigpt4: MiniGpt4::default(),
    }
}

fn run(options: &Options) -> Result<Vec<Part>, Error> {
    convert(options, &|| false, &mut |_| {})
}

/// Folders that a conversion needs besides the model's own.
#[derive(Clone, Copy, Default)]
struct Beside {
    vision_tower: Option<&'static str>,
    base: Option<&'static str>,
}

/// Converts the fixture `name` into `folder`.
fn converted(name: &str, folder: &Path, dtype: Option<Dtype>, beside: Beside) -> Vec<Part> {
    let (dir, output) = (fixture(name), folder.join("out.gguf"));
    let (vision_tower, base) = (beside.vision_tower.map(fixture), beside.base.map(fixture));
    let options =
        Options { dtype, vision_tower: vision_tower.as_deref(), base: base.as_deref(), ..options(&dir, &output) };
    run(&options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One file of all parts and of what the upstream computed, with another tolerance if one is given.
fn with_recording(name: &str, parts: &[Part], folder: &Path, tolerance: Option<f32>) -> Gguf {
    let mut files: Vec<Gguf> = parts.iter().map(|part| Gguf::open(&part.path).unwrap()).collect();
    files.push(Gguf::open(fixture(name).join("ref.gguf")).unwrap());
    let mut writer = Writer::like(&files[0]);
    for file in &files[1..] {
        for (key, value) in file.metadata().iter().filter(|(key, _)| !key.starts_with("general.")) {
            writer.set(key, value.clone());
        }
    }
    if let Some(tolerance) = tolerance {
        writer.set("ref.tolerance", tolerance);
    }
    for info in files.iter().flat_map(Gguf::tensors) {
        writer.tensor(&info.name, info.dtype, &info.shape).unwrap();
    }
    let path = folder.join(format!("{name}-recorded.gguf"));
    let write = writer.write(&path, |info, sink| {
        let (file, info) = files.iter().find_map(|file| Some((file, file.tensor(&info.name)?))).unwrap();
        sink.put(&file.bytes(info))
    });
    write.unwrap();
    Gguf::open(path).unwrap()
}

/// The name of a fixture, the type that `auto` finds, and what else it takes.
fn models() -> Vec<(&'static str, Dtype, Beside)> {
    let clip = Beside { vision_tower: Some("clip"), base: None };
    vec![
        ("llama3", Dtype::BF16, Beside::default()),
        ("mistral-bin", Dtype::F16, Beside::default()),
        ("llava-next", Dtype::F16, Beside::default()),
        ("llava-hf", Dtype::F16, Beside::default()),
        ("llava-v1.5", Dtype::F16, clip),
        ("llava-v1", Dtype::F16, Beside { base: Some("llava-v1.5"), ..clip }),
        ("qwen-vl", Dtype::BF16, Beside::default()),
    ]
}

fn check(name: &str, dtype: Option<Dtype>, beside: Beside, tolerance: Option<f32>) -> Vec<Part> {
    let folder = TempDir::new().unwrap();
    let parts = converted(name, folder.path(), dtype, beside);
    let recorded = with_recording(name, &parts, folder.path(), tolerance);
    let options = EngineOptions { n_threads: Some(2), vision_precision: Precision::F32, ..EngineOptions::default() };
    let report = verify(&recorded, &options).unwrap();
    assert!(report.checks.len() > 1, "{name}");
    if let Some(check) = report.first_failure() {
        panic!("{name} as {dtype:?}: {check:?}");
    }
    parts
}

#[test]
fn what_comes_out_computes_what_the_upstream_does() {
    for (name, dtype, beside) in models() {
        let parts = check(name, None, beside, None);
        assert!(parts.iter().all(|part| part.dtype == dtype), "{name}: {parts:?}");
        assert_eq!(parts.len(), if name.starts_with("llava") || name == "qwen-vl" { 2 } else { 1 }, "{name}");
    }
}

#[test]
fn every_type_of_matrices() {
    for (name, _, beside) in models() {
        check(name, Some(Dtype::F32), beside, None);
    }
    check("llama3", Some(Dtype::F16), Beside::default(), Some(1e-3));
    check("llava-next", Some(Dtype::BF16), Beside::default(), Some(0.1));
}

#[test]
fn texts_become_the_tokens_of_the_original() {
    for name in ["llama3", "mistral-bin", "llava-next", "llava-v1.5", "qwen-vl"] {
        let folder = TempDir::new().unwrap();
        let beside = Beside { vision_tower: (name == "llava-v1.5").then_some("clip"), base: None };
        let parts = converted(name, folder.path(), None, beside);
        let gguf = Gguf::open(&parts[0].path).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
        let cases: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(fixture(name).join("tokens.json")).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u64> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let ours: Vec<u64> = tokenizer.encode(text, true, true).into_iter().map(u64::from).collect();
            assert_eq!(ours, ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn keys_are_those_of_llama_cpp() {
    let folder = TempDir::new().unwrap();
    let parts = converted("llama3", folder.path(), None, Beside::default());
    let gguf = Gguf::open(&parts[0].path).unwrap();
    let keys: Vec<&str> = gguf.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "general.architecture",
            "general.type",
            "general.name",
            "general.size_label",
            "llama.block_count",
            "llama.context_length",
            "llama.embedding_length",
            "llama.feed_forward_length",
            "llama.attention.head_count",
            "llama.attention.head_count_kv",
            "llama.rope.freq_base",
            "llama.attention.layer_norm_rms_epsilon",
            "llama.attention.key_length",
            "llama.attention.value_length",
            "general.file_type",
            "llama.vocab_size",
            "llama.rope.dimension_count",
            "general.quantization_version",
            "tokenizer.ggml.model",
            "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.add_bos_token",
            "tokenizer.ggml.add_sep_token",
            "tokenizer.chat_template",
        ]
    );
    let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[..3], ["rope_freqs.weight", "token_embd.weight", "blk.0.attn_norm.weight"]);
    assert!(!names.contains(&"output.weight"), "the matrices are tied");

    let folder = TempDir::new().unwrap();
    let parts = converted("llava-next", folder.path(), None, Beside::default());
    assert_eq!(parts[1].path, folder.path().join("mmproj-out.gguf"));
    let gguf = Gguf::open(&parts[1].path).unwrap();
    let meta = gguf.metadata();
    assert_eq!(meta.usize("clip.vision.block_count").unwrap(), Some(2));
    assert_eq!(meta.i64s("clip.vision.feature_layer").unwrap(), Some(vec![2]));
    assert_eq!(meta.i64s("clip.vision.image_grid_pinpoints").unwrap().unwrap()[..4], [20, 40, 40, 20]);
    // What the text model is called, and how large the encoder is.
    assert_eq!(meta.str("general.name").unwrap(), Some("Llava Next"));
    assert_eq!(meta.str("general.size_label").unwrap(), Some("13K"));
    assert_eq!(meta.str("general.description").unwrap(), Some("image encoder for LLaVA"));
    for (name, dtype) in [
        ("v.class_embd", Dtype::F32),
        ("v.position_embd.weight", Dtype::F32),
        ("v.patch_embd.weight", Dtype::F16),
        ("v.blk.1.ffn_up.weight", Dtype::F16),
        ("v.blk.1.ffn_up.bias", Dtype::F32),
        ("mm.2.weight", Dtype::F16),
        ("model.image_newline", Dtype::F32),
    ] {
        assert_eq!(gguf.tensor(name).map(|t| t.dtype), Some(dtype), "{name}");
    }
}

/// What the parts of MiniGPT-4 in the fixture `name` are converted with, besides its folder.
struct Given {
    dir: PathBuf,
    checkpoint: PathBuf,
    eva: PathBuf,
    image_size: usize,
}

fn minigpt4(name: &str) -> Given {
    let eva = fixture("minigpt4").join("eva_vit_g.pth");
    let (dir, checkpoint, image_size) = match name {
        // Small pictures in place of 224 and 448.
        "minigpt4" => ("minigpt4", "prerained_minigpt4_7b.pth", 20),
        "minigpt-v2" => ("minigpt-v2", "minigptv2_checkpoint.pth", 40),
        _ => ("minigpt-v2", "pretrained_minigpt4_llama2_7b.pth", 20),
    };
    Given { dir: fixture(dir), checkpoint: fixture(name).join(checkpoint), eva, image_size }
}

impl Given {
    fn convert(&self, folder: &Path, dtype: Option<Dtype>) -> Vec<Part> {
        let output = folder.join("out.gguf");
        let minigpt4 = MiniGpt4 {
            checkpoint: Some(&self.checkpoint),
            eva: Some(&self.eva),
            image_size: Some(self.image_size),
            ..MiniGpt4::default()
        };
        run(&Options { dtype, minigpt4, ..options(&self.dir, &output) }).unwrap()
    }
}

const MINIGPT4: [&str; 3] = ["minigpt4", "minigpt-v2", "minigpt4-llama2"];

#[test]
fn minigpt4_computes_what_the_upstream_does() {
    for name in MINIGPT4 {
        for (dtype, tolerance) in [(None, None), (Some(Dtype::F32), None), (Some(Dtype::Q8_0), Some(0.25))] {
            let folder = TempDir::new().unwrap();
            let parts = minigpt4(name).convert(folder.path(), dtype);
            assert_eq!(parts.iter().map(|part| part.half).collect::<Vec<_>>(), [Half::Text, Half::Mmproj], "{name}");
            assert!(parts.iter().all(|part| part.dtype == dtype.unwrap_or(Dtype::F16)), "{name}: {parts:?}");
            let recorded = with_recording(name, &parts, folder.path(), tolerance);
            let options =
                EngineOptions { n_threads: Some(2), vision_precision: Precision::F32, ..EngineOptions::default() };
            let report = verify(&recorded, &options).unwrap();
            assert!(report.architectures.contains(&"minigpt4") && report.checks.len() > 3, "{name}: {report:?}");
            let failure = report.checks.iter().find(|check| !check.passed && check.activation != "greedy");
            assert!(failure.is_none(), "{name} as {dtype:?}: {failure:?}");
            assert!(dtype == Some(Dtype::Q8_0) || report.first_failure().is_none(), "{name} as {dtype:?}");
        }
    }
}

#[test]
fn minigpt4_asks_as_its_authors_do() {
    for (name, template, stop, n_rows) in [
        ("minigpt4", "minigpt4", "###", 5),
        ("minigpt-v2", "minigpt_v2", "</s>", 16),
        ("minigpt4-llama2", "minigpt4_llama_2", "</s>", 4),
    ] {
        let folder = TempDir::new().unwrap();
        let parts = minigpt4(name).convert(folder.path(), None);
        let engine = Engine::load(&parts[0].path, Some(&parts[1].path), &EngineOptions::default()).unwrap();
        assert_eq!((engine.template().name(), engine.template().stop_strings()), (template, &[stop.to_string()][..]));
        let told: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(fixture(name).join("prompt.json")).unwrap()).unwrap();
        let image = Image { width: 30, height: 20, rgb: vec![90; 1800] };
        let image = engine.encode_image(&image, None, None).unwrap();
        let content = format!("{IMAGE_MARKER}{}", told["question"].as_str().unwrap());
        let prompt = engine.chat_prompt(&[Message { role: Role::User, content }], &[image]).unwrap();
        let [Piece::Tokens(before), Piece::Image(rows), Piece::Tokens(behind)] = prompt.pieces.as_slice() else {
            panic!("{name}: {:?}", prompt.pieces)
        };
        assert_eq!(serde_json::json!([before, behind]), told["ids"], "{name}");
        assert_eq!(rows.n_tokens(), n_rows);
    }
}

#[test]
fn minigpt4_is_found_in_one_folder() {
    let (out, dir) = (TempDir::new().unwrap(), fixture("minigpt4"));
    let output = out.path().join("out.gguf");
    let small = MiniGpt4 { image_size: Some(20), ..MiniGpt4::default() };
    let parts = run(&Options { minigpt4: small, ..options(&dir, &output) }).unwrap();
    assert_eq!((parts[0].from.as_str(), parts[1].from.as_str()), ("LlamaForCausalLM", "MiniGPT-4"));

    let text = Gguf::open(&parts[0].path).unwrap();
    let meta = text.metadata();
    assert_eq!(meta.f32("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(1e-6));
    assert_eq!(meta.usize("llama.context_length").unwrap(), Some(2048));
    assert_eq!(meta.usize("tokenizer.ggml.padding_token_id").unwrap(), Some(360));
    assert_eq!(meta.f32("general.sampling.penalty_repeat").unwrap(), Some(1.05));

    let gguf = Gguf::open(&parts[1].path).unwrap();
    let meta = gguf.metadata();
    for (key, value) in [
        ("clip.vision.block_count", 2),
        ("clip.vision.attention.head_count", 1),
        ("clip.qformer.block_count", 2),
        ("clip.qformer.head_count", 1),
        ("clip.qformer.query_count", 5),
        ("clip.qformer.cross_attention_frequency", 2),
    ] {
        assert_eq!(meta.usize(key).unwrap(), Some(value), "{key}");
    }
    assert_eq!(meta.f32("clip.vision.attention.layer_norm_epsilon").unwrap(), Some(1e-6));
    assert_eq!(meta.f32("clip.vision.final_norm_epsilon").unwrap(), Some(1e-5));
    for (name, dtype) in [
        ("v.position_embd.weight", Some(Dtype::F32)),
        ("v.patch_embd.weight", Some(Dtype::F16)),
        ("v.blk.1.attn_k.weight", Some(Dtype::F16)),
        ("v.blk.1.attn_q.bias", Some(Dtype::F32)),
        ("v.blk.1.attn_k.bias", None),
        ("v.blk.2.ln1.weight", None),
        ("qf.query", Some(Dtype::F32)),
        ("qf.blk.1.xattn_q.weight", None),
    ] {
        assert_eq!(gguf.tensor(name).map(|t| t.dtype), dtype, "{name}");
    }
}

#[test]
fn keys_of_qwen_vl() {
    let folder = TempDir::new().unwrap();
    let parts = converted("qwen-vl", folder.path(), Some(Dtype::F16), Beside::default());
    let gguf = Gguf::open(&parts[0].path).unwrap();
    let meta = gguf.metadata();
    let keys: Vec<&str> = meta.iter().map(|(key, _)| key).filter(|key| key.starts_with("qwen.")).collect();
    assert_eq!(
        keys,
        [
            "qwen.context_length",
            "qwen.block_count",
            "qwen.embedding_length",
            "qwen.feed_forward_length",
            "qwen.rope.freq_base",
            "qwen.rope.dimension_count",
            "qwen.attention.head_count",
            "qwen.attention.layer_norm_rms_epsilon",
            "qwen.rope.scaling.original_context_length",
            "qwen.use_dynamic_ntk",
            "qwen.use_logn_attn",
        ]
    );
    // Twice the width, as the authors and llama.cpp have it.
    assert_eq!(meta.usize("qwen.feed_forward_length").unwrap(), Some(48));
    assert_eq!(gguf.tensor("blk.0.ffn_gate.weight").map(|t| t.shape.clone()), Some(vec![24, 128]));
    assert_eq!(gguf.tensor("blk.0.attn_qkv.bias").map(|t| (t.shape.clone(), t.dtype)), Some((vec![384], Dtype::F32)));
    let tokens = meta.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let kinds = meta.i64s("tokenizer.ggml.token_type").unwrap().unwrap();
    for (id, token, kind) in [
        (300, "<|endoftext|>", 3),
        (302, "<|im_end|>", 3),
        (303, "<|extra_0|>", 3),
        (507, "<|extra_204|>", 3),
        (508, "<ref>", 3),
        (514, "<img>", 3),
        (516, "<imgpad>", 3),
        (517, "[PAD517]", 5),
        (33, "!", 1),
    ] {
        assert_eq!((tokens[id].as_str(), kinds[id]), (token, kind), "{id}");
    }
    let merges = meta.strings("tokenizer.ggml.merges").unwrap().unwrap();
    assert_eq!((meta.str("tokenizer.ggml.pre").unwrap(), merges.len()), (Some("qwen2"), 44));
    for key in ["bos", "eos", "unknown"] {
        assert_eq!(meta.usize(&format!("tokenizer.ggml.{key}_token_id")).unwrap(), Some(300), "{key}");
    }

    let gguf = Gguf::open(&parts[1].path).unwrap();
    let meta = gguf.metadata();
    assert_eq!(meta.str("clip.chat_template").unwrap(), Some("qwen_vl"));
    assert_eq!(meta.str("clip.projector_type").unwrap(), Some("resampler_qwen"));
    for (name, dtype, shape) in [
        ("v.position_embd.weight", Dtype::F32, vec![64, 56]),
        ("v.blk.0.attn_k.weight", Dtype::F16, vec![56, 56]),
        ("v.blk.0.ffn_up.weight", Dtype::F16, vec![72, 56]),
        ("resampler.pos_embed_q", Dtype::F32, vec![16, 128]),
        ("resampler.pos_embed_k", Dtype::F32, vec![64, 128]),
        ("resampler.kv.weight", Dtype::F16, vec![128, 56]),
        ("resampler.attn.v.bias", Dtype::F32, vec![128]),
    ] {
        assert_eq!(gguf.tensor(name).map(|t| (t.dtype, t.shape.clone())), Some((dtype, shape)), "{name}");
    }
}

#[test]
fn minigpt4_that_is_not_whole() {
    let out = TempDir::new().unwrap();
    let output = out.path().join("out.gguf");
    let refused = |dir: &Path, minigpt4: MiniGpt4<'_>| {
        run(&Options { minigpt4, ..options(dir, &output) }).expect_err("it is converted")
    };
    let small = MiniGpt4 { image_size: Some(20), ..MiniGpt4::default() };
    let without = |file: &'static str| copy("minigpt4", move |folder| fs::remove_file(folder.join(file)).unwrap());
    let folder = without("eva_vit_g.pth");
    says(&refused(folder.path(), small), ErrorKind::Usage, &["--eva", "eva_vit_g.pth"]);
    let folder = without("blip2_pretrained_flant5xxl.pth");
    says(&refused(folder.path(), small), ErrorKind::Usage, &["--blip2"]);
    let folder = without("prerained_minigpt4_7b.pth");
    says(&refused(folder.path(), small), ErrorKind::Usage, &["--image-size", "--minigpt4"]);
    says(&refused(&fixture("minigpt4"), MiniGpt4::default()), ErrorKind::Usage, &["--image-size 224", "multiple of 5"]);
    let (llama, given) = (fixture("llava-v1.5"), minigpt4("minigpt4"));
    let flags = MiniGpt4 { checkpoint: Some(&given.checkpoint), eva: Some(&given.eva), ..small };
    says(&refused(&llama, flags), ErrorKind::Usage, &["MiniGPT-4", "LlavaLlamaForCausalLM"]);
    let wide = copy("minigpt4", |folder| {
        fs::copy(fixture("minigpt-v2").join("minigptv2_checkpoint.pth"), folder.join("minigpt_other.pth")).unwrap();
    });
    says(&refused(wide.path(), small), ErrorKind::Usage, &["minigpt_other.pth", "--minigpt4"]);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn qwen_vl_answers_about_pictures() {
    use mmq::media::Image;
    use mmq::pipelines::{Cancel, Engine, Generation, Piece, Session, SessionOptions};
    use mmq::text::{Message, Role};
    use std::ops::ControlFlow;
    use std::sync::Arc;
    let folder = TempDir::new().unwrap();
    let parts = converted("qwen-vl", folder.path(), None, Beside::default());
    let engine = Arc::new(Engine::load(&parts[0].path, Some(&parts[1].path), &EngineOptions::default()).unwrap());
    assert_eq!(engine.template().name(), "qwen_vl");
    let image = Image { width: 40, height: 25, rgb: (0..3000u32).map(|i| (i * 7 % 251) as u8).collect() };
    let image = engine.encode_image(&image, None, None).unwrap();
    assert_eq!(image.n_tokens(), 16);
    let say = |role, content: &str| Message { role, content: content.into() };
    let said = [
        say(Role::User, "<__media__>Find <ref>it</ref>. <|im_end|>"),
        say(Role::Assistant, "<box>(1,2),(3,4)</box>"),
        say(Role::User, "And in <__media__>?"),
    ];
    let prompt = engine.chat_prompt(&said, &[image.clone(), image]).unwrap();
    let tokenizer = engine.tokenizer();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    let mut shown = String::new();
    let mut n_ends = 0;
    for (i, piece) in prompt.pieces.iter().enumerate() {
        match piece {
            Piece::Image(_) => {
                // Between the tags and nothing else.
                let Piece::Tokens(before) = &prompt.pieces[i - 1] else { panic!("two pictures") };
                let Piece::Tokens(after) = &prompt.pieces[i + 1] else { panic!("two pictures") };
                assert_eq!((before.last(), after.first()), (Some(&id("<img>")), Some(&id("</img>"))));
                shown.push('*');
            }
            Piece::Tokens(tokens) => {
                n_ends += tokens.iter().filter(|token| **token == id("<|im_end|>")).count();
                shown.push_str(&String::from_utf8(tokenizer.decode(tokens, true)).unwrap());
            }
        }
    }
    assert_eq!(
        shown,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img>*</img>\n\
         Find <ref>it</ref>. <|im_end|><|im_end|>\n<|im_start|>assistant\n<box>(1,2),(3,4)</box><|im_end|>\n\
         <|im_start|>user\nAnd in Picture 2: <img>*</img>\n?<|im_end|>\n<|im_start|>assistant\n"
    );
    // The one that the user wrote is text.
    assert_eq!(n_ends, 4);
    let all: Vec<u32> = prompt
        .pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Tokens(tokens) => Some(tokens.clone()),
            Piece::Image(_) => None,
        })
        .flatten()
        .collect();
    for tag in ["<ref>", "</ref>", "<box>", "</box>"] {
        assert_eq!(all.iter().filter(|token| **token == id(tag)).count(), 1, "{tag}");
    }
    let mut session = Session::new(&engine, &SessionOptions::default(), &Cancel::default()).unwrap();
    session.sync(&prompt, None).unwrap();
    let limit = Generation { n_predict: Some(4), ..Generation::default() };
    let answer = session.generate(&limit, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(answer.tokens.len() <= 4);
}

#[test]
fn folders_of_qwen_that_do_not_fit() {
    use serde_json::json;
    let with = |changes: &[(&str, serde_json::Value)]| refusal("qwen-vl", |folder| configure(folder, changes));
    says(&with(&[("intermediate_size", json!(50))]), ErrorKind::Mismatch, &["mlp.w2", "[25, 128]", "[24, 128]"]);
    says(&with(&[("kv_channels", json!(16))]), ErrorKind::Format, &["kv_channels", "4 heads of 16"]);
    says(&with(&[("num_hidden_layers", json!(2))]), ErrorKind::Format, &["transformer.h.1.ln_1.weight", "missing"]);
    says(&with(&[("visual", json!(null))]), ErrorKind::Unsupported, &["transformer.visual", "no place"]);
    let visual = |key: &str, value| {
        let mut visual = json!({"heads": 2, "image_size": 32, "layers": 1, "mlp_ratio": 72.0 / 56.0, "output_dim": 128, "patch_size": 4, "width": 56});
        visual[key] = value;
        with(&[("visual", visual)])
    };
    says(&visual("width", json!(60)), ErrorKind::Mismatch, &["conv1.weight", "[60, 3, 4, 4]"]);
    says(&visual("output_dim", json!(256)), ErrorKind::Format, &["output_dim", "128 wide"]);
    says(&visual("heads", json!(3)), ErrorKind::Format, &["3 heads"]);
    let quantized = json!({"quant_method": "gptq", "bits": 4});
    says(&with(&[("quantization_config", quantized)]), ErrorKind::Unsupported, &["gptq"]);
    for (line, words) in [("!!! 0", "base64"), ("AA== 7", "rank 0"), ("", "no token for byte 0")] {
        let error = refusal("qwen-vl", |folder| fs::write(folder.join("qwen.tiktoken"), format!("{line}\n")).unwrap());
        says(&error, ErrorKind::Format, &["qwen.tiktoken", words]);
    }
    let error = refusal("qwen-vl", |folder| {
        let text = fs::read_to_string(folder.join("qwen.tiktoken")).unwrap();
        // "zqj" is made of nothing.
        fs::write(folder.join("qwen.tiktoken"), text + "enFq 300\n").unwrap();
    });
    says(&error, ErrorKind::Format, &["token 300", "no merge"]);
}

/// A copy of a fixture that a test may change.
fn copy(name: &str, change: impl FnOnce(&Path)) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    change(folder.path());
    folder
}

/// Changes `config.json` of a folder.
fn configure(folder: &Path, changes: &[(&str, serde_json::Value)]) {
    let path = folder.join("config.json");
    let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes {
        json[key] = value.clone();
    }
    fs::write(path, json.to_string()).unwrap();
}

/// What a changed fixture is refused with; nothing may be left behind.
fn refusal(name: &str, change: impl FnOnce(&Path)) -> Error {
    let folder = copy(name, change);
    let out = TempDir::new().unwrap();
    let output = out.path().join("out.gguf");
    let error = run(&options(folder.path(), &output)).expect_err("it is converted");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{error}");
    error
}

#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert!(error.kind() == kind && words.iter().all(|word| text.contains(word)), "{:?}: {text}", error.kind());
}

#[test]
fn configurations_that_do_not_fit() {
    use serde_json::json;
    let with = |changes: &[(&str, serde_json::Value)]| refusal("llama3", |folder| configure(folder, changes));
    says(&with(&[("intermediate_size", json!(48))]), ErrorKind::Mismatch, &["gate_proj", "[48, 32]", "[40, 32]"]);
    says(&with(&[("num_hidden_layers", json!(3))]), ErrorKind::Format, &["model.layers.2.input_layernorm", "missing"]);
    says(&with(&[("num_hidden_layers", json!(1))]), ErrorKind::Unsupported, &["model.layers.1", "no place"]);
    says(&with(&[("hidden_size", json!(0))]), ErrorKind::Format, &["config.json: hidden_size"]);
    says(&with(&[("hidden_size", json!("wide"))]), ErrorKind::Format, &["hidden_size", "a whole number", "wide"]);
    says(&with(&[("num_key_value_heads", json!(3))]), ErrorKind::Format, &["4 heads"]);
    says(&with(&[("vocab_size", json!(299))]), ErrorKind::Mismatch, &["embed_tokens", "[299, 32]", "[300, 32]"]);
    says(&with(&[("hidden_act", json!("gelu"))]), ErrorKind::Unsupported, &["hidden_act", "gelu"]);
    says(&with(&[("architectures", json!(["GPT2LMHeadModel"]))]), ErrorKind::Unsupported, &["GPT2LMHeadModel"]);
    says(&with(&[("num_local_experts", json!(8))]), ErrorKind::Unsupported, &["8 experts"]);
    says(&with(&[("quantization_config", json!({"quant_method": "awq"}))]), ErrorKind::Unsupported, &["awq"]);
    says(&with(&[("tie_word_embeddings", json!(false))]), ErrorKind::Format, &["lm_head.weight"]);
    let rope = json!({"rope_type": "longrope", "rope_theta": 10000.0});
    says(&with(&[("rope_parameters", rope)]), ErrorKind::Unsupported, &["longrope"]);
    let rope = json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": -1.0});
    says(&with(&[("rope_parameters", rope)]), ErrorKind::Format, &["factor", "-1"]);
    says(&refusal("llama3", |f| fs::write(f.join("config.json"), "[1").unwrap()), ErrorKind::Format, &["config.json"]);
    says(&refusal("llama3", |f| fs::remove_file(f.join("config.json")).unwrap()), ErrorKind::Io, &["config.json"]);

    let vision = |key: &str, value| {
        let change = |folder: &Path| {
            let text = fs::read_to_string(folder.join("config.json")).unwrap();
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json["vision_config"][key] = value;
            fs::write(folder.join("config.json"), json.to_string()).unwrap();
        };
        refusal("llava-next", change)
    };
    says(&vision("patch_size", json!(4)), ErrorKind::Mismatch, &["patch_embedding", "[24, 3, 4, 4]"]);
    says(&vision("image_size", json!(40)), ErrorKind::Mismatch, &["position_embedding", "[65, 24]", "[17, 24]"]);
    says(&vision("model_type", json!("siglip_vision_model")), ErrorKind::Unsupported, &["siglip"]);
    says(&vision("num_hidden_layers", json!(1)), ErrorKind::Format, &["vision_feature_layer"]);
    let with = |changes: &[(&str, serde_json::Value)]| refusal("llava-next", |folder| configure(folder, changes));
    says(&with(&[("vision_feature_select_strategy", json!("full"))]), ErrorKind::Unsupported, &["full"]);
    says(&with(&[("image_grid_pinpoints", json!([[20]]))]), ErrorKind::Format, &["image_grid_pinpoints"]);
    says(&with(&[("projector_hidden_act", json!("relu"))]), ErrorKind::Unsupported, &["relu"]);
}

#[test]
fn parts_that_are_missing() {
    says(&refusal("llava-v1.5", |_| {}), ErrorKind::Usage, &["--vision-tower", "clip-vit-large-patch14-336"]);
    says(&refusal("llava-v1", |_| {}), ErrorKind::Usage, &["--base"]);
    says(
        &refusal("mistral-bin", |f| fs::remove_file(f.join("tokenizer.model")).unwrap()),
        ErrorKind::Io,
        &["tokenizer"],
    );
    let lost = |f: &Path| fs::remove_file(f.join("model-00002-of-00002.safetensors")).unwrap();
    says(&refusal("llama3", lost), ErrorKind::Io, &["model-00002-of-00002.safetensors"]);
    let both = |f: &Path| {
        lost(f);
        fs::remove_file(f.join("model.safetensors.index.json")).unwrap();
    };
    says(&refusal("llama3", both), ErrorKind::Format, &["expected 2 shards"]);
    let elsewhere = |f: &Path| {
        let path = f.join("model.safetensors.index.json");
        let text = fs::read_to_string(&path).unwrap().replace("model-00001", "../model-00001");
        fs::write(path, text).unwrap();
    };
    says(&refusal("llama3", elsewhere), ErrorKind::Format, &["no name of a file beside it"]);
    let empty = |f: &Path| fs::write(f.join("model-00001-of-00002.safetensors"), "").unwrap();
    says(&refusal("llama3", empty), ErrorKind::Format, &["model-00001", "0 bytes"]);
    let (dir, out) = (fixture("llama3"), TempDir::new().unwrap());
    let output = out.path().join("out.gguf");
    let flags = Options { vision_tower: Some(&dir), ..options(&dir, &output) };
    says(&run(&flags).expect_err("a language model sees"), ErrorKind::Usage, &["--vision-tower"]);
    let flags = Options { dtype: Some(Dtype::I32), ..options(&dir, &output) };
    says(&run(&flags).expect_err("weights are no numbers of items"), ErrorKind::Unsupported, &["I32"]);
    let flags = Options { pre: Some("made-up"), ..options(&dir, &output) };
    says(&run(&flags).expect_err("the name is made up"), ErrorKind::Unsupported, &["made-up"]);
}

/// A safetensors file of another's tensors under other names.
fn renamed(from: &Path, to: &Path, rename: impl Fn(&str) -> String) {
    let bytes = fs::read(from).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let header: serde_json::Map<_, _> = header.into_iter().map(|(name, entry)| (rename(&name), entry)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(to, [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()).unwrap();
}

/// `llava-next` as the authors' LLaVA 1.6 is laid out, with its vision encoder inside.
fn llava_v16(folder: &Path) {
    let path = folder.join("model.safetensors");
    renamed(&fixture("llava-next").join("model.safetensors"), &path, |name| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        let name = match name.split_once('.') {
            Some(("language_model", rest)) => format!("model.{rest}"),
            Some(("vision_tower", rest)) => format!("model.vision_tower.vision_tower.{rest}"),
            Some(("multi_modal_projector", rest)) => format!("model.mm_projector.{rest}"),
            _ if name == "image_newline" => format!("model.{name}"),
            _ => name.to_string(),
        };
        name.replace("linear_1", "0").replace("linear_2", "2")
    });
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut authors = json["text_config"].clone();
    for (key, value) in [
        ("architectures", serde_json::json!(["LlavaMistralForCausalLM"])),
        ("model_type", serde_json::json!("llava_llama")),
        ("mm_vision_tower", serde_json::json!("openai/clip-vit-large-patch14-336")),
        ("mm_projector_type", serde_json::json!("mlp2x_gelu")),
        ("mm_patch_merge_type", serde_json::json!("spatial_unpad")),
        ("image_aspect_ratio", serde_json::json!("anyres")),
        ("image_grid_pinpoints", serde_json::json!([[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]])),
    ] {
        authors[key] = value;
    }
    fs::write(folder.join("config.json"), authors.to_string()).unwrap();
}

#[test]
fn the_authors_layout_of_1_6() {
    let (folder, out, clip) = (copy("llava-next", llava_v16), TempDir::new().unwrap(), fixture("clip"));
    let output = out.path().join("out.gguf");
    let parts = run(&Options { vision_tower: Some(&clip), ..options(folder.path(), &output) }).unwrap();
    assert!(parts[1].notes.iter().any(|note| note.contains("the checkpoint's own")), "{:?}", parts[1].notes);
    let recorded = with_recording("llava-next", &parts, out.path(), None);
    let options = EngineOptions { vision_precision: Precision::F32, ..EngineOptions::default() };
    let report = verify(&recorded, &options).unwrap();
    assert!(report.first_failure().is_none(), "{:?}", report.first_failure());
    // OpenAI's encoders have heads of 64; this one, of 24 elements, must be described.
    let refused = run(&self::options(folder.path(), &output)).expect_err("its sizes are not known");
    says(&refused, ErrorKind::Format, &["17 positions of 24"]);
}

#[test]
fn the_command() {
    let out = TempDir::new().unwrap();
    let command = std::process::Command::new(env!("CARGO_BIN_EXE_mmq"))
        .args(["convert", "--json", "--outtype", "q8_0", "-o"])
        .arg(out.path().join("x.gguf"))
        .arg(fixture("llava-next"))
        .output()
        .unwrap();
    let (report, said) = (String::from_utf8(command.stdout).unwrap(), String::from_utf8(command.stderr).unwrap());
    assert!(command.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["parts"][0]["type"], "Q8_0");
    assert_eq!(report["parts"][1]["part"], "mmproj");
    assert!(report["parts"][1]["mmq"].as_str().unwrap().starts_with("runs beside a text model 32 wide"));
    assert!(said.contains("are no whole blocks of Q8_0: they are F16"), "{said}");
    let unknown = std::process::Command::new(env!("CARGO_BIN_EXE_mmq"))
        .args(["convert", "--outtype", "q9", "-o", "x.gguf", "."])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn only_one_half_and_other_names() {
    let (dir, clip) = (fixture("llava-v1"), fixture("clip"));
    let out = TempDir::new().unwrap();
    let (output, mmproj) = (out.path().join("text.gguf"), out.path().join("eyes.gguf"));
    let options = Options {
        only: Some(Half::Mmproj),
        mmproj: Some(&mmproj),
        vision_tower: Some(&clip),
        name: Some("llava-v1"),
        ..options(&dir, &output)
    };
    let parts = run(&options).unwrap();
    assert_eq!(parts.len(), 1);
    assert!(parts[0].notes.iter().any(|note| note.contains("<im_start>")), "{:?}", parts[0].notes);
    assert!(mmproj.is_file() && !output.exists());
}

#[test]
fn stopping_leaves_nothing_behind() {
    let (dir, out) = (fixture("llama3"), TempDir::new().unwrap());
    let output = out.path().join("out.gguf");
    let n = std::cell::Cell::new(0);
    let stop = || {
        n.set(n.get() + 1);
        n.get() > 7
    };
    let error = convert(&options(&dir, &output), &stop, &mut |_| {}).expect_err("it was stopped");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn damaged_files_are_refused() {
    for (name, file) in [
        ("llama3", "model-00001-of-00002.safetensors"),
        ("mistral-bin", "pytorch_model-00001-of-00002.bin"),
        ("mistral-bin", "tokenizer.model"),
        ("llama3", "tokenizer.json"),
        ("qwen-vl", "qwen.tiktoken"),
    ] {
        let whole = fs::read(fixture(name).join(file)).unwrap();
        let folder = copy(name, |_| {});
        let out = TempDir::new().unwrap();
        let output = out.path().join("out.gguf");
        let mut seed = 7u64;
        for i in 0..100 {
            let mut bytes = whole.clone();
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 33) as usize;
            if i % 4 == 0 {
                bytes.truncate(at % whole.len());
            } else {
                // Most damage where the structure is: at the ends.
                let place =
                    if i % 2 == 0 { at % whole.len().min(2500) } else { whole.len() - 1 - at % whole.len().min(2500) };
                bytes[place] ^= 1 << (i % 8);
            }
            fs::write(folder.path().join(file), bytes).unwrap();
            // Some damage is to weights or words alone, and cannot be seen.
            if let Err(error) = run(&options(folder.path(), &output)) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

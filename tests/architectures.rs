//! Every registered architecture agrees with its upstream on recorded fixtures, and a fixture that should not agree does not.

use mmq::architectures::{self, ARCHITECTURES};
use mmq::gguf::Gguf;
use mmq::pipelines::verify::{INT8, Report, verify};
use mmq::pipelines::{EngineOptions, Precision};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn options(n_threads: usize) -> EngineOptions {
    EngineOptions { n_threads: Some(n_threads), vision_precision: Precision::F32, ..EngineOptions::default() }
}

/// All but the vocabularies, which `tests/text.rs` uses.
fn fixtures() -> Vec<PathBuf> {
    let is_model = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(".gguf") && !name.starts_with("vocab-")
    };
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(is_model).collect();
    paths.sort();
    paths
}

#[test]
fn every_architecture_has_a_fixture() {
    let files: Vec<Gguf> = fixtures().iter().map(|path| Gguf::open(path).unwrap()).collect();
    for arch in ARCHITECTURES {
        let covered = files.iter().any(|gguf| architectures::of(gguf).any(|a| a.name == arch.name));
        assert!(covered, "architecture {} has no fixture: see tests/fixtures/README.md", arch.name);
    }
}

/// Prints the kernels' level, which must be what `MMQ_REQUIRE_LEVEL` names, and how far each fixture is off.
#[test]
fn every_fixture_agrees() {
    let level = mmq_kernels::kernels().level.name();
    if let Ok(required) = std::env::var("MMQ_REQUIRE_LEVEL") {
        assert_eq!(level, required, "the kernels' level, and the one that MMQ_REQUIRE_LEVEL names");
    }
    println!("fixture\tactivations\tworst error with {level}\ttolerance");
    let mut failures = Vec::new();
    for path in fixtures() {
        let report = verify(&Gguf::open(&path).unwrap(), &options(2)).unwrap();
        let worst = report.worst().unwrap().relative_error;
        let name = path.file_name().unwrap().display();
        println!("{name}\t{}\t{worst:.1e}\t{:.1e}", report.checks.len(), report.tolerance);
        assert!(report.tolerance <= 0.1, "{}: tolerance {}", report.file, report.tolerance);
        if let Some(check) = report.first_failure() {
            failures.push(format!("{}: {check:?}", report.file));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_vision_encoder_agrees_in_8_bits() {
    let mut n = 0;
    for path in fixtures() {
        let gguf = Gguf::open(&path).unwrap();
        if gguf.tensor("v.patch_embd.weight").is_none() {
            continue;
        }
        let options = EngineOptions { vision_precision: Precision::Int8, ..options(2) };
        let report = verify(&gguf, &options).unwrap();
        assert!(report.tolerance >= INT8);
        for check in report.checks.iter().filter(|check| check.note.is_none()) {
            assert!(check.passed && check.cosine > 0.995, "{}: {check:?}", report.file);
        }
        n += 1;
    }
    assert!(n > 5, "{n} fixtures see");
}

/// The bytes of a fixture after `change` was made to those of one tensor.
fn damaged(fixture: &str, tensor: &str, change: impl Fn(&mut [u8])) -> &'static [u8] {
    let mut data = std::fs::read(folder().join(format!("{fixture}.gguf"))).unwrap();
    let at = {
        let whole: &'static [u8] = data.clone().leak();
        let gguf = Gguf::from_static(fixture, whole).unwrap();
        let bytes = gguf.bytes(gguf.tensor(tensor).unwrap());
        let start = bytes.as_ptr() as usize - whole.as_ptr() as usize;
        start..start + bytes.len()
    };
    change(&mut data[at]);
    data.leak()
}

/// Negates the first floats (or a few pixels, or the first token).
fn negate(bytes: &mut [u8]) {
    bytes.iter_mut().skip(3).step_by(4).take(24).for_each(|byte| *byte ^= 0x80);
}

fn replay(data: &'static [u8]) -> Report {
    verify(&Gguf::from_static("damaged", data).unwrap(), &options(1)).unwrap()
}

#[test]
fn damage_is_reported_where_it_is_done() {
    for (fixture, tensor, activation) in [
        ("llama-mha", "token_embd.weight", "logits"),
        ("llama-gqa", "blk.0.attn_v.weight", "blk.0.attn_out"),
        ("llama-bias", "blk.0.attn_q.bias", "blk.0.attn_out"),
        ("llama-rope-llama3", "rope_freqs.weight", "blk.0.attn_out"),
        ("llama-mha", "blk.1.ffn_down.weight", "blk.1.ffn_out"),
        ("mistral", "output_norm.weight", "output_norm"),
        ("llama-q8_0", "output_norm.weight", "output_norm"),
        ("clip-gelu", "v.blk.1.ffn_up.weight", "v.blk.1.out.0"),
        ("llava-mlp", "v.class_embd", "v.embd.0"),
        ("llava-mlp", "mm.2.bias", "mm.out.0"),
        ("llava-next", "model.image_newline", "image.0"),
        ("llava-linear", "ref.wide.in.image.0", "v.pixels.0"),
        ("qwen", "blk.0.attn_qkv.bias", "blk.0.attn_out"),
        ("qwen-vl", "v.blk.1.attn_k.weight", "v.blk.1.out.0"),
        ("qwen-vl", "resampler.query", "resampler.attn_out.0"),
        ("qwen-vl", "resampler.pos_embed_k", "resampler.attn_out.0"),
        ("qwen-vl", "resampler.ln_post.bias", "mm.out.0"),
        ("llama-gqa", "ref.text.logits", "logits"),
        ("llama-gqa", "ref.text.greedy", "greedy"),
    ] {
        let report = replay(damaged(fixture, tensor, negate));
        let found = report.first_failure().map(|check| check.activation.as_str());
        assert_eq!(found, Some(activation), "{fixture} with a changed {tensor}");
    }
}

#[test]
fn a_recorded_value_that_is_no_number_fails() {
    let data = damaged("llama-mha", "ref.text.blk.0.out", |bytes| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let report = replay(data);
    assert_eq!(report.first_failure().unwrap().activation, "blk.0.out");
}

#[test]
fn what_is_recorded_but_never_computed_fails() {
    let mut data = std::fs::read(folder().join("llama-mha.gguf")).unwrap();
    let name = b"ref.text.blk.1.out";
    let at = data.windows(name.len()).position(|w| w == name).unwrap();
    data[at + name.len() - 1] = b'x';
    let report = replay(data.leak());
    let failure = report.first_failure().unwrap();
    assert_eq!(failure.activation, "blk.1.oux");
    assert!(failure.note.as_ref().unwrap().contains("never computed"), "{failure:?}");
}

#[test]
fn malformed_recordings_are_errors_that_name_them() {
    let token = |value: i32| move |bytes: &mut [u8]| bytes[..4].copy_from_slice(&value.to_le_bytes());
    for (fixture, tensor, value, words) in [
        ("llama-mha", "ref.text.in.tokens", 1 << 20, "ref.text.in.tokens"),
        ("llama-mha", "ref.text.in.tokens", -1, "more places than pictures"),
        ("llava-linear", "ref.wide.in.tokens", -1, "more places than pictures"),
    ] {
        let gguf = Gguf::from_static("damaged.gguf", damaged(fixture, tensor, token(value))).unwrap();
        let error = verify(&gguf, &options(1)).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("damaged.gguf"), "{error}");
    }
    // Every key under another name of the same length: an ordinary model.
    let mut data = std::fs::read(folder().join("llama-mha.gguf")).unwrap();
    let at = data.windows(9).position(|w| w == b"ref.cases").unwrap();
    data[at] = b'x';
    let error = verify(&Gguf::from_static("plain.gguf", data.leak()).unwrap(), &options(1)).unwrap_err().to_string();
    assert!(error.contains("plain.gguf") && error.contains("ref.cases"), "{error}");
}

#[cfg(feature = "cli")]
mod command {
    use super::{damaged, folder, negate};
    use std::process::{Command, Output};

    fn mmq(args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mmq")).arg("verify").args(args).output().unwrap()
    }

    #[test]
    fn succeeds_on_what_agrees() {
        let (llama, llava) = (folder().join("llama-mha.gguf"), folder().join("llava-mlp.gguf"));
        let (llama, llava) = (llama.to_str().unwrap(), llava.to_str().unwrap());
        let out = mmq(&[llama, llava]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
        for words in ["blk.0.attn_out", "v.feature.0", "cosine", "worst by architecture", "llama + llava"] {
            assert!(text.contains(words), "{words:?} is not in {text}");
        }
        let out = mmq(&["--json", llama]);
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(json["passed"], true);
        assert_eq!(json["fixtures"][0]["architectures"][0], "llama");
        assert!(json["fixtures"][0]["checks"].as_array().unwrap().len() > 8);
    }

    #[test]
    fn fails_on_what_does_not() {
        let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::fs::write(file.path(), damaged("llama-gqa", "blk.0.ffn_up.weight", negate)).unwrap();
        let path = file.path().to_str().unwrap();
        let out = mmq(&[path]);
        assert_eq!(out.status.code(), Some(1));
        let text = String::from_utf8(out.stdout).unwrap();
        let marked = text.lines().find(|line| line.contains("first out of tolerance")).unwrap();
        assert!(marked.contains("blk.0.ffn_out"), "{text}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("blk.0.ffn_out"));

        let out = mmq(&["--json", path]);
        assert_eq!(out.status.code(), Some(1));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(
            (&json["passed"], &json["fixtures"][0]["first_failure"]["activation"]),
            (&false.into(), &"blk.0.ffn_out".into())
        );
    }

    #[test]
    fn fails_on_what_cannot_be_read_and_goes_on() {
        let good = folder().join("llama-mha.gguf");
        let out = mmq(&["--json", "no-such-file.gguf", good.to_str().unwrap()]);
        assert_eq!(out.status.code(), Some(1));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(json["passed"], false);
        assert!(json["errors"][0].as_str().unwrap().contains("no-such-file.gguf"));
        assert_eq!(json["fixtures"].as_array().unwrap().len(), 1);
        assert_eq!(mmq(&[]).status.code(), Some(2));
    }
}

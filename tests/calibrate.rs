//! What is collected for importance matrices, against a computation of its own and against llama.cpp; and `mmq imatrix`.
#![cfg(feature = "cli")]

use mmq::architectures;
use mmq::gguf::Gguf;
use mmq::media::Image;
use mmq::pipelines::calibrate::{Calibration, CalibrationOptions, Chunks};
use mmq::pipelines::evaluate::{Cut, Evaluation, Stretch};
use mmq::pipelines::{Cancel, Engine, EngineOptions, KvType, Piece, Precision, Prompt, SessionOptions};
use mmq::quantize::Imatrix;
use mmq::tensor::Loader;
use mmq::text::template::{IMAGE_MARKER, Message, Role};
use mmq::{ErrorKind, media};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const TEXT: &str = include_str!("fixtures/english.txt");
const CHUNKS: Chunks = Chunks { size: 64, first: 0, most: Some(3), special: false };

fn root(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().expect("the checkout has a UTF-8 path").to_owned()
}

fn built_in(n_threads: usize) -> Arc<Engine> {
    Arc::new(Engine::built_in(&EngineOptions { n_threads: Some(n_threads), ..EngineOptions::default() }).unwrap())
}

fn sample() -> Image {
    media::load(&root("models/nano/sample.png"), &media::DecodeOptions::default()).unwrap()
}

fn question(engine: &Engine, calibration: &mut Calibration, text: &str) -> Prompt {
    let image = calibration.encode_image(&sample(), None).unwrap();
    let message = Message { role: Role::User, content: format!("{IMAGE_MARKER}{text}") };
    engine.chat_prompt(&[message], &[image]).unwrap()
}

fn session(n_ubatch: usize) -> SessionOptions {
    SessionOptions { n_ctx: 64, n_ubatch, ..SessionOptions::default() }
}

/// Rows of floats, with what a layer does to them, in double precision.
struct Rows {
    x: Vec<f64>,
    width: usize,
}

impl Rows {
    fn each(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Rows {
        let x: Vec<f64> = self.x.chunks_exact(self.width).flat_map(f).collect();
        Rows { width: x.len() / (self.x.len() / self.width), x }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Rows {
        Rows { x: self.x.iter().map(|x| f(*x)).collect(), width: self.width }
    }

    fn zip(&self, other: &Rows, f: impl Fn(f64, f64) -> f64) -> Rows {
        Rows { x: self.x.iter().zip(&other.x).map(|(a, b)| f(*a, *b)).collect(), width: self.width }
    }

    fn columns(&self, f: fn(f64) -> f64) -> Vec<f64> {
        (0..self.width).map(|i| self.x.iter().skip(i).step_by(self.width).map(|x| f(*x)).sum()).collect()
    }
}

fn erf(x: f64) -> f64 {
    let term = |(term, n): &(f64, f64)| Some((-term * x * x / (n + 1.0), n + 1.0));
    let terms = std::iter::successors(Some((x, 0.0)), term).take(200);
    2.0 / PI.sqrt() * terms.map(|(term, n)| term / (2.0 * n + 1.0)).sum::<f64>()
}

/// A fixture's weights and what was recorded of one case.
struct Fixture {
    gguf: Gguf,
}

impl Fixture {
    fn floats(&self, name: &str) -> Vec<f64> {
        let info = self.gguf.tensor(name).unwrap_or_else(|| panic!("{name} is there"));
        Loader::stored(&self.gguf).floats(info).unwrap().into_iter().map(f64::from).collect()
    }

    fn recorded(&self, name: &str) -> Rows {
        let name = format!("ref.wide.{name}");
        Rows { x: self.floats(&name), width: *self.gguf.tensor(&name).unwrap().shape.last().unwrap() }
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let w = self.floats(&format!("{name}.weight"));
        let n = w.len() / x.width;
        let has_bias = self.gguf.tensor(&format!("{name}.bias")).is_some();
        let bias = if has_bias { self.floats(&format!("{name}.bias")) } else { vec![0.0; n] };
        let dot = |row: &[f64], i: usize| row.iter().zip(&w[i * x.width..]).map(|(x, w)| x * w).sum::<f64>();
        x.each(|row| (0..n).map(|i| dot(row, i) + bias[i]).collect())
    }

    fn norm(&self, x: &Rows, name: &str, layer_norm: bool) -> Rows {
        let w = self.floats(&format!("{name}.weight"));
        let bias = if layer_norm { self.floats(&format!("{name}.bias")) } else { vec![0.0; w.len()] };
        x.each(|row| {
            let n = row.len() as f64;
            let mean = if layer_norm { row.iter().sum::<f64>() / n } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            row.iter().zip(&w).zip(&bias).map(|((x, w), b)| (x - mean) * scale * w + b).collect()
        })
    }

    /// What each matrix of the vision encoder, the projector and the text model multiplies, but for the rotated attention.
    fn inputs(&self) -> BTreeMap<String, Rows> {
        let mut inputs = BTreeMap::new();
        for il in 0..2 {
            let at = |name: &str| format!("v.blk.{il}.{name}");
            let x = if il == 0 { self.recorded("v.pre_ln.0") } else { self.recorded("v.blk.0.out.0") };
            let normed = self.norm(&x, &at("ln1"), true);
            let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|name| self.linear(&normed, &at(name)));
            let mixed = attention(&q, &k, &v, 3);
            let x = x.zip(&self.linear(&mixed, &at("attn_out")), |x, y| x + y);
            let normed2 = self.norm(&x, &at("ln2"), true);
            let up = self.linear(&normed2, &at("ffn_up")).map(|x| x / (1.0 + (-1.702 * x).exp()));
            for name in ["attn_q", "attn_k", "attn_v"] {
                inputs.insert(at(name), normed.map(|x| x));
            }
            inputs.extend([(at("attn_out"), mixed), (at("ffn_up"), normed2), (at("ffn_down"), up)]);
        }
        let feature = self.recorded("v.feature.0");
        let hidden = self.linear(&feature, "mm.0").map(|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt())));
        inputs.extend([("mm.0".to_owned(), feature), ("mm.2".to_owned(), hidden)]);

        let x = self.recorded("embd");
        let normed = self.norm(&x, "blk.0.attn_norm", false);
        for name in ["attn_q", "attn_k", "attn_v"] {
            inputs.insert(format!("blk.0.{name}"), normed.map(|x| x));
        }
        let x = x.zip(&self.recorded("blk.0.attn_out"), |x, y| x + y);
        let normed = self.norm(&x, "blk.0.ffn_norm", false);
        let (gate, up) = (self.linear(&normed, "blk.0.ffn_gate"), self.linear(&normed, "blk.0.ffn_up"));
        inputs.insert("blk.0.ffn_down".into(), gate.zip(&up, |gate, up| gate / (1.0 + (-gate).exp()) * up));
        inputs.insert("blk.0.ffn_gate".into(), normed.map(|x| x));
        inputs.insert("blk.0.ffn_up".into(), normed);
        inputs.insert("output".into(), self.recorded("output_norm"));
        inputs
    }
}

/// Attention of all rows to all.
fn attention(q: &Rows, k: &Rows, v: &Rows, n_head: usize) -> Rows {
    let d = q.width / n_head;
    let head = |rows: &Rows, row: usize, h: usize| rows.x[row * rows.width + h * d..][..d].to_vec();
    let n = q.x.len() / q.width;
    let mut out = Vec::new();
    for (i, h) in (0..n).flat_map(|i| (0..n_head).map(move |h| (i, h))) {
        let q = head(q, i, h);
        let score = |j: usize| q.iter().zip(head(k, j, h)).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
        let p: Vec<f64> = (0..n).map(|j| score(j).exp()).collect();
        let sum: f64 = p.iter().sum();
        out.extend((0..d).map(|c| (0..n).map(|j| p[j] / sum * head(v, j, h)[c]).sum::<f64>()));
    }
    Rows { x: out, width: q.width }
}

#[test]
fn sums_are_those_of_what_matrices_multiply() {
    let fixture = Fixture { gguf: Gguf::open(root("tests/fixtures/llava-mlp.gguf")).unwrap() };
    let options = EngineOptions { vision_precision: Precision::F32, ..EngineOptions::default() };
    let engine = Arc::new(Engine::from_gguf(&fixture.gguf, None, &options).unwrap());
    let exact = SessionOptions { cache_type_k: KvType::F32, cache_type_v: KvType::F32, ..session(7) };
    let options = CalibrationOptions { output: true, perplexity: false };
    let mut calibration = Calibration::new(&engine, &exact, options, &Cancel::default()).unwrap();
    let image = fixture.gguf.tensor("ref.wide.in.image.0").unwrap();
    let (height, width) = (image.shape[0], image.shape[1]);
    let image = Image { width, height, rgb: fixture.gguf.bytes(image).to_vec() };
    let image = calibration.encode_image(&image, None).unwrap();
    let mut pieces = Vec::new();
    for bytes in fixture.gguf.bytes(fixture.gguf.tensor("ref.wide.in.tokens").unwrap()).as_chunks().0 {
        pieces.push(match i32::from_le_bytes(*bytes) {
            -1 => Piece::Image(image.clone()),
            token => Piece::Tokens(vec![token as u32]),
        });
    }
    calibration.add(&Stretch { prompt: Prompt { pieces }, n_scored: 0 }).unwrap();
    let imatrix = calibration.imatrix(&Imatrix::new(64)).unwrap();

    let mut names: Vec<String> = imatrix.entries().map(|(name, _)| name.to_owned()).collect();
    for (name, inputs) in fixture.inputs() {
        let name = format!("{name}.weight");
        let entry = imatrix.entry(&name).unwrap_or_else(|| panic!("{name} is collected"));
        assert_eq!(entry.counts(), [(inputs.x.len() / inputs.width) as u64], "{name}");
        let (sums, expected) = (entry.sums(), inputs.columns(|x| x * x));
        assert_eq!(sums.len(), expected.len(), "{name}");
        let most = expected.iter().copied().fold(0.0, f64::max);
        for (sum, expected) in sums.iter().zip(&expected) {
            assert!((sum - expected).abs() <= 1e-4 * most, "{name}: {sum} for {expected}");
        }
        // Where there is a bias, the inputs themselves are summed up, too.
        let means = entry.mean_input();
        assert_eq!(means.is_some(), name.starts_with("v.") || name.starts_with("mm."), "{name}");
        let n = entry.counts()[0] as f64;
        for (mean, sum) in means.iter().flatten().zip(inputs.columns(|x| x)) {
            assert!((mean * n - sum).abs() <= 1e-4 * (most * n).sqrt(), "{name}: {mean} for {}", sum / n);
        }
        names.retain(|known| *known != name);
    }
    // The rotated attention is held against llama.cpp below.
    assert_eq!(names, ["blk.0.attn_output.weight"]);
}

#[test]
fn the_same_as_llama_imatrix_on_the_same_text() {
    let theirs = Imatrix::read(root("tests/fixtures/imatrix/nano.gguf")).unwrap();
    let mut calibration =
        Calibration::new(&built_in(2), &session(512), CalibrationOptions::default(), &Cancel::default()).unwrap();
    for chunk in calibration.cut(TEXT.trim_end_matches('\n'), CHUNKS).unwrap() {
        calibration.add(&chunk).unwrap();
    }
    let ours = calibration.imatrix(&Imatrix::new(64)).unwrap();
    assert_eq!((ours.n_chunks(), ours.chunk_size(), ours.len()), (3, 64, theirs.len()));
    for (name, theirs) in theirs.entries() {
        let ours = ours.entry(name).unwrap();
        assert_eq!(ours.counts(), theirs.counts(), "{name}");
        let most = theirs.sums().iter().copied().fold(0.0, f64::max);
        for (a, b) in ours.sums().iter().zip(theirs.sums()) {
            assert!((a - b).abs() <= 1e-2 * most, "{name}: {a} for {b}");
        }
    }
}

#[test]
fn neither_threads_nor_batches_change_a_bit() {
    let collect = |n_threads, n_ubatch, options| {
        let engine = built_in(n_threads);
        let mut calibration = Calibration::new(&engine, &session(n_ubatch), options, &Cancel::default()).unwrap();
        for chunk in calibration.cut(TEXT, CHUNKS).unwrap() {
            calibration.add(&chunk).unwrap();
        }
        let prompt = question(&engine, &mut calibration, "What do you see?");
        calibration.add(&Stretch::answer(&engine, prompt, "a red star.").unwrap()).unwrap();
        assert_eq!((calibration.n_chunks(), calibration.n_images()), (4, 1));
        (calibration.imatrix(&Imatrix::new(64)).unwrap(), calibration.perplexity(), calibration.n_scored())
    };
    let options = CalibrationOptions { output: true, perplexity: true };
    let (imatrix, ppl, n_scored) = collect(1, 512, options);
    assert!(n_scored > 3 * 31 && ppl.ppl.value > 1.0);
    assert!(imatrix.entry("output.weight").is_some_and(|e| e.counts()[0] > 3 * 64));
    for (n_threads, n_ubatch) in [(3, 512), (2, 7), (1, 1)] {
        let (other, other_ppl, n) = collect(n_threads, n_ubatch, options);
        assert!(imatrix == other && ppl == other_ppl && n_scored == n, "{n_threads} threads, batches of {n_ubatch}");
    }
    let (without_head, ppl, n) = collect(2, 512, CalibrationOptions::default());
    assert!(ppl.ppl.value.is_nan() && n == 0 && without_head.entry("output.weight").is_none());
    for (name, entry) in without_head.entries() {
        assert_eq!(imatrix.entry(name), Some(entry), "{name}");
    }
}

#[test]
fn perplexity_is_that_of_mmq_perplexity() {
    let engine = built_in(2);
    let options = CalibrationOptions { output: false, perplexity: true };
    let mut calibration = Calibration::new(&engine, &session(20), options, &Cancel::default()).unwrap();
    let mut evaluation = Evaluation::new(&engine, None, &session(512), &Cancel::default()).unwrap();
    for chunk in Stretch::cut(&engine, TEXT, &Cut { n_ctx: 64, stride: None, n_chunks: Some(3) }).unwrap() {
        calibration.add(&chunk).unwrap();
        evaluation.add(&chunk, None).unwrap();
    }
    assert_eq!(calibration.n_scored(), evaluation.n_scored());
    assert_eq!(calibration.perplexity(), evaluation.perplexity());
}

#[test]
fn pictures_reach_every_matrix() {
    let engine = built_in(2);
    let mut calibration =
        Calibration::new(&engine, &session(512), CalibrationOptions::default(), &Cancel::default()).unwrap();
    let prompt = question(&engine, &mut calibration, "What do you see?");
    // Longer than the context that was asked for.
    let long = Stretch::answer(&engine, prompt, &"a red star. ".repeat(20)).unwrap();
    assert!(long.prompt.n_tokens() > 64);
    calibration.add(&long).unwrap();
    let imatrix = calibration.imatrix(&Imatrix::new(64)).unwrap();
    let mut expected: Vec<String> = Vec::new();
    for file in ["models/nano/nano.gguf", "models/nano/mmproj-nano.gguf"] {
        expected.extend(architectures::matrices(&Gguf::open(root(file)).unwrap()).unwrap());
    }
    expected.retain(|name| !["token_embd.weight", "output.weight", "v.patch_embd.weight"].contains(&name.as_str()));
    expected.sort();
    let names: Vec<&str> = imatrix.entries().map(|(name, _)| name).collect();
    assert_eq!(names, expected);
    assert_eq!(imatrix.entry("v.blk.0.attn_q.weight").unwrap().counts(), [37]);
    assert_eq!(imatrix.entry("mm.0.weight").unwrap().counts(), [36]);
    assert_eq!(imatrix.entry("blk.0.attn_q.weight").unwrap().counts(), [long.prompt.n_tokens() as u64]);

    let too_long = Stretch::answer(&engine, long.prompt, &"a red star. ".repeat(2000)).unwrap();
    assert!(calibration.add(&too_long).is_err_and(|e| e.kind() == ErrorKind::ContextFull));
    let empty = Stretch { prompt: Prompt::default(), n_scored: 0 };
    assert!(calibration.add(&empty).is_err_and(|e| e.kind() == ErrorKind::Usage));
}

#[test]
fn it_can_be_stopped() {
    let cancel = Cancel::default();
    let mut calibration =
        Calibration::new(&built_in(1), &session(512), CalibrationOptions::default(), &cancel).unwrap();
    let chunks = calibration.cut(TEXT, CHUNKS).unwrap();
    calibration.add(&chunks[0]).unwrap();
    cancel.cancel();
    assert!(calibration.add(&chunks[1]).is_err_and(|e| e.kind() == ErrorKind::Cancelled));
    assert!(calibration.encode_image(&sample(), None).is_err_and(|e| e.kind() == ErrorKind::Cancelled));
    assert_eq!(calibration.imatrix(&Imatrix::new(64)).unwrap().n_chunks(), 1);
}

/// Exit code, standard output and standard error of `mmq imatrix` in `folder`.
fn imatrix(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
    command.arg("imatrix").args(args).current_dir(folder).stdin(Stdio::null());
    let output = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(folder: &Path, args: &[&str]) -> Json {
    let (code, stdout, stderr) = imatrix(folder, &[args, &["--json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

#[test]
fn the_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = root("tests/fixtures/english.txt");
    let of_text = ["-f", &text, "-c", "64", "--chunks", "3"];

    let (code, stdout, stderr) =
        imatrix(folder.path(), &[&of_text[..], &["-ofreq", "2", "--save-frequency", "2"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("Final estimate: PPL = ") && stdout.contains("imatrix.gguf: 28 tensors, 3 chunks"),
        "{stdout}"
    );
    assert!(
        stderr.contains("seconds per pass - ETA") && stderr.contains("2 of 3 chunks are in imatrix.gguf"),
        "{stderr}"
    );
    assert_eq!(Imatrix::read(at("imatrix.gguf.at_2")).unwrap().n_chunks(), 2);
    let whole = Imatrix::read(at("imatrix.gguf")).unwrap();
    assert_eq!(whole.datasets(), [text.as_str()]);

    // The rest of a text, added to its beginning, is the whole.
    json(folder.path(), &["-f", &text, "-c", "64", "--chunks", "1", "--no-ppl", "-o", "a"]);
    let rest = ["-f", &text, "-c", "64", "--chunk", "1", "--chunks", "2", "--in-file", "a", "-o", "b", "-ngl", "0"];
    let told = json(folder.path(), &rest);
    assert_eq!((&told["n_chunks"], &told["collected"]["n_chunks"]), (&Json::from(3), &Json::from(2)));
    let both = Imatrix::read(at("b")).unwrap();
    for (name, entry) in whole.entries() {
        let near = |a: &f64, b: &f64| (a - b).abs() <= 1e-6 * a;
        assert!(entry.sums().iter().zip(both.entry(name).unwrap().sums()).all(|(a, b)| near(a, b)), "{name}");
    }

    // Pictures by themselves, in a file of samples, and beside a text.
    let picture = root("models/nano/sample.png");
    let told = json(folder.path(), &["--image", &picture, "-p", "What do you see?", "-o", "c"]);
    assert_eq!((&told["collected"]["n_images"], &told["n_entries"]), (&Json::from(1), &Json::from(28 + 32)));
    assert!(told.get("ppl").is_none());
    let line = serde_json::json!({"image": picture, "prompt": "What do you see?", "answer": "a red star."});
    std::fs::write(at("s.jsonl"), format!("{line}\n{line}\n")).unwrap();
    let told = json(folder.path(), &["--samples", "s.jsonl", "-o", "d", "--output-format", "dat", "--chunks", "1"]);
    assert!(told["ppl"]["value"].as_f64().unwrap() > 1.0 && told["n_chunks"] == 1);
    let told = json(folder.path(), &[&of_text[..], &["--image", &picture, "--in-file", "c,d", "-o", "e"]].concat());
    assert_eq!(told["n_chunks"], 3 + 1 + 2);
    assert!(Imatrix::read(at("e")).unwrap().importance("mm.2.weight").is_some());

    // What the files say.
    let told = json(folder.path(), &["--show-statistics", "--in-file", "c"]);
    assert_eq!(told["tensors"].as_array().unwrap().len(), 60);
    assert_eq!(told["layers"].as_array().unwrap().len(), 4 + 5);
    let (code, stdout, _) = imatrix(folder.path(), &["--show-statistics", "--in-file", "c"]);
    assert!(code == Some(0) && stdout.contains(" attn_q ") && stdout.contains("v.0"), "{stdout}");
}

#[test]
fn biases_take_back_what_quantizing_moves() {
    let folder = tempfile::tempdir().unwrap();
    json(folder.path(), &["--image", &root("models/nano/sample.png"), "-o", "i.gguf"]);
    let imatrix = Imatrix::read(folder.path().join("i.gguf")).unwrap();
    let original = root("models/nano/mmproj-nano.gguf");
    let quantized = |search: &str| {
        let out = folder.path().join(search);
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
        command.args(["quantize", "--allow-requantize", "--pure", "-q", "--search", search, "--imatrix", "i.gguf"]);
        let status = command.current_dir(folder.path()).arg(&original).arg(&out).arg("Q4_1").status().unwrap();
        assert!(status.success());
        Fixture { gguf: Gguf::open(out).unwrap() }
    };
    let (original, best, ggml) =
        (Fixture { gguf: Gguf::open(&original).unwrap() }, quantized("best"), quantized("ggml"));
    for layer in ["v.blk.0.attn_q", "v.blk.2.ffn_down", "mm.0", "mm.2"] {
        let (weight, bias) = (format!("{layer}.weight"), format!("{layer}.bias"));
        let mean = imatrix.entry(&weight).unwrap().mean_input().unwrap();
        let (w, q, before, after) =
            (original.floats(&weight), best.floats(&weight), original.floats(&bias), best.floats(&bias));
        assert_ne!(before, after, "{layer}");
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let row = i * mean.len()..(i + 1) * mean.len();
            let on_average = |w: &[f64], bias: f64| bias + w.iter().zip(&mean).map(|(w, x)| w * x).sum::<f64>();
            let (a, b) = (on_average(&w[row.clone()], *before), on_average(&q[row], *after));
            assert!((a - b).abs() < 1e-4, "{layer}: {a} on average became {b}");
        }
        assert_eq!(ggml.floats(&bias), before, "{layer}");
    }
}

#[test]
fn command_lines_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let text = root("tests/fixtures/english.txt");
    std::fs::write(folder.path().join("bad.jsonl"), "{\"image\": 3}\n").unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "nothing to collect on"),
        (&["--show-statistics", "--in-file", "a,b"], 2, "one --in-file"),
        (&["-p", "a", "-p", "b", "-f", &text], 2, "no pictures"),
        (&["--image", "a.png", "--image", "b.png", "--image", "c.png", "-p", "x", "-p", "y"], 2, "one for each"),
        (&["--in-file", &text], 1, "no importance matrix"),
        (&["-f", &text, "-o", "no/such/folder.gguf"], 1, "there is no folder"),
        (&["-f", &text, "-c", "64", "--chunk", "99999"], 2, "cannot be left out"),
        (&["-f", &text, "--mmproj", "x"], 2, "--mmproj needs"),
        (&["--samples", "bad.jsonl"], 1, "bad.jsonl, line 1"),
        (&["-f", &text, "-hf", "a/b"], 2, "-hf is not supported yet"),
    ];
    for (args, code, words) in cases {
        let (got, stdout, stderr) = imatrix(folder.path(), args);
        assert_eq!((got, stdout.as_str()), (Some(*code), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

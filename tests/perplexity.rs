//! `mmq perplexity` and the evaluation behind it, on the built-in model and the recorded tiny ones.
#![cfg(feature = "cli")]

use mmq::ErrorKind;
use mmq::pipelines::evaluate::{Cut, Evaluation, Stretch};
use mmq::pipelines::{Cancel, Engine, EngineOptions, Piece, Prompt, Session, SessionOptions};
use serde_json::Value as Json;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

const TEXT: &str = include_str!("fixtures/english.txt");

fn root(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().expect("the checkout has a UTF-8 path").to_owned()
}

fn fixture(name: &str) -> String {
    root(&format!("tests/fixtures/{name}"))
}

fn built_in() -> Arc<Engine> {
    Arc::new(Engine::built_in(&EngineOptions { n_threads: Some(2), ..EngineOptions::default() }).unwrap())
}

/// Exit code, standard output and standard error of `mmq perplexity`.
fn perplexity(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
    let output = command.arg("perplexity").args(args).stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(args: &[&str]) -> Json {
    let (code, stdout, stderr) = perplexity(&[args, &["--json"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

#[track_caller]
fn error(args: &[&str], code: i32, words: &[&str]) {
    let (got, stdout, stderr) = perplexity(args);
    assert_eq!((got, stdout.as_str()), (Some(code), ""), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
}

fn options(n_ubatch: usize) -> SessionOptions {
    SessionOptions { n_ubatch, ..SessionOptions::default() }
}

/// Negative logarithms of what the model gave each of the last `n` tokens, from a session that reads token by token.
fn plain(engine: &Arc<Engine>, tokens: &[u32], n: usize) -> Vec<f64> {
    let mut session = Session::new(engine, &options(512), &Cancel::default()).unwrap();
    let score = |end: usize| {
        session.sync(&Prompt { pieces: vec![Piece::Tokens(tokens[..end].to_vec())] }, None).unwrap();
        let logits: Vec<f64> = session.logits().iter().map(|x| f64::from(*x)).collect();
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        sum.ln() - logits[tokens[end] as usize]
    };
    (tokens.len() - n..tokens.len()).map(score).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 * b.abs()
}

#[test]
fn perplexity_is_what_its_definition_says() {
    let engine = built_in();
    for (n_ctx, stride) in [(64, None), (33, None), (64, Some(40))] {
        let stretches = Stretch::cut(&engine, TEXT, &Cut { n_ctx, stride, n_chunks: Some(3) }).unwrap();
        let tokens = engine.tokenizer().encode(TEXT.trim_end(), true, false);
        let mut evaluation = Evaluation::new(&engine, None, &options(512), &Cancel::default()).unwrap();
        let mut nll = Vec::new();
        for (i, stretch) in stretches.iter().enumerate() {
            let start = i * stride.unwrap_or(n_ctx);
            let mut window = tokens[start..start + n_ctx].to_vec();
            window[0] = engine.tokenizer().bos().unwrap();
            nll.extend(plain(&engine, &window, stride.unwrap_or((n_ctx - 1) / 2)));
            evaluation.add(stretch, None).unwrap();
        }
        let n = nll.len() as f64;
        let mean = nll.iter().sum::<f64>() / n;
        let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let got = evaluation.perplexity();
        assert_eq!(evaluation.n_scored(), nll.len());
        assert!(close(got.ppl.value, mean.exp()), "{got:?}, not {}", mean.exp());
        assert!(close(got.ppl.error, mean.exp() * (variance / (n - 1.0)).sqrt()), "{got:?}");
    }
}

#[test]
fn batches_change_nothing() {
    let engine = built_in();
    let stretches = Stretch::cut(&engine, TEXT, &Cut { n_ctx: 100, stride: None, n_chunks: Some(2) }).unwrap();
    let ppl = |n_ubatch: usize| {
        let mut evaluation = Evaluation::new(&engine, Some(&engine), &options(n_ubatch), &Cancel::default()).unwrap();
        stretches.iter().for_each(|stretch| evaluation.add(stretch, None).unwrap());
        (evaluation.perplexity(), evaluation.divergence())
    };
    let want = ppl(512);
    for n_ubatch in [1, 7, 50, 99, 100] {
        assert_eq!(ppl(n_ubatch), want, "{n_ubatch}");
    }
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (model, text) = (root("models/nano/nano.gguf"), fixture("english.txt"));
    let json = json(&["-m", &model, "--base", &model, "-f", &text, "-c", "128", "--kl-divergence", "-q"]);
    let d = &json["divergence"];
    assert_eq!(json["ppl"], json["base"]["ppl"]);
    for (name, want) in [("kld", 0.0), ("p_diff", 0.0), ("p_diff_rms", 0.0), ("same_top", 1.0), ("ppl_ratio", 1.0)] {
        assert_eq!((d[name]["value"].as_f64(), d[name]["error"].as_f64()), (Some(want), Some(0.0)), "{name}");
    }
    assert_eq!((d["kld"]["maximum"].as_f64(), d["kld"]["0.1%"].as_f64()), (Some(0.0), Some(0.0)));
    assert!(close(d["ln_ppl_correlation"].as_f64().unwrap(), 1.0));
}

/// Two different models of one vocabulary: rounded keys and values make the other one.
#[test]
fn divergence_is_what_its_definition_says() {
    let engine = built_in();
    let exact = {
        let f32 = mmq::pipelines::KvType::F32;
        SessionOptions { cache_type_k: f32, cache_type_v: f32, ..options(512) }
    };
    let stretches = Stretch::cut(&engine, TEXT, &Cut { n_ctx: 40, stride: None, n_chunks: Some(2) }).unwrap();
    let mut evaluation = Evaluation::new(&engine, Some(&engine), &exact, &Cancel::default()).unwrap();
    let (mut klds, mut differences, mut same) = (Vec::new(), Vec::new(), 0);
    let probabilities = |session: &mut Session, tokens: &[u32]| {
        session.sync(&Prompt { pieces: vec![Piece::Tokens(tokens.to_vec())] }, None).unwrap();
        let p: Vec<f64> = session.logits().iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = p.iter().sum();
        p.iter().map(|p| p / sum).collect::<Vec<f64>>()
    };
    let top = |p: &[f64]| (0..p.len()).max_by(|a, b| p[*a].total_cmp(&p[*b])).unwrap();
    for stretch in &stretches {
        let Piece::Tokens(tokens) = &stretch.prompt.pieces[0] else { panic!("text") };
        let mut sessions =
            [&exact, &options(512)].map(|options| Session::new(&engine, options, &Cancel::default()).unwrap());
        for end in tokens.len() - stretch.n_scored..tokens.len() {
            let [q, p] = sessions.each_mut().map(|session| probabilities(session, &tokens[..end]));
            klds.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            differences.push(q[tokens[end] as usize] - p[tokens[end] as usize]);
            same += usize::from(top(&p) == top(&q));
        }
        evaluation.add(stretch, None).unwrap();
    }
    let d = evaluation.divergence().unwrap();
    let n = klds.len() as f64;
    assert!(d.kld.value > 0.0 && (d.kld.value - klds.iter().sum::<f64>() / n).abs() < 1e-9, "{d:?}");
    let square = differences.iter().map(|d| d * d).sum::<f64>() / n;
    assert!((d.p_diff_rms.value - square.sqrt()).abs() < 1e-8, "{d:?}");
    assert_eq!(d.same_top.value, same as f64 / n);
    klds.sort_by(f64::total_cmp);
    let quantiles = evaluation.kld_quantiles();
    assert!((quantiles.at(1.0) - klds[klds.len() - 1]).abs() < 1e-9);
    assert!((quantiles.at(0.5) - (klds[klds.len() / 2] + klds[(klds.len() - 1) / 2]) / 2.0).abs() < 1e-9);
}

#[test]
fn the_result_is_on_stdout_and_progress_on_stderr() {
    let text = fixture("english.txt");
    let (code, stdout, stderr) = perplexity(&["-f", &text, "-c", "256", "-ngl", "99", "-fa", "on"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.starts_with("Final estimate: PPL = ") && stdout.lines().count() == 1, "{stdout}");
    assert!(stderr.contains("[1]") && stderr.contains("seconds per pass") && stderr.contains("-ngl has no effect"));
    let (_, quiet, stderr) = perplexity(&["-f", &text, "-c", "256", "-q"]);
    assert_eq!((quiet, stderr.as_str()), (stdout, ""));
    let (_, stdout, stderr) = perplexity(&["-f", &text, "-c", "256", "--base", &root("models/nano/nano.gguf")]);
    for line in ["Mean PPL(Q)  ", "Mean    KLD:", "99.9%   KLD:", "Maximum Δp:", "RMS Δp", "Same top p: 100.000"] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
    assert!(stderr.contains("Same top p") && !stdout.contains('\u{1b}'));
}

#[test]
fn answers_about_pictures() {
    let picture = root("models/nano/sample.png");
    let ppl = |question: &str, answer: &str| {
        let json = json(&["--image", &picture, "-p", question, "--answer", answer, "-q"]);
        json["ppl"]["value"].as_f64().unwrap()
    };
    let right = ppl("What colour is the star?", "red.");
    assert!(right < 1.5 && right * 3.0 < ppl("What colour is the star?", "blue."), "{right}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&picture, folder.path().join("a.png")).unwrap();
    let rows = folder.path().join("rows.jsonl");
    let lines = "{\"image\": \"a.png\", \"text\": \"What colour is the star?\", \"answer\": \"red.\"}\n\n\
                 {\"text\": \"Hello\", \"answer\": \"three objects.\"}\n";
    std::fs::write(&rows, lines).unwrap();
    let rows = rows.to_str().unwrap();
    let (model, mmproj) = (root("models/nano/nano.gguf"), root("models/nano/mmproj-nano.gguf"));
    assert!(close(json(&["--rows", rows, "--chunks", "1"])["ppl"]["value"].as_f64().unwrap(), right));
    let both = json(&["--rows", rows, "-m", &model, "--base", &model, "--base-mmproj", &mmproj]);
    assert_eq!((&both["n_chunks"], &both["divergence"]["kld"]["maximum"]), (&Json::from(2), &Json::from(0.0)));
    std::fs::write(rows, "{\"image\": \"a.png\", \"text\": \"What?\"}").unwrap();
    error(&["--rows", rows], 1, &["line 1", "\"answer\""]);
    std::fs::write(rows, "{\"image\": \"b.png\", \"text\": \"What?\", \"answer\": \"no\"}").unwrap();
    error(&["--rows", rows], 1, &["row 1", "b.png"]);
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let (model, text) = (root("models/nano/nano.gguf"), fixture("english.txt"));
    error(&["-p", "Too short."], 2, &["at least 1024 tokens", "this one has"]);
    error(&["-f", &text, "-c", "2"], 2, &["at least 3"]);
    error(&["-f", &text, "-c", "64", "--ppl-stride", "64"], 2, &["stride of 64", "1 to 63"]);
    error(&["-q"], 2, &["no text"]);
    error(&["-f", &text, "--kl-divergence-base", "logits"], 2, &["--base"]);
    error(&["-f", &text, "-c", "64", "-m", &model, "--base", &fixture("llama-gqa.gguf")], 1, &["vocabulary", "640"]);
    let (a, b) =
        (built_in(), Engine::load(fixture("llama-gqa.gguf").as_ref(), None, &EngineOptions::default()).unwrap());
    let Err(different) = Evaluation::new(&a, Some(&Arc::new(b)), &options(512), &Cancel::default()) else {
        panic!("vocabularies differ")
    };
    assert_eq!(different.kind(), ErrorKind::Mismatch);
    // A stretch that asks for more than its end has.
    let mut evaluation = Evaluation::new(&a, None, &options(512), &Cancel::default()).unwrap();
    let prompt = Prompt { pieces: vec![Piece::Tokens(vec![1, 2, 3])] };
    for n_scored in [0, 3, 4] {
        let stretch = Stretch { prompt: prompt.clone(), n_scored };
        assert!(evaluation.add(&stretch, None).is_err_and(|e| e.kind() == ErrorKind::Usage));
    }
}

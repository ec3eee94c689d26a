//! Tokenizers against llama.cpp: small vocabularies cut from real models (`tests/fixtures/vocab-*.gguf`) with the ids
//! that llama.cpp gave, and, with `MMQ_VOCABS=DIR` and `--ignored`, every `*.gguf` with `.inp` and `.out` beside it in `DIR`.

use mmq::gguf::Gguf;
use mmq::text::{ChatTemplate, Sampler, SamplerKind, SamplerParams, StreamDecoder, Tokenizer};
use std::path::{Path, PathBuf};

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open(path: &Path) -> mmq::Result<Tokenizer> {
    Tokenizer::from_gguf(Gguf::open(path)?.metadata())
}

/// Texts and the ids expected of them.
fn cases(path: &Path) -> Option<Vec<(String, Vec<u32>)>> {
    let side = |ending: &str| std::fs::read_to_string(format!("{}.{ending}", path.display())).ok();
    let (inp, out) = (side("inp")?, side("out")?);
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().expect("an id")).collect();
    let mut inputs: Vec<String> = inp.split(SEPARATOR).map(str::to_owned).collect();
    let outputs: Vec<Vec<u32>> = out.lines().map(ids).collect();
    // The file may end with the separator.
    inputs.truncate(outputs.len());
    assert_eq!(inputs.len(), outputs.len(), "{}", path.display());
    Some(inputs.into_iter().zip(outputs).collect())
}

/// How many of the cases hold, and the first that does not.
fn check(tokenizer: &Tokenizer, cases: &[(String, Vec<u32>)]) -> (usize, Option<String>) {
    let mut first = None;
    let mut good = 0;
    for (text, expected) in cases {
        let got = tokenizer.encode(text, false, false);
        if got == *expected {
            good += 1;
        } else {
            first.get_or_insert_with(|| format!("{text:?}: expected {expected:?}, got {got:?}"));
        }
    }
    (good, first)
}

fn check_fixture(name: &str) {
    let path = fixtures().join(name);
    let tokenizer = open(&path).unwrap();
    let cases = cases(&path).expect("texts and ids beside the vocabulary");
    assert!(cases.len() >= 40, "{name}: only {} cases", cases.len());
    let (good, first) = check(&tokenizer, &cases);
    assert_eq!(good, cases.len(), "{name}: {}", first.unwrap_or_default());
    for (text, ids) in &cases {
        let mut stream = StreamDecoder::new(&tokenizer).with_special(true);
        let mut decoded: String = ids.iter().map(|&id| stream.push(id)).collect();
        decoded.push_str(&stream.finish());
        let stripped = decoded.strip_prefix(' ').unwrap_or(&decoded);
        assert!(decoded == *text || stripped == text, "{name}: {text:?} came back as {decoded:?}");
    }
}

#[test]
fn spm_as_llama_cpp() {
    check_fixture("vocab/spm.gguf");
}

#[test]
fn bpe_as_llama_cpp() {
    check_fixture("vocab/bpe.gguf");
}

#[test]
#[ignore = "needs MMQ_VOCABS=DIR, a folder of whole vocabularies"]
fn large_vocabularies() {
    let dir = std::env::var_os("MMQ_VOCABS").expect("MMQ_VOCABS names a folder");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    paths.sort();
    let mut failed = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let line = match (open(path), cases(path)) {
            (Err(error), _) if error.kind() == mmq::ErrorKind::Unsupported => format!("unsupported: {error}"),
            (Err(error), _) => {
                failed.push(name.clone());
                format!("FAIL {error}")
            }
            (Ok(_), None) => "loads (no expected ids)".to_owned(),
            (Ok(tokenizer), Some(cases)) => {
                let (good, first) = check(&tokenizer, &cases);
                if let Some(first) = &first {
                    failed.push(name.clone());
                    format!("FAIL {good}/{} {first}", cases.len())
                } else {
                    format!("pass {good}/{}", cases.len())
                }
            }
        };
        println!("{name:32} {line}");
    }
    assert!(!paths.is_empty(), "no *.gguf in MMQ_VOCABS");
    assert!(failed.is_empty(), "{}", failed.join(", "));
}

#[test]
fn template_of_a_bare_vocabulary() {
    let pick = |name: &str| {
        let gguf = Gguf::open(fixtures().join(name)).unwrap();
        ChatTemplate::pick(gguf.metadata(), None).unwrap().name().to_owned()
    };
    assert_eq!(pick("vocab/spm.gguf"), "plain");
    assert_eq!(pick("vocab/bpe.gguf"), "llama3", "by its control tokens");
}

/// The parameters of a recorded case.
fn params(case: &serde_json::Value) -> SamplerParams {
    let mut p = SamplerParams { seed: Some(1234), ..Default::default() };
    for (key, value) in case.as_object().unwrap() {
        let number = value.as_f64().unwrap_or_default() as f32;
        match key.as_str() {
            "temp" => p.temp = number,
            "top_k" => p.top_k = number as i32,
            "top_p" => p.top_p = number,
            "min_p" => p.min_p = number,
            "typical_p" => p.typical_p = number,
            "top_n_sigma" => p.top_n_sigma = number,
            "xtc_probability" => p.xtc_probability = number,
            "xtc_threshold" => p.xtc_threshold = number,
            "dynatemp_range" => p.dynatemp_range = number,
            "dynatemp_exponent" => p.dynatemp_exponent = number,
            "repeat_penalty" => p.repeat_penalty = number,
            "repeat_last_n" => p.repeat_last_n = number as i32,
            "frequency_penalty" => p.frequency_penalty = number,
            "presence_penalty" => p.presence_penalty = number,
            "dry_multiplier" => p.dry_multiplier = number,
            "dry_allowed_length" => p.dry_allowed_length = number as i32,
            "dry_sequence_breakers" => {
                p.dry_sequence_breakers =
                    value.as_array().unwrap().iter().map(|b| b.as_str().unwrap().to_owned()).collect();
            }
            "mirostat" => p.mirostat = number as u8,
            "mirostat_ent" => p.mirostat_ent = number,
            "mirostat_lr" => p.mirostat_lr = number,
            "adaptive_target" => p.adaptive_target = number,
            "samplers" => p.samplers = SamplerKind::parse_names(value.as_str().unwrap()).unwrap(),
            other => panic!("unknown parameter {other}"),
        }
    }
    p
}

#[test]
fn samplers_as_llama_cpp() {
    let tokenizer = open(&fixtures().join("vocab/bpe.gguf")).unwrap();
    let n_vocab = tokenizer.n_vocab() as i64;
    let text = std::fs::read_to_string(fixtures().join("sampler.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 16);
    for case in &cases {
        let mut sampler = Sampler::new(&params(&case["params"]), &tokenizer).unwrap();
        let expected: Vec<u64> = case["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
        let got: Vec<u64> = (0..expected.len() as i64)
            .map(|step| {
                let r = step % 4;
                let logit = |t: i64| (((t * (7919 + r * 1013) + r * 104_729) % 10_007 - 5000) as f64 / 400.0) as f32;
                let token = sampler.sample(&(0..n_vocab).map(logit).collect::<Vec<_>>());
                sampler.accept(token);
                token as u64
            })
            .collect();
        assert_eq!(got, expected, "{}", case["params"]);
    }
}

#[cfg(feature = "cli")]
mod cli {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Output, Stdio};

    fn tokenize(args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mmq"))
            .args(["tokenize", "-m"])
            .arg(fixtures().join("vocab/bpe.gguf"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn stdout(args: &[&str], input: &str) -> String {
        let output = tokenize(args, input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn ids_and_pieces() {
        let tokenizer = open(&fixtures().join("vocab/bpe.gguf")).unwrap();
        let list = |ids: &[u32]| format!("[{}]\n", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "));
        let text = "Hello world<|eot_id|>";
        let ids = tokenizer.encode(text, true, true);
        assert_eq!(ids[0], tokenizer.bos().unwrap());
        assert_eq!(stdout(&["-p", text, "--ids"], ""), list(&ids));
        assert_eq!(stdout(&["-f", "-", "--ids"], text), list(&ids));
        assert_eq!(stdout(&["--stdin", "--ids", "--no-bos"], text), list(&ids[1..]));
        let plain = tokenizer.encode(text, true, false);
        assert_ne!(plain, ids);
        assert_eq!(stdout(&["-p", text, "--ids", "--no-parse-special"], ""), list(&plain));

        let lines = stdout(&["-p", "Hello", "--no-bos", "--show-count"], "");
        let id = tokenizer.encode("Hello", false, false)[0];
        assert_eq!(lines, format!("{id:6} -> 'Hello'\nTotal number of tokens: 1\n"));
        let json: serde_json::Value =
            serde_json::from_str(&stdout(&["-p", "Hello", "--no-bos", "--json"], "")).unwrap();
        assert_eq!(json, serde_json::json!([{ "id": id, "piece": "Hello" }]));
    }

    #[test]
    fn wrong_use() {
        assert_eq!(tokenize(&[], "").status.code(), Some(2), "no text");
        assert_eq!(tokenize(&["-p", "a", "--stdin"], "").status.code(), Some(2), "two texts");
        let output = tokenize(&["-f", "no-such-file"], "");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-file"));
    }
}

#[test]
fn a_llava_pair_gets_its_authors_template_even_beside_another() {
    use mmq::gguf::{Metadata, Value};
    let metadata = |file: &str, pairs: &[(&str, Value)]| {
        Metadata::new(file, pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()).unwrap()
    };
    let jinja = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}";
    let with_template = [("tokenizer.chat_template", Value::from(jinja))];
    let mmproj = metadata("mmproj-model-f16.gguf", &[("clip.projector_type", Value::from("mlp"))]);
    let name = |text: &Metadata, mmproj| ChatTemplate::pick(text, mmproj).unwrap().name().to_owned();
    let mistral = metadata("llava-v1.6-mistral-7b.Q4_K_M.gguf", &with_template);
    assert_eq!(name(&mistral, Some(&mmproj)), "mistral_instruct");
    assert_eq!(name(&mistral, None), "jinja");
    assert_eq!(name(&metadata("nano.gguf", &with_template), Some(&mmproj)), "jinja");
    assert_eq!(name(&metadata("ggml-model-q4_k.gguf", &[]), Some(&mmproj)), "vicuna_v1");
}

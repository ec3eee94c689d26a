//! Tokenizers against llama.cpp: small vocabularies cut from real models (`tests/fixtures/vocab-*.gguf`) with the ids
//! that llama.cpp gave, and, with `MMQ_VOCABS=DIR`, every `*.gguf` with `.inp` and `.out` beside it in `DIR`.

use mmq::gguf::Gguf;
use mmq::text::{StreamDecoder, Tokenizer};
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
    check_fixture("vocab-spm.gguf");
}

#[test]
fn bpe_as_llama_cpp() {
    check_fixture("vocab-bpe.gguf");
}

#[test]
fn large_vocabularies() {
    let Some(dir) = std::env::var_os("MMQ_VOCABS") else { return };
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

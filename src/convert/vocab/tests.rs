//! Vocabularies by strangers, and the names of pre-tokenizers.

use super::*;
use crate::ErrorKind;

fn json(text: &str) -> Json {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, text).unwrap();
    Json::read(&path).unwrap()
}

/// A field of a protocol buffer that holds bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let score = score.to_le_bytes();
    field(1, &[field(1, text.as_bytes()), [&[2 << 3 | 5], &score[..]].concat(), vec![3 << 3, kind]].concat())
}

fn parse(bytes: &[u8], n_vocab: usize) -> (Result<Vocab>, usize, Vec<String>) {
    let (mut left_out, mut notes) = (0, Vec::new());
    let vocab = sentencepiece::parse("x.model", bytes, n_vocab, &mut left_out, &mut notes);
    (vocab, left_out, notes)
}

#[test]
fn sentence_pieces() {
    let bpe = field(2, &[3 << 3, 2, 0xC0, 2, 5]);
    let bytes =
        [piece("<unk>", 0.0, 2), piece("▁a", -1.5, 1), piece("<0x0A>", 0.0, 6), piece("▁b", 0.0, 4), bpe].concat();
    let (vocab, left_out, notes) = parse(&bytes, 6);
    let vocab = vocab.unwrap();
    assert_eq!(vocab.tokens, ["<unk>", "▁a", "<0x0A>", " b", "[PAD4]", "[PAD5]"]);
    assert_eq!(vocab.scores[1..5], [-1.5, 0.0, 0.0, PADDING_SCORE]);
    assert_eq!(vocab.types, [2, 1, 6, 4, 5, 5]);
    assert_eq!((vocab.own_ids, left_out, notes.len()), (vec![("unk", 5)], 0, 0));
    let (vocab, left_out, _) = parse(&bytes, 2);
    assert_eq!((vocab.unwrap().tokens.len(), left_out), (2, 2));

    let settings = field(3, &[3 << 3, 0, 4 << 3, 1]);
    let (vocab, _, notes) = parse(&[bytes.clone(), settings].concat(), 4);
    assert_eq!((vocab.unwrap().add_space_prefix, notes.len()), (Some(false), 1));
    for n in 1..bytes.len() {
        // Cut between fields it is another model: one without a trainer is taken for unigram.
        assert!(parse(&bytes[..n], 6).0.is_err(), "cut to {n} bytes");
    }
    for at in 0..bytes.len() {
        for value in 0..=255 {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let _ = parse(&bytes, 6);
        }
    }
    assert!(parse(b"IQ== 0\nIg== 1\n", 6).0.is_err(), "Llama 3's own format");
    let unigram = [piece("a", 0.0, 1), field(2, &[3 << 3, 1])].concat();
    assert_eq!(parse(&unigram, 6).0.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn pre_tokenizers() {
    let split =
        |pattern: &str| serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
    let bytes = |regex: bool| serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
    let digits = serde_json::json!({"type": "Digits", "individual_digits": true});
    let name = |steps: &[Any], ignore_merges: bool| {
        let text = serde_json::json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}).to_string();
        pre::name(&json(&text), ignore_merges)
    };
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    assert_eq!(name(&[split(llama3), bytes(false)], true).unwrap(), "llama-bpe");
    assert_eq!(name(&[split(llama3), bytes(false)], false).unwrap(), "dbrx");
    let cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+";
    assert_eq!(name(&[split(cl100k), bytes(false)], false).unwrap(), "dbrx");
    let qwen2 = llama3.replace("{1,3}", "");
    assert_eq!(name(&[split(&qwen2), bytes(false)], false).unwrap(), "qwen2");
    assert_eq!(name(&[digits.clone(), bytes(true)], false).unwrap(), "smollm");
    assert_eq!(name(&[bytes(true)], false).unwrap(), "gpt-2");
    let error = name(&[split("[a-z]+"), bytes(false)], false).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("--pre NAME"), "{error}");
    let prefix = serde_json::json!({"type": "ByteLevel", "add_prefix_space": true});
    assert!(name(&[prefix], false).is_err());
    assert!(name(&[serde_json::json!({"type": "Whitespace"})], false).is_err());
    let alone = json(r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}"#);
    assert_eq!(pre::name(&alone, false).unwrap(), "gpt-2");
}

#[test]
fn scores_follow_the_merges() {
    let text = r#"{"model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<0x61>": 1, "ab": 2, "abc": 3, "▁": 4, "a": 5, "b": 6, "c": 7},
        "merges": ["a b", ["ab", "c"]]}, "added_tokens": [{"id": 0, "content": "<unk>", "special": true}]}"#;
    let (mut left_out, mut notes) = (0, Vec::new());
    let vocab = hf::read(&json(text), &Json::empty("x"), 9, None, &mut left_out, &mut notes).unwrap();
    assert_eq!(vocab.scores, [-1000.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -10000.0]);
    assert_eq!(vocab.types, [3, 6, 1, 1, 1, 1, 1, 1, 5]);
    assert_eq!((vocab.model, left_out, notes.len()), ("llama", 0, 0));
}

#[test]
fn json_vocabularies_that_are_broken() {
    for (text, words) in [
        (r#"{"x": 1}"#, "model: is missing"),
        (r#"{"model": {"type": "Unigram", "vocab": []}}"#, "expected BPE, got Unigram"),
        (r#"{"model": {"vocab": {"a": -1}, "merges": ["a a"]}}"#, "model.vocab.a: expected an id, got -1"),
        (r#"{"model": {"vocab": {"a": 1}}}"#, "no merges"),
        (r#"{"model": {"vocab": {"a": 1}, "merges": ["ab"]}}"#, "pairs of tokens"),
        (r#"{"model": {"vocab": {"a": 1}, "merges": [["a", 1]]}}"#, "pairs of tokens"),
        (r#"{"model": {"vocab": [], "merges": ["a b"]}}"#, "model.vocab: expected an object"),
        (r#"{"model": {"vocab": {}, "merges": ["a b"]}, "added_tokens": [{"id": "x"}]}"#, "id and content"),
    ] {
        let error = hf::read(&json(text), &Json::empty("x"), 4, None, &mut 0, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
}

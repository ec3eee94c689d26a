//! The algorithms on small vocabularies made here; `tests/text.rs` has those cut from real models.

use super::source::{Model, Source};
use super::*;
use crate::ErrorKind;
use proptest::prelude::*;
use std::sync::LazyLock;

fn source(model: Model, pre: &str, tokens: Vec<String>) -> Source {
    Source {
        file: "test.gguf".into(),
        name: String::new(),
        model,
        pre: pre.into(),
        tokens,
        scores: None,
        types: None,
        merges: None,
        bos: None,
        eos: None,
        eot: None,
        eom: None,
        unk: None,
        suppress: vec![],
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
    }
}

/// LLaMA's layout: unknown, BOS, EOS, 256 bytes, then `words` with falling scores.
fn spm(words: &[&str]) -> Source {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(words.iter().map(|w| w.to_string()));
    let mut s = source(Model::Spm, "", tokens);
    s.scores = Some((0..s.tokens.len()).map(|i| -(i as f32)).collect());
    s
}

/// GPT-2's layout: 256 bytes, the merged tokens, then `extra` with their types.
pub(super) fn bpe(pre: &str, merges: &[&str], extra: &[(&str, i64)]) -> Source {
    let mut tokens: Vec<String> = (0..=255u8).map(|b| pre::byte_char(b).to_string()).collect();
    tokens.extend(merges.iter().map(|m| m.replacen(' ', "", 1)));
    let mut types = vec![1; tokens.len()];
    tokens.extend(extra.iter().map(|(t, _)| t.to_string()));
    types.extend(extra.iter().map(|(_, t)| *t));
    let mut s = source(Model::Bpe, pre, tokens);
    s.types = Some(types);
    s.merges = Some(merges.iter().map(|m| m.to_string()).collect());
    s
}

fn tokenizer(source: &Source) -> Tokenizer {
    Tokenizer::build(source).unwrap()
}

fn texts<'a>(t: &'a Tokenizer, ids: &[u32]) -> Vec<&'a str> {
    ids.iter().map(|&id| t.token_text(id)).collect()
}

#[test]
fn spm_merges_by_score_not_by_length() {
    // "ab" scores better than "bc"; "abc" exists but "ab"+"c" does reach it, "a"+"bc" would too.
    let t = tokenizer(&spm(&["▁", "a", "b", "c", "ab", "bc", "bcd", "d"]));
    assert_eq!(texts(&t, &t.encode("abcd", false, false)), ["▁", "ab", "c", "d"]);
    assert_eq!(texts(&t, &t.encode("bcd", true, false)), ["<s>", "▁", "bcd"]);
}

#[test]
fn spm_prefix_space_follows_special_tokens() {
    let t = tokenizer(&spm(&["▁", "a", "▁a", "b"]));
    assert_eq!(texts(&t, &t.encode("a</s>a b", false, true)), ["▁a", "</s>", "▁a", "▁", "b"]);
    assert_eq!(texts(&t, &t.encode("a</s>", false, false)).len(), 1 + "</s>".len());
    let mut s = spm(&["▁", "a", "▁a"]);
    s.add_space_prefix = Some(false);
    s.add_bos = Some(false);
    s.add_eos = Some(true);
    let t = tokenizer(&s);
    assert_eq!(texts(&t, &t.encode("a", true, false)), ["a", "</s>"]);
}

#[test]
fn spm_falls_back_to_bytes_or_unknown() {
    let t = tokenizer(&spm(&["▁"]));
    assert_eq!(texts(&t, &t.encode("é", false, false)), ["▁", "<0xC3>", "<0xA9>"]);
    let t = tokenizer(&source(Model::Spm, "", ["<unk>", "<s>", "</s>", "a"].map(String::from).to_vec()));
    assert_eq!(t.encode("aé", true, false), [1, 0, 0, 0, 3, 0, 0]);
}

#[test]
fn bpe_merges_by_rank() {
    let t = tokenizer(&bpe("gpt-2", &["b c", "a b", "bc d", "Ġ a"], &[]));
    assert_eq!(texts(&t, &t.encode("abcd ab", false, false)), ["a", "bcd", "Ġ", "ab"]);
    let long = "abcd".repeat(50);
    let expected: Vec<&str> = ["a", "bcd"].repeat(50);
    assert_eq!(texts(&t, &t.encode(&long, false, false)), expected, "the queue agrees with the scan");
}

#[test]
fn bpe_keeps_whole_words_where_asked() {
    let words = [("abc", 1)];
    let t = tokenizer(&bpe("gpt-2", &[], &words));
    assert_eq!(t.encode("abc", false, false).len(), 3);
    let t = tokenizer(&bpe("llama-bpe", &[], &words));
    assert_eq!(texts(&t, &t.encode("abc", false, false)), ["abc"]);
}

#[test]
fn special_tokens_are_cut_longest_first() {
    let t = tokenizer(&bpe("gpt-2", &[], &[("<|a|>", 3), ("<|a|><|b|>", 3), ("user", 4)]));
    let ids = t.encode("x<|a|><|b|><|a|>user", false, true);
    assert_eq!(texts(&t, &ids), ["x", "<|a|><|b|>", "<|a|>", "user"]);
    assert_eq!(t.piece(ids[2], false), b"");
    assert_eq!(t.piece(ids[2], true), b"<|a|>");
    assert_eq!(texts(&t, &t.encode("<user", false, false)), ["<", "user"], "user-defined ones always count");
}

#[test]
fn phi3_special_tokens_swallow_white_space() {
    let mut s = spm(&["▁", "a"]);
    let mut types = vec![1; s.tokens.len()];
    types[0] = 2;
    types[1] = 3;
    types[2] = 3;
    s.types = Some(types);
    s.name = "Phi-3 mini".into();
    let t = tokenizer(&s);
    assert_eq!(texts(&t, &t.encode("</s> \na<s> a", false, true)), ["</s>", "▁", "a", "<s>", "▁", "▁", "a"]);
}

#[test]
fn end_of_generation() {
    let mut s = bpe("gpt-2", &[], &[("<|im_end|>", 1), ("<|end|>", 3), ("x", 3)]);
    s.eos = Some(258);
    let t = tokenizer(&s);
    assert_eq!(t.eog_tokens(), [256, 257, 258]);
    assert_eq!(t.piece(256, false), b"", "known by its text although the file calls it normal");
    let t = tokenizer(&bpe("gpt-2", &[], &[("<|return|>", 3), ("<|call|>", 3), ("<|end|>", 3)]));
    assert!(!t.is_eog(258) && t.is_eog(256) && t.is_eog(257));
}

#[test]
fn hostile_vocabularies_are_errors() {
    let kind = |s: &Source| Tokenizer::build(s).map(|_| ()).unwrap_err();
    let mut s = spm(&[]);
    s.bos = Some(1 << 40);
    assert!(kind(&s).to_string().contains("bos_token_id"));
    let mut s = spm(&[]);
    s.scores = Some(vec![0.0]);
    assert!(kind(&s).to_string().contains("scores"));
    let mut s = spm(&[]);
    s.types = Some(vec![1; 3]);
    assert!(kind(&s).to_string().contains("token_type"));
    let mut s = bpe("gpt-2", &[], &[]);
    s.merges = Some(vec!["ab".into()]);
    assert!(kind(&s).to_string().contains("merges[0]"));
    s.merges = None;
    assert_eq!(kind(&s).kind(), ErrorKind::Format);
    assert_eq!(kind(&source(Model::Spm, "", vec![])).kind(), ErrorKind::Format);
    let error = kind(&bpe("gpt-17", &[], &[]));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("gpt-17"));
    let mut s = spm(&["", "", "ab", "a", "b"]);
    s.scores = Some(vec![f32::NAN; s.tokens.len()]);
    assert_eq!(texts(&tokenizer(&s), &tokenizer(&s).encode("ab", false, false)), ["<0xE2>", "<0x96>", "<0x81>", "ab"]);
}

#[test]
fn only_qwen_composes_characters() {
    let merges = ["Ã ©"]; // é in GPT-2's alphabet
    for (name, composes) in [("qwen2", true), ("gpt-2", false), ("llama-bpe", false)] {
        let t = tokenizer(&bpe(name, &merges, &[]));
        let (composed, apart) = (t.encode("caf\u{e9}", false, false), t.encode("cafe\u{301}", false, false));
        assert_eq!(composed == apart, composes, "{name}");
        assert_eq!(composed.len(), 4, "{name}");
    }
}

#[test]
fn every_pre_tokenizer_compiles_and_keeps_the_text() {
    let text =
        "Hello  world's 12345678 ÄÖ ü\n\n  x\t\ty  \r\n한국어 中文かな 3.14 don't CamelCase ...!! \u{301}a\u{85} ";
    for name in pre::names() {
        let pre = Pre::new("test.gguf", name).unwrap();
        let mut joined = String::new();
        pre.split(text, |word| joined.push_str(word));
        assert_eq!(joined, text, "{name}");
    }
}

#[test]
fn words_of_the_common_pre_tokenizers() {
    let words = |name: &str, text: &str| -> Vec<String> {
        let mut out = Vec::new();
        Pre::new("test.gguf", name).unwrap().split(text, |w| out.push(w.to_owned()));
        out
    };
    assert_eq!(words("gpt-2", "a  b\n\n c 123's"), ["a", " ", " b", "\n\n", " c", " 123", "'s"]);
    assert_eq!(words("gpt-2", "a \n"), ["a", " \n"]);
    assert_eq!(
        words("llama-bpe", "a  b\n\n c 1234 \n\nx"),
        ["a", " ", " b", "\n\n", " c", " ", "123", "4", " \n\n", "x"]
    );
    assert_eq!(words("smollm", "ab 12"), ["ab", " ", "1", "2"]);
    assert_eq!(words("afmoe", "x1234567y"), ["x", "1", "234", "567", "y"]);
    assert_eq!(words("superbpe", "a 1234567 b"), ["a ", "1", "234", "567", " b"]);
    let spaces = |n: usize| " ".repeat(n);
    assert_eq!(words("jais-2", &format!("a{}b", spaces(14))), ["a", &spaces(8), &spaces(4), " ", " b"]);
    assert_eq!(words("jais-2", &format!("a{}", spaces(7))), ["a", &spaces(4), "  ", " "]);
    assert_eq!(words("jais-2", "a   1    !"), ["a", "  ", " ", "1", "  ", " ", " !"]);
    assert_eq!(words("jais-2", "x\t\t\t\n  y"), ["x", "\t\t\t\n", " ", " y"]);
}

#[test]
fn stream_never_splits_a_character() {
    let t = tokenizer(&bpe("gpt-2", &[], &[]));
    let mut stream = StreamDecoder::new(&t);
    let parts: Vec<String> = t.encode("a🎉b", false, false).into_iter().map(|id| stream.push(id)).collect();
    assert_eq!(parts, ["a", "", "", "", "🎉", "b"]);
    assert_eq!(stream.push(t.token_id("ð").unwrap()), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
    assert_eq!(stream.finish(), "");
}

proptest! {
    #[test]
    fn bpe_round_trip(text in ".{0,60}|[a-c ']{0,60}") {
        static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
            let merges = ["a b", "b c", "ab c", "Ġ a", "' a", "c Ġ"];
            pre::names().map(|name| tokenizer(&bpe(name, &merges, &[("<|x|>", 3)]))).collect()
        });
        for t in &*TOKENIZERS {
            let Algorithm::Bpe(bpe) = &t.algorithm else { unreachable!("all are BPE") };
            if bpe.pre().byte_encode() {
                let ids = t.encode(&text, false, true);
                prop_assert_eq!(String::from_utf8(t.decode(&ids, true)).unwrap(), bpe.pre().normalize(&text));
            }
        }
    }

    #[test]
    fn spm_round_trip(text in ".{0,60}|[a-c ]{0,60}") {
        // SentencePiece cannot tell its own `▁` from a space.
        let text = text.replace('▁', "");
        let t = tokenizer(&spm(&["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁▁"]));
        let ids = t.encode(&text, false, false);
        let decoded = String::from_utf8(t.decode(&ids, false)).unwrap();
        prop_assert_eq!(decoded.strip_prefix(' ').unwrap_or(&decoded), text.as_str());
    }

    #[test]
    fn stream_equals_whole(ids in prop::collection::vec(0u32..300, 0..40)) {
        let t = tokenizer(&bpe("gpt-2", &["a b"], &[("<|x|>", 3)]));
        let mut stream = StreamDecoder::new(&t);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        let whole = t.decode(&ids, false);
        prop_assert_eq!(text, String::from_utf8_lossy(&whole));
    }

    #[test]
    fn scan_and_queue_agree(text in "[ab]{30,80}") {
        let merges = ["a a", "b a", "a b", "ab ab", "ba aa", "aa b", "b b"];
        let t = tokenizer(&bpe("gpt-2", &merges, &[]));
        // The textbook: lowest rank first, leftmost first.
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        let rank = |w: &[String]| merges.iter().position(|m| *m == format!("{} {}", w[0], w[1]));
        while let Some((_, i)) = parts.windows(2).enumerate().filter_map(|(i, w)| Some((rank(w)?, i))).min() {
            let right = parts.remove(i + 1);
            parts[i].push_str(&right);
        }
        let ids = t.encode(&text, false, false);
        prop_assert_eq!(texts(&t, &ids), parts);
    }
}

//! Any vocabulary and any text: loaded or refused, and a text's tokens exist and give the text back.
//!
//! The first byte chooses between the recorded vocabularies and one from the input: a line with a pre-tokenizer's name
//! (none: SentencePiece), lines of tokens with their type as the first character up to an empty one, merges likewise. The
//! rest is the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::gguf::{Gguf, Writer};
use mmq::text::{StreamDecoder, Tokenizer};
use std::path::Path;
use std::sync::OnceLock;

fn recorded(name: &str) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/vocab").join(name);
    Tokenizer::from_gguf(Gguf::open(path).expect("a fixture").metadata()).expect("a sound vocabulary")
}

/// GPT-2's alphabet for bytes.
fn alphabet() -> impl Iterator<Item = String> {
    let shown = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let hidden = (0..256).filter(move |byte| !shown(byte)).zip(256..);
    let all = (0..256).filter(shown).map(|byte| (byte, byte)).chain(hidden);
    all.filter_map(|(_, c)| char::from_u32(c)).map(String::from)
}

fn made<'t>(lines: &mut impl Iterator<Item = &'t str>) -> mmq::Result<Tokenizer> {
    let pre = lines.next().unwrap_or_default();
    let mut tokens = vec!["<unk>".to_owned()];
    let mut types = vec![2];
    if pre.is_empty() {
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        types.resize(tokens.len(), 6);
    } else {
        tokens.extend(alphabet());
        types.resize(tokens.len(), 1);
    }
    for line in lines.take_while(|line| !line.is_empty()) {
        let mut chars = line.chars();
        types.push(chars.next().and_then(|c| c.to_digit(10)).unwrap_or(1) as i32);
        tokens.push(chars.as_str().to_owned());
    }
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32 * 0.7).sin()).collect();
    let mut writer = Writer::new();
    writer.set("tokenizer.ggml.model", if pre.is_empty() { "llama" } else { "gpt2" });
    writer.set("tokenizer.ggml.pre", pre);
    writer.set("tokenizer.ggml.tokens", tokens);
    writer.set("tokenizer.ggml.token_type", types);
    writer.set("tokenizer.ggml.scores", scores);
    if !pre.is_empty() {
        let merges: Vec<String> = lines.take_while(|line| !line.is_empty()).map(str::to_owned).collect();
        writer.set("tokenizer.ggml.merges", merges);
    }
    let mut file = Vec::new();
    writer.write_to("fuzz", &mut file, |_, _| Ok(()))?;
    Tokenizer::from_gguf(Gguf::from_owner("fuzz", file)?.metadata())
}

fn check(tokenizer: &Tokenizer, text: &str, exact: bool) {
    for (add_special, parse_special) in [(false, false), (true, true)] {
        let tokens = tokenizer.encode(text, add_special, parse_special);
        assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.n_vocab()));
        let bytes = tokenizer.decode(&tokens, true);
        let mut stream = StreamDecoder::new(tokenizer).with_special(true);
        let mut streamed: String = tokens.iter().map(|token| stream.push(*token)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, String::from_utf8_lossy(&bytes));
        if exact && !parse_special {
            // SentencePiece puts a space in front.
            assert!(streamed == text || streamed.strip_prefix(' ') == Some(text), "{text:?} came back as {streamed:?}");
        }
    }
}

fuzz_target!(|input: &str| {
    static RECORDED: OnceLock<[Tokenizer; 2]> = OnceLock::new();
    let recorded = RECORDED.get_or_init(|| ["spm.gguf", "bpe.gguf"].map(recorded));
    match input.split_at_checked(1) {
        Some(("0", text)) => check(&recorded[0], text, false),
        Some(("1", text)) => check(&recorded[1], text, true),
        Some((_, rest)) => {
            let mut lines = rest.split('\n');
            if let Ok(tokenizer) = made(&mut lines) {
                check(&tokenizer, &lines.collect::<Vec<_>>().join("\n"), false);
            }
        }
        None => {}
    }
});

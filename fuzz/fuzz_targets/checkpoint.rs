//! Any bytes as the files of a Hugging Face folder: converted or refused, never a panic.
//!
//! The first byte says which file the rest is; the others are those of a fixture.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::convert::{MiniGpt4, Options, convert};
use std::fs;
use std::path::Path;

/// The files that are tried, by fixture.
const FILES: [(&str, &str); 6] = [
    ("llama3", "model-00001-of-00002.safetensors"),
    ("llama3", "tokenizer.json"),
    ("llama3", "config.json"),
    ("mistral-bin", "pytorch_model-00001-of-00002.bin"),
    ("mistral-bin", "tokenizer.model"),
    ("llava-next", "config.json"),
];

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let (fixture, file) = FILES[usize::from(*first) % FILES.len()];
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/convert").join(fixture);
    let dir = std::env::temp_dir().join(format!("mmq-fuzz-{}-{fixture}", std::process::id()));
    fs::create_dir_all(&dir).expect("a folder for temporary files");
    for entry in fs::read_dir(&from).expect("the fixture").flatten() {
        fs::copy(entry.path(), dir.join(entry.file_name())).expect("a copy");
    }
    fs::write(dir.join(file), data).expect("a file");
    let output = dir.join("out.gguf");
    let options = Options {
        dir: &dir,
        output: &output,
        mmproj: None,
        only: None,
        vision_tower: None,
        base: None,
        dtype: None,
        pre: None,
        name: None,
        minigpt4: MiniGpt4::default(),
    };
    let _ = convert(&options, &|| false, &mut |_| {});
});

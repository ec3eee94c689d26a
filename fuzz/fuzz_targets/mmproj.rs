//! Damaged files of vision encoders: loaded or refused, never a panic; what is loaded encodes a picture or refuses it.
//!
//! The first byte chooses a fixture, the rest are changes to what stands before its weights: a place and four bytes that are
//! put there, or a place and a mask, in turns of the place's lowest bit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::gguf::Gguf;
use mmq::media::Image;
use mmq::pipelines::{Cancel, Engine, EngineOptions};
use std::path::Path;
use std::sync::LazyLock;

const FILES: [&str; 6] = [
    "llava-mlp.gguf",
    "llava-next.gguf",
    "llava-q8_0.gguf",
    "llava-feature-layers.gguf",
    "minigpt4-q8_0.gguf",
    "qwen-vl-heads.gguf",
];

/// Each fixture's bytes, and how many of them come before the weights.
static FIXTURES: LazyLock<Vec<(Vec<u8>, usize)>> = LazyLock::new(|| {
    let read = |name: &&str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
        let data = std::fs::read(&path).expect("a fixture");
        let gguf = Gguf::open(&path).expect("a sound fixture");
        let head = data.len() - gguf.n_bytes() as usize;
        (data, head)
    };
    FILES.iter().map(read).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let (file, head) = &FIXTURES[usize::from(*first) % FILES.len()];
    let mut file = file.clone();
    for change in rest.chunks_exact(7) {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let at = place / 2 % (head - 4);
        if place % 2 == 0 {
            file[at..at + 4].copy_from_slice(&change[3..]);
        } else {
            file[at] ^= change[3];
        }
    }
    let gguf = match Gguf::from_owner("fuzz", file) {
        Ok(gguf) => gguf,
        Err(error) => return assert!(error.to_string().starts_with("fuzz: "), "{error}"),
    };
    let options = EngineOptions { n_threads: Some(1), ..EngineOptions::default() };
    let Ok(engine) = Engine::from_gguf(&gguf, None, &options) else { return };
    let rgb = (0..40 * 30 * 3).map(|i: u32| i as u8).collect();
    let image = Image { width: 40, height: 30, rgb };
    if let Ok(n) = engine.n_image_tokens(image.width, image.height)
        && let Ok(encoded) = engine.encode_image(&image, Some(&Cancel::default()), None)
    {
        assert_eq!(encoded.n_tokens(), n);
    }
});

//! Any bytes as a session file, behind a checksum that fits: restored or refused, never a panic; what is restored can be asked on
//! and saved.
//!
//! The first byte says whether the rest replaces the file from its 16th byte on (a length of the header that fits is written in
//! front), or changes bytes of a sound one: pairs of a place and a mask.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mmq::media::Image;
use mmq::pipelines::{Cancel, Engine, EngineOptions, Session, SessionOptions};
use mmq::text::template::IMAGE_MARKER;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, LazyLock};

static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llava-mlp.gguf");
    let options = EngineOptions { n_threads: Some(1), ..EngineOptions::default() };
    Arc::new(Engine::load(&path, None, &options).expect("the fixture"))
});

fn session() -> Session {
    let options = SessionOptions { n_ctx: 64, ..SessionOptions::default() };
    Session::new(&ENGINE, &options, &Cancel::default()).expect("a session")
}

/// A session with a picture and some tokens of an answer, without its checksum.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let rgb = (0..40 * 30 * 3).map(|i: u32| i as u8).collect();
    let image = ENGINE.encode_image(&Image { width: 40, height: 30, rgb }, None, None).expect("a picture");
    let mut session = session();
    session.sync(&ENGINE.prompt(&format!("a{IMAGE_MARKER}b"), &[image]).expect("a prompt"), None).expect("it fits");
    for _ in 0..3 {
        session.next_token().expect("it fits");
    }
    let path = std::env::temp_dir().join(format!("mmq-fuzz-{}.session", std::process::id()));
    session.save(&path).expect("a file");
    let mut data = std::fs::read(&path).expect("the file");
    std::fs::remove_file(&path).expect("the file");
    data.truncate(data.len() - 32);
    data
});

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut file = SOUND.clone();
    if first % 2 == 0 {
        let header = usize::from(*first / 2) * rest.len() / 127;
        file.truncate(12);
        file.extend((header as u32).to_le_bytes());
        file.extend(rest);
    } else {
        for change in rest.chunks_exact(5) {
            let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize % file.len();
            file[at] ^= change[4];
        }
    }
    let checksum = Sha256::digest(&file);
    file.extend(checksum);
    let mut session = session();
    match session.restore_from("fuzz", &mut file.as_slice(), file.len() as u64) {
        Ok(()) => {
            let _ = session.next_token();
            let path = std::env::temp_dir().join(format!("mmq-fuzz-{}.session", std::process::id()));
            session.save(&path).expect("what was restored can be saved");
        }
        Err(error) => {
            assert!(error.to_string().starts_with("fuzz: "), "{error}");
            assert_eq!(session.n_past(), 0);
        }
    }
});

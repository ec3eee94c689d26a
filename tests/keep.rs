//! What is kept: sessions in files, encoded pictures in memory and in a folder, the rest of a conversation that was too long.

use mmq::media::Image;
use mmq::pipelines::{
    Cancel, Conversation, Engine, EngineOptions, Finish, Generation, ImageCacheOptions, KvType, Overflow, Piece,
    Precision, Prompt, Session, SessionOptions,
};
use mmq::text::template::{IMAGE_MARKER, Message, Role};
use mmq::text::{SamplerKind, SamplerParams};
use mmq::{ErrorKind, Result};
use sha2::{Digest, Sha256};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn engine_with(name: &str, options: &EngineOptions) -> Arc<Engine> {
    Arc::new(Engine::load(&fixture(name), None, options).unwrap_or_else(|e| panic!("{e}")))
}

fn engine(name: &str, n_threads: usize) -> Arc<Engine> {
    let options = EngineOptions { n_threads: Some(n_threads), ..EngineOptions::default() };
    if name == "built-in" { Arc::new(Engine::built_in(&options).unwrap()) } else { engine_with(name, &options) }
}

/// Every part of the sampler that remembers something is in use.
fn sampler() -> SamplerParams {
    SamplerParams {
        seed: Some(7),
        temp: 1.5,
        min_p: 0.0,
        repeat_penalty: 1.3,
        frequency_penalty: 0.2,
        dry_multiplier: 0.8,
        xtc_probability: 0.5,
        xtc_threshold: 0.02,
        ignore_eos: true,
        samplers: [SamplerParams::default().samplers, vec![SamplerKind::AdaptiveP]].concat(),
        adaptive_target: 0.3,
        ..SamplerParams::default()
    }
}

fn options() -> SessionOptions {
    SessionOptions { n_ctx: 320, sampler: sampler(), ..SessionOptions::default() }
}

fn session(engine: &Arc<Engine>, options: &SessionOptions) -> Session {
    Session::new(engine, options, &Cancel::default()).unwrap()
}

fn picture(seed: u8) -> Image {
    let rgb = (0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(37) >> 3) as u8 ^ seed).collect();
    Image { width: 40, height: 30, rgb }
}

/// The next tokens with the logits that each was chosen from.
fn go_on(session: &mut Session, n: usize) -> Vec<(Option<u32>, Vec<f32>)> {
    (0..n).map(|_| (session.next_token().unwrap(), session.logits().to_vec())).collect()
}

/// Prompts of text alone, and with pictures where the model sees.
fn prompts(engine: &Arc<Engine>) -> Vec<Prompt> {
    let mut prompts = vec![Prompt { pieces: vec![Piece::Tokens(vec![1, 5, 40, 33, 7, 12, 25, 6, 31])] }];
    if engine.has_vision() {
        let images = [0, 99].map(|seed| engine.encode_image(&picture(seed), None, None).unwrap());
        prompts.push(engine.prompt(&format!("a{IMAGE_MARKER}b{IMAGE_MARKER}c"), &images).unwrap());
    }
    prompts
}

#[test]
fn a_restored_session_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let mut n_kinds = 0;
    for name in ["llama-k-quants.gguf", "llava-mlp.gguf", "llama-gqa.gguf", "built-in"] {
        let first = engine(name, 2);
        for kind in [KvType::F16, KvType::F32, KvType::Q8_0, KvType::Q4_0] {
            let options = SessionOptions { cache_type_k: kind, cache_type_v: kind, ..options() };
            if Session::new(&first, &options, &Cancel::default()).is_err() {
                continue;
            }
            n_kinds += 1;
            for prompt in prompts(&first) {
                // Right after the prompt, with a token that waits, and far enough for tiles to be full.
                for n_before in [0, 1, 30] {
                    let mut session = session(&first, &options);
                    session.sync(&prompt, None).unwrap();
                    go_on(&mut session, n_before);
                    session.save(&path).unwrap();
                    let expected = go_on(&mut session, 12);
                    assert!(expected.iter().all(|(token, _)| token.is_some()));
                    for n_threads in [1, 3] {
                        let other = engine(name, n_threads);
                        let mut restored = Session::new(&other, &options, &Cancel::default()).unwrap();
                        restored.restore(&path).unwrap();
                        assert_eq!(go_on(&mut restored, 12), expected, "{name}, {kind:?}, {n_before} before");
                        assert_eq!(restored.n_past(), session.n_past());
                    }
                }
            }
        }
    }
    assert_eq!(n_kinds, 12, "of 16: the heads of two models are no whole blocks");
}

#[test]
fn a_restored_session_keeps_what_prompts_have_in_common() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let ask = |engine: &Arc<Engine>, text: &str| {
        let image = engine.encode_image(&picture(3), None, None)?;
        engine.prompt(&format!("{IMAGE_MARKER}{text}"), &[image])
    };
    let first = engine("llava-mlp.gguf", 2);
    let mut before = session(&first, &options());
    before.sync(&ask(&first, "b")?, None)?;
    before.save(&path)?;
    before.sync(&ask(&first, "c")?, None)?;

    let second = engine("llava-mlp.gguf", 1);
    let mut after = session(&second, &options());
    after.restore(&path)?;
    let n = after.sync(&ask(&second, "c")?, None)?;
    assert!(n <= 2, "{n} tokens ran again");
    assert_eq!(after.logits(), before.logits());
    let stats = second.image_cache();
    assert_eq!((stats.memory_hits, stats.misses), (1, 0), "the picture came with the session");
    // A context of another size, another seed, other samplers: what was read stays.
    let mut other = session(&second, &SessionOptions { n_ctx: 64, ..options() });
    other.restore(&path)?;
    let params = SamplerParams { seed: Some(8), temp: 0.0, ..SamplerParams::default() };
    let mut greedy = session(&second, &SessionOptions { sampler: params, ..options() });
    greedy.restore(&path)?;
    assert_eq!((greedy.seed(), greedy.logits()), (8, other.logits()));
    Ok(())
}

#[test]
fn sessions_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let engine_a = engine("llama-k-quants.gguf", 1);
    let mut saved = session(&engine_a, &options());
    saved.sync(&prompts(&engine_a)[0], None).unwrap();
    saved.save(&path).unwrap();
    let refused = |engine: &Arc<Engine>, options: &SessionOptions| {
        let mut session = session(engine, options);
        let error = session.restore(&path).unwrap_err();
        assert_eq!(session.n_past(), 0);
        assert!(error.to_string().contains("chat.session: "), "{error}");
        error
    };
    let error = refused(&engine("llama-q8_0.gguf", 1), &options());
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let message = error.to_string();
    assert!(message.contains("llama-k-quants.gguf") && message.contains("llama-q8_0.gguf"), "{message}");
    let error = refused(&engine_a, &SessionOptions { cache_type_v: KvType::Q8_0, ..options() });
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let message = error.to_string();
    assert!(message.contains("\"f16\"") && message.contains("q8_0") && message.contains("cache-type-v"), "{message}");
    let error = refused(&engine_a, &SessionOptions { n_ctx: 8, ..options() });
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    assert!(error.to_string().contains("9 tokens") && error.to_string().contains("ctx-size"), "{error}");
    let error = session(&engine_a, &options()).restore(&folder.path().join("none")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let error = session(&engine_a, &options()).restore(&fixture("llama-gqa.gguf")).unwrap_err();
    assert!(error.to_string().contains("is no session file"), "{error}");

    // A file that is there stays if the new one cannot be written; a folder is no file.
    assert_eq!(saved.save(folder.path()).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// `data` without its checksum, with another that fits.
fn sealed(data: &[u8]) -> Vec<u8> {
    [data, &Sha256::digest(data)[..]].concat()
}

#[test]
fn damaged_sessions_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let engine = engine("llava-mlp.gguf", 1);
    let mut saved = session(&engine, &options());
    saved.sync(&prompts(&engine)[1], None).unwrap();
    go_on(&mut saved, 2);
    saved.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let body = &whole[..whole.len() - 32];
    let header = 16 + u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;

    let mut session = session(&engine, &options());
    session.sync(&prompts(&engine)[0], None).unwrap();
    let (n_past, logits) = (session.n_past(), session.logits().to_vec());
    let mut check = |data: &[u8], must_fail: bool| {
        let result = session.restore_from("x.session", &mut &data[..], data.len() as u64);
        match result {
            Err(error) => {
                assert!(error.to_string().starts_with("x.session: "), "{error}");
                assert_eq!((session.n_past(), session.logits()), (n_past, &logits[..]));
            }
            Ok(()) => {
                assert!(!must_fail);
                // What passes may be asked on.
                let _ = session.next_token();
                session.sync(&prompts(&engine)[0], None).unwrap();
            }
        }
    };
    // Cut short, and each byte of the header and some of the rest changed, which the checksum shows.
    for n in (0..20).chain((20..header + 40).step_by(13)).chain((header..whole.len()).step_by(997)) {
        check(&whole[..n], true);
    }
    for at in (0..20).chain((20..header).step_by(7)).chain((header..whole.len()).step_by(997)) {
        let mut data = whole.clone();
        data[at] ^= 1 << (at % 8);
        check(&data, true);
    }
    // The same behind a checksum that fits: whoever can write that is stopped by the other checks, or has made a session.
    for at in (0..20).chain((20..header).step_by(11)).chain((header..body.len()).step_by(997)) {
        for mask in [1, 0x10] {
            let mut data = body.to_vec();
            data[at] ^= mask;
            check(&sealed(&data), false);
        }
    }
    // Sizes beyond all measure.
    let text = String::from_utf8(body[16..header].to_vec()).unwrap();
    for field in ["n_past", "n_prompt", "n_embd", "n_vocab", "n_layer", "head_dim", "n_tokens", "first", "n", "pending"]
    {
        for value in ["0", "1", "319", "4294967296", "18446744073709551615", "-1", "1e300", "null", "\"\"", "[]"] {
            let pattern = format!("\"{field}\":");
            let Some(at) = text.find(&pattern).map(|at| at + pattern.len()) else { panic!("no {field} in {text}") };
            let end = at + text[at..].find([',', '}']).unwrap();
            let changed = [&text[..at], value, &text[end..]].concat();
            let front = [&body[..12], &(changed.len() as u32).to_le_bytes(), changed.as_bytes()].concat();
            check(&sealed(&[&front, &body[header..]].concat()), false);
        }
    }
    check(&sealed(&[b"mmqsess\0".as_slice(), &2u32.to_le_bytes(), &body[12..]].concat()), true);
    check(&sealed(&[&body[..12], &u32::MAX.to_le_bytes(), &body[16..]].concat()), true);
    check(&sealed(&[body, &[0; 4]].concat()), true);
    check(&sealed(&body[..body.len() - 4]), true);
    check(&whole, false);
}

fn cached(dir: Option<&Path>, n_bytes: usize, dir_bytes: u64) -> EngineOptions {
    let image_cache = ImageCacheOptions { n_bytes, dir: dir.map(Path::to_path_buf), dir_bytes };
    EngineOptions { n_threads: Some(2), image_cache, ..EngineOptions::default() }
}

#[test]
fn pictures_are_found_in_memory_and_in_the_folder() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a/b");
    let load = |options: &EngineOptions| engine_with("llava-mlp.gguf", options);
    let counts = |engine: &Engine| {
        let stats = engine.image_cache();
        (stats.memory_hits, stats.disk_hits, stats.misses)
    };
    let first = load(&cached(Some(&dir), 1 << 20, 1 << 20));
    let encoded = first.encode_image(&picture(0), None, None)?;
    let mut told = Vec::new();
    let again = first.encode_image(&picture(0), None, Some(&mut |done| told.push(done)))?;
    assert!(Arc::ptr_eq(&encoded, &again));
    assert_eq!((counts(&first), told), ((1, 0, 1), vec![1.0]));
    first.encode_image(&picture(1), None, None)?;
    assert_eq!(counts(&first), (1, 0, 2));

    // Another run finds it in the folder; the context is the same to the last bit.
    let after = |engine: &Arc<Engine>, image| {
        let mut session = session(engine, &options());
        session.sync(&engine.prompt(&format!("a{IMAGE_MARKER}b"), &[image])?, None)?;
        Ok::<_, mmq::Error>(session.logits().to_vec())
    };
    let second = load(&cached(Some(&dir), 1 << 20, 1 << 20));
    let found = second.encode_image(&picture(0), None, None)?;
    assert_eq!((counts(&second), found.id()), ((0, 1, 0), encoded.id()));
    assert_eq!(after(&second, found)?, after(&first, encoded)?);
    second.trim();
    second.encode_image(&picture(0), None, None)?;
    assert_eq!(counts(&second), (0, 2, 0));

    // What would give other rows is another picture.
    let base = cached(Some(&dir), 1 << 20, 1 << 20);
    for other in [
        EngineOptions { vision_precision: Precision::F32, ..base.clone() },
        EngineOptions { image_fit: Some("crop".into()), ..base.clone() },
        EngineOptions { image_filter: Some(mmq::media::Filter::Box), ..base.clone() },
    ] {
        let other = load(&other);
        other.encode_image(&picture(0), None, None)?;
        assert_eq!(counts(&other), (0, 0, 1));
    }
    let other = engine_with("llava-mlp-norm.gguf", &base);
    other.encode_image(&picture(0), None, None)?;
    assert_eq!(counts(&other), (0, 0, 1));
    Ok(())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_damaged_picture_is_encoded_again_with_a_warning() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let load = || engine_with("llava-mlp.gguf", &cached(Some(folder.path()), 0, 1 << 20));
    let encoded = load().encode_image(&picture(0), None, None)?;
    let [file] = files(folder.path()).try_into().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let cut = |n: usize| whole[..n].to_vec();
    let changed = |at: usize| {
        let mut data = whole.clone();
        data[at] ^= 0x40;
        data
    };
    for data in [cut(0), cut(20), cut(whole.len() - 1), changed(0), changed(9), changed(30), changed(whole.len() / 2)] {
        std::fs::write(&file, &data).unwrap();
        let engine = load();
        let again = engine.encode_image(&picture(0), None, None)?;
        assert_eq!((again.id(), engine.image_cache().misses), (encoded.id(), 1));
        let warnings = engine.take_warnings();
        assert!(warnings.len() == 1 && warnings[0].contains(file.to_str().unwrap()), "{warnings:?}");
        assert!(engine.take_warnings().is_empty());
        assert_eq!(std::fs::read(&file).unwrap(), whole, "it was written again");
    }
    // A folder that cannot be one: the picture is encoded all the same.
    let no_folder = file.join("sub");
    let engine = engine_with("llava-mlp.gguf", &cached(Some(&no_folder), 0, 1 << 20));
    engine.encode_image(&picture(0), None, None)?;
    assert_eq!(engine.take_warnings().len(), 1);
    Ok(())
}

#[test]
fn memory_and_folder_stay_within_their_bounds() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("not-ours.txt");
    std::fs::write(&other, vec![0; 10_000]).unwrap();
    let probe = engine_with("llava-mlp.gguf", &cached(None, 1 << 20, 0));
    let size = probe.encode_image(&picture(0), None, None)?.n_bytes();
    assert_eq!(probe.image_cache().n_bytes, size);

    let engine = engine_with("llava-mlp.gguf", &cached(Some(folder.path()), 2 * size, 3 * (size as u64 + 200)));
    for seed in [0, 1, 0, 2] {
        engine.encode_image(&picture(seed), None, None)?;
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let stats = engine.image_cache();
    assert_eq!((stats.memory_hits, stats.misses, stats.n_images, stats.n_bytes), (1, 3, 2, 2 * size));
    // Picture 1 was used longest ago, and comes from the folder.
    engine.encode_image(&picture(0), None, None)?;
    engine.encode_image(&picture(1), None, None)?;
    let stats = engine.image_cache();
    assert_eq!((stats.memory_hits, stats.disk_hits, stats.misses), (2, 1, 3));
    for seed in 3..6 {
        engine.encode_image(&picture(seed), None, None)?;
    }
    let kept = files(folder.path());
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(kept.contains(&other));
    Ok(())
}

fn says(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

fn chat_engine() -> Arc<Engine> {
    let options =
        EngineOptions { n_threads: Some(2), chat_template: Some("vicuna".into()), ..EngineOptions::default() };
    engine_with("llava-mlp.gguf", &options)
}

/// Greedy, so that what is compared are the contexts.
fn shifting(n_ctx: usize) -> SessionOptions {
    let sampler = SamplerParams { temp: 0.0, ignore_eos: true, ..SamplerParams::default() };
    SessionOptions { n_ctx, n_ubatch: 16, sampler, overflow: Overflow::DropOldest, ..SessionOptions::default() }
}

fn conversation(engine: &Engine, first: usize) -> Result<Conversation> {
    let image = |seed| engine.encode_image(&picture(seed), None, None);
    let turns = [
        (says(Role::System, "sys"), vec![]),
        (says(Role::User, &format!("<__media__>{}", "ab".repeat(60))), vec![image(0)?]),
        (says(Role::Assistant, "b"), vec![]),
        (says(Role::User, "c<__media__>"), vec![image(1)?]),
        (says(Role::Assistant, "d"), vec![]),
        (says(Role::User, "e"), vec![]),
    ];
    let mut conversation = Conversation::default();
    for (i, (message, images)) in turns.into_iter().enumerate() {
        if i == 0 || i >= first {
            conversation.push(message, &images)?;
        }
    }
    Ok(conversation)
}

#[test]
fn a_prompt_that_is_too_long_loses_its_oldest_turns() -> Result<()> {
    let engine = chat_engine();
    let (all, short) = (conversation(&engine, 1)?, conversation(&engine, 3)?);
    let n_ctx = all.prompt(&engine)?.n_tokens() - 1;
    let mut session = session(&engine, &shifting(n_ctx));
    session.chat(&all, None)?;
    let mut fresh = Session::new(&engine, &shifting(n_ctx), &Cancel::default())?;
    fresh.chat(&short, None)?;
    assert_eq!((session.n_dropped(), fresh.n_dropped()), (1, 0));
    assert_eq!((session.n_past(), session.logits()), (fresh.n_past(), fresh.logits()));
    assert_eq!(go_on(&mut session, 3), go_on(&mut fresh, 3));
    // Who wants to be told is told.
    let stop = SessionOptions { overflow: Overflow::Stop, ..shifting(n_ctx) };
    let error = Session::new(&engine, &stop, &Cancel::default())?.chat(&all, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    Ok(())
}

#[test]
fn an_answer_that_fills_the_context_goes_on_without_the_oldest_turns() -> Result<()> {
    let engine = chat_engine();
    let (all, short) = (conversation(&engine, 1)?, conversation(&engine, 3)?);
    let n_room = 10;
    let options = shifting(all.prompt(&engine)?.n_tokens() + n_room);
    let mut session = session(&engine, &options);
    session.chat(&all, None)?;
    // One more token than fits has been chosen when the context is full.
    let answer: Vec<u32> = (0..=n_room).map(|_| session.next_token().unwrap().unwrap()).collect();
    assert_eq!((session.n_dropped(), session.n_past()), (0, session.n_ctx()));
    session.next_token()?;
    assert_eq!(session.n_dropped(), 1);

    let mut fresh = Session::new(&engine, &options, &Cancel::default())?;
    let mut prompt = short.prompt(&engine)?;
    let n_prompt = prompt.n_tokens();
    prompt.pieces.push(Piece::Tokens(answer));
    fresh.sync(&prompt, None)?;
    assert_eq!(session.n_past(), n_prompt + n_room + 1);
    assert_eq!(session.logits(), fresh.logits(), "as if the turn had never been");
    Ok(())
}

#[test]
fn without_older_turns_the_older_part_of_the_answer_leaves() -> Result<()> {
    let engine = chat_engine();
    let image = engine.encode_image(&picture(0), None, None)?;
    let prompt = engine.prompt("x<__media__>y", &[image])?;
    let n_prompt = prompt.n_tokens();
    let options = shifting(n_prompt + 40);
    let mut session = session(&engine, &options);
    session.sync(&prompt, None)?;
    let answer: Vec<u32> = (0..=40).map(|_| session.next_token().unwrap().unwrap()).collect();
    session.next_token()?;
    let n_kept = session.n_past() - n_prompt - 1;
    assert!((1..=20).contains(&n_kept), "{n_kept} of 40 stay");
    let mut fresh = Session::new(&engine, &options, &Cancel::default())?;
    let mut rest = prompt.clone();
    rest.pieces.push(Piece::Tokens(answer[40 - n_kept..].to_vec()));
    fresh.sync(&rest, None)?;
    assert_eq!(session.logits(), fresh.logits());
    // It goes on for as long as it is asked to.
    let limit = Generation { n_predict: Some(200), ..Generation::default() };
    let answer = session.generate(&limit, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!((answer.finish, answer.tokens.len()), (Finish::Length, 200));
    // A prompt that leaves no room for an answer ends it all the same.
    let mut full = Session::new(&engine, &shifting(n_prompt), &Cancel::default())?;
    full.sync(&prompt, None)?;
    let answer = full.generate(&limit, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(answer.finish, Finish::ContextFull);
    Ok(())
}

//! Engine and session as an embedding program uses them, on the recorded tiny models.

use mmq::media::Image;
use mmq::pipelines::{
    Cancel, Engine, EngineOptions, Finish, Generation, ImageTokens, KvType, LoadMode, Piece, Prompt, Reduction,
    Session, SessionOptions,
};
use mmq::text::SamplerParams;
use mmq::{ErrorKind, Result};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn engine(name: &str, n_threads: usize) -> Arc<Engine> {
    let options = EngineOptions { n_threads: Some(n_threads), ..EngineOptions::default() };
    Arc::new(Engine::load(&fixture(name), None, &options).unwrap_or_else(|e| panic!("{e}")))
}

fn options() -> SessionOptions {
    SessionOptions {
        n_ctx: 64,
        cache_type_k: KvType::F32,
        cache_type_v: KvType::F32,
        sampler: SamplerParams { temp: 0.0, ..SamplerParams::default() },
        ..SessionOptions::default()
    }
}

fn session(engine: &Arc<Engine>, options: &SessionOptions) -> Session {
    Session::new(engine, options, &Cancel::default()).unwrap()
}

fn tokens(tokens: &[u32]) -> Prompt {
    Prompt { pieces: vec![Piece::Tokens(tokens.to_vec())] }
}

fn logits_after(engine: &Arc<Engine>, options: &SessionOptions, prompt: &Prompt) -> Vec<f32> {
    let mut session = session(engine, options);
    session.sync(prompt, None).unwrap();
    session.logits().to_vec()
}

const PROMPT: [u32; 9] = [1, 5, 40, 33, 7, 12, 25, 6, 31];

/// Bit for bit, whatever the storage of weights and cache, the batch and the number of threads.
#[test]
fn prefill_of_n_tokens_equals_n_decodes() {
    for name in ["llama-gqa.gguf", "llama-q8_0.gguf", "llama-k-quants.gguf", "llama-rope-yarn.gguf", "qwen-long.gguf"] {
        let loaded = engine(name, 1);
        for kinds in CACHE_TYPES {
            let Some(stored) = stored(&loaded, kinds) else { continue };
            let at_once = logits_after(&loaded, &stored, &tokens(&PROMPT));
            assert!(at_once.iter().all(|x| x.is_finite()) && at_once.iter().any(|x| *x != 0.0));
            for (n_threads, n_ubatch) in [(1, 1), (2, 4), (3, 512)] {
                let options = SessionOptions { n_ubatch, ..stored.clone() };
                assert_eq!(
                    logits_after(&engine(name, n_threads), &options, &tokens(&PROMPT)),
                    at_once,
                    "{name}, {kinds:?}, {n_threads} threads, batches of {n_ubatch}"
                );
            }
        }
    }
}

/// Types of keys and values.
const CACHE_TYPES: [[KvType; 2]; 6] = {
    use KvType::{F16, F32, Q4_0, Q8_0};
    [[F32, F32], [F16, F16], [Q8_0, Q8_0], [Q4_0, Q4_0], [Q8_0, F16], [F16, Q4_0]]
};

/// Options with a cache of these types, if the model's heads fit their blocks.
fn stored(engine: &Arc<Engine>, [k, v]: [KvType; 2]) -> Option<SessionOptions> {
    let options = SessionOptions { cache_type_k: k, cache_type_v: v, ..options() };
    match Session::new(engine, &options, &Cancel::default()) {
        Ok(_) => Some(options),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            None
        }
    }
}

#[test]
fn quantized_caches_stay_close_and_behave_alike() {
    let mut n_models = 0;
    for name in ["llama-gqa.gguf", "llama-q8_0.gguf", "llama-k-quants.gguf", "llama-rope-yarn.gguf"] {
        let engine = engine(name, 2);
        let exact = logits_after(&engine, &options(), &tokens(&PROMPT));
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        // What differs is little, but may turn the rounding of activations to 8 bits.
        for (kinds, bound) in CACHE_TYPES.into_iter().zip([0.0, 0.02, 0.03, 0.35, 0.03, 0.2]) {
            let Some(options) = stored(&engine, kinds) else { continue };
            n_models += usize::from(kinds == [KvType::Q4_0; 2]);
            let got = logits_after(&engine, &options, &tokens(&PROMPT));
            let distance = got.iter().zip(&exact).map(|(a, b)| a - b).collect::<Vec<_>>();
            let error = norm(&distance) / norm(&exact);
            assert!(error <= bound, "{name}, {kinds:?}: the logits are {error} off");

            // Back to a common beginning and on again, as if nothing had been.
            let mut session = session(&engine, &options);
            session.sync(&tokens(&[1, 5, 40, 33, 9, 9, 9, 9, 9, 9, 9, 9]), None).unwrap();
            assert_eq!(session.sync(&tokens(&PROMPT), None).unwrap(), 5);
            assert_eq!(session.logits(), got, "{name}, {kinds:?}");
            while session.n_past() < 40 && session.next_token().unwrap().is_some() {}
            assert_eq!(session.sync(&tokens(&PROMPT), None).unwrap(), 1);
            assert_eq!(session.logits(), got, "{name}, {kinds:?}: after an answer");
        }
    }
    assert!(n_models > 0, "no model has heads of whole blocks");
}

#[test]
fn heads_that_are_no_whole_blocks_are_refused() {
    let engine = engine("llama-gqa.gguf", 1);
    for (k, v, option) in
        [(KvType::Q8_0, KvType::F16, "cache-type-k q8_0"), (KvType::F16, KvType::Q4_0, "cache-type-v q4_0")]
    {
        let options = SessionOptions { cache_type_k: k, cache_type_v: v, ..options() };
        let error = Session::new(&engine, &options, &Cancel::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(option) && error.to_string().contains("blocks of 32"), "{error}");
    }
}

fn loaded(name: &str, load_mode: LoadMode) -> Arc<Engine> {
    let options = EngineOptions { n_threads: Some(2), load_mode, ..EngineOptions::default() };
    Arc::new(Engine::load(&fixture(name), None, &options).unwrap())
}

#[test]
fn answers_do_not_depend_on_where_weights_lie() {
    for name in ["llama-gqa.gguf", "llama-q8_0.gguf", "llama-k-quants.gguf", "llava-mlp.gguf"] {
        let (mapped, repacked) = (loaded(name, LoadMode::Mmap), loaded(name, LoadMode::Repack));
        let logits = logits_after(&mapped, &options(), &tokens(&PROMPT));
        assert_eq!(logits_after(&repacked, &options(), &tokens(&PROMPT)), logits, "{name}");
        if mapped.has_vision() {
            let options = SessionOptions { n_ctx: 256, ..options() };
            let seen = |engine: &Arc<Engine>| {
                let image = engine.encode_image(&picture(7), None, None).unwrap();
                logits_after(engine, &options, &engine.prompt("<__media__>b", &[image]).unwrap())
            };
            assert_eq!(seen(&repacked), seen(&mapped), "{name}");
        }
    }
}

#[test]
fn loading_tells_how_far_it_is_and_can_be_stopped() {
    let cancel = Cancel::default();
    let options = EngineOptions { load_mode: LoadMode::Repack, ..EngineOptions::default() };
    let load = |progress: &mut dyn FnMut(f32)| {
        Engine::load_watched(&fixture("llama-gqa.gguf"), None, &options, Some(&cancel), Some(progress))
    };
    let mut told = Vec::new();
    load(&mut |done| told.push(done)).unwrap();
    assert!(told.is_sorted() && told.first().is_some_and(|f| *f > 0.0) && told.last().is_some_and(|f| *f <= 1.0));
    let mut n = 0;
    let stopped = load(&mut |_| {
        n += 1;
        cancel.cancel();
    });
    assert_eq!((stopped.err().map(|e| e.kind()), n), (Some(ErrorKind::Cancelled), 1));
}

#[test]
fn a_session_keeps_what_prompts_have_in_common() {
    let engine = engine("llama-gqa.gguf", 2);
    let mut session = session(&engine, &options());
    assert_eq!(session.sync(&tokens(&PROMPT), None).unwrap(), 9);
    let mut other = PROMPT;
    other[6] = 26;
    assert_eq!(session.sync(&tokens(&other), None).unwrap(), 3);
    assert_eq!(session.logits(), logits_after(&engine, &options(), &tokens(&other)));
    // The same prompt again: only the last token runs, for its logits.
    assert_eq!(session.sync(&tokens(&other), None).unwrap(), 1);
    assert_eq!(session.logits(), logits_after(&engine, &options(), &tokens(&other)));
}

/// The base of Qwen's rotations depends on the prompt's length: what was kept of a shorter one is made anew, but an answer goes on
/// with its prompt's.
#[test]
fn longer_prompts_turn_keys_anew() {
    let engine = engine("qwen-long.gguf", 2);
    let mut session = session(&engine, &options());
    // Trained with 8 tokens: 5 and 8 have one base, 9 to 16 another, 17 the next.
    let long: Vec<u32> = PROMPT.iter().chain(&PROMPT).copied().collect();
    for (n, n_run) in [(5, 5), (8, 3), (9, 9), (16, 7), (17, 17), (12, 12), (8, 8)] {
        assert_eq!(session.sync(&tokens(&long[..n]), None).unwrap(), n_run, "{n} tokens");
        assert_eq!(session.logits(), logits_after(&engine, &options(), &tokens(&long[..n])), "{n} tokens");
    }
    let answer: Vec<u32> = (0..6).map_while(|_| session.next_token().unwrap()).collect();
    assert_eq!(answer.len(), 6);
    let grown = session.logits().to_vec();
    session.sync(&tokens(&long[..8]), None).unwrap();
    session.extend(&answer[..5]).unwrap();
    assert_eq!(session.logits(), grown);
    let whole: Vec<u32> = long[..8].iter().chain(&answer[..5]).copied().collect();
    session.sync(&tokens(&whole), None).unwrap();
    assert_ne!(session.logits(), grown);
}

#[test]
fn answers_end_by_length_and_by_a_full_context() {
    let engine = engine("llama-gqa.gguf", 2);
    let mut params = options();
    params.sampler.ignore_eos = true;
    params.n_ctx = 20;
    let mut session = session(&engine, &params);
    session.sync(&tokens(&PROMPT), None).unwrap();
    let mut streamed = String::new();
    let mut on_text = |text: &str| {
        streamed.push_str(text);
        ControlFlow::Continue(())
    };
    let limit = Generation { n_predict: Some(4), ..Generation::default() };
    let answer = session.generate(&limit, &mut on_text).unwrap();
    assert_eq!((answer.finish, answer.tokens.len()), (Finish::Length, 4));
    assert_eq!(streamed, answer.text);

    let answer = session.generate(&Generation::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.finish, Finish::ContextFull);
    assert_eq!(session.n_past(), 20);

    let error = session.sync(&tokens(&[5; 21]), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextFull);
    assert!(error.to_string().contains("21") && error.to_string().contains("20"), "{error}");
    let error = session.sync(&tokens(&[5, u32::MAX]), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    // The session is still good after all that.
    session.sync(&tokens(&PROMPT), None).unwrap();
    assert_eq!(session.logits(), logits_after(&engine, &options(), &tokens(&PROMPT)));
}

#[test]
fn a_cancelled_session_can_go_on() {
    let engine = engine("llama-gqa.gguf", 2);
    let cancel = Cancel::default();
    let mut session = Session::new(&engine, &options(), &cancel).unwrap();
    cancel.cancel();
    assert_eq!(session.sync(&tokens(&PROMPT), None).unwrap_err().kind(), ErrorKind::Cancelled);
    cancel.reset();
    assert_eq!(session.next_token().unwrap_err().kind(), ErrorKind::Usage);
    session.sync(&tokens(&PROMPT), None).unwrap();
    assert_eq!(session.logits(), logits_after(&engine, &options(), &tokens(&PROMPT)));
    cancel.cancel();
    let answer = session.generate(&Generation::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.finish, Finish::Cancelled);
}

fn picture(seed: u8) -> Image {
    let rgb = (0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(37) >> 3) as u8 ^ seed).collect();
    Image { width: 40, height: 30, rgb }
}

#[test]
fn pictures_fill_their_places() -> Result<()> {
    let engine = engine("llava-mlp.gguf", 2);
    let first = engine.encode_image(&picture(0), None, None)?;
    let second = engine.encode_image(&picture(99), None, None)?;
    let logits = |text: &str, images: &[_]| -> Result<Vec<f32>> {
        Ok(logits_after(&engine, &SessionOptions { n_ctx: 256, ..options() }, &engine.prompt(text, images)?))
    };
    let a = logits("a<__media__>b<__media__>c", &[first.clone(), second.clone()])?;
    let b = logits("a<__media__>b<__media__>c", &[second.clone(), first.clone()])?;
    assert_ne!(a, b);
    let error = engine.prompt("no place", std::slice::from_ref(&first)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);

    // The second question about a picture does not run the picture again.
    let mut session = session(&engine, &SessionOptions { n_ctx: 256, ..options() });
    session.sync(&engine.prompt("<__media__>b", std::slice::from_ref(&first))?, None)?;
    let n = session.sync(&engine.prompt("<__media__>c", std::slice::from_ref(&first))?, None)?;
    assert!(n <= 2, "{n} tokens ran again");
    let n = session.sync(&engine.prompt("<__media__>c", &[second])?, None)?;
    assert!(n > first.n_tokens(), "{n} tokens ran for another picture");
    Ok(())
}

fn with_image_tokens(name: &str, n_threads: usize, image_tokens: Option<(usize, Reduction)>) -> Arc<Engine> {
    let image_tokens = image_tokens.map(|(n, by)| ImageTokens { n: NonZeroUsize::new(n).unwrap(), by });
    let options = EngineOptions { n_threads: Some(n_threads), image_tokens, ..EngineOptions::default() };
    Arc::new(Engine::load(&fixture(name), None, &options).unwrap_or_else(|e| panic!("{e}")))
}

#[test]
fn image_tokens_are_as_many_as_asked_for() -> Result<()> {
    // With and without newlines, with one and several feature layers.
    for name in ["llava-mlp.gguf", "llava-next.gguf", "llava-feature-layer.gguf", "llava-feature-layers.gguf"] {
        let logits = |n_threads: usize, image_tokens| -> Result<(usize, usize, Vec<f32>)> {
            let engine = with_image_tokens(name, n_threads, image_tokens);
            let image = engine.encode_image(&picture(0), None, None)?;
            let prompt = engine.prompt("a<__media__>b", std::slice::from_ref(&image))?;
            let logits = logits_after(&engine, &SessionOptions { n_ctx: 256, ..options() }, &prompt);
            assert!(logits.iter().all(|x| x.is_finite()));
            Ok((image.n_tokens(), image.n_tokens_all(), logits))
        };
        let all = logits(1, None)?;
        assert_eq!(all.0, all.1);
        for by in [Reduction::Saliency, Reduction::Coverage, Reduction::Downsample] {
            for n in [all.0, all.0 + 1, usize::MAX] {
                assert!(logits(2, Some((n, by)))? == all, "{name}: {n} of {} by {by:?}", all.0);
            }
            for n in [1, 2, all.0 / 4, all.0 / 2, all.0 - 1] {
                let fewer = logits(1, Some((n, by)))?;
                assert_eq!(fewer.1, all.0, "{name}");
                match by {
                    Reduction::Downsample => assert!((1..=n).contains(&fewer.0), "{name}: {} of {n}", fewer.0),
                    _ => assert_eq!(fewer.0, n, "{name}"),
                }
                assert_ne!(fewer.2, all.2, "{name}: {n} by {by:?}");
                assert!(logits(3, Some((n, by)))? == fewer, "{name}: {n} by {by:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn sessions_tell_pictures_of_other_lengths_apart() -> Result<()> {
    let of = |n| {
        let engine = with_image_tokens("llava-mlp.gguf", 1, Some((n, Reduction::Saliency)));
        engine.encode_image(&picture(0), None, None)
    };
    let (five, six, engine) = (of(5)?, of(6)?, engine("llava-mlp.gguf", 1));
    let mut session = session(&engine, &options());
    session.sync(&engine.prompt("a<__media__>", &[six])?, None)?;
    let n = session.sync(&engine.prompt("a<__media__>", &[five])?, None)?;
    assert_eq!(n, 5, "the rows of another choice were taken for these");
    Ok(())
}

#[test]
fn a_text_model_refuses_pictures() {
    let error = engine("llama-gqa.gguf", 1).encode_image(&picture(0), None, None).unwrap_err();
    assert!(error.to_string().contains("without mmproj"), "{error}");
}

#[test]
fn an_mmproj_of_another_width_is_refused_with_both_sizes() {
    let text = fixture("llama-k-quants.gguf");
    let error = Engine::load(&text, Some(&fixture("llava-mlp.gguf")), &EngineOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let message = error.to_string();
    assert!(message.contains("llava-mlp.gguf") && message.contains("256 wide"), "{message}");
}

#[test]
fn pictures_of_impossible_sizes_are_refused() {
    let engine = engine("llava-mlp.gguf", 1);
    for (width, height, n) in [(0, 0, 0), (0, 5, 0), (4, 4, 47), (usize::MAX, 2, 6)] {
        let error = engine.encode_image(&Image { width, height, rgb: vec![0; n] }, None, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
}

//! Memory: plans before anything is loaded, budgets, layers and encoders that do not stay, and what is given back.

use mmq::gguf::Gguf;
use mmq::media::Image;
use mmq::pipelines::plan::{Plan, Planner, Wish};
use mmq::pipelines::{Cancel, Engine, EngineOptions, KvType, LoadMode, Piece, Power, Prompt, Session, SessionOptions};
use mmq::text::SamplerParams;
use mmq::{ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn nano(name: &str) -> Gguf {
    Gguf::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/nano").join(name)).unwrap()
}

fn planner() -> Planner {
    Planner::new(&nano("nano.gguf"), Some(&nano("mmproj-nano.gguf"))).unwrap()
}

fn peak(plan: &Plan) -> u64 {
    assert_eq!(plan.peak, plan.phases.iter().map(|phase| phase.n_bytes).max().unwrap());
    plan.peak
}

#[test]
fn plans_follow_what_is_wished_for() -> Result<()> {
    let planner = planner();
    let plan = |change: &dyn Fn(&mut Wish)| {
        let mut wish = Wish { n_ctx: Some(512), n_ubatch: Some(128), ..Wish::new(None) };
        change(&mut wish);
        planner.plan(&wish)
    };
    let base = plan(&|_| ())?;
    let names: Vec<_> = base.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(names, ["load", "encode", "prefill", "decode"]);
    let n_bytes = nano("nano.gguf").n_bytes() + nano("mmproj-nano.gguf").n_bytes();
    assert!(base.peak > n_bytes && base.peak < n_bytes + (64 << 20), "{}", base.peak);

    let twice = plan(&|wish| wish.n_ctx = Some(1024))?;
    assert_eq!(twice.parts.kv, 2 * base.parts.kv);
    let floats = plan(&|wish| (wish.type_k, wish.type_v) = (Some(KvType::F32), Some(KvType::F32)))?;
    assert_eq!(floats.parts.kv, 2 * base.parts.kv);
    let small = plan(&|wish| wish.n_ubatch = Some(16))?;
    assert!(8 * small.parts.prefill_scratch < 2 * base.parts.prefill_scratch + 8 * small.parts.decode_scratch);
    let repacked = plan(&|wish| wish.load_mode = Some(LoadMode::Repack))?;
    assert!(repacked.parts.text_made > base.parts.text_made && repacked.parts.text_mapped < base.parts.text_mapped);
    let blind = plan(&|wish| wish.n_images = 0)?;
    assert!(peak(&blind) < peak(&base) && blind.parts.vision_made + blind.parts.image_rows == 0);
    let two = plan(&|wish| wish.n_images = 2)?;
    assert_eq!(two.parts.image_rows, 2 * base.parts.image_rows);
    Ok(())
}

#[test]
fn every_architecture_has_a_plan() -> Result<()> {
    for name in ["llava-mlp.gguf", "llava-next.gguf", "minigpt4.gguf", "minigpt4-concat.gguf", "qwen-vl.gguf"] {
        let gguf = Gguf::open(fixture(name))?;
        let plan = |n_images| Planner::new(&gguf, None)?.plan(&Wish { n_ctx: Some(256), n_images, ..Wish::new(None) });
        let (blind, seeing) = (plan(0)?, plan(1)?);
        assert!(peak(&seeing) > peak(&blind), "{name}");
        let parts = seeing.parts;
        assert!(parts.image_rows > 0 && parts.encode_scratch > 0 && parts.vision_made > 0, "{name}: {parts:?}");
        let weights = parts.text_mapped + parts.text_made + parts.vision_mapped + parts.vision_made;
        assert!(
            weights > gguf.n_bytes() / 8 && weights < 4 * gguf.n_bytes(),
            "{name}: {weights} of {}",
            gguf.n_bytes()
        );
    }
    Ok(())
}

#[test]
fn budgets_are_kept_or_refused_with_what_would_fit() {
    let planner = planner();
    let wish = |budget| Wish { image_size: (64, 64), budget, ..Wish::new(None) };
    let free = planner.plan(&wish(None)).unwrap();
    let wish = |budget| wish(Some(budget));
    let same = planner.plan(&wish(free.peak)).unwrap();
    assert_eq!((same.n_ctx, same.n_ubatch, same.type_k), (free.n_ctx, free.n_ubatch, KvType::F16));
    let mut budget = free.peak;
    let (mut fitted, mut last) = (0, free.peak);
    let error = loop {
        budget -= budget / 50;
        match planner.plan(&wish(budget)) {
            Ok(plan) => {
                assert!(peak(&plan) <= budget && plan.release_vision, "{plan:?}");
                (fitted, last) = (fitted + 1, plan.peak);
            }
            Err(error) => break error,
        }
    };
    assert!(fitted > 3, "{fitted} budgets were kept");
    assert_eq!(error.kind(), ErrorKind::Memory);
    let message = error.to_string();
    assert!(
        message.contains("nano.gguf: does not fit ") && message.contains("the least that it runs in is"),
        "{message}"
    );
    // The least that it names is one that it keeps.
    assert!(planner.plan(&wish(last)).is_ok());
    // What the user fixed stays.
    let fixed = Wish { n_ctx: Some(700), type_k: Some(KvType::F32), n_ubatch: Some(77), ..wish(last) };
    if let Ok(plan) = planner.plan(&fixed) {
        assert_eq!((plan.n_ctx, plan.type_k, plan.n_ubatch), (700, KvType::F32, 77));
    }
    let fixed = Wish { n_ctx: Some(700), type_k: Some(KvType::F32), n_ubatch: Some(77), ..wish(free.peak * 2) };
    let plan = planner.plan(&fixed).unwrap();
    assert_eq!((plan.n_ctx, plan.type_k, plan.n_ubatch), (700, KvType::F32, 77));
}

fn picture() -> Image {
    let rgb = (0..40 * 30 * 3).map(|i: u32| (i.wrapping_mul(37) >> 3) as u8).collect();
    Image { width: 40, height: 30, rgb }
}

/// Logits after a prompt, with a picture if the model sees, and after two more tokens.
fn logits(engine: &Arc<Engine>) -> Result<Vec<Vec<f32>>> {
    let sampler = SamplerParams { temp: 0.0, ignore_eos: true, ..SamplerParams::default() };
    let options = SessionOptions { n_ctx: 256, sampler, ..SessionOptions::default() };
    let mut session = Session::new(engine, &options, &Cancel::default())?;
    let prompt = if engine.has_vision() {
        engine.prompt("a<__media__>b", &[engine.encode_image(&picture(), None, None)?])?
    } else {
        Prompt { pieces: vec![Piece::Tokens(vec![1, 5, 40, 33, 7, 12])] }
    };
    session.sync(&prompt, None)?;
    let mut all = vec![session.logits().to_vec()];
    for _ in 0..3 {
        session.next_token()?;
        all.push(session.logits().to_vec());
        // In the middle of an answer.
        session.trim();
        engine.trim();
    }
    Ok(all)
}

#[test]
fn what_does_not_stay_in_memory_changes_no_answer() -> Result<()> {
    for name in ["llama-k-quants.gguf", "llama-gqa.gguf", "llava-mlp.gguf"] {
        let load = |options: EngineOptions| {
            let options = EngineOptions { n_threads: Some(2), ..options };
            Ok::<_, mmq::Error>(Arc::new(Engine::load(&fixture(name), None, &options)?))
        };
        let expected = logits(&load(EngineOptions::default())?)?;
        for resident_layers in [Some(0), Some(1), Some(99)] {
            let streaming = load(EngineOptions { resident_layers, ..EngineOptions::default() })?;
            assert_eq!(logits(&streaming)?, expected, "{name}, {resident_layers:?} layers stay");
        }
        for load_mode in [LoadMode::Mmap, LoadMode::Repack] {
            let released = load(EngineOptions { release_vision: true, load_mode, ..EngineOptions::default() })?;
            assert_eq!(logits(&released)?, expected, "{name}, {load_mode:?}, without its encoder");
        }
        for power in [Power::Low, Power::Balanced, Power::Fast] {
            let options = EngineOptions { power, n_threads: None, ..EngineOptions::default() };
            assert_eq!(
                logits(&Arc::new(Engine::load(&fixture(name), None, &options)?))?,
                expected,
                "{name}, {power:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn progress_only_rises() -> Result<()> {
    for (release_vision, load_mode) in [(false, LoadMode::Repack), (true, LoadMode::Mmap)] {
        let mut told = vec![Vec::new(), Vec::new(), Vec::new()];
        let [loading, encoding, reading] = &mut told[..] else { unreachable!() };
        let options = EngineOptions { load_mode, release_vision, ..EngineOptions::default() };
        let file = fixture("llava-mlp.gguf");
        let engine = Engine::load_watched(&file, None, &options, None, Some(&mut |done| loading.push(done)))?;
        let engine = Arc::new(engine);
        let image = engine.encode_image(&picture(), None, Some(&mut |done| encoding.push(done)))?;
        let options = SessionOptions { n_ctx: 256, n_ubatch: 16, ..SessionOptions::default() };
        let mut session = Session::new(&engine, &options, &Cancel::default())?;
        session.sync(&engine.prompt("a<__media__>b", &[image])?, Some(&mut |done| reading.push(done)))?;
        for told in &told {
            assert!(told.is_sorted() && told.iter().all(|done| (0.0..=1.0).contains(done)), "{told:?}");
        }
        assert_eq!(told[1].last(), Some(&1.0));
    }
    Ok(())
}

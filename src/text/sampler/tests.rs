//! Each link against cases worked out by hand, and the chain as a whole.

use super::candidates::Candidates;
use super::*;
use crate::ErrorKind;
use proptest::prelude::*;

/// Candidates whose probabilities are `p`.
fn of(p: &[f32]) -> Candidates {
    let mut c = Candidates::default();
    c.fill(&p.iter().map(|p| p.ln()).collect::<Vec<_>>());
    c
}

fn ids(c: &Candidates) -> Vec<u32> {
    let mut ids: Vec<u32> = c.list.iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

fn sampler(change: impl FnOnce(&mut SamplerParams)) -> Sampler {
    let mut params = SamplerParams { seed: Some(42), ..Default::default() };
    change(&mut params);
    Sampler::new(&params, &Tokenizer::bytes(&["</s>"])).unwrap()
}

#[test]
fn top_k_keeps_the_best_in_order() {
    let mut c = of(&[0.1, 0.4, 0.2, 0.3]);
    c.top_k(3);
    assert_eq!(c.list.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 3, 2]);
    c.top_k(0);
    assert_eq!(c.list.len(), 3);
}

#[test]
fn top_p_keeps_until_the_sum() {
    let mut c = of(&[0.1, 0.5, 0.15, 0.25]);
    c.top_p(0.7, 0);
    assert_eq!(ids(&c), [1, 3]);
    let mut c = of(&[0.1, 0.5, 0.15, 0.25]);
    c.top_p(0.0, 3);
    assert_eq!(ids(&c), [1, 2, 3]);
    // More than the first few hundred are needed.
    let mut c = of(&[1.0 / 1000.0; 1000]);
    c.top_p(0.5, 0);
    assert!((499..=501).contains(&c.list.len()));
    assert_eq!(c.list[0].id, 0);
}

#[test]
fn min_p_is_relative_to_the_best() {
    let mut c = of(&[0.04, 0.5, 0.06, 0.4]);
    c.min_p(0.1, 0);
    assert_eq!(ids(&c), [1, 2, 3]);
    let mut c = of(&[0.04, 0.5, 0.06, 0.4]);
    c.min_p(0.9, 3);
    assert_eq!(ids(&c), [1, 2, 3]);
}

#[test]
fn typical_p_prefers_the_expected_surprise() {
    // Entropy 1.17 nats; surprises 0.69, 1.39, 1.90, 2.30: distances 0.48, 0.21, 0.72, 1.13.
    let mut c = of(&[0.5, 0.25, 0.15, 0.1]);
    c.typical_p(0.2, 0);
    assert_eq!(ids(&c), [1]);
    let mut c = of(&[0.5, 0.25, 0.15, 0.1]);
    c.typical_p(0.5, 0);
    assert_eq!(ids(&c), [0, 1]);
}

#[test]
fn top_n_sigma_masks_far_logits() {
    let mut c = Candidates::default();
    // Mean 2, standard deviation 2.
    c.fill(&[0.0, 0.0, 4.0, 4.0, f32::NEG_INFINITY]);
    c.top_n_sigma(1.0);
    assert_eq!(c.list.iter().filter(|c| c.logit.is_finite()).count(), 2);
}

#[test]
fn xtc_drops_all_but_the_last_above_the_threshold() {
    let mut c = of(&[0.4, 0.3, 0.2, 0.1]);
    c.xtc(1.0, 0.15, 0, || 0.5);
    assert_eq!(ids(&c), [2, 3]);
    c.xtc(0.4, 0.15, 0, || 0.5);
    assert_eq!(ids(&c), [2, 3], "not this time");
    c.xtc(1.0, 0.6, 0, || panic!("off, so no number is drawn"));
}

#[test]
fn temperature_scales_and_follows_the_entropy() {
    let mut c = of(&[0.25, 0.75]);
    let before = c.list[1].logit;
    c.temperature(0.5, 0.0, 1.0);
    assert_eq!(c.list[1].logit, before / 0.5);
    // Uniform: the highest entropy, so the upper end of the range.
    let mut c = of(&[0.5, 0.5]);
    let before = c.list[0].logit;
    c.temperature(1.0, 0.5, 1.0);
    assert!((c.list[0].logit - before / 1.5).abs() < 1e-6);
    let mut c = of(&[0.25, 0.75]);
    c.temperature(0.0, 0.0, 1.0);
    assert_eq!(ids(&c), [1]);
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut s = sampler(|p| p.temp = 0.0);
    assert_eq!(s.sample(&[0.0, 3.0, 3.0, f32::NAN]), 1);
    assert_eq!(s.sample(&[f32::NAN; 4]), 0);
    assert_eq!(s.sample(&[f32::NEG_INFINITY, f32::INFINITY, 1.0]), 1);
    assert_eq!(s.sample(&[]), 0);
}

#[test]
fn penalties_hit_what_was_seen() {
    let mut s = sampler(|p| {
        p.temp = 0.0;
        p.repeat_penalty = 2.0;
        p.repeat_last_n = 2;
    });
    s.accept(0);
    assert_eq!(s.sample(&[3.0, 2.0, 1.0]), 1, "3 / 2 < 2");
    s.accept(1);
    assert_eq!(s.sample(&[3.0, 2.0, 1.0]), 0);
    s.accept(1);
    s.accept(2);
    assert_eq!(s.sample(&[1.9, 2.0, -1.0]), 0, "0 is out of the window, 1 and 2 are in it");
    let mut s = sampler(|p| {
        p.temp = 0.0;
        p.frequency_penalty = 0.5;
        p.presence_penalty = 0.25;
    });
    s.accept(0);
    s.accept(0);
    assert_eq!(s.sample(&[2.0, 0.8]), 1, "2 - 2 * 0.5 - 0.25 < 0.8");
    s.reset();
    assert_eq!(s.sample(&[2.0, 0.8]), 0);
}

#[test]
fn biases_and_ignored_ends() {
    let mut s = sampler(|p| {
        p.temp = 0.0;
        p.logit_bias = vec![(1, f32::NEG_INFINITY), (2, 5.0)];
    });
    assert_eq!(s.sample(&[1.0, 9.0, 0.0]), 2);
    let mut logits = vec![0.0; 257];
    logits[256] = 9.0;
    assert_eq!(sampler(|p| p.temp = 0.0).sample(&logits), 256);
    let mut s = sampler(|p| {
        p.temp = 0.0;
        p.ignore_eos = true;
    });
    assert_ne!(s.sample(&logits), 256);
}

#[test]
fn dry_stops_a_repetition() {
    let dry = |breakers: &[&str]| {
        sampler(|p| {
            p.temp = 0.0;
            p.dry_multiplier = 1.0;
            p.dry_base = 2.0;
            p.dry_sequence_breakers = breakers.iter().map(|b| b.to_string()).collect();
        })
    };
    let token = |b: u8| Tokenizer::bytes(&[]).encode(&(b as char).to_string(), false, false)[0];
    let text = |s: &mut Sampler, text: &str| text.bytes().for_each(|b| s.accept(token(b)));
    let mut logits = vec![-9.0; 257];
    logits[token(b'd') as usize] = 3.0;
    logits[token(b'x') as usize] = 1.5;
    let mut s = dry(&[]);
    text(&mut s, "abcd abc");
    // "abc" was seen, three tokens; the fourth costs 2^(3 - 2) = 2.
    assert_eq!(s.sample(&logits), token(b'x'));
    let mut s = dry(&["b"]);
    text(&mut s, "abcd abc");
    assert_eq!(s.sample(&logits), token(b'd'), "only \"c\" since the breaker: too short");
    let mut s = dry(&["d"]);
    text(&mut s, "abcd abc");
    assert_eq!(s.sample(&logits), token(b'd'), "a breaker itself is free");
}

#[test]
fn same_seed_same_tokens() {
    let run = |s: &mut Sampler| -> Vec<u32> {
        (0..50)
            .map(|i| {
                let logits: Vec<f32> = (0..257).map(|k| ((k * 7919 + i * 104_729) % 1000) as f32 / 200.0).collect();
                let token = s.sample(&logits);
                s.accept(token);
                token
            })
            .collect()
    };
    for mirostat in 0..=2 {
        let mut s = sampler(|p| p.mirostat = mirostat);
        let first = run(&mut s);
        assert!(first.iter().any(|t| *t != first[0]));
        s.reset();
        assert_eq!(run(&mut s), first);
        assert_eq!(s.seed(), 42);
    }
    let mut s = sampler(|p| {
        p.samplers.push(SamplerKind::AdaptiveP);
        p.adaptive_target = 0.3;
    });
    let first = run(&mut s);
    s.reset();
    assert_eq!(run(&mut s), first);
}

#[test]
fn adaptive_p_seeks_its_target() {
    let mut s = sampler(|p| {
        p.samplers = vec![SamplerKind::AdaptiveP];
        p.adaptive_target = 0.2;
    });
    let logits: Vec<f32> = [0.7f32, 0.2, 0.05, 0.05].iter().map(|p| p.ln()).collect();
    let hits = (0..200).filter(|_| s.sample(&logits) == 1).count();
    assert!(hits > 100, "{hits}");
}

#[test]
fn frequencies_follow_the_probabilities() {
    let mut s = sampler(|p| p.samplers = vec![]);
    let logits: Vec<f32> = [0.7f32, 0.2, 0.1].iter().map(|p| p.ln()).collect();
    let mut counts = [0; 3];
    for _ in 0..10_000 {
        counts[s.sample(&logits) as usize] += 1;
    }
    assert!((6800..7200).contains(&counts[0]) && (1800..2200).contains(&counts[1]), "{counts:?}");
}

#[test]
fn names_and_letters() {
    let default = SamplerParams::default().samplers;
    assert_eq!(SamplerKind::parse_chars("edskypmxt").unwrap(), default);
    let names: Vec<&str> = default.iter().map(|k| k.name()).collect();
    assert_eq!(SamplerKind::parse_names(&names.join(";")).unwrap(), default);
    use SamplerKind::*;
    assert_eq!(
        SamplerKind::parse_names("Top-K;topp;nucleus;temp;typ;").unwrap(),
        [TopK, TopP, TopP, Temperature, TypicalP]
    );
    let error = SamplerKind::parse_names("top_k;best").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("samplers") && error.to_string().contains("best"));
    assert!(SamplerKind::parse_chars("kz").unwrap_err().to_string().contains("'z'"));
}

#[test]
fn bad_values_name_their_option() {
    let fails = |option: &str, change: fn(&mut SamplerParams)| {
        let mut params = SamplerParams::default();
        change(&mut params);
        let error = Sampler::new(&params, &Tokenizer::bytes(&[])).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(option), "{error}");
    };
    fails("temp", |p| p.temp = f32::NAN);
    fails("top-p", |p| p.top_p = 1.5);
    fails("repeat-penalty", |p| p.repeat_penalty = 0.0);
    fails("repeat-last-n", |p| p.repeat_last_n = -2);
    fails("mirostat", |p| p.mirostat = 3);
    fails("logit-bias", |p| p.logit_bias = vec![(256, 0.0)]);
    fails("adaptive-decay", |p| p.adaptive_decay = 1.0);
}

proptest! {
    #[test]
    fn any_logits_give_a_token(
        logits in prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NEG_INFINITY), -9.0f32..9.0], 1..300),
        mirostat in 0u8..3, top_k in -1i32..50, p in 0.0f32..1.0, temp in 0.0f32..3.0, sigma in -1.0f32..2.0,
    ) {
        let mut s = sampler(|params| {
            (params.mirostat, params.top_k, params.top_p, params.typical_p, params.temp) = (mirostat, top_k, p, p, temp);
            (params.top_n_sigma, params.xtc_probability, params.dynatemp_range, params.dry_multiplier) = (sigma, 0.5, 0.3, 1.0);
            (params.repeat_penalty, params.adaptive_target) = (1.1, p);
            params.samplers.push(SamplerKind::AdaptiveP);
        });
        for _ in 0..5 {
            let token = s.sample(&logits);
            prop_assert!((token as usize) < logits.len());
            s.accept(token);
        }
    }
}

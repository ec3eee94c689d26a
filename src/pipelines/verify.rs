//! Replays a fixture: a model file that also holds what the upstream implementation computed with its weights
//! (`tests/fixtures/README.md` has the format), and compares every recorded activation with ours.

use super::prompt::{EncodedImage, Piece, Prompt};
use super::{Cancel, Engine, EngineOptions, LoadMode, Session, SessionOptions};
use crate::architectures;
use crate::blocks::kv_cache::KvType;
use crate::device::Cpu;
use crate::gguf::{Gguf, TensorInfo};
use crate::media::Image;
use crate::ops::{Cx, Trace};
use crate::tensor::{Loader, Loading, Precision, Prepare};
use crate::text::SamplerParams;
use crate::{Dtype, Result, bail};
use mmq_kernels::Activations;
use std::sync::Arc;

/// Largest error that is allowed without `ref.tolerance`, relative to the largest recorded value: single precision.
pub const EXACT: f32 = 1e-4;
/// Largest error that is allowed where a vision encoder's weights are rounded to 8 bits: the widths of fixtures are tiny, so
/// that errors hardly cancel out.
pub const INT8: f32 = 0.1;

/// What a fixture's replay gave.
#[derive(Clone, Debug)]
pub struct Report {
    /// The fixture's file name.
    pub file: String,
    /// The upstream that it was recorded from.
    pub source: String,
    /// Names of the architectures that ran.
    pub architectures: Vec<&'static str>,
    /// Largest error allowed, relative to the largest absolute value of a recorded tensor.
    pub tolerance: f32,
    /// One for each recorded activation, case by case in the order of computation.
    pub checks: Vec<Check>,
}

impl Report {
    /// The first activation that does not agree.
    pub fn first_failure(&self) -> Option<&Check> {
        self.checks.iter().find(|check| !check.passed)
    }

    /// The activation with the largest relative error.
    pub fn worst(&self) -> Option<&Check> {
        self.checks.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))
    }
}

/// How one recorded activation compares.
#[derive(Clone, Debug)]
pub struct Check {
    /// The recorded case: a prompt with its pictures.
    pub case: String,
    /// The activation's name.
    pub activation: String,
    /// Its number of values.
    pub n: usize,
    /// Largest absolute difference; infinite if there is nothing of that size to compare with, or not a number.
    pub max_abs_error: f32,
    /// The same, divided by the largest absolute value that is recorded.
    pub relative_error: f32,
    /// Cosine of the angle between recorded and computed values.
    pub cosine: f32,
    /// Whether the relative error is within the tolerance.
    pub passed: bool,
    /// What is wrong besides values, if anything: not computed, or of another size.
    pub note: Option<String>,
}

/// Loads `gguf` as `options` say, runs its recorded inputs and compares. What is recorded is float arithmetic: with a
/// `vision_precision` other than [`Precision::F32`] up to [`INT8`] is allowed.
///
/// # Errors
/// A file without recorded activations or with malformed ones, or that cannot be loaded. Activations that do not agree
/// are no error but in the report.
pub fn verify(gguf: &Gguf, options: &EngineOptions) -> Result<Report> {
    let meta = gguf.metadata();
    let Some(cases) = meta.strings("ref.cases")? else {
        bail!(Format, "{}: ref.cases is missing: the file holds no recorded activations", gguf.name());
    };
    let tolerance = meta.f32("ref.tolerance")?.unwrap_or(EXACT);
    if !(tolerance >= 0.0 && tolerance.is_finite()) {
        bail!(Format, "{}: ref.tolerance: {tolerance} is no tolerance", gguf.name());
    }
    let tolerance = if options.vision_precision == Precision::F32 { tolerance } else { tolerance.max(INT8) };
    let runner = Runner::load(gguf, options)?;
    let mut checks = Vec::new();
    for case in cases {
        let fixture = Case::read(gguf, case)?;
        let mut trace = Trace::default();
        let greedy = runner.run(&fixture, &mut trace)?;
        fixture.compare(&trace, &greedy, tolerance, &mut checks)?;
    }
    if checks.is_empty() {
        bail!(Format, "{}: ref.cases names no recorded activation", gguf.name());
    }
    Ok(Report {
        file: gguf.name().to_owned(),
        source: meta.str("ref.source")?.unwrap_or("unknown").to_owned(),
        architectures: architectures::of(gguf).map(|arch| arch.name).collect(),
        tolerance,
        checks,
    })
}

/// A loaded fixture: a whole model, or a vision encoder alone.
enum Runner {
    Whole(Arc<Engine>),
    Vision(Box<dyn architectures::VisionModel>, Cpu),
}

impl Runner {
    fn load(gguf: &Gguf, options: &EngineOptions) -> Result<Runner> {
        if gguf.tensor("token_embd.weight").is_some() {
            return Ok(Runner::Whole(Arc::new(Engine::from_gguf(gguf, None, options)?)));
        }
        let device = Cpu::new(options.n_threads);
        let mut unwatched = |_| {};
        let prepare = Prepare::new(&device.team, &mut unwatched);
        let loading = Loading {
            prepare: Some(&prepare),
            vision: options.vision_precision,
            repack: options.load_mode == LoadMode::Repack,
            noted: None,
        };
        let vision = architectures::load_vision(Loader { gguf, loading })?;
        Ok(Runner::Vision(vision, device))
    }

    /// Traces a case; returns as many greedy tokens as are recorded.
    fn run(&self, case: &Case<'_>, trace: &mut Trace) -> Result<Vec<u32>> {
        let engine = match self {
            Runner::Whole(engine) => engine,
            Runner::Vision(model, device) => {
                let mut activations = Activations::default();
                let mut cx = Cx::new(device, &mut activations);
                cx.trace = Some(trace);
                for (i, image) in case.images.iter().enumerate() {
                    model.encode(&mut cx, image, None, &format!(".{i}"))?;
                }
                return Ok(Vec::new());
            }
        };
        let images = case.images.iter().enumerate();
        let images = images.map(|(i, image)| engine.encode_traced(image, i, trace)).collect::<Result<Vec<_>>>()?;
        let prompt = case.prompt(engine, images)?;
        if prompt.pieces.is_empty() {
            return Ok(Vec::new());
        }
        let options = SessionOptions {
            n_ctx: prompt.n_tokens() + case.n_greedy,
            cache_type_k: KvType::F32,
            cache_type_v: KvType::F32,
            sampler: SamplerParams { temp: 0.0, ..SamplerParams::default() },
            ..SessionOptions::default()
        };
        Session::new(engine, &options, &Cancel::default())?.sync_traced(&prompt, trace)?;
        let mut greedy = Vec::new();
        if case.n_greedy > 0 {
            let mut session = Session::new(engine, &options, &Cancel::default())?;
            session.sync(&prompt, None)?;
            while let Some(token) = session.next_token()? {
                greedy.push(token);
                if greedy.len() == case.n_greedy {
                    break;
                }
            }
        }
        Ok(greedy)
    }
}

/// A recorded case.
struct Case<'a> {
    gguf: &'a Gguf,
    name: &'a str,
    /// -1 stands for the next picture.
    tokens: Vec<i32>,
    images: Vec<Image>,
    n_greedy: usize,
}

impl<'a> Case<'a> {
    fn read(gguf: &'a Gguf, name: &'a str) -> Result<Case<'a>> {
        let mut case = Case { gguf, name, tokens: Vec::new(), images: Vec::new(), n_greedy: 0 };
        if let Some(info) = case.tensor("in.tokens") {
            case.tokens = case.ints(info)?;
        }
        while let Some(info) = case.tensor(&format!("in.image.{}", case.images.len())) {
            let &[height, width, 3] = info.shape.as_slice() else {
                bail!(
                    Format,
                    "{}: tensor \"{}\": expected [height, width, 3], got {:?}",
                    gguf.name(),
                    info.name,
                    info.shape
                );
            };
            if info.dtype != Dtype::I8 || height == 0 || width == 0 {
                bail!(
                    Format,
                    "{}: tensor \"{}\": {} of {height}x{width} is no picture",
                    gguf.name(),
                    info.name,
                    info.dtype
                );
            }
            case.images.push(Image { width, height, rgb: gguf.bytes(info).to_vec() });
        }
        if let Some(info) = case.tensor("greedy") {
            case.n_greedy = info.n_elements();
        }
        if case.tokens.is_empty() && case.images.is_empty() {
            bail!(
                Format,
                "{}: case \"{name}\" has neither ref.{name}.in.tokens nor ref.{name}.in.image.0",
                gguf.name()
            );
        }
        Ok(case)
    }

    fn tensor(&self, activation: &str) -> Option<&'a TensorInfo> {
        self.gguf.tensor(&format!("ref.{}.{activation}", self.name))
    }

    fn ints(&self, info: &TensorInfo) -> Result<Vec<i32>> {
        if info.dtype != Dtype::I32 {
            bail!(Format, "{}: tensor \"{}\": expected I32, got {}", self.gguf.name(), info.name, info.dtype);
        }
        let bytes = self.gguf.bytes(info);
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    fn floats(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        if info.dtype != Dtype::F32 {
            bail!(Format, "{}: tensor \"{}\": expected F32, got {}", self.gguf.name(), info.name, info.dtype);
        }
        let bytes = self.gguf.bytes(info);
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn prompt(&self, engine: &Engine, images: Vec<Arc<EncodedImage>>) -> Result<Prompt> {
        let n_vocab = engine.text.n_vocab();
        let mut prompt = Prompt::default();
        let mut images = images.into_iter();
        for token in &self.tokens {
            match (usize::try_from(*token), prompt.pieces.last_mut()) {
                (Ok(token), _) if token >= n_vocab => {
                    bail!(
                        Format,
                        "{}: ref.{}.in.tokens: {token} in a vocabulary of {n_vocab}",
                        self.gguf.name(),
                        self.name
                    )
                }
                (Ok(token), Some(Piece::Tokens(tokens))) => tokens.push(token as u32),
                (Ok(token), _) => prompt.pieces.push(Piece::Tokens(vec![token as u32])),
                (Err(_), _) => match images.next() {
                    Some(image) => prompt.pieces.push(Piece::Image(image)),
                    None => bail!(Format, "{}: case \"{}\" has more places than pictures", self.gguf.name(), self.name),
                },
            }
        }
        if images.next().is_some() && !self.tokens.is_empty() {
            bail!(Format, "{}: case \"{}\" has more pictures than places", self.gguf.name(), self.name);
        }
        Ok(prompt)
    }

    /// Appends a check for each recorded activation: first those that were computed, in that order, then the others.
    fn compare(&self, trace: &Trace, greedy: &[u32], tolerance: f32, checks: &mut Vec<Check>) -> Result<()> {
        for (name, ours) in trace.iter() {
            if let Some(info) = self.tensor(name) {
                let theirs = self.floats(info)?;
                let outcome = if theirs.len() == ours.len() {
                    Ok(Score::of(&theirs, ours))
                } else {
                    Err(format!("expected {} values, got {}", theirs.len(), ours.len()))
                };
                checks.push(self.check(name, theirs.len(), outcome, tolerance));
            }
        }
        let prefix = format!("ref.{}.", self.name);
        for info in self.gguf.tensors() {
            let Some(name) = info.name.strip_prefix(&prefix) else { continue };
            let outcome = if name == "greedy" {
                let theirs = self.ints(info)?;
                let equal = theirs.iter().map(|t| i64::from(*t)).eq(greedy.iter().map(|t| i64::from(*t)));
                if equal { Ok(Score::EXACT) } else { Err(format!("expected the tokens {theirs:?}, got {greedy:?}")) }
            } else if !name.starts_with("in.") && trace.get(name).is_none() {
                Err("recorded, but never computed".to_owned())
            } else {
                continue;
            };
            checks.push(self.check(name, info.n_elements(), outcome, tolerance));
        }
        Ok(())
    }

    fn check(&self, activation: &str, n: usize, outcome: Result<Score, String>, tolerance: f32) -> Check {
        let (score, note) = match outcome {
            Ok(score) => (score, None),
            Err(note) => (Score::INCOMPARABLE, Some(note)),
        };
        Check {
            case: self.name.to_owned(),
            activation: activation.to_owned(),
            n,
            max_abs_error: score.max_abs_error,
            relative_error: score.relative_error,
            cosine: score.cosine,
            passed: score.relative_error <= tolerance,
            note,
        }
    }
}

/// How near two tensors are.
struct Score {
    max_abs_error: f32,
    relative_error: f32,
    cosine: f32,
}

impl Score {
    const EXACT: Score = Score { max_abs_error: 0.0, relative_error: 0.0, cosine: 1.0 };
    const INCOMPARABLE: Score = Score { max_abs_error: f32::INFINITY, relative_error: f32::INFINITY, cosine: 0.0 };

    fn of(theirs: &[f32], ours: &[f32]) -> Score {
        let (mut worst, mut largest) = (0f32, 0f32);
        let (mut dot, mut theirs_2, mut ours_2) = (0f64, 0f64, 0f64);
        for (a, b) in theirs.iter().zip(ours) {
            let error = (a - b).abs();
            // `max` would drop what is not a number.
            worst = worst.max(if error.is_nan() { f32::INFINITY } else { error });
            largest = largest.max(a.abs());
            let (a, b) = (f64::from(*a), f64::from(*b));
            dot += a * b;
            theirs_2 += a * a;
            ours_2 += b * b;
        }
        if worst == 0.0 {
            return Score::EXACT;
        }
        let cosine = dot / (theirs_2 * ours_2).sqrt();
        Score {
            max_abs_error: worst,
            relative_error: if worst.is_finite() { worst / largest } else { f32::INFINITY },
            cosine: if cosine.is_finite() { cosine as f32 } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Score;

    #[test]
    fn scores() {
        let near = Score::of(&[3.0, -4.0], &[3.0, -3.0]);
        assert_eq!((near.max_abs_error, near.relative_error), (1.0, 0.25));
        assert!(near.cosine > 0.98 && near.cosine < 1.0);
        let same = Score::of(&[0.0; 3], &[0.0; 3]);
        assert_eq!((same.relative_error, same.cosine), (0.0, 1.0));
    }

    #[test]
    fn what_is_not_a_number_never_agrees() {
        for (theirs, ours) in [(1.0, f32::NAN), (f32::NAN, 1.0), (0.0, f32::INFINITY), (f32::INFINITY, 1.0)] {
            let score = Score::of(&[1.0, theirs], &[1.0, ours]);
            assert_eq!(score.relative_error, f32::INFINITY, "{theirs} {ours}");
        }
        // Nor does anything beside a record of nothing but zeros.
        assert_eq!(Score::of(&[0.0], &[1e-9]).relative_error, f32::INFINITY);
    }
}

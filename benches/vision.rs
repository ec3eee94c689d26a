//! What it costs to encode a picture, and what rounding to 8 bits costs of its quality.
//!
//! `cargo bench --bench vision -- MMPROJ PICTURE [THREADS] [RUNS]` encodes the picture in F32 and in 8 bits by turns. It prints
//! the median time of each, and the cosine between the two for each image token, at the encoder's features and behind the projector.

use mmq::architectures::{VisionModel, load_vision};
use mmq::device::Cpu;
use mmq::gguf::Gguf;
use mmq::media::{self, DecodeOptions, Image};
use mmq::ops::{Cx, Trace};
use mmq::tensor::{Loader, Loading, Precision, Prepare};
use mmq_kernels::Activations;
use std::time::Instant;

fn main() -> mmq::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [mmproj, picture, rest @ ..] = args.as_slice() else {
        println!("usage: cargo bench --bench vision -- MMPROJ PICTURE [THREADS] [RUNS]");
        return Ok(());
    };
    let number = |i: usize| rest.get(i).and_then(|n| n.parse().ok());
    let cpu = Cpu::new(number(0));
    let gguf = Gguf::open(mmproj)?;
    let image = media::load(picture, &DecodeOptions::default())?;
    let models = [Precision::F32, Precision::Int8].map(|vision| {
        let start = Instant::now();
        let mut unwatched = |_| {};
        let prepare = Prepare::new(&cpu.team, &mut unwatched);
        let loading = Loading { prepare: Some(&prepare), vision, ..Loading::default() };
        let model = load_vision(Loader { gguf: &gguf, loading });
        println!("{vision:?}: loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        model
    });
    let [float, int8] = models;
    let (float, int8) = (float?, int8?);
    println!("{}, {} threads, kernels {}", int8.describe(), cpu.team.n_threads(), cpu.kernels.level.name());

    let (a, b) = (traced(&cpu, &*float, &image)?, traced(&cpu, &*int8, &image)?);
    let rows = |trace: &Trace, name: &str| trace.get(name).expect("every encoder records it").to_vec();
    let n_tokens = rows(&a, "mm.out").len() / int8.n_embd();
    for name in ["v.feature", "mm.out"] {
        report(name, &rows(&a, name), &rows(&b, name), n_tokens);
    }

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..number(1).unwrap_or(5) {
        for (model, times) in [&float, &int8].into_iter().zip(&mut times) {
            let mut activations = Activations::default();
            let start = Instant::now();
            model.encode(&mut Cx::new(&cpu, &mut activations), &image, None, "")?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (name, times) in ["F32", "Int8"].into_iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("{name}: {:.0} ms ({:.0} to {:.0})", times[times.len() / 2], times[0], times[times.len() - 1]);
    }
    Ok(())
}

fn traced(cpu: &Cpu, model: &dyn VisionModel, image: &Image) -> mmq::Result<Trace> {
    let (mut activations, mut trace) = (Activations::default(), Trace::default());
    let mut cx = Cx::new(cpu, &mut activations);
    cx.trace = Some(&mut trace);
    model.encode(&mut cx, image, None, "")?;
    Ok(trace)
}

/// The cosines between the rows of `a` and of `b`.
fn report(name: &str, a: &[f32], b: &[f32], n_rows: usize) {
    let width = a.len() / n_rows;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
    let cosines: Vec<f64> = rows.map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).collect();
    let mean = cosines.iter().sum::<f64>() / n_rows as f64;
    let worst = cosines.iter().copied().fold(1.0, f64::min);
    println!("{name}: {n_rows} tokens of {width}, cosine {mean:.6} mean, {worst:.6} worst");
}

//! What `mmq imatrix` tells: progress on standard error, the result on standard output.

use crate::Result;
use crate::cli::{clock, printable, printed, say};
use crate::pipelines::Engine;
use crate::pipelines::calibrate::Calibration;
use crate::quantize::{Imatrix, LayerStatistics, Statistics};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// The course of a collection.
pub struct Report {
    quiet: bool,
    json: bool,
    start: Instant,
    n: usize,
    done: usize,
    /// How many of them are in the file.
    saved: usize,
    /// Whether the cursor stands behind numbers of chunks.
    within_line: bool,
}

impl Report {
    /// A report that is silent until the end if `quiet`, and whose end is an object if `json`.
    pub fn new(quiet: bool, json: bool) -> Report {
        Report { quiet, json, start: Instant::now(), n: 0, done: 0, saved: 0, within_line: false }
    }

    /// `n` chunks and samples follow.
    pub fn begin(&mut self, n: usize) {
        self.n = n;
        self.start = Instant::now();
    }

    /// One more is done; gives how many are.
    pub fn step(&mut self, calibration: &Calibration) -> usize {
        self.done += 1;
        if self.quiet {
            return self.done;
        }
        if self.done == 1 {
            let pass = self.start.elapsed();
            let eta = clock(pass * self.n as u32);
            say(&format!("{} chunks, {:.2} seconds per pass - ETA {eta}", self.n, pass.as_secs_f64()));
        }
        let ppl = calibration.perplexity().ppl.value;
        let ppl = if ppl.is_nan() { String::new() } else { format!("{ppl:.4}") };
        let mut err = std::io::stderr();
        // Nobody may be there to read it.
        let _ = write!(err, "[{}]{ppl},", self.done);
        let _ = err.flush();
        self.within_line = true;
        self.done
    }

    /// What is done so far lies in `path`.
    pub fn saved(&mut self, path: &Path) {
        self.saved = self.done;
        if self.quiet {
            return;
        }
        self.end_line();
        let left = self.start.elapsed().mul_f64((self.n - self.done) as f64 / self.done as f64);
        say(&format!("{} of {} chunks are in {} - ETA {}", self.done, self.n, path.display(), clock(left)));
    }

    /// Nothing more will come.
    pub fn stopped(&mut self, path: &Path) {
        if self.quiet {
            return;
        }
        self.end_line();
        match self.saved {
            0 => say(&format!("stopped before anything was written to {}", path.display())),
            n => say(&format!("stopped; {n} of {} chunks are in {}", self.n, path.display())),
        }
    }

    fn end_line(&mut self) {
        if std::mem::take(&mut self.within_line) {
            let _ = writeln!(std::io::stderr());
        }
    }

    /// The result; `calibration` is missing if files were merged only.
    pub fn finish(
        &mut self,
        engine: Option<&Engine>,
        calibration: Option<&Calibration>,
        imatrix: &Imatrix,
        path: &Path,
    ) -> Result<()> {
        self.end_line();
        let partial: Vec<&str> = imatrix.entries().filter(|(_, e)| e.is_partial()).map(|(name, _)| name).collect();
        if !self.quiet {
            partial.iter().for_each(|name| say(&format!("note: {name}: not every expert was seen")));
        }
        let seconds = self.start.elapsed();
        let mut text = String::new();
        if self.json {
            let mut object = json!({
                "output": path.display().to_string(),
                "n_entries": imatrix.len(),
                "n_chunks": imatrix.n_chunks(),
                "chunk_size": imatrix.chunk_size(),
                "datasets": imatrix.datasets(),
                "partial": partial,
            });
            if let (Some(engine), Some(calibration)) = (engine, calibration) {
                object["model"] = engine.name().into();
                object["collected"] = json!({
                    "n_chunks": calibration.n_chunks(),
                    "n_tokens": calibration.n_tokens(),
                    "n_images": calibration.n_images(),
                    "seconds": seconds.as_secs_f64(),
                });
                if calibration.n_scored() > 0 {
                    let ppl = calibration.perplexity().ppl;
                    object["ppl"] =
                        json!({ "value": ppl.value, "error": ppl.error, "n_tokens": calibration.n_scored() });
                }
            }
            writeln!(text, "{object:#}").expect("a String takes everything");
        } else {
            if let Some(calibration) = calibration {
                if calibration.n_scored() > 0 {
                    let ppl = calibration.perplexity().ppl;
                    text += &format!("Final estimate: PPL = {:.4} +/- {:.5}\n", ppl.value, ppl.error);
                }
                let (tokens, images) = (calibration.n_tokens(), calibration.n_images());
                text += &format!("collected on {tokens} tokens and {images} pictures in {}\n", clock(seconds));
            }
            let (tensors, chunks) = (imatrix.len(), imatrix.n_chunks());
            text += &format!("{}: {tensors} tensors, {chunks} chunks\n", path.display());
            text = printable(&text);
        }
        printed(std::io::stdout().write_all(text.as_bytes()))
    }
}

/// What an importance matrix says about each tensor and block.
pub fn statistics(path: &Path, imatrix: &Imatrix, as_json: bool) -> Result<()> {
    let tensors = imatrix.statistics();
    let layers = LayerStatistics::of(&tensors);
    let text = if as_json {
        let object = json!({
            "file": path.display().to_string(),
            "n_chunks": imatrix.n_chunks(),
            "chunk_size": imatrix.chunk_size(),
            "datasets": imatrix.datasets(),
            "tensors": tensors.iter().map(tensor_json).collect::<Vec<_>>(),
            "layers": layers.iter().map(|l| json!({
                "layer": l.layer, "sum": l.total, "zd": l.outliers, "cos_sim": l.similarity,
            })).collect::<Vec<_>>(),
        });
        format!("{object:#}\n")
    } else {
        printable(&table(path, imatrix, &tensors, &layers))
    };
    printed(std::io::stdout().write_all(text.as_bytes()))
}

fn table(path: &Path, imatrix: &Imatrix, tensors: &[Statistics], layers: &[LayerStatistics]) -> String {
    let mut text = format!(
        "{}: {} tensors, {} chunks, {}\n\n{:>6} {:<20} {:>14} {:>10} {:>12} {:>10} {:>10} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8}\n",
        path.display(),
        imatrix.len(),
        imatrix.n_chunks(),
        imatrix.datasets().join(", "),
        "layer",
        "tensor",
        "sum(act²)",
        "min",
        "max",
        "mean",
        "std dev",
        "active",
        "n",
        "entropy",
        "of most",
        "ZD",
        "cos sim"
    );
    for s in tensors {
        let most = (s.n as f64).log2();
        let entropy = if most > 0.0 { 100.0 * s.entropy / most } else { 0.0 };
        text += &format!(
            "{:>6} {:<20} {:>14.2} {:>10.4} {:>12.4} {:>10.4} {:>10.4} {:>7.2}% {:>6} {:>8.4} {:>7.2}% {:>7.2}% {:>8.4}\n",
            s.layer,
            s.tensor,
            s.total,
            s.min,
            s.max,
            s.mean,
            s.deviation,
            100.0 * s.active,
            s.n,
            s.entropy,
            entropy,
            100.0 * s.outliers,
            s.similarity
        );
    }
    text += &format!("\n{:>6} {:>14} {:>8} {:>8}\n", "layer", "sum(act²)", "ZD", "cos sim");
    for l in layers {
        text += &format!("{:>6} {:>14.2} {:>7.2}% {:>8.4}\n", l.layer, l.total, 100.0 * l.outliers, l.similarity);
    }
    text
}

fn tensor_json(s: &Statistics) -> Value {
    json!({
        "layer": s.layer,
        "tensor": s.tensor,
        "n": s.n,
        "sum": s.total,
        "min": s.min,
        "max": s.max,
        "mean": s.mean,
        "std_dev": s.deviation,
        "active": s.active,
        "entropy": s.entropy,
        "zd": s.outliers,
        "cos_sim": s.similarity,
    })
}

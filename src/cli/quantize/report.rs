//! What `mmq quantize` tells: a line for each tensor, a summary, or all of it as one JSON object.

use super::super::{printed, say, scaled};
use super::measure::Verdict;
use crate::Result;
use crate::gguf::Gguf;
use crate::pipelines::{Fit, Outcome};
use crate::quantize::{Plan, Planned};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// The course of a quantization.
pub struct Report {
    quiet: bool,
    json: bool,
    start: Instant,
    input: String,
    outputs: Vec<String>,
    /// Width of the longest name.
    width: usize,
    tensors: Vec<Value>,
    /// How long it took, once it is done.
    seconds: Option<f64>,
}

impl Report {
    /// A report on `plan`, from `gguf` to `outputs`; silent if `quiet`, one object on standard output if `json`.
    pub fn new(plan: &Plan, gguf: &Gguf, outputs: &[PathBuf], quiet: bool, json: bool) -> Report {
        Report {
            quiet,
            json,
            start: Instant::now(),
            input: gguf.name().to_owned(),
            outputs: outputs.iter().map(|path| path.display().to_string()).collect(),
            width: plan.tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0),
            tensors: Vec::new(),
            seconds: None,
        }
    }

    /// Tells of a tensor that is written.
    pub fn tensor(&mut self, plan: &Plan, outcome: Outcome) {
        self.line(plan, outcome.index, outcome.error, outcome.weighted);
    }

    /// Tells what would be done.
    pub fn planned(&mut self, plan: &Plan) -> Result<()> {
        for i in 0..plan.tensors.len() {
            self.line(plan, i, None, false);
        }
        if !self.quiet {
            say(&summary(plan));
            if let Some(obstacle) = plan.obstacle() {
                say(&format!("note: it could not be done as it stands: {obstacle}"));
            }
        }
        self.object(plan, None)
    }

    /// Tells what was chosen to reach a target.
    pub fn fit(&self, plan: &Plan, fit: Fit) {
        if self.quiet {
            return;
        }
        let mut types: Vec<(&str, usize, usize)> = Vec::new();
        for t in plan.tensors.iter().filter(|t| t.free) {
            match types.iter_mut().find(|(name, ..)| *name == t.to.name()) {
                Some((_, n, bytes)) => (*n, *bytes) = (*n + 1, *bytes + t.bytes()),
                None => types.push((t.to.name(), 1, t.bytes())),
            }
        }
        types.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        let list: Vec<_> =
            types.iter().map(|(name, n, bytes)| format!("{name} {n} ({}B)", scaled(*bytes as u64))).collect();
        say(&format!("chosen: {}B of {}B: {}", scaled(fit.bytes), scaled(fit.allowed), list.join(", ")));
        if fit.bytes as f64 * 1.01 < fit.allowed as f64 {
            let why = if fit.is_largest { "the model is no larger" } else { "no type fits into the rest" };
            say(&format!("note: {}B of the target are left: {why}", scaled(fit.allowed - fit.bytes)));
        }
    }

    /// Tells that the files are complete.
    pub fn written(&mut self, plan: &Plan) {
        self.seconds = Some(self.start.elapsed().as_secs_f64());
        if !self.quiet {
            let seconds = self.start.elapsed().as_secs_f64();
            say(&format!("{} in {seconds:.1} s: {}", summary(plan), self.outputs.join(", ")));
        }
    }

    /// Ends the report, with what `--measure` has found.
    pub fn finish(&mut self, plan: &Plan, verdict: Option<&Verdict>) -> Result<()> {
        if let Some(verdict) = verdict
            && !self.json
        {
            printed(writeln!(std::io::stdout(), "{}", verdict.line()))?;
        }
        self.object(plan, verdict)
    }

    fn line(&mut self, plan: &Plan, i: usize, error: Option<f64>, weighted: bool) {
        let t = &plan.tensors[i];
        if self.json {
            self.tensors.push(json!({
                "name": t.name,
                "shape": t.shape,
                "from": t.from.name(),
                "to": t.to.name(),
                "fell_back_from": t.fell_back.map(|dtype| dtype.name()),
                "bytes_before": t.bytes_before(),
                "bytes": t.bytes(),
                "error": error,
                "weighted": weighted,
            }));
        }
        if !self.quiet {
            let n = plan.tensors.len();
            say(&format!(
                "[{:>4}/{n:>4}] {:<width$} {}",
                i + 1,
                t.name,
                describe(t, error, weighted),
                width = self.width
            ));
        }
    }

    fn object(&self, plan: &Plan, verdict: Option<&Verdict>) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let object = json!({
            "input": self.input,
            "output": if self.seconds.is_some() { json!(self.outputs) } else { Value::Null },
            "tensors": self.tensors,
            "n_params": plan.n_params(),
            "bytes_before": plan.n_bytes_before(),
            "bytes": plan.n_bytes(),
            "bits_per_weight": bits_per_weight(plan.n_bytes(), plan),
            "fell_back": fell_back(plan),
            "seconds": self.seconds,
            "measured": verdict.map(Verdict::json),
        });
        printed(std::io::stdout().write_all(format!("{object:#}\n").as_bytes()))
    }
}

/// Shape, types, sizes and error of a tensor.
fn describe(t: &Planned, error: Option<f64>, weighted: bool) -> String {
    let shape = t.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
    let mib = |n: usize| format!("{:>8.3}", n as f64 / f64::from(1 << 20));
    let mut line = format!("{shape:>15}  {:>7}", t.from.name());
    if !t.converts() {
        return line + &format!("              {} MiB", mib(t.bytes()));
    }
    line += &format!(" → {:<7}  {} → {} MiB", t.to.name(), mib(t.bytes_before()), mib(t.bytes()));
    if let Some(error) = error {
        line += &format!("  error {:.3} %{}", 100.0 * error, if weighted { " weighted" } else { "" });
    }
    if let Some(wanted) = t.fell_back {
        line += &format!("  (rows of {} cannot be {wanted})", t.n_cols());
    }
    line
}

fn fell_back(plan: &Plan) -> usize {
    plan.tensors.iter().filter(|t| t.fell_back.is_some()).count()
}

fn bits_per_weight(bytes: u64, plan: &Plan) -> f64 {
    bytes as f64 * 8.0 / plan.n_params() as f64
}

fn summary(plan: &Plan) -> String {
    let (before, after) = (plan.n_bytes_before(), plan.n_bytes());
    let mut text = format!(
        "{}B of tensors ({:.2} bits per weight) → {}B ({:.2})",
        scaled(before),
        bits_per_weight(before, plan),
        scaled(after),
        bits_per_weight(after, plan)
    );
    match fell_back(plan) {
        0 => {}
        n => text += &format!(", {n} of {} tensors with another type than asked for", plan.tensors.len()),
    }
    text
}

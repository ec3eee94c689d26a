//! What `mmq perplexity` tells: progress on standard error, the result on standard output.

use crate::Result;
use crate::cli::{clock, printed, say};
use crate::pipelines::Engine;
use crate::pipelines::evaluate::{Divergence, Estimate, Evaluation, Perplexity, Quantiles};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Instant;

/// Quantiles that are printed, with their names.
const QUANTILES: [(&str, f64); 13] = [
    ("Maximum", 1.0),
    ("99.9%", 0.999),
    ("99.0%", 0.99),
    ("95.0%", 0.95),
    ("90.0%", 0.90),
    ("75.0%", 0.75),
    ("Median", 0.5),
    ("25.0%", 0.25),
    ("10.0%", 0.10),
    ("5.0%", 0.05),
    ("1.0%", 0.01),
    ("0.1%", 0.001),
    ("Minimum", 0.0),
];

/// The course of an evaluation.
pub struct Report {
    quiet: bool,
    compares: bool,
    start: Instant,
    n: usize,
    done: usize,
}

impl Report {
    /// A report that is silent until the end if `quiet`; `compares`: there is a base model.
    pub fn new(quiet: bool, compares: bool) -> Report {
        Report { quiet, compares, start: Instant::now(), n: 0, done: 0 }
    }

    /// `n` stretches follow.
    pub fn begin(&mut self, n: usize) {
        self.n = n;
        self.start = Instant::now();
    }

    /// One more is done.
    pub fn step(&mut self, evaluation: &Evaluation) {
        self.done += 1;
        if self.quiet {
            return;
        }
        let mut err = std::io::stderr();
        if self.done == 1 {
            let pass = self.start.elapsed();
            say(&format!(
                "{} chunks, {:.2} seconds per pass - ETA {}",
                self.n,
                pass.as_secs_f64(),
                clock(pass * self.n as u32)
            ));
            if self.compares {
                say(
                    "chunk            PPL             ln(PPL(Q)/PPL(base))       KL divergence           Δp RMS             Same top p",
                );
            }
        }
        // Nobody may be there to read it.
        let _ = match evaluation.divergence() {
            None => {
                let end = if self.done == self.n { "\n" } else { "" };
                write!(err, "[{}]{:.4},{end}", self.done, evaluation.perplexity().ppl.value)
            }
            Some(d) => writeln!(
                err,
                "{:>5}   {}   {}   {}   {} %   {} %",
                self.done,
                both(evaluation.perplexity().ppl, 9, 4),
                both(d.ln_ratio, 9, 5),
                both(d.kld, 9, 5),
                both(percent(d.p_diff_rms), 6, 3),
                both(percent(d.same_top), 6, 3)
            ),
        };
        let _ = err.flush();
    }

    /// The result.
    pub fn finish(&self, evaluation: &Evaluation, model: &Engine, base: Option<&Engine>, as_json: bool) -> Result<()> {
        let (of, took) = (evaluation.perplexity(), self.start.elapsed());
        if !self.quiet {
            say(&format!("{} tokens scored in {}", evaluation.n_scored(), clock(took)));
        }
        let mut text = match evaluation.divergence() {
            _ if as_json => {
                let mut object = json!({
                    "model": model.name(),
                    "n_chunks": self.done,
                    "n_tokens": evaluation.n_scored(),
                    "seconds": took.as_secs_f64(),
                    "ppl": estimate(of.ppl),
                    "ln_ppl": estimate(of.ln_ppl),
                });
                if let (Some(d), Some(base)) = (evaluation.divergence(), base) {
                    object["base"] =
                        json!({ "model": base.name(), "ppl": estimate(d.base.ppl), "ln_ppl": estimate(d.base.ln_ppl) });
                    object["divergence"] = divergence_json(&d, evaluation);
                }
                format!("{object:#}")
            }
            None => format!("Final estimate: PPL = {:.4} +/- {:.5}", of.ppl.value, of.ppl.error),
            Some(d) => table(&of, &d, evaluation),
        };
        text.push('\n');
        printed(std::io::stdout().write_all(text.as_bytes()))
    }
}

fn table(of: &Perplexity, d: &Divergence, evaluation: &Evaluation) -> String {
    let mut text = String::from("====== Perplexity statistics ======\n");
    let mut line = |name: &str, value: String| text += &format!("{name:<30}: {value}\n");
    line("Mean PPL(Q)", both(of.ppl, 10, 6));
    line("Mean PPL(base)", both(d.base.ppl, 10, 6));
    line("Cor(ln(PPL(Q)), ln(PPL(base)))", format!("{:>6.2}%", 100.0 * d.correlation));
    line("Mean ln(PPL(Q)/PPL(base))", both(d.ln_ratio, 10, 6));
    line("Mean PPL(Q)/PPL(base)", both(d.ratio, 10, 6));
    line("Mean PPL(Q)-PPL(base)", both(d.difference, 10, 6));
    text += "\n====== KL divergence statistics ======\n";
    text += &format!("Mean    KLD: {}\n", both(d.kld, 10, 6));
    let quantiles = evaluation.kld_quantiles();
    for (name, q) in QUANTILES {
        text += &format!("{name:<7} KLD: {:>10.6}\n", quantiles.at(q));
    }
    text += "\n====== Token probability statistics ======\n";
    text += &format!("Mean    Δp: {} %\n", both(percent(d.p_diff), 6, 3));
    let quantiles = evaluation.p_diff_quantiles();
    for (name, q) in QUANTILES {
        text += &format!("{name:<7} Δp: {:>6.3}%\n", 100.0 * quantiles.at(q));
    }
    text += &format!("RMS Δp    : {} %\n", both(percent(d.p_diff_rms), 6, 3));
    text += &format!("Same top p: {} %", both(percent(d.same_top), 6, 3));
    text
}

fn divergence_json(d: &Divergence, evaluation: &Evaluation) -> Value {
    let with_quantiles = |mean: Estimate, quantiles: &Quantiles| {
        let mut object = estimate(mean);
        for (name, q) in QUANTILES {
            object[name.to_lowercase()] = number(quantiles.at(q));
        }
        object
    };
    json!({
        "ln_ppl_correlation": number(d.correlation),
        "ln_ppl_ratio": estimate(d.ln_ratio),
        "ppl_ratio": estimate(d.ratio),
        "ppl_difference": estimate(d.difference),
        "kld": with_quantiles(d.kld, &evaluation.kld_quantiles()),
        "p_diff": with_quantiles(d.p_diff, &evaluation.p_diff_quantiles()),
        "p_diff_rms": estimate(d.p_diff_rms),
        "same_top": estimate(d.same_top),
    })
}

/// JSON has no infinity and no NaN.
fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { Value::Null }
}

fn estimate(e: Estimate) -> Value {
    json!({ "value": number(e.value), "error": number(e.error) })
}

fn percent(e: Estimate) -> Estimate {
    Estimate { value: 100.0 * e.value, error: 100.0 * e.error }
}

/// Value and error, each `width` wide with `digits` decimals.
fn both(e: Estimate, width: usize, digits: usize) -> String {
    format!("{:>width$.digits$} ± {:>width$.digits$}", e.value, e.error)
}

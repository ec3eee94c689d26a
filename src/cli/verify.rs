//! `mmq verify`: tables of how recorded activations compare.

use super::{n_threads, printed};
use crate::gguf::Gguf;
use crate::pipelines::Precision;
use crate::pipelines::verify::{self, Check, Report};
use crate::pipelines::{EngineOptions, LoadMode};
use crate::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

/// Replays recorded inputs through a model and compares every recorded activation; fails if any differs.
#[derive(clap::Args)]
#[command(
    after_help = "A fixture is a model file with recorded activations; tests/fixtures/README.md says how to make one."
)]
pub struct Args {
    /// Fixtures, GGUF files with `ref.*` tensors
    #[arg(required = true, value_name = "FIXTURE")]
    fixtures: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Print a line for each fixture, not one for each activation
    #[arg(short, long)]
    quiet: bool,

    /// Threads; -1: the physical cores worth using
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, env = "MMQ_ARG_THREADS")]
    threads: i64,

    /// How weights come into memory: mmap, repack or auto
    #[arg(long, value_name = "MODE", default_value = "auto")]
    load_mode: LoadMode,
    /// Precision of vision encoders: f32, int8 or auto; what is recorded was computed in f32
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    vision_precision: Precision,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let options = EngineOptions {
        n_threads: n_threads(args.threads),
        load_mode: args.load_mode,
        vision_precision: args.vision_precision,
        ..EngineOptions::default()
    };
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    let mut reports = Vec::new();
    let mut broken = Vec::new();
    for path in &args.fixtures {
        match Gguf::open(path).and_then(|gguf| verify::verify(&gguf, &options)) {
            Ok(report) => {
                if !args.json {
                    written = written.and_then(|()| print(&mut out, &report, args.quiet));
                }
                reports.push(report);
            }
            Err(error) => {
                if !args.json {
                    written = written.and_then(|()| writeln!(out, "{}\n  FAILED: {error}\n", path.display()));
                }
                broken.push(error);
            }
        }
    }
    if args.json {
        let errors: Vec<String> = broken.iter().map(Error::to_string).collect();
        let passed = errors.is_empty() && reports.iter().all(|report| report.first_failure().is_none());
        let fixtures: Vec<Value> = reports.iter().map(json).collect();
        written = writeln!(out, "{:#}", json!({ "passed": passed, "fixtures": fixtures, "errors": errors }));
    } else if args.fixtures.len() > 1 {
        written = written.and_then(|()| summarize(&mut out, &reports));
    }
    let failed = reports.iter().find_map(|report| Some((report, report.first_failure()?)));
    match (broken.into_iter().next(), failed) {
        (Some(error), _) => Err(error),
        (None, Some((report, check))) => {
            let why = format!("{}: case \"{}\": {}", report.file, check.case, explain(check, report.tolerance));
            Err(Error::new(ErrorKind::Failed, why))
        }
        (None, None) => printed(written),
    }
}

fn explain(check: &Check, tolerance: f32) -> String {
    match &check.note {
        Some(note) => format!("{}: {note}", check.activation),
        None => format!(
            "{} differs by {:.2e} of the largest value, {tolerance:.0e} is allowed",
            check.activation, check.relative_error
        ),
    }
}

fn print(out: &mut impl Write, report: &Report, quiet: bool) -> io::Result<()> {
    let first = report.first_failure();
    let verdict = match first {
        None => "ok".to_owned(),
        Some(check) => format!("FAILED at case \"{}\": {}", check.case, explain(check, report.tolerance)),
    };
    if quiet {
        let worst = report.worst().map_or(0.0, |check| check.relative_error);
        return writeln!(out, "{worst:>9.2e} of {:>5.0e}  {}  {verdict}", report.tolerance, report.file);
    }
    writeln!(out, "{}  ({}; {})", report.file, report.architectures.join(" + "), report.source)?;
    let width = report.checks.iter().map(|c| c.activation.len()).max().unwrap_or(0);
    let mut case = "";
    for check in &report.checks {
        if check.case != case {
            case = &check.case;
            writeln!(out, "  {case:<width$}  {:>13}  {:>9}  {:>10}", "max abs error", "relative", "cosine")?;
        }
        let mark = match first {
            Some(f) if std::ptr::eq(f, check) => "  <- first out of tolerance",
            _ if !check.passed => "  out of tolerance",
            _ => "",
        };
        writeln!(
            out,
            "    {:<width$}  {:>11.3e}  {:>9.2e}  {:>10.7}{mark}",
            check.activation, check.max_abs_error, check.relative_error, check.cosine
        )?;
    }
    writeln!(out, "  {verdict}\n")
}

/// A line for each combination of architectures: how many fixtures, and the worst of them.
fn summarize(out: &mut impl Write, reports: &[Report]) -> io::Result<()> {
    let mut worst: BTreeMap<(String, bool), (usize, &Report, &Check)> = BTreeMap::new();
    for report in reports {
        let Some(check) = report.worst() else { continue };
        // Exact and rounded weights have nothing to do with each other.
        let key = (report.architectures.join(" + "), report.tolerance > verify::EXACT);
        let entry = worst.entry(key).or_insert((0, report, check));
        entry.0 += 1;
        if check.relative_error >= entry.2.relative_error {
            (entry.1, entry.2) = (report, check);
        }
    }
    writeln!(out, "worst by architecture:")?;
    for ((architectures, rounded), (n, report, check)) in worst {
        let weights = if rounded { "rounded" } else { "exact" };
        writeln!(
            out,
            "  {architectures}, {n} with {weights} arithmetic: {:.2e} relative, {:.2e} absolute ({}, {}, {})",
            check.relative_error, check.max_abs_error, report.file, check.case, check.activation
        )?;
    }
    Ok(())
}

fn json(report: &Report) -> Value {
    // JSON has no infinity.
    let number = |x: f32| if x.is_finite() { json!(x) } else { Value::Null };
    let check = |check: &Check| {
        json!({
            "case": check.case,
            "activation": check.activation,
            "n": check.n,
            "max_abs_error": number(check.max_abs_error),
            "relative_error": number(check.relative_error),
            "cosine": number(check.cosine),
            "passed": check.passed,
            "note": check.note,
        })
    };
    json!({
        "file": report.file,
        "source": report.source,
        "architectures": report.architectures,
        "tolerance": report.tolerance,
        "passed": report.first_failure().is_none(),
        "first_failure": report.first_failure().map(check),
        "checks": report.checks.iter().map(check).collect::<Vec<_>>(),
    })
}

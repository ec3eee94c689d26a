//! What a run tells besides the answer: progress while it works, timings at the end, or all of it as JSON.

use crate::pipelines::{Answer, Engine, Finish, Region, Session};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::Duration;

/// A bar on standard error, one after the other for what takes time; nothing where nobody watches.
pub struct Progress {
    shown: bool,
    bar: RefCell<ProgressBar>,
}

impl Progress {
    /// Bars that are shown if `wanted` and standard error is a terminal.
    pub fn new(wanted: bool) -> Progress {
        let shown = wanted && std::io::stderr().is_terminal();
        Progress { shown, bar: RefCell::new(ProgressBar::hidden()) }
    }

    /// Says what begins, of which nobody knows how long it takes.
    pub fn message(&self, what: impl Into<Cow<'static, str>>) {
        self.begin(what, "{msg} …");
    }

    /// Says what begins; [`Progress::set`] tells how much of it is done.
    pub fn start(&self, what: impl Into<Cow<'static, str>>) {
        self.begin(what, "{msg} [{bar:30}] {percent}%");
    }

    /// As [`Progress::start`], for what takes minutes: it tells how long it will still take.
    pub fn start_long(&self, what: impl Into<Cow<'static, str>>) {
        self.begin(what, "{msg} [{bar:30}] {percent}%, {eta} left");
    }

    /// Prints what `print` prints on standard error above the bar.
    pub fn above(&self, print: impl FnOnce()) {
        self.bar.borrow().suspend(print);
    }

    fn begin(&self, what: impl Into<Cow<'static, str>>, template: &str) {
        self.finish();
        let target = if self.shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let bar = ProgressBar::with_draw_target(Some(1000), target).with_style(style).with_message(what);
        bar.tick();
        self.bar.replace(bar);
    }

    /// Says how much is done, from 0 to 1.
    pub fn set(&self, done: f32) {
        self.bar.borrow().set_position((done * 1000.0) as u64);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.borrow().finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Times and counts of a run, phase by phase.
#[derive(Default)]
pub struct Report {
    /// Opening and checking the files.
    pub load: Duration,
    /// Pictures from files to pixels.
    pub image_decode: Duration,
    /// Pixels to image tokens.
    pub encode: Duration,
    /// The prompt through the model.
    pub prefill: Duration,
    /// The answer.
    pub generate: Duration,
    /// From the first picture's first byte to the first text.
    pub first_token: Option<Duration>,
    /// Image tokens.
    pub n_image: usize,
    /// Image tokens that there would be without a limit.
    pub n_image_all: usize,
    /// Tokens of the prompt, image tokens included.
    pub n_prompt: usize,
    /// Tokens of the answer.
    pub n_generated: usize,
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn per_second(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { (n as f64 / time.as_secs_f64() * 100.0).round() / 100.0 }
}

impl Report {
    /// The table of phases.
    pub fn table(&self) -> String {
        let mut table = format!("\n{:<14}{:>12} {:>8} {:>12}", "phase", "ms", "tokens", "tokens/s");
        let mut row = |name: &str, time: Duration, n: Option<usize>| {
            table += &match n {
                Some(n) => format!("\n{name:<14}{:>12.2} {n:>8} {:>12.2}", ms(time), per_second(n, time)),
                None => format!("\n{name:<14}{:>12.2}", ms(time)),
            };
        };
        row("load", self.load, None);
        if self.n_image > 0 {
            row("image decode", self.image_decode, None);
            row("encode", self.encode, Some(self.n_image));
        }
        row("prefill", self.prefill, Some(self.n_prompt));
        row("generate", self.generate, Some(self.n_generated));
        if let Some(time) = self.first_token {
            row("first token", time, None);
        }
        if self.n_image < self.n_image_all {
            table += &format!("\nimage tokens: {} kept of {}", self.n_image, self.n_image_all);
        }
        table
    }

    /// Everything as one object; `text` is the answer.
    pub fn json(&self, engine: &Engine, session: &Session, answer: &Answer) -> serde_json::Value {
        let finish = match answer.finish {
            Finish::EndOfTurn => "eos",
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ContextFull => "context",
            Finish::Cancelled => "cancelled",
        };
        serde_json::json!({
            "text": answer.text.trim_start(),
            "boxes": answer.regions.iter().map(Region::json).collect::<Vec<_>>(),
            "finish": finish,
            "tokens": answer.tokens,
            "model": engine.name(),
            "template": engine.template().name(),
            "threads": engine.n_threads(),
            "seed": session.seed(),
            "n_ctx": session.n_ctx(),
            "n_prompt": self.n_prompt,
            "n_image": self.n_image,
            "n_image_all": self.n_image_all,
            "n_generated": self.n_generated,
            "timings": {
                "load_ms": ms(self.load),
                "image_decode_ms": ms(self.image_decode),
                "encode_ms": ms(self.encode),
                "prefill_ms": ms(self.prefill),
                "prefill_tokens_per_s": per_second(self.n_prompt, self.prefill),
                "generate_ms": ms(self.generate),
                "generate_tokens_per_s": per_second(self.n_generated, self.generate),
                "first_token_ms": self.first_token.map(ms),
            },
        })
    }
}

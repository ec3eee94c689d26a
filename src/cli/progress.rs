//! Progress on a terminal while something works.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;

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

    /// Says what begins; [`Progress::set`] tells how much of it is done.
    pub fn start(&self, what: &'static str) {
        self.finish();
        let target = if self.shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent}%").expect("the template is valid");
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

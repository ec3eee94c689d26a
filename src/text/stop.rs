//! Stop strings in a stream of text: what may be the beginning of one is held back until that is clear.

/// Finds the first stop string in a text that comes piece by piece.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may still become a stop string.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for `stops`; empty ones are ignored.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> StopMatcher {
        let stops = stops.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        StopMatcher { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text; returns what is certain to lie before any stop string, and whether one has been
    /// found. What follows a stop string is dropped.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.held.push_str(text);
        // The one that ends first counts, so that it does not matter how the text was cut into pieces.
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at)));
        if let Some((_, at)) = found.min() {
            self.stopped = true;
            let mut held = std::mem::take(&mut self.held);
            held.truncate(at);
            return (held, true);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Whether a stop string has been found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back when the text ended without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest proper beginning of `stop` that `text` ends with.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(i, _)| i).rev().find(|&i| text.ends_with(&stop[..i])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holds_back_and_cuts() {
        let mut m = StopMatcher::new(["###", "</s>"]);
        assert_eq!(m.push("Hello #"), ("Hello ".into(), false));
        assert_eq!(m.push("1 ##"), ("#1 ".into(), false));
        assert_eq!(m.push("# more"), (String::new(), true));
        assert_eq!(m.push("more"), (String::new(), true));
        assert!(m.stopped());
        assert_eq!(m.finish(), "");
        let mut m = StopMatcher::new(["###", ""]);
        assert_eq!(m.push("a##"), ("a".into(), false));
        assert_eq!(m.finish(), "##");
        assert_eq!(StopMatcher::new(["bcd", "abcd"]).push("xabcd"), ("x".into(), true));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(pieces in prop::collection::vec("[ab#é]{0,3}", 0..20)) {
            let whole = pieces.concat();
            let stops = ["##", "ab#", "éé"];
            let found = stops.iter().filter_map(|s| whole.find(s).map(|at| (at + s.len(), at))).min();
            let expected = found.map_or(whole.as_str(), |(_, at)| &whole[..at]);
            let mut m = StopMatcher::new(stops);
            let mut out: String = pieces.iter().map(|p| m.push(p).0).collect();
            out.push_str(&m.finish());
            prop_assert_eq!(out, expected);
        }
    }
}

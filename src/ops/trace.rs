//! Named activations of a forward pass, for comparison with recorded ones.

/// The activations that a forward pass named, in order.
#[derive(Default)]
pub struct Trace {
    entries: Vec<(String, Vec<f32>)>,
}

impl Trace {
    /// Keeps a copy of `data`; a name that comes again (the next batch of a prompt) continues its rows.
    pub fn record(&mut self, name: String, data: &[f32]) {
        match self.entries.iter_mut().find(|(n, _)| *n == name) {
            Some((_, rows)) => rows.extend_from_slice(data),
            None => self.entries.push((name, data.to_vec())),
        }
    }

    /// The rows recorded under `name`.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, rows)| rows.as_slice())
    }

    /// All names and rows, in the order in which the pass came to them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.entries.iter().map(|(name, rows)| (name.as_str(), rows.as_slice()))
    }
}

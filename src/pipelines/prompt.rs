//! A prompt as the model takes it: tokens, and rows that stand for pictures.

use crate::media::View;
use std::sync::Arc;

/// A picture after the encoder and projector.
#[derive(Debug)]
pub struct EncodedImage {
    /// `[n_tokens, n_embd]`.
    pub(crate) rows: Vec<f32>,
    pub(crate) n_tokens: usize,
    pub(crate) n_tokens_all: usize,
    /// Tells pictures apart in a timeline: a hash of the pixels and of how many tokens were asked for.
    pub(crate) id: u64,
    pub(crate) view: View,
}

impl EncodedImage {
    /// How many positions it takes in the context.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// How many it would take without [`EngineOptions::image_tokens`](super::EngineOptions::image_tokens).
    pub fn n_tokens_all(&self) -> usize {
        self.n_tokens_all
    }

    /// What the model sees of the picture.
    pub fn view(&self) -> &View {
        &self.view
    }
}

/// A stretch of a prompt.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Tokens of text.
    Tokens(Vec<u32>),
    /// A picture.
    Image(Arc<EncodedImage>),
}

/// A whole prompt, from the first token of the context on.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Its pieces in order.
    pub pieces: Vec<Piece>,
}

/// What stands at one position of a timeline; equal slots have equal keys and values if all before them are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Token(u32),
    Image { id: u64, row: usize },
}

impl Prompt {
    /// Positions that it takes.
    pub fn n_tokens(&self) -> usize {
        let n = |piece: &Piece| match piece {
            Piece::Tokens(tokens) => tokens.len(),
            Piece::Image(image) => image.n_tokens,
        };
        self.pieces.iter().map(n).sum()
    }

    /// Number and view of the last picture, if there is one: the one that answers point at.
    pub(crate) fn last_picture(&self) -> Option<(usize, View)> {
        let pictures = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Image(image) => Some(image.view),
            Piece::Tokens(_) => None,
        });
        pictures.enumerate().last()
    }

    pub(crate) fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(self.n_tokens());
        for piece in &self.pieces {
            match piece {
                Piece::Tokens(tokens) => slots.extend(tokens.iter().map(|t| Slot::Token(*t))),
                Piece::Image(image) => slots.extend((0..image.n_tokens).map(|row| Slot::Image { id: image.id, row })),
            }
        }
        slots
    }
}

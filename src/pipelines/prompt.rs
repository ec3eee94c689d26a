//! A prompt as the model takes it: tokens, and rows that stand for pictures.

use crate::media::View;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Tells pictures apart: half a SHA-256 of the pixels and of everything that decides which rows they become.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(pub(crate) [u8; 16]);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for ImageId {
    type Error = String;

    fn try_from(text: String) -> Result<ImageId, String> {
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number.map(|n| ImageId(n.to_be_bytes())).ok_or_else(|| format!("{text:?} identifies no picture"))
    }
}

/// A picture after the encoder and projector.
#[derive(Debug)]
pub struct EncodedImage {
    /// `[n_tokens, n_embd]`.
    pub(crate) rows: Vec<f32>,
    pub(crate) n_tokens: usize,
    pub(crate) n_tokens_all: usize,
    pub(crate) id: ImageId,
    pub(crate) view: View,
}

/// What a file says of an [`EncodedImage`] besides its rows.
#[derive(Serialize, Deserialize)]
pub(super) struct ImageHeader {
    pub id: ImageId,
    pub n_tokens: usize,
    pub n_tokens_all: usize,
    pub view: View,
}

impl EncodedImage {
    /// What stands for it in the prompt: `[n_tokens, n_embd]`.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// What tells it apart from other pictures, and from the same one encoded in another way.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// What a file says of it.
    pub(super) fn header(&self) -> ImageHeader {
        ImageHeader { id: self.id, n_tokens: self.n_tokens, n_tokens_all: self.n_tokens_all, view: self.view }
    }

    /// The picture that a file says this of.
    pub(super) fn restored(header: ImageHeader, rows: Vec<f32>) -> EncodedImage {
        let ImageHeader { id, n_tokens, n_tokens_all, view } = header;
        EncodedImage { rows, n_tokens, n_tokens_all, id, view }
    }

    /// Bytes of its rows.
    pub fn n_bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }

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
    Image { id: ImageId, row: usize },
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

//! Text: tokenizers from GGUF metadata, samplers, chat templates, stop texts, and places that answers point at. Knows no model.

pub mod grounding;
pub mod sampler;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use grounding::{Dialect, Grounding};
pub use sampler::{Sampler, SamplerKind, SamplerParams, SamplerState};
pub use stop::StopMatcher;
pub use template::{ChatTemplate, IMAGE_MARKER, Message, Role};
pub use tokenizer::{StreamDecoder, Tokenizer};

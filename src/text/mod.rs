//! Text: tokenizers from GGUF metadata, samplers and chat templates. Knows no model.

pub mod sampler;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use sampler::{Sampler, SamplerKind, SamplerParams, SamplerState};
pub use stop::StopMatcher;
pub use template::{ChatTemplate, IMAGE_MARKER, Message, Role};
pub use tokenizer::{StreamDecoder, Tokenizer};

//! What interfaces talk to: a loaded [`Engine`], shared and immutable, and a [`Session`], one timeline on it.

mod bias;
pub mod calibrate;
mod conversation;
mod engine;
pub mod evaluate;
mod fit;
mod image_cache;
mod pack;
pub mod plan;
mod prompt;
mod quantize;
mod regions;
mod saved;
mod sealed;
mod session;
mod shards;
pub mod verify;

pub use crate::blocks::image_tokens::{ImageTokens, Reduction};
pub use crate::blocks::kv_cache::KvType;
pub use crate::device::Power;
pub use crate::tensor::Precision;
pub use conversation::Conversation;
pub use engine::{Engine, EngineOptions, LoadMode, ModelInfo, find_mmproj};
pub use fit::{Fit, Target};
pub use image_cache::{ImageCacheOptions, ImageCacheStats};
pub use pack::Packer;
pub use prompt::{EncodedImage, ImageId, Piece, Prompt};
pub use quantize::{Outcome, Quantizer, Sums};
pub use regions::Region;
pub use session::{Answer, Cancel, Event, Finish, Generation, Overflow, Session, SessionOptions};
pub use shards::{Limit, Shards};

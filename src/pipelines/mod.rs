//! What interfaces talk to: a loaded [`Engine`], shared and immutable, and a [`Session`], one timeline on it.

mod engine;
mod pack;
mod prompt;
mod session;
pub mod verify;

pub use crate::blocks::kv_cache::KvType;
pub use engine::{Engine, EngineOptions, LoadMode, find_mmproj};
pub use pack::Packer;
pub use prompt::{EncodedImage, Piece, Prompt};
pub use session::{Answer, Cancel, Finish, Generation, Session, SessionOptions};

//! Parts that architectures are put together from. A block knows tensors by the names it is given, and no architecture.

pub mod decoder;
pub mod image_tokens;
pub mod kv_cache;
pub mod mmproj;
pub mod projector;
pub mod resampler;
pub mod rope;
pub mod saliency;
pub mod select;
pub mod vit;

//! mmq: an on-device multimodal runtime. See the README for what it is and `src/README.md` for how it is built.

mod error;

pub mod architectures;
pub mod blocks;
#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod gguf;
pub mod media;
pub mod ops;
pub mod pipelines;
pub mod tensor;
pub mod text;

pub(crate) use error::bail;
pub use error::{Error, ErrorKind, Result};
pub use mmq_kernels::Dtype;

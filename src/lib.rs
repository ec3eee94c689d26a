//! An on-device multimodal runtime: a GGUF model and a picture in, tokens out.
//!
//! An [`Engine`](pipelines::Engine) is a loaded model: immutable, shared between threads. A [`Session`](pipelines::Session)
//! is one conversation on it. `src/README.md` says how the rest is built; `examples/describe.rs` runs as it is.
//!
//! ```no_run
//! use mmq::media::{self, DecodeOptions};
//! use mmq::pipelines::{Cancel, Engine, EngineOptions, Generation, Session, SessionOptions};
//! use mmq::text::template::{IMAGE_MARKER, Message, Role};
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//!
//! let engine = Engine::load(Path::new("llava.gguf"), Some(Path::new("mmproj.gguf")), &EngineOptions::default())?;
//! let engine = Arc::new(engine);
//! let picture = engine.encode_image(&media::load("cat.png", &DecodeOptions::default())?, None, None)?;
//! let question = Message { role: Role::User, content: format!("{IMAGE_MARKER}What is this?") };
//!
//! let cancel = Cancel::default(); // a clone of it stops the session from another thread
//! let mut session = Session::new(&engine, &SessionOptions::default(), &cancel)?;
//! session.sync(&engine.chat_prompt(&[question], &[picture])?, None)?;
//! session.generate(&Generation::default(), &mut |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), mmq::Error>(())
//! ```

mod error;

pub mod architectures;
pub mod blocks;
#[cfg(feature = "cli")]
pub mod cli;
pub mod convert;
pub mod device;
#[cfg(feature = "ffi")]
pub mod ffi;
pub mod gguf;
pub mod media;
pub mod ops;
pub mod pipelines;
pub mod quantize;
pub mod tensor;
pub mod text;

pub use error::{Error, ErrorKind, Result};
pub(crate) use error::{bail, unless_stopped};
pub use mmq_kernels::Dtype;

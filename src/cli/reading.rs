//! How `mmq perplexity` and `mmq imatrix` read: the model, and how it takes texts and pictures in.

use super::run::kv_type;
use super::{n_threads, read_text, say};
use crate::pipelines::{Engine, EngineOptions, KvType, SessionOptions, find_mmproj};
use crate::{Result, bail};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The flags that both have.
#[derive(clap::Args)]
pub struct Reading {
    /// Text model, a GGUF file [default: the built-in model]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// Vision encoder and projector, a GGUF file [-mm] [default with pictures: mmproj*.gguf beside the model]
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,

    /// Accepted for llama.cpp's sake: batches are as large as -ub
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    batch_size: u32,

    /// Most tokens that go through the model at once [-ub]
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    ubatch_size: u32,

    /// Threads; -1: the physical cores worth using
    #[arg(short, long, value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=1024))]
    threads: i64,

    /// Type of the stored keys, as for `mmq run` [-ctk]
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    cache_type_k: KvType,

    /// Type of the stored values, as for `mmq run` [-ctv]
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    cache_type_v: KvType,
}

impl Reading {
    /// What engines are loaded with.
    pub fn engine_options(&self) -> EngineOptions {
        EngineOptions { n_threads: n_threads(self.threads), ..EngineOptions::default() }
    }

    /// Loads the model, with a vision encoder if it `sees` pictures.
    pub fn load(&self, sees: bool) -> Result<Arc<Engine>> {
        let options = self.engine_options();
        let engine = match &self.model {
            None if self.mmproj.is_some() => {
                bail!(Usage, "--mmproj needs the text model it belongs to: give one with -m")
            }
            None => Engine::built_in(&options)?,
            Some(path) => {
                let found = if sees && self.mmproj.is_none() { find_mmproj(path)? } else { None };
                Engine::load(path, self.mmproj.as_deref().or(found.as_deref()), &options)?
            }
        };
        Ok(Arc::new(engine))
    }

    /// Sessions of `n_ctx` tokens; a context longer than the model's own is remarked on, unless `quiet`.
    pub fn session(&self, engine: &Engine, n_ctx: usize, quiet: bool) -> SessionOptions {
        let trained = engine.n_ctx_train();
        if n_ctx > trained && !quiet {
            say(&format!("note: the model was trained with {trained} tokens of context, -c asks for more"));
        }
        SessionOptions {
            n_ctx,
            n_ubatch: self.ubatch_size.min(self.batch_size) as usize,
            cache_type_k: self.cache_type_k,
            cache_type_v: self.cache_type_v,
            ..SessionOptions::default()
        }
    }
}

/// The text of a file. The end of its last line is no part of it, as for llama-perplexity and llama-imatrix.
pub fn text_of(path: &Path) -> Result<String> {
    let mut text = read_text(path)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

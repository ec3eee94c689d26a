//! What a run keeps for the next one: the context it has read, and encoded pictures; and what leaves a full context.

use crate::Result;
use crate::pipelines::plan::parse_size;
use crate::pipelines::{Engine, ImageCacheOptions, Overflow, Session};
use crate::text::SamplerParams;
use std::path::PathBuf;

/// What is kept between runs.
#[derive(clap::Args)]
pub struct KeepArgs {
    /// File that keeps the prompt that was read, pictures included, for the next run; made if it is not there
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,

    /// Keep the answer in it too
    #[arg(long, requires = "prompt_cache")]
    prompt_cache_all: bool,

    /// Use that file, but do not write it
    #[arg(long, requires = "prompt_cache")]
    prompt_cache_ro: bool,

    /// Folder that keeps encoded pictures for the next run; made if it is not there
    #[arg(long, value_name = "DIR")]
    image_cache: Option<PathBuf>,

    /// Most bytes in that folder; pictures used longest ago leave first
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    image_cache_size: u64,

    /// When the context is full, go on: oldest turns leave, or else the older part of the answer
    #[arg(long, overrides_with = "no_context_shift")]
    context_shift: bool,

    /// When the context is full, stop (the default)
    #[arg(long)]
    no_context_shift: bool,
}

impl KeepArgs {
    /// Where encoded pictures are kept.
    pub fn images(&self) -> ImageCacheOptions {
        ImageCacheOptions {
            dir: self.image_cache.clone(),
            dir_bytes: self.image_cache_size,
            ..ImageCacheOptions::default()
        }
    }

    /// What happens when the context is full.
    pub fn overflow(&self) -> Overflow {
        if self.context_shift { Overflow::DropOldest } else { Overflow::Stop }
    }

    /// Goes on from the kept context, if there is one. Answers are those of a run without it.
    pub fn restore(&self, session: &mut Session, sampler: &SamplerParams) -> Result<()> {
        match &self.prompt_cache {
            Some(path) if path.exists() => {
                session.restore(path)?;
                session.set_sampler(sampler)
            }
            _ => Ok(()),
        }
    }

    /// Keeps the context after a prompt of which `n_run` tokens were new.
    pub fn after_prompt(&self, session: &Session, n_run: usize) -> Result<()> {
        match &self.prompt_cache {
            // The last token always runs.
            Some(path) if !self.prompt_cache_ro && !self.prompt_cache_all && (n_run > 1 || !path.exists()) => {
                session.save(path)
            }
            _ => Ok(()),
        }
    }

    /// Keeps the context after the answer.
    pub fn after_answer(&self, session: &Session) -> Result<()> {
        match &self.prompt_cache {
            Some(path) if self.prompt_cache_all && !self.prompt_cache_ro => session.save(path),
            _ => Ok(()),
        }
    }
}

/// What went wrong with kept pictures, and how many were found.
pub fn notes(engine: &Engine) -> Vec<String> {
    let mut notes = engine.take_warnings();
    let stats = engine.image_cache();
    for (n, place) in [(stats.disk_hits, "the folder of --image-cache"), (stats.memory_hits, "memory")] {
        if n > 0 {
            notes.push(format!("{n} encoded picture{} found in {place}", if n == 1 { "" } else { "s" }));
        }
    }
    notes
}

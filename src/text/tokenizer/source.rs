//! The `tokenizer.ggml.*` metadata as plain data, so that the algorithms know no file.

use crate::gguf::Metadata;
use crate::{Result, bail};

/// The family of algorithms that a file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// `llama`: SentencePiece's greedy merges by score.
    Spm,
    /// `gpt2`, `gemma4`: merges by rank.
    Bpe,
}

/// What the metadata say about the tokenizer, unchecked but for the types.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// For messages.
    pub file: String,
    /// `general.name`: some models need special rules.
    pub name: String,
    pub model: Model,
    pub pre: String,
    pub tokens: Vec<String>,
    pub scores: Option<Vec<f32>>,
    pub types: Option<Vec<i64>>,
    pub merges: Option<Vec<String>>,
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub eot: Option<u64>,
    pub eom: Option<u64>,
    pub unk: Option<u64>,
    pub suppress: Vec<i64>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

impl Source {
    /// Reads the keys. Unsupported tokenizer models are an error that names them.
    pub fn read(meta: &Metadata) -> Result<Source> {
        let file = meta.file().to_owned();
        let name = meta.require("tokenizer.ggml.model", meta.str("tokenizer.ggml.model"))?;
        let mut pre = meta.str("tokenizer.ggml.pre")?.unwrap_or_default().to_owned();
        let model = match name {
            "llama" => Model::Spm,
            "gpt2" => Model::Bpe,
            "gemma4" => {
                pre = "gemma4".to_owned();
                Model::Bpe
            }
            other => {
                bail!(
                    Unsupported,
                    "{file}: tokenizer.ggml.model: \"{other}\" is not supported (llama, gpt2, gemma4 are)"
                )
            }
        };
        let tokens = meta.require("tokenizer.ggml.tokens", meta.strings("tokenizer.ggml.tokens"))?.to_vec();
        let scores = match meta.f32s("tokenizer.ggml.scores") {
            Ok(scores) => scores,
            // Some converters wrote whole numbers.
            Err(error) => match meta.i64s("tokenizer.ggml.scores") {
                Ok(scores) => scores.map(|s| s.into_iter().map(|s| s as f32).collect()),
                Err(_) => return Err(error),
            },
        };
        let id = |key: &str| -> Result<Option<u64>> { Ok(meta.usize(key)?.map(|id| id as u64)) };
        Ok(Source {
            name: meta.str("general.name").ok().flatten().unwrap_or_default().to_owned(),
            model,
            pre,
            tokens,
            scores,
            types: meta.i64s("tokenizer.ggml.token_type")?,
            merges: meta.strings("tokenizer.ggml.merges")?.map(<[String]>::to_vec),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            unk: id("tokenizer.ggml.unknown_token_id")?,
            suppress: meta.i64s("tokenizer.ggml.suppress_tokens")?.unwrap_or_default(),
            add_bos: meta.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: meta.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix")?,
            file,
        })
    }

    /// `(bos, eos, unk)` where the file does not say.
    pub fn default_ids(&self) -> (Option<u32>, Option<u32>, Option<u32>) {
        match (self.model, self.pre.as_str()) {
            (Model::Spm, _) => (Some(1), Some(2), Some(0)),
            (Model::Bpe, "gemma4") => (None, None, None),
            (Model::Bpe, "chatglm-bpe" | "glm4" | "glm5") => (None, Some(11), None),
            (Model::Bpe, _) => (Some(11), Some(11), None),
        }
    }
}

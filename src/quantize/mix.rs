//! Which type each tensor of a model gets when a [`FileType`] is asked for.
//!
//! For text models the rules are those of llama.cpp's `llama-quant.cpp` (2026-10), so that the same request gives the same
//! types. Vision encoders and projectors, which that program treats as text models without layers, have rules of their own.

use super::FileType;
use crate::gguf::Metadata;
use crate::{Dtype, Result, bail};

/// More blocks than this are taken for nonsense.
const MAX_BLOCKS: usize = 1 << 16;

/// What the mixes need to know of a model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// `general.architecture`.
    pub architecture: String,
    /// Blocks of the text model, as its metadata count them.
    pub n_layer: usize,
    /// Heads of the first layer.
    pub n_head: usize,
    /// Heads of the first layer for keys and values.
    pub n_head_kv: usize,
    /// Experts of a layer; 0 if there are none.
    pub n_expert: usize,
}

impl Model {
    /// What a file's metadata say; what they do not say is 0.
    ///
    /// # Errors
    /// `Format` for values of a wrong type, or out of reason.
    pub fn read(meta: &Metadata) -> Result<Model> {
        let architecture = meta.str("general.architecture")?.unwrap_or_default().to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        // Some models have a number of heads for each layer.
        let first = |name: &str| {
            let key = key(name);
            match meta.i64s(&key) {
                Ok(Some(each)) => Ok(each.first().and_then(|n| usize::try_from(*n).ok())),
                _ => meta.usize(&key),
            }
        };
        let n_head = first("attention.head_count")?.unwrap_or(0);
        let n_layer = meta.usize(&key("block_count"))?.unwrap_or(0);
        if n_layer > MAX_BLOCKS {
            bail!(
                Format,
                "{}: key {:?}: {n_layer} blocks, at most {MAX_BLOCKS} are known",
                meta.file(),
                key("block_count")
            );
        }
        Ok(Model {
            n_layer,
            n_head,
            n_head_kv: first("attention.head_count_kv")?.unwrap_or(n_head),
            n_expert: meta.usize(&key("expert_count"))?.unwrap_or(0),
            architecture,
        })
    }

    /// Queries that share a key.
    fn n_gqa(&self) -> usize {
        self.n_head.checked_div(self.n_head_kv).unwrap_or(0)
    }

    /// Whether its `attn_v` is an eighth of `attn_q`, and may be large: LLaMA-2 and -3 70B.
    fn is_70b(&self) -> bool {
        self.n_layer == 80 && self.n_head != self.n_head_kv
    }
}

/// What a tensor does in a text model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Rows for tokens.
    TokenEmbd,
    /// Makes queries.
    AttnQ,
    /// Makes keys.
    AttnK,
    /// Makes values, or what values are made of, alone or with queries and keys.
    AttnV,
    /// Makes queries, keys and values at once.
    AttnQkv,
    /// The end of attention.
    AttnOutput,
    /// Input of the feed-forward part.
    FfnUp,
    /// Its gate.
    FfnGate,
    /// Its end.
    FfnDown,
    /// Makes logits.
    Output,
    /// Anything else.
    Other,
}

impl Role {
    /// The role that a name tells.
    pub fn of(name: &str) -> Role {
        const PARTS: [(&str, Role); 9] = [
            ("attn_qkv.weight", Role::AttnQkv),
            ("attn_kv_b.weight", Role::AttnV),
            ("attn_v.weight", Role::AttnV),
            ("attn_k.weight", Role::AttnK),
            ("attn_q.weight", Role::AttnQ),
            ("attn_output.weight", Role::AttnOutput),
            ("ffn_up", Role::FfnUp),
            ("ffn_gate", Role::FfnGate),
            ("ffn_down", Role::FfnDown),
        ];
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::TokenEmbd,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role),
        }
    }

    fn is_attn_v(self) -> bool {
        matches!(self, Role::AttnV | Role::AttnQkv)
    }
}

/// Whether a tensor belongs to an encoder or projector that stands before a text model.
pub fn is_encoder(model: &Model, name: &str) -> bool {
    model.architecture == "clip" || ["v.", "a.", "qf.", "mm."].iter().any(|prefix| name.starts_with(prefix))
}

/// The block that `name` belongs to: N of `blk.N.`, after whatever prefix.
pub fn block(name: &str) -> Option<usize> {
    let at = name.find("blk.")?;
    name[at + 4..].split('.').next()?.parse().ok().filter(|block| *block < MAX_BLOCKS)
}

/// The block of an encoder that `name` belongs to; none for those of a Q-Former behind it.
fn encoder_block(name: &str) -> Option<usize> {
    block(name).filter(|_| !name.starts_with("qf."))
}

/// Whether a tensor is a matrix that may lose precision: no norm, bias, embedding of positions, convolution or small
/// routing table. `shape` is outermost first.
pub fn may_quantize(name: &str, shape: &[usize]) -> bool {
    const NEVER: [&str; 42] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ffn_gate_tid2eid.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "time_mix_first.weight",
        "time_mix_w0.weight",
        "time_mix_w1.weight",
        "time_mix_w2.weight",
        "time_mix_v0.weight",
        "time_mix_v1.weight",
        "time_mix_v2.weight",
        "time_mix_a0.weight",
        "time_mix_a1.weight",
        "time_mix_a2.weight",
        "time_mix_g1.weight",
        "time_mix_g2.weight",
        "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight",
        "time_mix_lerp_fused.weight",
        "attn_rel_b.weight",
        ".position_embd",
        ".class_embd",
        ".pre_ln",
        ".post_ln",
        ".ln1",
        ".ln2",
        "sam.pos_embd",
        "sam.neck.",
        "sam.net_",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
        "image_newline",
        "view_seperator",
        "a.rvq.codebook",
        "mm.a.code_embd",
    ];
    let n_dims = shape.iter().skip_while(|n| **n == 1).count();
    (2..=3).contains(&n_dims)
        && name.ends_with("weight")
        && !["position_embd.weight", "token_types.weight"].contains(&name)
        && !NEVER.iter().any(|part| name.contains(part))
}

/// The type for rows of `n_cols` that are to be `dtype`: that one, or the next that rows of this length can hold.
pub fn fitting(dtype: Dtype, n_cols: usize) -> Dtype {
    use Dtype::*;
    if dtype.row_bytes(n_cols).is_some() {
        return dtype;
    }
    let next = match dtype {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q1_0 | Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    if next.row_bytes(n_cols).is_some() { next } else { F16 }
}

/// Whether llama-quantize refuses to write a tensor in this type without importance: the result is poor. Tables of tokens
/// and output matrices, which an importance matrix seldom knows, are let pass.
pub fn needs_importance(name: &str, dtype: Dtype, wanted: Option<FileType>) -> bool {
    !matches!(Role::of(name), Role::TokenEmbd | Role::Output)
        && (dtype.wants_importance() || dtype == Dtype::Q2_K && wanted == Some(FileType::Q2_K_S))
}

/// Goes through the tensors of a model, in llama.cpp's order, and says which type each gets.
pub struct Mix<'a> {
    model: &'a Model,
    wanted: FileType,
    has_importance: bool,
    /// The type that was asked for output matrices.
    output: Option<Dtype>,
    /// The type that was asked for tables of tokens.
    embedding: Option<Dtype>,
    /// Whether the table of tokens makes the logits too.
    is_tied: bool,
    n_attn_v: usize,
    i_attn_v: usize,
    i_ffn_down: usize,
    i_ffn_gate: usize,
    i_ffn_up: usize,
    /// Blocks of the encoder.
    n_encoder: usize,
}

impl<'a> Mix<'a> {
    /// A mix for a model of tensors with these names.
    pub fn new(
        model: &'a Model,
        wanted: FileType,
        has_importance: bool,
        output: Option<Dtype>,
        embedding: Option<Dtype>,
        names: impl Iterator<Item = &'a str>,
    ) -> Mix<'a> {
        let mut mix = Mix {
            model,
            wanted,
            has_importance,
            output,
            embedding,
            is_tied: true,
            n_attn_v: 0,
            i_attn_v: 0,
            i_ffn_down: 0,
            i_ffn_gate: 0,
            i_ffn_up: 0,
            n_encoder: 0,
        };
        for name in names {
            if is_encoder(model, name) {
                mix.n_encoder = mix.n_encoder.max(encoder_block(name).map_or(0, |i| i.saturating_add(1)));
                continue;
            }
            let role = Role::of(name);
            mix.n_attn_v += usize::from(role.is_attn_v());
            mix.is_tied &= role != Role::Output;
        }
        mix
    }

    /// The type of the next tensor, a matrix that may be quantized. Rows may turn out not to hold it: [`fitting`].
    ///
    /// # Errors
    /// `Format` for a matrix of experts whose name tells no layer.
    pub fn next(&mut self, name: &str, shape: &[usize]) -> Result<Dtype> {
        if is_encoder(self.model, name) {
            return Ok(self.encoder(name));
        }
        let role = Role::of(name);
        if role == Role::Output || role == Role::TokenEmbd && self.is_tied {
            return Ok(self.logits(shape));
        }
        if self.wanted == FileType::MXFP4_MOE {
            return Ok(if shape.len() > 2 && shape[shape.len() - 3] > 1 { Dtype::MXFP4 } else { Dtype::Q8_0 });
        }
        if role == Role::TokenEmbd {
            return Ok(self.embedding.unwrap_or(self.token_embd()));
        }
        if self.is_below_3_bits() {
            return Ok(self.below_3_bits(role));
        }
        self.block_matrix(role, name)
    }

    fn logits(&self, shape: &[usize]) -> Dtype {
        use FileType::*;
        let dtype = self.wanted.dtype();
        let n_cols = shape.last().copied().unwrap_or(1);
        match self.wanted {
            _ if self.output.is_some() => self.output.expect("it is"),
            MXFP4_MOE => Dtype::Q8_0,
            _ if self.model.architecture == "falcon" || dtype.row_bytes(n_cols).is_none() => Dtype::Q8_0,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M | IQ3_XXS => Dtype::Q5_K,
            _ if dtype == Dtype::Q8_0 => Dtype::Q8_0,
            _ => Dtype::Q6_K,
        }
    }

    fn token_embd(&self) -> Dtype {
        use FileType::*;
        match self.wanted {
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS => Dtype::Q2_K,
            IQ2_S | IQ2_M | IQ3_XXS => Dtype::IQ3_S,
            TQ1_0 | TQ2_0 | Q2_0 => Dtype::Q4_K,
            other => other.dtype(),
        }
    }

    fn is_below_3_bits(&self) -> bool {
        use FileType::*;
        matches!(self.wanted, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M)
    }

    fn below_3_bits(&mut self, role: Role) -> Dtype {
        use FileType::*;
        let dtype = self.wanted.dtype();
        let n_expert = self.model.n_expert;
        let careful = if matches!(self.wanted, IQ2_S | IQ2_M) { Dtype::IQ3_S } else { Dtype::Q2_K };
        match role {
            _ if role.is_attn_v() => {
                self.i_attn_v += 1;
                if self.model.n_gqa() >= 4 || n_expert >= 4 { Dtype::Q4_K } else { careful }
            }
            Role::AttnK if n_expert == 8 => Dtype::Q4_K,
            Role::FfnDown => {
                self.i_ffn_down += 1;
                if self.i_ffn_down <= self.model.n_layer / 8 { careful } else { dtype }
            }
            Role::AttnOutput if n_expert == 8 => Dtype::Q5_K,
            Role::AttnOutput => match self.wanted {
                IQ1_S | IQ1_M => Dtype::IQ2_XXS,
                IQ2_S | IQ2_M => Dtype::IQ3_S,
                _ => dtype,
            },
            _ => dtype,
        }
    }

    fn block_matrix(&mut self, role: Role, name: &str) -> Result<Dtype> {
        use FileType::*;
        let dtype = self.wanted.dtype();
        let (n_layer, n_expert) = (self.model.n_layer, self.model.n_expert);
        let is_falcon = self.model.architecture == "falcon";
        Ok(match role {
            Role::AttnV | Role::AttnQkv => {
                self.i_attn_v += 1;
                self.attn_v(self.i_attn_v - 1)
            }
            Role::AttnK if n_expert == 8 => Dtype::Q8_0,
            Role::AttnK | Role::AttnQ => match self.wanted {
                IQ3_XS => Dtype::IQ3_XXS,
                IQ3_XXS => Dtype::IQ2_S,
                _ => dtype,
            },
            Role::AttnOutput if is_falcon => match self.wanted {
                Q3_K_L => Dtype::Q4_K,
                _ => dtype,
            },
            Role::AttnOutput if n_expert == 8 => match self.wanted {
                Q2_K | IQ3_XS | IQ3_XXS | Q3_K_S | Q3_K_M | IQ4_NL | Q4_K_S | Q4_K_M | IQ3_S | IQ3_M | IQ4_XS => {
                    Dtype::Q5_K
                }
                _ => dtype,
            },
            Role::AttnOutput => match self.wanted {
                Q2_K => Dtype::Q3_K,
                IQ3_XXS => Dtype::IQ3_S,
                Q3_K_M | IQ3_M => Dtype::Q4_K,
                Q3_K_L => Dtype::Q5_K,
                _ => dtype,
            },
            Role::FfnDown => {
                self.i_ffn_down += 1;
                let layer = self.layer(self.i_ffn_down - 1, name)?;
                self.ffn_down(layer)
            }
            Role::FfnGate | Role::FfnUp => {
                let count = if role == Role::FfnGate { &mut self.i_ffn_gate } else { &mut self.i_ffn_up };
                *count += 1;
                let i = *count - 1;
                let layer = self.layer(i, name)?;
                let middle = (n_layer / 8..7 * n_layer / 8).contains(&layer);
                if self.wanted == IQ3_XS && middle { Dtype::IQ3_XXS } else { dtype }
            }
            _ => dtype,
        })
    }

    fn attn_v(&self, i: usize) -> Dtype {
        use FileType::*;
        let dtype = self.wanted.dtype();
        let shared = self.model.n_gqa() >= 4;
        let chosen = match self.wanted {
            Q2_K | Q2_K_S | IQ3_XXS | IQ3_XS | IQ3_S if shared => Dtype::Q4_K,
            Q2_K => Dtype::Q3_K,
            IQ3_XXS if !self.has_importance => Dtype::IQ3_S,
            IQ3_M => Dtype::Q4_K,
            Q3_K_M if i < 2 => Dtype::Q5_K,
            Q3_K_M => Dtype::Q4_K,
            Q3_K_L => Dtype::Q5_K,
            IQ4_NL | IQ4_XS if shared => Dtype::Q5_K,
            Q4_K_M | Q5_K_M if more_bits(i, self.n_attn_v) => Dtype::Q6_K,
            Q4_K_S if i < 4 => Dtype::Q5_K,
            _ => dtype,
        };
        match chosen {
            _ if self.model.n_expert == 8 => Dtype::Q8_0,
            Dtype::Q3_K | Dtype::Q4_K if self.model.is_70b() => Dtype::Q5_K,
            _ => chosen,
        }
    }

    fn ffn_down(&self, layer: usize) -> Dtype {
        use FileType::*;
        let dtype = self.wanted.dtype();
        let n = self.model.n_layer;
        let is_falcon = self.model.architecture == "falcon";
        let first = layer < n / 8;
        match self.wanted {
            Q2_K => Dtype::Q3_K,
            Q2_K_S if first => Dtype::Q4_K,
            IQ3_XXS if !self.has_importance => {
                if first {
                    Dtype::Q4_K
                } else {
                    Dtype::Q3_K
                }
            }
            Q3_K_M if layer < n / 16 => Dtype::Q5_K,
            Q3_K_M if !is_falcon || more_bits(layer, n) => Dtype::Q4_K,
            IQ3_M if first || self.model.n_expert == 8 && more_bits(layer, n) => Dtype::Q4_K,
            Q3_K_L => {
                if is_falcon {
                    Dtype::Q4_K
                } else {
                    Dtype::Q5_K
                }
            }
            Q4_K_M if is_falcon && layer < n / 16 => Dtype::Q6_K,
            Q4_K_M if more_bits(layer, n) => {
                if is_falcon {
                    Dtype::Q5_K
                } else {
                    Dtype::Q6_K
                }
            }
            IQ4_NL | IQ4_XS if first && !self.has_importance => Dtype::Q5_K,
            Q5_K_M if more_bits(layer, n) => Dtype::Q6_K,
            Q4_K_S if first && !is_falcon => Dtype::Q5_K,
            // With importance the first ones can go astray in types without a minimum.
            Q4_0 if first && self.has_importance => Dtype::Q4_1,
            Q5_0 if first && self.has_importance => Dtype::Q5_1,
            _ => dtype,
        }
    }

    /// The layer of a feed-forward matrix, the `i`-th of its kind. Those of experts need not come in order.
    fn layer(&self, i: usize, name: &str) -> Result<usize> {
        if self.model.n_expert <= 1 {
            return Ok(i);
        }
        match block(name).filter(|layer| *layer < self.model.n_layer) {
            Some(layer) => Ok(layer),
            None => bail!(Format, "tensor {name:?}: its name tells no layer below {}", self.model.n_layer),
        }
    }

    /// Below 6 bits the ends of an encoder, a Q-Former and the projector keep 6: what is lost there is lost for every token, and text
    /// in pictures is the first to go.
    fn encoder(&self, name: &str) -> Dtype {
        let dtype = if self.wanted == FileType::MXFP4_MOE { Dtype::Q8_0 } else { self.wanted.dtype() };
        let inner = encoder_block(name).is_some_and(|i| i > 0 && i + 1 < self.n_encoder);
        if inner || dtype.bits_per_weight() >= 6.0 { dtype } else { Dtype::Q6_K }
    }
}

/// The layers that the `_M` mixes give more bits: the first and last eighth and every third between.
fn more_bits(layer: usize, n_layer: usize) -> bool {
    let first = n_layer / 8;
    layer < first || layer >= 7 * n_layer / 8 || (layer - first) % 3 == 2
}

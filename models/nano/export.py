"""Writes a checkpoint of train.py as a LLaVA pair: nano.gguf and mmproj-nano.gguf (Q8_0), and reads one back."""
import argparse
import os

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q

from model import CONFIG, MEAN, STD, Nano

TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- 'USER: ' -}}
{%- if message['content'] is string -%}
{{- message['content'] | replace('<__media__>\\n', '<__media__>') | replace('<__media__>', '<__media__>\\n') -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{{- ' ASSISTANT: ' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '</s>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"""


def names(c):
    """GGUF name -> (file, state-dict name, kind); kinds: row (quantized), conv, flat, rope (quantized, rows reordered)."""
    out = {"v.patch_embd.weight": ("v", "vision.patch_embd.weight", "conv"), "v.class_embd": ("v", "vision.cls", "flat"),
           "v.position_embd.weight": ("v", "vision.pos", "flat")}
    both = lambda gg, ours: [(f"{gg}.weight", f"{ours}.weight"), (f"{gg}.bias", f"{ours}.bias")]
    pairs = both("v.pre_ln", "vision.pre_ln") + both("mm.0", "projector.a") + both("mm.2", "projector.b")
    for i in range(c["v_blocks"]):
        for gg, ours in dict(attn_q="q", attn_k="k", attn_v="v", attn_out="o", ln1="ln1", ln2="ln2",
                             ffn_up="up", ffn_down="down").items():
            pairs += both(f"v.blk.{i}.{gg}", f"vision.blocks.{i}.{ours}")
    for gg, ours in pairs:
        flat = gg.endswith("bias") or "ln" in gg
        out[gg] = ("v", ours, "flat" if flat else "row")
    out["token_embd.weight"] = ("t", "text.embd.weight", "row")
    out["output.weight"] = ("t", "text.output.weight", "row")
    out["output_norm.weight"] = ("t", "text.norm.weight", "flat")
    for i in range(c["blocks"]):
        for gg, ours in dict(attn_q="q", attn_k="k", attn_v="v", attn_output="o", ffn_gate="gate", ffn_up="up",
                             ffn_down="down", attn_norm="norm1", ffn_norm="norm2").items():
            kind = "rope" if ours in "qk" else "flat" if "norm" in gg else "row"
            out[f"blk.{i}.{gg}.weight"] = ("t", f"text.blocks.{i}.{ours}.weight", kind)
    return out


def interleave(w, heads):
    """RoPE turns halves of a head against each other in PyTorch, neighbours in GGUF files."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def halve(w, heads):
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write(state, c, tokenizer, folder):
    import sentencepiece
    text = gguf.GGUFWriter(os.path.join(folder, "nano.gguf"), "llama")
    clip = gguf.GGUFWriter(os.path.join(folder, "mmproj-nano.gguf"), "clip")
    for w, name in (text, "nano"), (clip, "nano vision"):
        w.add_name(name)
        w.add_license("MIT OR Apache-2.0")
        w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    text.add_context_length(c["context"])
    text.add_embedding_length(c["width"])
    text.add_block_count(c["blocks"])
    text.add_feed_forward_length(c["ff"])
    text.add_head_count(c["heads"])
    text.add_head_count_kv(c["heads"])
    text.add_layer_norm_rms_eps(c["eps"])
    text.add_rope_dimension_count(c["width"] // c["heads"])
    text.add_rope_freq_base(c["theta"])
    text.add_vocab_size(c["vocab"])
    sp = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    ids = range(sp.vocab_size())
    kind = lambda i: gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i) \
        else gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.NORMAL
    text.add_tokenizer_model("llama")
    text.add_token_list([sp.id_to_piece(i).encode() for i in ids])
    text.add_token_scores([sp.get_score(i) for i in ids])
    text.add_token_types([int(kind(i)) for i in ids])
    text.add_bos_token_id(sp.bos_id())
    text.add_eos_token_id(sp.eos_id())
    text.add_unk_token_id(sp.unk_id())
    text.add_add_bos_token(True)
    text.add_add_eos_token(False)
    text.add_add_space_prefix(True)
    text.add_chat_template(TEMPLATE)

    clip.add_bool("clip.has_text_encoder", False)
    clip.add_bool("clip.has_vision_encoder", True)
    clip.add_bool("clip.has_llava_projector", True)
    clip.add_string("clip.projector_type", "mlp")
    clip.add_bool("clip.use_gelu", False)  # quick GELU
    clip.add_uint32("clip.vision.image_size", c["image"])
    clip.add_uint32("clip.vision.patch_size", c["patch"])
    clip.add_uint32("clip.vision.embedding_length", c["v_width"])
    clip.add_uint32("clip.vision.feed_forward_length", c["v_ff"])
    clip.add_uint32("clip.vision.projection_dim", c["width"])
    clip.add_uint32("clip.vision.block_count", c["v_blocks"])
    clip.add_uint32("clip.vision.attention.head_count", c["v_heads"])
    clip.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    clip.add_array("clip.vision.image_mean", list(MEAN))
    clip.add_array("clip.vision.image_std", list(STD))
    # llama.cpp leaves out the last block of a LLaVA encoder unless told where to take the features.
    clip.add_array("clip.vision.feature_layer", [c["v_blocks"]])

    for name, (file, ours, how) in names(c).items():
        data = state[ours].float().numpy()
        out = clip if file == "v" else text
        if how == "conv":
            out.add_tensor(name, data.reshape(-1, 3, c["patch"], c["patch"]).astype(np.float16))
        elif how == "flat":
            out.add_tensor(name, data.astype(np.float32))
        else:
            data = interleave(data, c["heads"]) if how == "rope" else data
            out.add_tensor(name, gguf.quantize(np.ascontiguousarray(data), Q.Q8_0), raw_dtype=Q.Q8_0)
    for w in (text, clip):
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def read(folder, c=CONFIG):
    """The network with the weights of an exported pair, as they are after quantization."""
    net, state = Nano(c), {}
    tensors = {t.name: t for f in ("nano.gguf", "mmproj-nano.gguf")
               for t in gguf.GGUFReader(os.path.join(folder, f)).tensors}
    for name, (_, ours, how) in names(c).items():
        t = tensors.pop(name)
        data = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        state[ours] = torch.from_numpy(halve(data, c["heads"]).copy() if how == "rope" else data.copy())
    assert not tensors, f"tensors that the model does not have: {list(tensors)}"
    state = {k: v.reshape(net.state_dict()[k].shape) for k, v in state.items()}
    net.load_state_dict(state)
    return net.eval()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", default="run", help="folder of train.py's checkpoints")
    p.add_argument("--stage", default="joint")
    p.add_argument("--to", default=os.path.dirname(os.path.abspath(__file__)))
    a = p.parse_args()
    saved = torch.load(os.path.join(a.run, a.stage + ".pt"), map_location="cpu")
    write(saved["net"], saved["config"], os.path.join(a.run, "nano.model"), a.to)
    back, asked = read(a.to, saved["config"]).state_dict(), saved["net"]
    for k, v in back.items():
        assert (v - asked[k]).abs().max() <= asked[k].abs().max() / 127 + 1e-3, k
    for f in ("nano.gguf", "mmproj-nano.gguf"):
        print(f, os.path.getsize(os.path.join(a.to, f)), "bytes")
    print(sum(v.numel() for v in back.values()), "parameters")

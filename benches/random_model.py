"""Writes models of true shapes with random weights, for timing: a LLaMA text model and LLaVA's mmproj for it, or Qwen-VL's two files.

    python benches/random_model.py --shape 1.1b --type Q4_0 --out DIR

makes DIR/1.1b-Q4_0.gguf and DIR/mmproj-1.1b-F16.gguf. Answers are noise; the work is real. The words w0 w1 w2 … are one
token each. Tensors are written one by one, so that a model may be larger than memory. Needs numpy and gguf.
"""

import argparse
import os
from pathlib import Path

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
SHAPES = {  # n_embd, n_layer, n_ff, n_head, n_head_kv, n_vocab
    "135m": (576, 30, 1536, 9, 3, 49152),
    "1.1b": (2048, 22, 5632, 32, 4, 32000),
    "7b": (4096, 32, 11008, 32, 32, 32000),
    "qwen-vl": (4096, 32, 11008, 32, 32, 151936),
}
# Where the F16 factors of a block lie, and what to divide a weight's size by to get them when all else is random.
BLOCKS = {
    Type.Q4_0: {0: 4.6},
    Type.Q5_0: {0: 9.2},
    Type.Q8_0: {0: 74.0},
    Type.Q2_K: {80: 15.0, 82: 10.0},
    Type.Q3_K: {108: 43.0},
    Type.Q4_K: {0: 258.0, 2: 34.5},
    Type.Q5_K: {0: 520.0, 2: 33.5},
    Type.Q6_K: {208: 1360.0},
    Type.IQ4_NL: {0: 69.0},
    Type.IQ4_XS: {0: 1270.0},
    Type.IQ3_S: {0: 141.0},
    Type.IQ3_XXS: {0: 142.0},
    Type.IQ2_S: {0: 56.0},
    Type.IQ2_XS: {0: 56.0},
    Type.IQ2_XXS: {0: 53.0},
    Type.IQ1_S: {0: 7.2},
    Type.TQ2_0: {64: 1.12},
    Type.TQ1_0: {52: 0.82},
}
MIXES = ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
TEMPLATE = "{% for message in messages %}{{ message['role'].upper() + ': ' + message['content'] + ' ' }}{% endfor %}ASSISTANT:"
rng = np.random.default_rng(0)


def rows(n_cols, dtype, scale):
    """64 rows of random weights about as large as `scale`, encoded: uint8 [64, bytes]."""
    if dtype in (Type.F32, Type.F16, Type.BF16, Type.Q4_1, Type.Q5_1):
        values = np.float32(rng.standard_normal((64, n_cols)) * scale)
        return np.ascontiguousarray(gguf.quants.quantize(values, dtype)).view(np.uint8)
    if dtype not in BLOCKS:
        raise SystemExit(f"{dtype.name} cannot be made up; known: F32, F16, BF16, Q4_1, Q5_1, {', '.join(t.name for t in BLOCKS)}")
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    if n_cols % block:
        raise SystemExit(f"{dtype.name} comes in blocks of {block}: rows of {n_cols} cannot be cut into them")
    data = rng.integers(0, 256, (64, n_cols // block, size), np.uint8)
    for at, spread in BLOCKS[dtype].items():
        data[:, :, at : at + 2] = np.float16([scale / spread]).view(np.uint8)
    return data.reshape(64, -1)


class Writer:
    """A GGUF file whose tensors are drawn while they are written."""

    def __init__(self, path, architecture):
        self.path, self.tensors = path, []
        self.w = gguf.GGUFWriter(f"{path}.part", architecture)

    def random(self, name, shape, dtype, scale=None):
        """A matrix of `shape` rows × columns; 64 rows are drawn and repeated, since only the work matters."""
        block, size = gguf.GGML_QUANT_SIZES[dtype]
        bytes_a_row = shape[-1] // block * size
        self.w.add_tensor_info(name, list(shape), np.dtype(np.float32), int(np.prod(shape[:-1])) * bytes_a_row, dtype)
        self.tensors.append((int(np.prod(shape[:-1])), shape[-1], dtype, scale or shape[-1] ** -0.5))

    def vector(self, name, values):
        self.w.add_tensor_info(name, [len(values)], np.dtype(np.float32), 4 * len(values))
        self.tensors.append(np.float32(values))

    def save(self):
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_ti_data_to_file()
        for tensor in self.tensors:
            if isinstance(tensor, tuple):
                n_rows, *rest = tensor
                drawn = rows(*rest)
                tensor = np.concatenate([drawn] * (-(-n_rows // 64)))[:n_rows]
            self.w.write_tensor_data(tensor)
        self.w.close()
        os.replace(f"{self.path}.part", self.path)
        print(self.path)


def mixed(mix, tensor, layer, n_layer):
    """The type of a tensor in a mix such as Q4_K_M: the head and part of the values and outputs are finer."""
    base, finer = {"Q3_K_M": ("Q3_K", "Q5_K"), "Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K")}.get(mix, (mix, mix))
    if base == finer:
        return Type[base]
    if tensor == "output":
        return Type.Q6_K
    eighth = n_layer // 8
    chosen = layer is not None and (layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2)
    return Type[finer if chosen and tensor in ("attn_v", "ffn_down") else base]


def text_model(path, shape, mix):
    n_embd, n_layer, n_ff, n_head, n_head_kv, n_vocab = SHAPES[shape]
    n_kv = n_embd // n_head * n_head_kv
    qwen = shape == "qwen-vl"
    out = Writer(path, "qwen" if qwen else "llama")
    w = out.w
    w.add_name(f"random {shape}")
    w.add_context_length(8192 if qwen else 4096)
    w.add_embedding_length(n_embd)
    w.add_block_count(n_layer)
    w.add_feed_forward_length(2 * n_ff if qwen else n_ff)
    w.add_head_count(n_head)
    w.add_layer_norm_rms_eps(1e-6 if qwen else 1e-5)
    w.add_rope_dimension_count(n_embd // n_head)
    w.add_rope_freq_base(10000.0)
    if qwen:
        qwen_vocabulary(w, n_vocab)
    else:
        w.add_head_count_kv(n_head_kv)
        vocabulary(w, n_vocab)

    def matrix(layer, tensor, n_rows, n_cols):
        name = tensor if layer is None else f"blk.{layer}.{tensor}"
        out.random(f"{name}.weight", (n_rows, n_cols), mixed(mix, tensor, layer, n_layer))

    matrix(None, "token_embd", n_vocab, n_embd)
    for i in range(n_layer):
        out.vector(f"blk.{i}.attn_norm.weight", np.ones(n_embd))
        if qwen:
            matrix(i, "attn_qkv", 3 * n_embd, n_embd)
            out.vector(f"blk.{i}.attn_qkv.bias", np.zeros(3 * n_embd))
        else:
            matrix(i, "attn_q", n_embd, n_embd)
            matrix(i, "attn_k", n_kv, n_embd)
            matrix(i, "attn_v", n_kv, n_embd)
        matrix(i, "attn_output", n_embd, n_embd)
        out.vector(f"blk.{i}.ffn_norm.weight", np.ones(n_embd))
        matrix(i, "ffn_gate", n_ff, n_embd)
        matrix(i, "ffn_up", n_ff, n_embd)
        matrix(i, "ffn_down", n_embd, n_ff)
    out.vector("output_norm.weight", np.ones(n_embd))
    matrix(None, "output", n_vocab, n_embd)
    out.save()


def vocabulary(w, n_vocab):
    """Pieces of LLaMA's kind, of which the words w0 w1 w2 … are one each."""
    w.add_vocab_size(n_vocab)
    # Pairs merge from the left, so that a piece is reached through its beginnings.
    words = ["\u2581"] + [chr(c) for c in range(33, 127)]
    words += ["\u2581" + word[:n] for word in ("USER:", "ASSISTANT:") for n in range(1, len(word) + 1)] + ["\u2581w"]
    words = list(dict.fromkeys(words))
    words += [f"\u2581w{i}" for i in range(n_vocab - 259 - len(words))]
    pieces = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)] + [word.encode() for word in words]
    w.add_tokenizer_model("llama")
    w.add_token_list(pieces)
    w.add_token_scores([0.0] * 259 + [-float(i) for i in range(n_vocab - 259)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (n_vocab - 259))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template(TEMPLATE)


def qwen_vocabulary(w, n_vocab):
    """Bytes, and Qwen-VL's special tokens with their ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i, _ in enumerate(others)] + ["\u0120w"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    first = 151643
    padding = [f"[PAD{i}]" for i in range(n_vocab)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([*tokens, *padding[len(tokens) : first], *special, *padding[first + len(special) :]])
    n_free = first - len(tokens)
    w.add_token_types([1] * len(tokens) + [5] * n_free + [3] * len(special) + [5] * (n_vocab - first - len(special)))
    w.add_token_merges(["\u0120 w"])
    for add in (w.add_bos_token_id, w.add_eos_token_id, w.add_unk_token_id):
        add(first)


def mmproj(path, n_out, dtype, qwen=False):
    d, n_ff, n_layer, n_head, size, patch = (1664, 8192, 48, 16, 448, 14) if qwen else (1024, 4096, 23, 16, 336, 14)
    out = Writer(path, "clip")
    w = out.w
    w.add_bool("clip.has_text_encoder", False)
    w.add_bool("clip.has_vision_encoder", True)
    if qwen:
        w.add_string("clip.projector_type", "resampler_qwen")
        w.add_string("clip.chat_template", "qwen_vl")
        w.add_string("clip.vision.resize_mode", "squash_bicubic")
        w.add_string("clip.vision.activation", "gelu_erf")
        w.add_bool("clip.vision.has_class_token", False)
        for key, value in dict(query_count=256, head_count=32, embedding_length=n_out).items():
            w.add_uint32(f"clip.projector.{key}", value)
    else:
        w.add_bool("clip.has_llava_projector", True)
        w.add_string("clip.projector_type", "mlp")
        w.add_bool("clip.use_gelu", False)
    for key, value in dict(
        image_size=size, patch_size=patch, embedding_length=d, feed_forward_length=n_ff, projection_dim=n_out if qwen else 768, block_count=n_layer
    ).items():
        w.add_uint32(f"clip.vision.{key}", value)
    w.add_uint32("clip.vision.attention.head_count", n_head)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6 if qwen else 1e-5)
    w.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    w.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])

    def linear(tensor, n_rows, n_cols):
        out.random(f"{tensor}.weight", (n_rows, n_cols), dtype)
        out.vector(f"{tensor}.bias", np.zeros(n_rows))

    def norm(tensor, n=d):
        out.vector(f"{tensor}.weight", np.ones(n))
        out.vector(f"{tensor}.bias", np.zeros(n))

    out.random("v.patch_embd.weight", (d, 3, patch, patch), Type.F16, 0.04)
    if not qwen:
        out.vector("v.class_embd", rng.standard_normal(d))
    n_patch = (size // patch) ** 2
    out.random("v.position_embd.weight", (n_patch + (not qwen), d), Type.F32, 0.1)
    norm("v.pre_ln")
    for i in range(n_layer):
        norm(f"v.blk.{i}.ln1")
        norm(f"v.blk.{i}.ln2")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"v.blk.{i}.{name}", d, d)
        linear(f"v.blk.{i}.ffn_up", n_ff, d)
        linear(f"v.blk.{i}.ffn_down", d, n_ff)
    if qwen:
        for table, n in (("query", 256), ("pos_embed_q", 256), ("pos_embed_k", n_patch)):
            out.random(f"resampler.{table}", (n, n_out), Type.F32, 0.1)
        out.random("resampler.kv.weight", (n_out, d), dtype)
        for name in ("q", "k", "v", "out"):
            linear(f"resampler.attn.{name}", n_out, n_out)
        for name in ("ln_q", "ln_kv", "ln_post"):
            norm(f"resampler.{name}", n_out)
        out.random("resampler.proj.weight", (n_out, n_out), dtype)
    else:
        linear("mm.0", n_out, d)
        linear("mm.2", n_out, n_out)
    out.save()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", choices=SHAPES, default="1.1b")
parser.add_argument("--type", action="append", help="a type (Q4_0, Q4_K, Q8_0, F16 …) or a mix (Q4_K_M); may be repeated [Q4_0]")
parser.add_argument("--vision-type", default="F16", help="type of the mmproj's matrices; none: no mmproj")
parser.add_argument("--out", type=Path, default=Path("."))
args = parser.parse_args()
for name in args.type or ["Q4_0"]:
    if name not in MIXES and name not in Type.__members__:
        parser.error(f"--type {name}: expected a type such as Q4_0, or one of {', '.join(MIXES)}")
args.out.mkdir(parents=True, exist_ok=True)
for name in args.type or ["Q4_0"]:
    text_model(args.out / f"{args.shape}-{name}.gguf", args.shape, name)
if args.vision_type != "none":
    mmproj(args.out / f"mmproj-{args.shape}-{args.vision_type}.gguf", SHAPES[args.shape][0], Type[args.vision_type], args.shape == "qwen-vl")

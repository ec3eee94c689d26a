"""Writes models of true shapes with random weights, for timing: a LLaMA text model and LLaVA's mmproj.

    python benches/random_model.py --shape 1.1b --type Q4_0 --out DIR

makes DIR/1.1b-Q4_0.gguf and DIR/mmproj-vit-l-336-F16.gguf. Answers are noise; the work is real.
Needs numpy and gguf.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np

SHAPES = {  # n_embd, n_layer, n_ff, n_head, n_head_kv, n_vocab
    "135m": (576, 30, 1536, 9, 3, 49152),
    "1.1b": (2048, 22, 5632, 32, 4, 32000),
    "7b": (4096, 32, 11008, 32, 32, 32000),
}
rng = np.random.default_rng(0)


def weights(shape, dtype, scale):
    """Random weights; a block of rows is drawn once and repeated, since only the work matters."""
    rows = np.float32(rng.standard_normal((64, shape[-1])) * scale)
    data = gguf.quants.quantize(rows, dtype)
    return np.concatenate([data] * (-(-shape[0] // 64)))[: shape[0]]


def text_model(path, name, dtype):
    n_embd, n_layer, n_ff, n_head, n_head_kv, n_vocab = SHAPES[name]
    n_kv = n_embd // n_head * n_head_kv
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(f"random {name}")
    w.add_context_length(4096)
    w.add_embedding_length(n_embd)
    w.add_block_count(n_layer)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(n_embd // n_head)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(n_vocab)
    pieces = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    pieces += [f"\u2581w{i}".encode() for i in range(n_vocab - len(pieces))]
    w.add_tokenizer_model("llama")
    w.add_token_list(pieces)
    w.add_token_scores([0.0] * 259 + [-float(i) for i in range(n_vocab - 259)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (n_vocab - 259))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    def matrix(tensor, rows, cols):
        w.add_tensor(tensor, weights((rows, cols), dtype, cols**-0.5), raw_dtype=dtype)

    def norm(tensor):
        w.add_tensor(tensor, np.ones(n_embd, np.float32))

    matrix("token_embd.weight", n_vocab, n_embd)
    for i in range(n_layer):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", n_embd, n_embd)
        matrix(f"blk.{i}.attn_k.weight", n_kv, n_embd)
        matrix(f"blk.{i}.attn_v.weight", n_kv, n_embd)
        matrix(f"blk.{i}.attn_output.weight", n_embd, n_embd)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        matrix(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    norm("output_norm.weight")
    matrix("output.weight", n_vocab, n_embd)
    save(w)


def mmproj(path, n_out, dtype):
    d, n_ff, n_layer, n_head, size, patch = 1024, 4096, 23, 16, 336, 14
    w = gguf.GGUFWriter(path, "clip")
    w.add_bool("clip.has_text_encoder", False)
    w.add_bool("clip.has_vision_encoder", True)
    w.add_bool("clip.has_llava_projector", True)
    w.add_string("clip.projector_type", "mlp")
    w.add_bool("clip.use_gelu", False)
    for key, value in dict(
        image_size=size, patch_size=patch, embedding_length=d, feed_forward_length=n_ff, projection_dim=768, block_count=n_layer
    ).items():
        w.add_uint32(f"clip.vision.{key}", value)
    w.add_uint32("clip.vision.attention.head_count", n_head)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    w.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    w.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])

    def linear(tensor, rows, cols):
        w.add_tensor(f"{tensor}.weight", weights((rows, cols), dtype, cols**-0.5), raw_dtype=dtype)
        w.add_tensor(f"{tensor}.bias", np.zeros(rows, np.float32))

    def norm(tensor):
        w.add_tensor(f"{tensor}.weight", np.ones(d, np.float32))
        w.add_tensor(f"{tensor}.bias", np.zeros(d, np.float32))

    patches = np.float16(rng.standard_normal((d, 3, patch, patch)) * 0.04)
    w.add_tensor("v.patch_embd.weight", patches)
    w.add_tensor("v.class_embd", np.float32(rng.standard_normal(d)))
    w.add_tensor("v.position_embd.weight", np.float32(rng.standard_normal(((size // patch) ** 2 + 1, d)) * 0.1))
    norm("v.pre_ln")
    for i in range(n_layer):
        norm(f"v.blk.{i}.ln1")
        norm(f"v.blk.{i}.ln2")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(f"v.blk.{i}.{name}", d, d)
        linear(f"v.blk.{i}.ffn_up", n_ff, d)
        linear(f"v.blk.{i}.ffn_down", d, n_ff)
    linear("mm.0", n_out, d)
    linear("mm.2", n_out, n_out)
    save(w)


def save(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", choices=SHAPES, default="1.1b")
parser.add_argument("--type", default="Q4_0", help="a type that the gguf package can write: Q4_0, Q8_0, F16 …")
parser.add_argument("--vision-type", default="F16")
parser.add_argument("--out", type=Path, default=Path("."))
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
types = gguf.GGMLQuantizationType
text_model(args.out / f"{args.shape}-{args.type}.gguf", args.shape, types[args.type])
mmproj(args.out / f"mmproj-vit-l-336-{args.vision_type}.gguf", SHAPES[args.shape][0], types[args.vision_type])

"""The two networks, written out: CLIPVisionModel (no post-norm) and LlamaForCausalLM, with the LLaVA projector."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = dict(
    image=96, patch=16, v_width=192, v_ff=512, v_blocks=5, v_heads=6,
    width=128, ff=384, blocks=4, heads=4, vocab=640, context=1024, theta=10000.0, eps=1e-5,
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class VisionBlock(nn.Module):
    def __init__(self, w, ff, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(w, 1e-5), nn.LayerNorm(w, 1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(w, w) for _ in range(4))
        self.up, self.down = nn.Linear(w, ff), nn.Linear(ff, w)

    def forward(self, x):
        n, t, w = x.shape
        h = self.ln1(x)
        q, k, v = (f(h).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, w)
        x = x + self.o(a)
        h = self.up(self.ln2(x))
        return x + self.down(h * torch.sigmoid(1.702 * h))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        w, self.patch, self.side = c["v_width"], c["patch"], c["image"] // c["patch"]
        self.patch_embd = nn.Linear(3 * self.patch ** 2, w, bias=False)
        self.cls = nn.Parameter(torch.randn(w) * .02)
        self.pos = nn.Parameter(self.waves(w))
        self.pre_ln = nn.LayerNorm(w, 1e-5)
        self.blocks = nn.ModuleList(VisionBlock(w, c["v_ff"], c["v_heads"]) for _ in range(c["v_blocks"]))
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def waves(self, w):
        """Learned positions start as 2-D sine waves, so that neighbours are alike from the first step."""
        f = torch.exp(-math.log(100) * torch.arange(w // 4) / (w // 4)) * 2
        y, x = torch.meshgrid(torch.arange(self.side), torch.arange(self.side), indexing="ij")
        y, x = y.reshape(-1, 1) * f, x.reshape(-1, 1) * f
        grid = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1) * .5
        return torch.cat([torch.zeros(1, w), grid])

    def forward(self, pictures):
        """Pictures in 0..1 to patch features (n, patches, width); the class row is dropped, as LLaVA does."""
        x = (pictures - self.mean) / self.std
        n, s, p = len(x), self.side, self.patch
        x = x.view(n, 3, s, p, s, p).permute(0, 2, 4, 1, 3, 5).reshape(n, s * s, 3 * p * p)
        x = torch.cat([self.cls.expand(n, 1, -1), self.patch_embd(x)], 1) + self.pos
        x = self.pre_ln(x)
        for b in self.blocks:
            x = b(x)
        return x[:, 1:]


class Projector(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Linear(c["v_width"], c["width"]), nn.Linear(c["width"], c["width"])

    def forward(self, x):
        return self.b(F.gelu(self.a(x)))


class RMSNorm(nn.Module):
    def __init__(self, w, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(w)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class TextBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        w, self.heads = c["width"], c["heads"]
        self.norm1, self.norm2 = RMSNorm(w, c["eps"]), RMSNorm(w, c["eps"])
        self.q, self.k, self.v, self.o = (nn.Linear(w, w, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(w, c["ff"], bias=False), nn.Linear(w, c["ff"], bias=False)
        self.down = nn.Linear(c["ff"], w, bias=False)

    def forward(self, x, rope, mask, past=None):
        n, t, w = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = turn(q, *rope), turn(k, *rope)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, t, w)
        x = x + self.o(a)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), (k, v)


def turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Text(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embd = nn.Embedding(c["vocab"], c["width"])
        nn.init.normal_(self.embd.weight, std=.5)
        self.blocks = nn.ModuleList(TextBlock(c) for _ in range(c["blocks"]))
        self.norm = RMSNorm(c["width"], c["eps"])
        self.output = nn.Linear(c["width"], c["vocab"], bias=False)
        d = c["width"] // c["heads"]
        self.register_buffer("freq", c["theta"] ** (-torch.arange(0, d, 2) / d), persistent=False)

    def forward(self, x, position, mask, past=None):
        """Rows x (n, t, width) at the given positions; mask (n, 1, t, keys), true where a row may look."""
        angle = position[:, None, :, None] * self.freq
        rope, kept = (angle.cos(), angle.sin()), []
        for i, b in enumerate(self.blocks):
            x, kv = b(x, rope, mask, past[i] if past else None)
            kept.append(kv)
        return self.norm(x), kept


class Nano(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c, self.vision, self.projector, self.text = c, Vision(c), Projector(c), Text(c)

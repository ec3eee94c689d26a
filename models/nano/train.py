"""Trains nano from nothing, in LLaVA's order.

  tokenizer   SentencePiece BPE on the language of language.py
  vision      the encoder alone, on dense labels: what is in the place that each patch belongs to
  text        the decoder alone; in place of patches it reads embeddings of the true labels
  projector   the projector alone: from patches to the embeddings that the decoder learned to read
  joint       everything, at a lower rate

Each stage writes OUT/<stage>.pt every minute and takes it up again when started anew;
`vision` and `text` do not need each other and may run side by side. On a busy CPU set
OMP_WAIT_POLICY=passive, so that threads do not spin while they wait for one another.
"""
import argparse
import ctypes
import functools
import io
import json
import os
import random
import string
import time

import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F

from language import QUESTIONS, ask, corpus
from model import CONFIG, Nano
from scenes import KINDS, NAMES, Sprites, scenes, some_kinds

STAGES = ["tokenizer", "vision", "text", "projector", "joint"]
PLAN = {  # scenes, batch, learning rate
    "vision": (120_000, 96, 3e-3),
    "text": (60_000, 32, 2e-3),
    "projector": (30_000, 16, 1e-3),
    "joint": (30_000, 32, 1e-4),
}
BOS, EOS = 1, 2


def train_tokenizer(path, vocab):
    lines = list(corpus(random.Random(0), 4000))
    lines += [string.ascii_letters + string.digits + string.punctuation] * 3
    model = io.BytesIO()
    # As llama.cpp reads it: no normalisation at all, a dummy space in front, bytes for the unknown.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, add_dummy_prefix=True, minloglevel=2)
    with open(path, "wb") as f:
        f.write(model.getvalue())


class Tokens:
    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.word = functools.cache(lambda w: self.model.encode(w))
        self.before = [BOS] + self.model.encode("USER: ")

    def encode(self, text):
        """Pieces never cross a space, so words can be looked up one by one."""
        return [t for w in text.split(" ") for t in self.word(w)]

    def question(self, words, first=True):
        return self.encode(("\n" if first else "USER: ") + words + " ASSISTANT:")

    def decode(self, ids):
        return self.model.decode(ids).strip()


def conversations(shapes, colours, tokens, patches, rng):
    """Several questions about each scene as one batch of token rows.

    In three batches of four the turns cannot see each other (`group`) and all stand right after
    the picture: many single questions for the price of one picture. In the fourth they follow
    one another, as in a chat.
    """
    chat = rng.random() < .25
    start = tokens.before + [0] * patches
    rows = []
    for s, c in zip(shapes, colours):
        kinds = ["describe", "count", "colour", "at", "where", "where", "read"]
        rng.shuffle(kinds)
        ids, group, position = list(start), [0] * len(start), list(range(len(start)))
        answer = [False] * len(start)
        for turn, kind in enumerate(kinds):
            pair = ask(kind, s, c, rng)
            if pair is None:
                continue
            q = tokens.question(pair[0], first=not chat or len(ids) == len(start))
            a = tokens.encode(pair[1]) + [EOS]
            begin = len(ids) if chat else len(start)
            ids += q + a
            answer += [False] * len(q) + [True] * len(a)
            group += [0 if chat else turn + 1] * (len(q) + len(a))
            position += range(begin, begin + len(q) + len(a))
        rows.append((ids, group, position, answer))
    t = max(len(r[0]) for r in rows)
    pad = lambda k, fill: torch.tensor([list(r[k]) + [fill] * (t - len(r[k])) for r in rows])
    ids, group, position, answer = pad(0, 0), pad(1, -1), pad(2, 0), pad(3, False)
    look = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == 0)
    look &= torch.ones(t, t, dtype=torch.bool).tril()
    return ids, position, look[:, None], answer


def answer_loss(net, ids, position, mask, answer, picture_rows, start):
    x = net.text.embd(ids)
    x = torch.cat([x[:, :start], picture_rows, x[:, start + picture_rows.shape[1]:]], 1)
    h, _ = net.text(x, position, mask)
    here = answer[:, 1:]
    return F.cross_entropy(net.text.output(h[:, :-1][here]), ids[:, 1:][here])


@torch.no_grad()
def generate(net, tokens, pictures, questions, limit=64):
    """Greedy answers to one question on each picture, alone as a first turn."""
    out, device = [None] * len(questions), net.projector.a.weight.device
    rows = torch.cat([net.projector(net.vision(p.to(device))) for p in pictures.split(64)])
    ids = [tokens.question(q) for q in questions]
    for length in sorted({len(i) for i in ids}):
        at = [k for k, i in enumerate(ids) if len(i) == length]
        embd = lambda ids: net.text.embd(torch.tensor(ids, device=device))
        x = torch.cat([embd([tokens.before] * len(at)), rows[at], embd([ids[k] for k in at])], 1)
        t = x.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool, device=device).tril()
        position = torch.arange(t, device=device).expand(len(at), -1)
        past, said, done = None, [], torch.zeros(len(at), dtype=torch.bool, device=device)
        while len(said) < limit and not done.all():
            h, past = net.text(x, position, mask, past)
            token = net.text.output(h[:, -1]).argmax(-1)
            said.append(token)
            done |= token == EOS
            x, mask, position = net.text.embd(token)[:, None], None, position[:, -1:] + 1
        for k, row in zip(at, torch.stack(said, 1).tolist()):
            out[k] = tokens.decode(row[:row.index(EOS)] if EOS in row else row)
    return out


def quiz(n, seed, sprites):
    """Pictures and one question of each kind about each of them."""
    pictures, shapes, colours = scenes(n, sprites, torch.Generator().manual_seed(seed))
    rng, asked = random.Random(seed), []
    for i in range(n):
        for kind in QUESTIONS:
            pair = ask(kind, shapes[i].tolist(), colours[i].tolist(), rng)
            if pair:
                asked.append((i, kind, *pair))
    return pictures, asked


def score(net, tokens, pictures, asked):
    said = generate(net, tokens, pictures[[a[0] for a in asked]], [a[2] for a in asked])
    right = {k: [s == a[3] for s, a in zip(said, asked) if a[1] == k] for k in QUESTIONS}
    return {k: round(100 * sum(v) / len(v), 1) for k, v in right.items() if v}


def to(device, tensors):
    return [t.to(device) for t in tensors]


def places(x):
    """(n, patches, ...) to the mean over each of the nine places."""
    n, p, w = x.shape
    per = int(p ** .5) // 3
    return x.view(n, 3, per, 3, per, w).mean((2, 4)).flatten(1, 2)


def patches_of(labels, patches):
    """(n, 9) labels of places to (n, patches)."""
    per = int(patches ** .5) // 3
    return labels.view(-1, 3, 3).repeat_interleave(per, 1).repeat_interleave(per, 2).flatten(1)


class Labels(nn.Module):
    """What the decoder reads instead of projected patches while it learns the language."""

    def __init__(self, width, patches):
        super().__init__()
        self.shape, self.colour = nn.Embedding(len(KINDS) + 1, width), nn.Embedding(len(NAMES) + 1, width)
        self.position = nn.Embedding(patches, width)

    def forward(self, shapes, colours):
        n = self.position.num_embeddings
        x = self.shape(patches_of(shapes + 1, n)) + self.colour(patches_of(colours + 1, n)) + self.position.weight
        return x + torch.randn_like(x) * .3 if self.training and self.shape.weight.requires_grad else x


class Stage:
    def __init__(self, name, args):
        self.name, self.path, self.args = name, os.path.join(args.out, name + ".pt"), args
        self.total, self.batch, self.rate = PLAN[name]
        self.total = args.scenes or self.total
        torch.manual_seed(args.seed + STAGES.index(name))
        self.net = Nano()
        self.extra = nn.Linear(CONFIG["v_width"], 1 + len(KINDS) + len(NAMES)) if name == "vision" else \
            Labels(CONFIG["width"], self.net.vision.side ** 2) if name in ("text", "projector") else nn.Identity()
        if name in ("projector", "joint"):
            for part in ("vision", "text") if name == "projector" else ("projector",):
                saved = torch.load(os.path.join(args.out, part + ".pt"), map_location="cpu")
                keep = ("vision", "projector", "text") if part == "projector" else part
                self.net.load_state_dict({k: v for k, v in saved["net"].items() if k.startswith(keep)}, strict=False)
                if name == "projector" and part == "text":
                    self.extra.load_state_dict(saved["extra"])
        train = {"vision": [self.net.vision, self.extra], "text": [self.net.text, self.extra],
                 "projector": [self.net.vision, self.net.projector], "joint": [self.net]}[name]
        self.net.requires_grad_(False)
        self.extra.requires_grad_(False)
        for m in train:
            m.requires_grad_(True)
        self.net.to(args.device), self.extra.to(args.device)
        params = [(k, p) for m in train for k, p in m.named_parameters()]
        # Muon for the matrices inside the blocks (it learns several times faster here), AdamW for the rest.
        muon = lambda k, p: name != "projector" and "blocks" in k and p.ndim == 2
        inner = [p for k, p in params if muon(k, p)]
        rest = [p for k, p in params if not muon(k, p)]
        self.opts = [torch.optim.AdamW(rest, lr=self.rate, betas=(.9, .98), weight_decay=.01)]
        if inner:
            self.opts.append(torch.optim.Muon(inner, lr=self.rate, weight_decay=.01, adjust_lr_fn="match_rms_adamw"))
        self.params = [p for _, p in params]
        self.seen, self.spent = 0, 0.0
        if os.path.exists(self.path):
            state = torch.load(self.path, map_location=args.device)
            self.net.load_state_dict(state["net"])
            self.extra.load_state_dict(state["extra"])
            for o, s in zip(self.opts, state["opts"]):
                o.load_state_dict(s)
            self.seen, self.spent = state["seen"], state["spent"]

    def progress(self):
        return max(self.seen / self.total, self.spent / 60 / self.args.minutes if self.args.minutes else 0)

    def save(self):
        torch.save(dict(net=self.net.state_dict(), extra=self.extra.state_dict(), config=CONFIG,
                        opts=[o.state_dict() for o in self.opts], seen=self.seen, spent=self.spent), self.path + ".new")
        os.replace(self.path + ".new", self.path)

    def run(self, loss, report):
        """loss(generator, rng) for one batch; report() a line for the log."""
        saved = time.time()
        last, mean, first = saved, None, self.seen
        while self.progress() < 1:
            # The rate rises over a hundred steps and falls to nothing over the last 60 % of the stage.
            rate = self.rate * min(1, (self.seen - first) / self.batch / 100 + .01, (1 - self.progress()) / .6)
            for o in self.opts:
                for g in o.param_groups:
                    g["lr"] = rate
            # The data of a step follow from the seed and the step, so a resumed run sees what it would have seen.
            step = self.args.seed + 1000 * self.seen + STAGES.index(self.name)
            value = loss(torch.Generator().manual_seed(step), random.Random(step))
            value.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            for o in self.opts:
                o.step()
                o.zero_grad()
            self.seen += self.batch
            value = value.item()
            mean = value if mean is None else mean * .98 + value * .02
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > self.args.every:
                self.save()
                self.log(mean, report)
                saved = last = time.time()
        self.save()
        self.log(mean, report)

    def log(self, mean, report):
        self.net.eval()
        print(f"{self.name} {self.spent:6.0f} s {self.seen:8d} scenes {self.progress():6.1%} loss {mean or 0:.4f} {report()}",
              flush=True)


def vision(args):
    s = Stage("vision", args)
    sprites, n = Sprites(args.seed, 3000), len(KINDS) + 1
    held = to(args.device, scenes(256, Sprites(args.seed + 1, 300), torch.Generator().manual_seed(args.seed + 1), .5))

    def loss(g, rng):
        pictures, shapes, colours = to(args.device, scenes(s.batch, sprites, g, .8))
        out = s.extra(s.net.vision(pictures))
        shapes, colours = patches_of(shapes, out.shape[1]), patches_of(colours, out.shape[1])
        return F.cross_entropy(out[..., :n].flatten(0, 1), shapes.flatten() + 1) + \
            F.cross_entropy(out[..., n:].flatten(0, 1), colours.flatten(), ignore_index=-1)

    @torch.no_grad()
    def report():
        out = places(s.extra(s.net.vision(held[0])))
        shape, colour, full = out[..., :n].argmax(-1) - 1, out[..., n:].argmax(-1), held[1] >= 0
        share = lambda x: f"{100 * x.float().mean():.2f}"
        return f"shape {share((shape == held[1])[full])} empty {share(shape[~full] < 0)} " \
               f"colour {share((colour == held[2])[full])} %"
    s.run(loss, report)


def text(args):
    s = Stage("text", args)
    tokens, patches = Tokens(args.tokenizer), s.net.vision.side ** 2

    def loss(g, rng):
        shapes, colours = labels(s.batch, g)
        batch = to(args.device, conversations(shapes.tolist(), colours.tolist(), tokens, patches, rng))
        rows = s.extra(*to(args.device, (shapes, colours)))
        return answer_loss(s.net, *batch, rows, len(tokens.before))
    s.run(loss, lambda: "")


def labels(n, g):
    """Labels of scenes with 0 to 3 objects, without pictures."""
    count = torch.multinomial(torch.tensor([1., 3, 4, 5]), n, replacement=True, generator=g)
    full = torch.rand(n, 9, generator=g).argsort(1).argsort(1) < count[:, None]
    colour = torch.randint(0, len(NAMES), (n, 9), generator=g)
    return torch.where(full, some_kinds(n, g), -1), torch.where(full, colour, -1)


def together(args, name):
    s = Stage(name, args)
    tokens, sprites = Tokens(args.tokenizer), Sprites(args.seed, 3000)
    held = quiz(100, args.seed + 2, Sprites(args.seed + 1, 300))

    def loss(g, rng):
        if name == "projector":
            pictures, shapes, colours = to(args.device, scenes(s.batch, sprites, g, .3))
            return F.mse_loss(s.net.projector(s.net.vision(pictures)), s.extra(shapes, colours))
        pictures, shapes, colours = scenes(s.batch, sprites, g)
        rows = s.net.projector(s.net.vision(pictures.to(args.device)))
        batch = to(args.device, conversations(shapes.tolist(), colours.tolist(), tokens, rows.shape[1], rng))
        return answer_loss(s.net, *batch, rows, len(tokens.before))
    if name == "projector" and not s.seen:
        line_up(s.net, s.extra, sprites, args.seed)
    s.run(loss, lambda: json.dumps(score(s.net, tokens, *held)))


@torch.no_grad()
def line_up(net, labels, sprites, seed):
    """Starts the projector as the least-squares map from features to label embeddings.

    Its GELU hardly bends what lies well above zero, so a shift up before and down after makes it linear."""
    x, y = [], []
    for i in range(20):
        picked = scenes(64, sprites, torch.Generator().manual_seed(seed + i), .3)
        pictures, shapes, colours = to(net.projector.a.weight.device, picked)
        x.append(net.vision(pictures).flatten(0, 1))
        y.append(labels(shapes, colours).flatten(0, 1))
    x, y = torch.cat(x), torch.cat(y)
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], 1), y).solution
    a, b = net.projector.a, net.projector.b
    a.weight.copy_(fit[:-1].T)
    a.bias.copy_(fit[-1] + 6)
    b.weight.copy_(torch.eye(len(b.weight), device=b.weight.device))
    b.bias.fill_(-6)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="run", help="folder for checkpoints")
    p.add_argument("--stage", choices=STAGES, help="only this stage; all, one after the other, without it")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--scenes", type=int, help="scenes of the stage, instead of the plan's")
    p.add_argument("--minutes", type=float, help="end the stage after this time if it comes first")
    p.add_argument("--every", type=float, default=60, help="seconds between checkpoints")
    args = p.parse_args()
    args.tokenizer = os.path.join(args.out, "nano.model")
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(args.threads)
    for stage in [args.stage] if args.stage else STAGES:
        if stage == "tokenizer":
            train_tokenizer(args.tokenizer, CONFIG["vocab"])
        elif stage in ("vision", "text"):
            globals()[stage](args)
        else:
            together(args, stage)


if __name__ == "__main__":
    try:
        # glibc gives large blocks back at once; keeping them makes a step on a CPU twice as fast.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)
    except (OSError, AttributeError):
        pass
    main()

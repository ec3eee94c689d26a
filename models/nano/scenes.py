"""Synthetic scenes: up to three (or, for the vision stage, nine) coloured shapes and digits in a 3x3 grid.

Every object lies inside its own cell, so a picture is nine cell-sized alpha masks over a
background, composed for a whole batch at once. All masks come from a library drawn in advance.
"""
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

SHAPES = ["circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring"]
DIGITS = list("0123456789")
KINDS = SHAPES + DIGITS
COLOURS = {
    "red": (222, 28, 36), "orange": (250, 138, 16), "yellow": (250, 228, 40),
    "green": (34, 158, 58), "blue": (32, 76, 222), "purple": (142, 46, 172),
    "white": (250, 250, 250), "black": (14, 14, 14),
}
NAMES = list(COLOURS)
PALETTE = torch.tensor([COLOURS[n] for n in NAMES]) / 255
CELL = 32  # pixels of a cell in a 96 x 96 picture


def outline(shape):
    """The polygon of a shape, about the origin, within the unit circle."""
    ring = lambda n, r, start=-90: [(r * math.cos(math.radians(start + 360 * i / n)),
                                     r * math.sin(math.radians(start + 360 * i / n))) for i in range(n)]
    if shape in ("circle", "ring"):
        return ring(48, 0.95)
    if shape == "square":
        return [(-.78, -.78), (.78, -.78), (.78, .78), (-.78, .78)]
    if shape == "triangle":
        return [(0, -.95), (.95, .75), (-.95, .75)]
    if shape == "star":
        outer, inner = ring(5, 1), ring(5, .4, -54)
        return [p for pair in zip(outer, inner) for p in pair]
    if shape == "cross":
        a, b = .95, .3
        return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    if shape == "diamond":
        return [(0, -1), (.66, 0), (0, 1), (-.66, 0)]
    if shape == "heart":
        t = [2 * math.pi * i / 48 for i in range(48)]
        return [(.95 * math.sin(a) ** 3,
                 -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 * .95 - .05)
                for a in t]


@functools.cache
def font(px):
    return ImageFont.load_default(px)


def draw(shape, size, angle, cx, cy, px):
    """A mask of px x px: `size` is the diameter, (cx, cy) the centre, all as fractions of the cell."""
    c, s = math.cos(angle), math.sin(angle)
    put = lambda pts: [((cx + size / 2 * (x * c - y * s)) * px, (cy + size / 2 * (x * s + y * c)) * px)
                       for x, y in pts]
    im = Image.new("L", (px, px))
    pen = ImageDraw.Draw(im)
    if shape in DIGITS:
        letter = font(round(size * px * 1.25))
        bold = size * px * (.02 + .04 * abs(math.sin(cx * 100)))
        pen.text((cx * px, cy * px), shape, fill=255, font=letter, anchor="mm", stroke_width=bold)
        return im.rotate(-math.degrees(angle), Image.BICUBIC, center=(cx * px, cy * px))
    pen.polygon(put(outline(shape)), fill=255)
    if shape == "ring":
        pen.polygon(put([(x * .55, y * .55) for x, y in outline(shape)]), fill=0)
    return im


class Sprites:
    """`variants` masks of each shape: sizes, small rotations, places in the cell, several sharpnesses."""

    def __init__(self, seed, variants=1500, cell=CELL):
        rng = np.random.default_rng(seed)
        self.cell, self.variants = cell, variants
        out = np.empty((len(KINDS), variants, cell, cell), np.uint8)
        for i, shape in enumerate(KINDS):
            for j in range(variants):
                size = rng.uniform(.5, .9)
                room = (1 - size) / 2
                cx, cy = .5 + rng.uniform(-room, room, 2)
                im = draw(shape, size, rng.uniform(-.2, .2), cx, cy, cell * 4)
                # Programs shrink pictures in different ways: with and without anti-aliasing, softly.
                way = rng.integers(4)
                if way == 0:
                    im = im.resize((cell, cell), Image.BOX)
                elif way == 1:
                    im = im.resize((cell, cell), Image.BICUBIC)
                elif way == 2:
                    im = Image.fromarray(np.asarray(im)[1::4, 1::4])
                else:
                    small = int(cell * rng.uniform(.7, 1))
                    im = im.resize((small, small), Image.BOX).resize((cell, cell), Image.BICUBIC)
                out[i, j] = np.asarray(im)
        self.masks = torch.from_numpy(out)


def backgrounds(n, px, g):
    """Two related colours mixed by a pattern: plain, gradient, stripes, checks, waves or clouds."""
    r = lambda *s: torch.rand(*s, generator=g)
    base = .5 + (r(n, 1) - .5) + (r(n, 3) - .5) * .5
    base[r(n) < .15] = 1.0
    base[r(n) < .05] = 0.0
    base = base.clamp(0, 1)
    other = (base + (r(n, 3) - .5) * .3 + (r(n, 1) - .5) * .4).clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(px) / px, torch.arange(px) / px, indexing="ij")
    angle = r(n, 1, 1) * 2 * math.pi
    u = torch.cos(angle) * x + torch.sin(angle) * y
    v = torch.cos(angle) * y - torch.sin(angle) * x
    freq = 2 + 8 * r(n, 1, 1)
    kind = torch.randint(0, 6, (n,), generator=g)
    t = torch.zeros(n, px, px)
    for k in range(1, 6):
        m = kind == k
        if not m.any():
            continue
        if k == 1:
            t[m] = (u[m] * .7 + .5).clamp(0, 1)
        elif k == 2:
            t[m] = ((u[m] * freq[m]) % 1 < .5).float()
        elif k == 3:
            t[m] = (((u[m] * freq[m]).floor() + (v[m] * freq[m]).floor()) % 2)
        elif k == 4:
            t[m] = .5 + .5 * torch.sin(u[m] * freq[m] * 6.28)
        else:
            t[m] = F.interpolate(r(int(m.sum()), 1, 7, 7), size=(px, px), mode="bilinear")[:, 0]
    other = torch.where((kind == 0)[:, None], base, other)
    return base, other, t


def some_kinds(n, g):
    """Indices into KINDS for nine places: two shapes to one digit."""
    return torch.where(torch.rand(n, 9, generator=g) < 1 / 3, torch.randint(len(SHAPES), len(KINDS), (n, 9), generator=g),
                       torch.randint(0, len(SHAPES), (n, 9), generator=g))


def scenes(n, sprites, g, dense=0.0):
    """A batch: pictures (n, 3, px, px) in 0..1, shapes and colours (n, 9), -1 where a place is empty.

    A share `dense` of the scenes has each place filled with probability 0.7, the rest 0 to 3 objects.
    """
    cell = sprites.cell
    px = cell * 3
    base, other, t = backgrounds(n, px, g)
    count = torch.multinomial(torch.tensor([1., 3, 4, 5]), n, replacement=True, generator=g)
    rank = torch.rand(n, 9, generator=g).argsort(1).argsort(1)
    full = rank < count[:, None]
    if dense:
        crowd = torch.rand(n, generator=g) < dense
        full = torch.where(crowd[:, None], torch.rand(n, 9, generator=g) < .7, full)
    # Only colours that stand out against both colours of the background.
    gap = torch.minimum((base[:, None] - PALETTE).norm(dim=2), (other[:, None] - PALETTE).norm(dim=2))
    weight = (gap > .42).float() + 1e-6
    colour = torch.multinomial(weight, 9, replacement=True, generator=g)
    shape = some_kinds(n, g)
    which = torch.randint(0, sprites.variants, (n, 9), generator=g)
    alpha = sprites.masks[shape, which].float().mul_(1 / 255) * full[:, :, None, None]
    alpha = alpha.view(n, 3, 3, cell, cell).transpose(2, 3).reshape(n, 1, px, px)
    paint = PALETTE[colour] + (torch.rand(n, 9, 3, generator=g) - .5) * .1 + (torch.rand(n, 9, 1, generator=g) - .5) * .08
    paint = paint.view(n, 3, 3, 3).permute(0, 3, 1, 2)
    paint = paint.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    picture = base[:, :, None, None] + t[:, None] * (other - base)[:, :, None, None]
    picture += alpha * (paint - picture)
    # Half of them a little larger, smaller or off the grid.
    half = n // 2
    s, d = .98 + .16 * torch.rand(half, 1, generator=g), .06 * (torch.rand(half, 2, generator=g) - .5)
    zero = torch.zeros_like(s)
    warp = torch.stack([torch.cat([s, zero, d[:, :1]], 1), torch.cat([zero, s, d[:, 1:]], 1)], 1)
    grid = F.affine_grid(warp, (half, 3, px, px), align_corners=False)
    picture[:half] = F.grid_sample(picture[:half], grid, padding_mode="border", align_corners=False)
    # Film grain, of a strength of its own for each picture (often none).
    grain = (torch.rand(n, 1, 1, 1, generator=g) * .16 - .08).clamp(min=0)
    picture += torch.rand(n, 1, px, px, generator=g).sub_(.5) * grain
    picture = picture.clamp_(0, 1)
    return picture, torch.where(full, shape, -1), torch.where(full, colour, -1)


def to_images(pictures):
    data = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(d) for d in data]

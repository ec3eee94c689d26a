#!/usr/bin/env python3
"""Writes grids.bin, the sets of points that `grid.rs` describes, from those of the `gguf` package.

Run by hand (needs numpy and gguf); the result is committed.
"""
import pathlib

import numpy as np
from gguf import quants

out = bytearray()
for t in [quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ1_S, quants.IQ3_XXS, quants.IQ3_S]:
    t.init_grid()
    points = t.grid.reshape(t.grid_shape)
    levels = len(t.grid_map)
    digits = np.searchsorted(np.array(t.grid_map), points)
    keys = (digits * levels ** np.arange(points.shape[1])).sum(axis=1)
    assert (np.diff(keys) > 0).all(), "codes number the points in ascending order"
    members = np.zeros(levels ** points.shape[1], dtype=np.uint8)
    members[keys] = 1
    out += np.packbits(members, bitorder="little").tobytes()

pathlib.Path(__file__).with_name("grids.bin").write_bytes(out)

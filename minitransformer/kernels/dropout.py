"""Dropout's factors from NumPy's own Philox, which is the same function, in C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array
from ..draws import Draw, LiveDraw
from ..ops.dropout import PER_BLOCK, blocks_per_row, part_shape, runs_of
from ..ops.dropout import dropout_factors as factors_op
from .recorder import whole
from .registry import kernel


@kernel(factors_op)
def dropout_factors(
    xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw, part: tuple[int, int] | None = None
) -> tuple[Array, Callable]:
    """Have NumPy fill the blocks, for the whole in one call."""
    factors = xp.empty(part_shape(shape, part), dtype=like.dtype)
    _fill(factors, shape, p, draw, part)
    return factors, lambda g: (None,)


@whole
def _fill(
    factors: Array, shape: tuple[int, ...], p: float, draw: Draw | LiveDraw, part: tuple[int, int] | None
) -> None:
    """Write the factors."""
    rows, per_row, draw = (shape[0] if shape else 1), blocks_per_row(shape), draw.now()
    if part is None:
        halves = _halves(draw, draw.first_row * per_row, rows * per_row).reshape(rows, per_row * PER_BLOCK)
        kept = halves[:, : math.prod(shape[1:])] >= round(p * 2**32)
    else:
        starts, run = runs_of(shape, part)
        kept = np.empty((len(starts), run), dtype=bool)
        for i, start in enumerate(starts):
            kept[i] = _kept(draw, draw.first_row * per_row, start, run, p)
    factors[...] = kept.reshape(factors.shape)
    factors *= 1 / (1 - p)


def kept_rows(draw: Draw, shape: tuple[int, ...], p: float, b: int, h: int, rows: slice) -> Array:
    """Return which weights of some queries of one head are kept.    shape: (B, H, T, S) → boolean (rows, S)"""
    _, _, t, s = shape
    first = (draw.first_row + b) * blocks_per_row(shape)
    return _kept(draw, first, (h * t + rows.start) * s, (rows.stop - rows.start) * s, p).reshape(-1, s)


def _kept(draw: Draw, first_block: int, start: int, run: int, p: float) -> Array:
    """Return which of `run` elements are kept, from element `start` behind the first of a block on.    → (run,)"""
    block, offset = divmod(start, PER_BLOCK)
    halves = _halves(draw, first_block + block, -(-(offset + run) // PER_BLOCK))
    return halves[offset : offset + run] >= round(p * 2**32)


def _halves(draw: Draw, block: int, count: int) -> Array:
    """Return the words of some blocks in halves of 32 bits. NumPy counts before it draws, hence from one earlier."""
    before = (block + (draw.call << 64) - 1) % 2**256
    words = np.random.Philox(counter=before, key=draw.key[0] + (draw.key[1] << 64)).random_raw(count * 4)
    return words.astype("<u8", copy=False).view("<u4")

"""Dropout's factors from NumPy's own Philox, which is the same function, in C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array, Draw
from ..ops.dropout import PER_BLOCK, blocks_per_row
from ..ops.dropout import dropout_factors as factors_op
from .registry import kernel


@kernel(factors_op)
def dropout_factors(xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw) -> tuple[Array, Callable]:
    """Have NumPy fill the blocks in one call. It counts before it draws, hence from one block earlier."""
    rows, per_row = (shape[0] if shape else 1), blocks_per_row(shape)
    before = (draw.first_row * per_row + (draw.call << 64) - 1) % 2**256
    words = np.random.Philox(counter=before, key=draw.key[0] + (draw.key[1] << 64)).random_raw(rows * per_row * 4)
    halves = words.astype("<u8", copy=False).view("<u4").reshape(rows, per_row * PER_BLOCK)
    kept = halves[:, : math.prod(shape[1:])] >= round(p * 2**32)
    factors = kept.reshape(shape).astype(like.dtype)
    factors *= 1 / (1 - p)
    return factors, lambda g: (None,)

"""What happens to a block of scores besides its products: what is added, hidden, turned into powers, dropped."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Draw
from ..ops.blockwise import Blocks, distances, tile
from ..ops.mask import band_mask
from .dropout import kept_rows


@functools.cache
def quick_power() -> tuple[Any, float]:
    """Return exp and 1, or exp2 and ln 2: where NumPy has AVX-512 and SVML, powers of 2 take half the time.

    That is so for results that are plain numbers. Of −∞ they take ten times as long, of those that come to less than
    2⁻¹²⁶ a hundred times; so the scores have to be bounded.
    """
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # type: ignore[index,call-overload]
    quick = sys.platform.startswith("linux") and {"AVX512_SKX", "X86_V4"} & set(found)
    return (np.exp2, math.log(2)) if quick else (np.exp, 1.0)


@functools.lru_cache(maxsize=64)
def _outside(shift: int, n: int, m: int, causal: bool, window: int) -> Array:
    """Return where n queries may not look at m keys, the first of which lies `shift` behind the first query's own."""
    return ~band_mask(np.arange(n), np.arange(m) + shift, causal, window)


class Task(NamedTuple):
    """One head of one sequence, and which share of its blocks of queries."""

    b: int
    h: int
    part: int
    parts: int


class Terms(NamedTuple):
    """What is added to the scores of one head, or hides them, or drops their weights."""

    blocks: Blocks
    bias: Array | None  # (t or 1, s or 1)
    distance_bias: Array | None  # (t + s − 1,)
    dropout: tuple[float, Draw] | None
    task: Task
    shape: tuple[int, ...]
    shifted: bool  # are scores unbounded, so that a row's maximum is taken off?
    exp: Any  # of scores in its own units

    def before(self, z: Array, rows: slice, keys: slice) -> None:
        """Add biases to a block of scores. Unbounded ones are −∞ where nobody may look."""
        if self.bias is not None:
            z += tile(self.bias, rows, keys)
        if self.distance_bias is not None:
            near = self.distance_bias[distances(self.blocks.t, rows, keys)]
            step, last = near.strides[0], z.shape[0] - 1
            z += np.lib.stride_tricks.as_strided(near[last:], z.shape, (-step, step))
        if self.shifted:
            self._hide(z, rows, keys, -math.inf)

    def after(self, p: Array, rows: slice, keys: slice) -> None:
        """Let the powers of bounded scores be 0 where nobody may look: powers of −∞ would take longer."""
        if not self.shifted:
            self._hide(p, rows, keys, 0.0)

    def _hide(self, z: Array, rows: slice, keys: slice, value: float) -> None:
        outside = self.outside(rows, keys)
        if outside is not None:
            np.copyto(z, value, where=outside)

    def outside(self, rows: slice, keys: slice) -> Array | None:
        """Return where nobody may look (as a block, or what broadcasts to it), or None."""
        blocks, out = self.blocks, None
        if blocks.crossed(rows, keys):
            shift = keys.start - (rows.start + blocks.s - blocks.t)
            sizes = rows.stop - rows.start, keys.stop - keys.start
            out = _outside(shift, *sizes, blocks.causal, blocks.window)
        if blocks.mask is not None:
            hidden = ~tile(blocks.mask, rows, keys)
            out = hidden if out is None else out | hidden
        return out if out is not None and out.any() else None

    def kept(self, rows: slice) -> Array | None:
        """Return which weights of a block of queries dropout keeps, (rows, s)."""
        if self.dropout is None:
            return None
        p, draw = self.dropout
        return kept_rows(draw, self.shape, p, self.task.b, self.task.h, rows)

    @property
    def survivor(self) -> float:
        """What a kept weight is multiplied by."""
        return 1.0 if self.dropout is None else 1 / (1 - self.dropout[0])


def of_head(x: Array | None, axes: int, task: Task) -> Array | None:
    """Return what belongs to a head, of something that broadcasts to (B, H) and `axes` more."""
    if x is None:
        return None
    x = x.reshape((1,) * (2 + axes - x.ndim) + x.shape)
    return x[task.b if x.shape[0] > 1 else 0, task.h if x.shape[1] > 1 else 0]

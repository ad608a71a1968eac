"""What happens to a block of scores besides its products: what is added, hidden, turned into powers, dropped."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..draws import Draw
from ..ops.blockwise import Blocks, distances, tile
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


def _along_diagonals(x: Array, n: int, m: int) -> Array:
    """Return a view of what `ops.by_distance` makes.    (n + m − 1,) → (n, m)"""
    step = x.strides[0]
    return np.lib.stride_tricks.as_strided(x[n - 1 :], (n, m), (-step, step))


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

    def steps(self, rows: slice) -> Iterator[tuple[slice, slice, Array | None]]:
        """Yield the blocks of keys that a block of queries looks at, which of them look, and where they may (or None).

        The latter is for the first of these queries; those after them may look at all keys of the block.
        """
        blocks = self.blocks
        bounded = blocks.causal or blocks.window
        for keys in blocks.of(rows):
            crossed = bounded and blocks.crossed(rows, keys)
            queries = blocks.looking(rows, keys) if crossed else rows
            hidden = crossed or blocks.mask is not None
            yield keys, queries, self._inside(queries, keys) if hidden else None

    def _inside(self, rows: slice, keys: slice) -> Array | None:
        blocks, inside = self.blocks, None
        n, m = rows.stop - rows.start, keys.stop - keys.start
        if blocks.crossed(rows, keys):
            shift = keys.start - (rows.start + blocks.s - blocks.t)
            if blocks.mask is None and not blocks.window:
                n = min(n, shift + m - 1)  # later ones stand at the last key, or behind it
            distance = np.arange(shift - n + 1, shift + m)  # of keys from queries: one more per key, one less per query
            near = (distance >= blocks.behind) & (distance <= blocks.ahead)
            inside = _along_diagonals(near, n, m)
        if blocks.mask is not None:
            own = np.broadcast_to(tile(blocks.mask, rows, keys), (n, m))
            inside = own if inside is None else own & inside
            return None if inside.all() else inside
        return inside

    def before(self, z: Array, rows: slice, keys: slice, inside: Array | None) -> None:
        """Add biases to a block of scores. Unbounded ones are −∞ where nobody may look."""
        if self.bias is not None:
            z += tile(self.bias, rows, keys)
        if self.distance_bias is not None:
            z += _along_diagonals(self.distance_bias[distances(self.blocks.t, rows, keys)], *z.shape)
        if self.shifted and inside is not None:
            np.copyto(z[: len(inside)], -math.inf, where=~inside)

    def after(self, p: Array, inside: Array | None) -> None:
        """Let the powers of bounded scores be 0 where nobody may look: powers of −∞ would take longer."""
        if not self.shifted and inside is not None:
            p[: len(inside)] *= inside

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

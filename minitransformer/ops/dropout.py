"""Forget at random, so that no unit can rely on one other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..draws import Draw, next_draw
from ..tensor import as_array, primitive
from .philox import philox

Made = tuple[Array, Callable]
PER_BLOCK = 8  # elements that one block of random words decides: 32 bits each


def _check(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write 0.1")


def blocks_per_row(shape: tuple[int, ...]) -> int:
    """Return how many blocks of random words a row of the first axis takes; each row begins with a new one."""
    return -(-math.prod(shape[1:]) // PER_BLOCK)


@primitive
def dropout_factors(
    xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw, part: tuple[int, int] | None = None
) -> Made:
    """Return the factors of dropout: 0 with chance p, else 1/(1 − p), so that the mean stays 1.    → shape, as `like`

    Each element takes 32 random bits, found by its place alone: row by row of the first axis, a row at a time from a
    new block of words on. So a batch gets the same factors on every backend and however it is split. part: of the
    last axis but one only the indices from part[0] up to part[1], as the whole would have them.
    """
    starts, run = runs_of(shape, part)
    starts = xp.asarray(starts, dtype=int).reshape(-1, 1)
    first, most = draw.first_row * blocks_per_row(shape), -(-run // PER_BLOCK) + 1  # one more: a run begins anywhere
    blocks = first + starts // PER_BLOCK + xp.arange(most)
    words = philox(xp, blocks.reshape(-1), draw.call, draw.key)
    halves = xp.stack([words & 0xFFFFFFFF, words >> 32], axis=-1).reshape(-1, most * PER_BLOCK)
    kept = xp.take_along_axis(halves, starts % PER_BLOCK + xp.arange(run), axis=1) >= round(p * 2**32)
    return kept.reshape(part_shape(shape, part)).astype(like.dtype) * (1 / (1 - p)), lambda g: (None,)


def part_shape(shape: tuple[int, ...], part: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the shape of a part of the last axis but one."""
    return shape if part is None else (*shape[:-2], part[1] - part[0], shape[-1])


def runs_of(shape: tuple[int, ...], part: tuple[int, int] | None) -> tuple[list[int], int]:
    """Return where the elements asked for begin in the stream of words, and how many lie there in a row.

    Counted in elements from the first row's beginning, a row being as long as its blocks.
    """
    row = blocks_per_row(shape) * PER_BLOCK
    if part is None or len(shape) == 2:  # whole rows of the first axis
        first, last = part or (0, shape[0] if shape else 1)
        return [r * row for r in range(first, last)], math.prod(shape[1:])
    matrix = shape[-2] * shape[-1]
    offset, run = part[0] * shape[-1], (part[1] - part[0]) * shape[-1]
    return [r * row + m * matrix + offset for r in range(shape[0]) for m in range(math.prod(shape[1:-2]))], run


@primitive
def _dropout(xp: Any, x: Array, *, p: float, draw: Draw) -> Made:
    factors = dropout_factors(as_array(x), shape=x.shape, p=p, draw=draw)

    def vjp(g: Array) -> tuple[Array]:
        return (g * factors,)

    return x * factors, vjp


@primitive
def _dropout_add(xp: Any, x: Array, branch: Array, *, p: float, draw: Draw) -> Made:
    factors = dropout_factors(as_array(branch), shape=branch.shape, p=p, draw=draw)

    def vjp(g: Array) -> tuple[Array, Array]:
        return g, g * factors

    return x + branch * factors, vjp


def dropout_mask(shape: tuple[int, ...], p: float, like: Array) -> Array:
    """Draw factors for an array of some shape: 0 with chance p, else 1/(1 − p).    → shape, as `like`

    The next draw of the library's stream; see `dropout_factors`. Raises ValueError unless 0 ≤ p < 1.
    """
    _check(p)
    return dropout_factors(like, shape=shape, p=p, draw=next_draw(shape[0] if shape else 1))


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """Set each element to 0 with chance p and multiply the others by 1/(1 − p); outside training, do nothing.

    x: (...) → (...)

    Raises ValueError unless 0 ≤ p < 1. Srivastava et al. 2014, Journal of Machine Learning Research 15.
    """
    _check(p)
    return _dropout(x, p=p, draw=next_draw(x.shape[0] if x.ndim else 1)) if training and p else x


def dropout_add(x: Any, branch: Any, p: float = 0.5, training: bool = True) -> Any:
    """Add a branch to a residual sum, with dropout on the branch: x + dropout(branch).

    x, branch: one shape (...) → (...)

    Raises ValueError unless 0 ≤ p < 1, or for two shapes.
    """
    _check(p)
    if x.shape != branch.shape:
        raise ValueError(f"a residual has the shape of its branch; got {x.shape} and {branch.shape}; project one")
    if not training or not p:
        return x + branch
    return _dropout_add(x, branch, p=p, draw=next_draw(x.shape[0] if x.ndim else 1))

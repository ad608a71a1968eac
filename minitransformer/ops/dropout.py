"""Forget at random, so that no unit can rely on one other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array, Draw, next_draw
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
def dropout_factors(xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw) -> Made:
    """Return the factors of dropout: 0 with chance p, else 1/(1 − p), so that the mean stays 1.    → shape, as `like`

    Each element takes 32 random bits, found by its place alone: row by row of the first axis, a row at a time from a
    new block of words on. So a batch gets the same factors on every backend and however it is split.
    """
    rows, per_row = (shape[0] if shape else 1), blocks_per_row(shape)
    blocks = xp.arange(draw.first_row * per_row, (draw.first_row + rows) * per_row)
    words = philox(xp, blocks, draw.call, draw.key)
    halves = xp.stack([words & 0xFFFFFFFF, words >> 32], axis=-1).reshape(rows, per_row * PER_BLOCK)
    kept = (halves >= round(p * 2**32))[:, : math.prod(shape[1:])]
    return kept.reshape(shape).astype(like.dtype) * (1 / (1 - p)), lambda g: (None,)


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

"""Sums, means and extremes along axes. Backwards, one gradient is handed to each element that went in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .precision import all_half, narrow, wide

Made = tuple[Array, Callable]
Axes = int | tuple[int, ...] | None


def _kept(x: Any, axis: Axes) -> tuple[int, ...]:
    """Return the shape of x with 1 in place of each reduced axis."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % x.ndim for a in axes} if x.ndim else set()
    return tuple(1 if i in reduced else n for i, n in enumerate(x.shape))


@primitive
def sum(xp: Any, x: Array, *, axis: Axes = None, keepdims: bool = False) -> Made:
    """Add up along axes (all of them by default).    x: (..., N, ...) → (..., ...)"""
    kept, shape = _kept(x, axis), x.shape

    def vjp(g: Array) -> tuple[Array]:
        return (xp.broadcast_to(g.reshape(kept), shape),)

    return narrow(wide(x).sum(axis=axis, keepdims=keepdims), all_half(x)), vjp  # half ones add up to 2,048, no further


@primitive
def mean(xp: Any, x: Array, *, axis: Axes = None, keepdims: bool = False) -> Made:
    """Average along axes (all of them by default): (1/N) Σ x.    x: (..., N, ...) → (..., ...)"""
    kept, shape = _kept(x, axis), x.shape
    count = x.size // (math.prod(kept) or 1)

    def vjp(g: Array) -> tuple[Array]:
        return (xp.broadcast_to(g.reshape(kept) / count, shape),)

    return x.mean(axis=axis, keepdims=keepdims), vjp


@primitive
def max(xp: Any, x: Array, *, axis: Axes = None, keepdims: bool = False) -> Made:
    """Take the largest along axes; several that tie share the gradient evenly.    x: (..., N, ...) → (..., ...)"""
    y, kept = x.max(axis=axis, keepdims=True), _kept(x, axis)
    at_top = x == y

    def vjp(g: Array) -> tuple[Array]:
        return (at_top * (g.reshape(kept) / at_top.sum(axis=axis, keepdims=True)),)

    return (y if keepdims else x.max(axis=axis)), vjp


@primitive
def min(xp: Any, x: Array, *, axis: Axes = None, keepdims: bool = False) -> Made:
    """Take the smallest along axes; several that tie share the gradient evenly.    x: (..., N, ...) → (..., ...)"""
    y, kept = x.min(axis=axis, keepdims=True), _kept(x, axis)
    at_bottom = x == y

    def vjp(g: Array) -> tuple[Array]:
        return (at_bottom * (g.reshape(kept) / at_bottom.sum(axis=axis, keepdims=True)),)

    return (y if keepdims else x.min(axis=axis)), vjp

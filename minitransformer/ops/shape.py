"""Ops that move elements and compute nothing: backwards they move the gradients the other way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .elementwise import sum_to

Made = tuple[Array, Callable]


@primitive
def reshape(xp: Any, x: Array, *, shape: tuple[int, ...]) -> Made:
    """Give the same elements, in the same order, another shape; one size may be −1.    x: (...) → shape"""
    before = x.shape

    def vjp(g: Array) -> tuple[Array]:
        return (g.reshape(before),)

    return x.reshape(shape), vjp


@primitive
def transpose(xp: Any, x: Array, *, axes: tuple[int, ...] | None = None) -> Made:
    """Reorder the axes (reverse them by default); backwards by the inverse order.    x: (A, B, ...) → (..., B, A)"""
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    inverse = tuple(order.index(i) for i in range(x.ndim))

    def vjp(g: Array) -> tuple[Array]:
        return (g.transpose(inverse),)

    return x.transpose(order), vjp


@primitive
def swapaxes(xp: Any, x: Array, *, axis1: int = -1, axis2: int = -2) -> Made:
    """Exchange two axes.    x: (..., A, B) → (..., B, A)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g.swapaxes(axis1, axis2),)

    return x.swapaxes(axis1, axis2), vjp


@primitive
def broadcast_to(xp: Any, x: Array, shape: tuple[int, ...]) -> Made:
    """Repeat x, without copying, until it has the shape; backwards the repeats add up.    x: (...) → shape"""
    before = x.shape

    def vjp(g: Array) -> tuple[Array, None]:
        return sum_to(g, before), None

    return xp.broadcast_to(x, shape), vjp


@primitive
def _concatenate(xp: Any, *parts: Array, axis: int) -> Made:
    sizes = [p.shape[axis] for p in parts]
    ends = list(itertools.accumulate(sizes))
    before = (slice(None),) * (axis % parts[0].ndim)

    def vjp(g: Array) -> tuple[Array, ...]:
        return tuple(g[(*before, slice(end - n, end))] for n, end in zip(sizes, ends, strict=True))

    return (_concatenate(*parts, axis=axis) if hasattr(parts[0], "node") else xp.concatenate(parts, axis=axis)), vjp


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Join arrays along an axis that exists.    [(..., N₁, ...), (..., N₂, ...)] → (..., N₁ + N₂, ...)

    Raises ValueError when their other axes differ, or for an empty list.
    """
    if not arrays:
        raise ValueError("concatenate needs at least one array; got an empty list; pass [x, ...]")
    return _concatenate(*arrays, axis=axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Join arrays of one shape along a new axis.    N × (...) → (N, ...)

    Raises ValueError when the shapes differ, or for an empty list.
    """
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"stack needs arrays of one shape; got {[a.shape for a in arrays]}; reshape or pad them")
    axis = axis % (arrays[0].ndim + 1)
    return concatenate([a.reshape((*a.shape[:axis], 1, *a.shape[axis:])) for a in arrays], axis)

"""Products: one large GEMM instead of many, and sums that are products too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.linear import _linear, _matmul
from .products import by_columns, by_rows, in_panels, rows_at_once
from .registry import book, kernel, on_lines, ones

Made = tuple[Array, Callable]
LARGE = 1 << 20  # bytes
SMALL = 8_192  # weights; for more, small products gain less than their layout costs


@kernel(_linear)
def linear(xp: Any, x: Array, weight: Array, bias: Array | None) -> Made:
    """Compute y = x·weightᵀ + bias in one product; the gradient of the bias is 1ᵀ·g, a product as well."""
    if x.dtype.char not in "fd" or x.dtype != weight.dtype or not x.size:
        return book(_linear)(xp, x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    shape = len(rows), len(weight)
    large = math.prod(shape) * x.itemsize >= LARGE  # what is smaller goes sooner where matmul itself finds the room
    if weight.size <= SMALL and rows_at_once(len(rows), weight.size):
        y = by_rows(xp, rows, xp.empty(shape, dtype=x.dtype))(xp.ascontiguousarray(weight.T))
    else:
        y = in_panels(xp, rows, weight.T, on_lines(xp, shape, x.dtype) if large else None)
    if bias is not None:
        y += bias

    def vjp(g: Array) -> tuple[Array, Array, Array | None]:
        g_rows = g.reshape(-1, g.shape[-1])
        g_bias = None if bias is None else xp.matmul(ones(xp, len(g_rows), g), g_rows)
        if weight.size > SMALL:
            return in_panels(xp, g_rows, weight).reshape(x.shape), xp.matmul(g_rows.T, rows), g_bias
        g_x = by_rows(xp, g_rows, xp.empty(rows.shape, dtype=g.dtype))(weight)
        return g_x.reshape(x.shape), by_columns(xp, g_rows, rows), g_bias

    return y.reshape(*x.shape[:-1], weight.shape[0]), vjp


@kernel(_matmul)
def matmul(xp: Any, a: Array, b: Array) -> Made:
    """Multiply a stack of matrices by one matrix as one tall matrix by it; every other case is the book's."""
    if b.ndim != 2 or a.ndim < 3 or not a.size:
        return book(_matmul)(xp, a, b)
    rows = a.reshape(-1, a.shape[-1])

    def vjp(g: Array) -> tuple[Array, Array]:
        g_rows = g.reshape(-1, g.shape[-1])
        return xp.matmul(g_rows, b.T).reshape(a.shape), xp.matmul(rows.T, g_rows)

    return xp.matmul(rows, b).reshape(*a.shape[:-1], b.shape[1]), vjp

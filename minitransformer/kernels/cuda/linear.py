"""Products: one large GEMM each, with the bias added in place, and its gradient a product with ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...ops.linear import _linear, _matmul
from ..registry import book, kernel, ones
from .products import matmul as product

Made = tuple[Array, Callable]


@kernel(_linear, "cupy")
def linear(xp: Any, x: Array, weight: Array, bias: Array | None) -> Made:
    """Compute y = x·weightᵀ + bias: a product and, in place, a launch; backwards three products."""
    if x.dtype.char not in "fd" or not x.size:
        return book(_linear)(xp, x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    y = product(xp, rows, weight.T)
    if bias is not None:
        y += bias

    def vjp(g: Array) -> tuple[Array, Array, Array | None]:
        g_rows = g.reshape(-1, g.shape[-1])
        g_bias = None if bias is None else product(xp, ones(xp, len(g_rows), g), g_rows)
        return product(xp, g_rows, weight).reshape(x.shape), product(xp, g_rows.T, rows), g_bias

    return y.reshape(*x.shape[:-1], weight.shape[0]), vjp


@kernel(_matmul, "cupy")
def matmul(xp: Any, a: Array, b: Array) -> Made:
    """Multiply a stack of matrices by one matrix as one tall matrix by it; every other case is the book's."""
    if b.ndim != 2 or a.ndim < 2 or not a.size or not b.size or a.dtype != b.dtype:
        return book(_matmul)(xp, a, b)
    rows = a.reshape(-1, a.shape[-1])

    def vjp(g: Array) -> tuple[Array, Array]:
        g_rows = g.reshape(-1, g.shape[-1])
        return product(xp, g_rows, b.T).reshape(a.shape), product(xp, rows.T, g_rows)

    return product(xp, rows, b).reshape(*a.shape[:-1], b.shape[1]), vjp

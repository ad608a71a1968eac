"""Softmax, its logarithm and the loss, in place; every sum along a row is a product with ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.softmax import _cross_entropy, _softmax
from ..ops.softmax import log_softmax as log_softmax_op
from .registry import book, kernel, ones, rows_of

Made = tuple[Array, Callable]


def _largest(rows: Array) -> Array:
    """Return the largest number of each row; begun at −∞, NumPy takes short rows by whole vectors.    → (N, 1)"""
    return rows.max(axis=1, keepdims=True, initial=-math.inf)


@kernel(_softmax)
def softmax(xp: Any, x: Array, mask: Array | None, *, axis: int) -> Made:
    """Exponentiate and divide in the one array that is returned and kept."""
    if not rows_of(x) or axis not in (-1, x.ndim - 1):
        return book(_softmax)(xp, x, mask, axis=axis)
    hidden = x if mask is None else xp.where(mask, x, -math.inf)
    if hidden.shape != x.shape:
        return book(_softmax)(xp, x, mask, axis=axis)
    shape, along = x.shape, ones(xp, x.shape[-1], x)
    rows = hidden.reshape(-1, shape[-1])
    top = _largest(rows)
    if mask is not None:
        top[top == -math.inf] = 0.0  # a row that may look nowhere
    y = rows - top
    xp.exp(y, out=y)
    total = xp.matmul(y, along)
    if mask is not None:
        total[total == 0] = 1.0
    y *= xp.divide(1.0, total, out=total)[:, None]

    def vjp(g: Array) -> tuple[Array, None]:
        g_x = g.reshape(y.shape) * y
        g_x -= y * xp.matmul(g_x, along)[:, None]
        return g_x.reshape(shape), None

    return y.reshape(shape), vjp


@kernel(log_softmax_op)
def log_softmax(xp: Any, x: Array, *, axis: int = -1) -> Made:
    """Subtract the maximum and the logarithm of the sum in the one array that is returned and kept."""
    if not rows_of(x) or axis not in (-1, x.ndim - 1):
        return book(log_softmax_op)(xp, x, axis=axis)
    shape, along = x.shape, ones(xp, x.shape[-1], x)
    rows = x.reshape(-1, shape[-1])
    y = rows - _largest(rows)
    y -= xp.log(xp.matmul(xp.exp(y), along))[:, None]

    def vjp(g: Array) -> tuple[Array]:
        g_rows = g.reshape(y.shape)
        g_x = xp.exp(y)
        g_x *= xp.matmul(g_rows, along)[:, None]
        xp.subtract(g_rows, g_x, out=g_x)
        return (g_x.reshape(shape),)

    return y.reshape(shape), vjp


@kernel(_cross_entropy)
def cross_entropy(xp: Any, logits: Array, wanted: Array) -> Made:
    """Compute −Σ q·ln p by rows; ln p is made in the one array that is kept, and Σ is a product with ones."""
    if not rows_of(logits) or not rows_of(wanted) or logits.dtype != wanted.dtype:
        return book(_cross_entropy)(xp, logits, wanted)
    rows, q = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1, logits.shape[-1])
    shape, along = logits.shape, ones(xp, rows.shape[1], rows)
    log_p = rows - _largest(rows)
    e = xp.exp(log_p)
    log_p -= xp.log(xp.matmul(e, along))[:, None]
    xp.multiply(q, log_p, out=e)
    losses = -xp.matmul(e, along)

    def vjp(g: Array) -> tuple[Array, Array]:
        g_row = g.reshape(-1, 1)
        g_logits = xp.exp(log_p)
        g_logits *= xp.matmul(q, along)[:, None]
        g_logits -= q
        g_logits *= g_row
        return g_logits.reshape(shape), (-g_row * log_p).reshape(shape)

    return losses.reshape(shape[:-1]), vjp

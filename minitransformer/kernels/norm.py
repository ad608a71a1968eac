"""LayerNorm and RMSNorm: every sum along a row or a column is a product of vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.norm import layer_norm as layer_norm_op
from ..ops.norm import rms_norm as rms_norm_op
from .registry import BLOCK_BYTES, book, kernel, on_lines, ones, row_by_row, rows_of

Made = tuple[Array, Callable]


def _blocks(rows: Array) -> list[slice]:
    step = max(1, BLOCK_BYTES // (rows.shape[1] * rows.itemsize))
    return [slice(i, i + step) for i in range(0, len(rows), step)]


def _begin(xp: Any, x: Array) -> tuple[Array, Array, Array, Array]:
    """Return x as rows, and room for x̂, y and one number a row."""
    rows = x.reshape(-1, x.shape[-1])
    x_hat, y = (on_lines(xp, rows.shape, x.dtype) for _ in range(2))
    return rows, x_hat, y, xp.empty((len(rows), 1), dtype=x.dtype)


@kernel(layer_norm_op)
def layer_norm(xp: Any, x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Made:
    """Normalise rows, block by block.

    With p = g·x̂ the four sums of the backward are four products: Σ_d g·w = g@w, Σ_d g·w·x̂ = p@w, Σ_n g = 1@g and
    Σ_n p = 1@p. Kept: x̂ and 1/σ, as in the book.
    """
    if not rows_of(x) or x.dtype != weight.dtype:
        return book(layer_norm_op)(xp, x, weight, bias, eps=eps)
    shape, width = x.shape, x.shape[-1]
    rows, x_hat, y, inv_std = _begin(xp, x)
    mean_of = ones(xp, width, x) / width
    with row_by_row(width):
        for block in _blocks(rows):
            out, centred, inv = y[block], x_hat[block], inv_std[block]
            mean = xp.matmul(rows[block], mean_of)
            xp.subtract(rows[block], mean[:, None], out=centred)
            variance = xp.vecdot(centred, centred)
            variance /= width
            variance += eps
            xp.sqrt(variance, out=variance)
            xp.divide(1.0, variance, out=inv[:, 0])
            centred *= inv
            xp.multiply(centred, weight, out=out)
            out += bias

    def vjp(g: Array) -> tuple[Array, Array, Array]:
        g_rows = g.reshape(x_hat.shape)
        g_x = on_lines(xp, x_hat.shape, x_hat.dtype)
        g_weight, g_bias = xp.zeros_like(weight), xp.zeros_like(bias)
        mean_weight = weight / width
        blocks = _blocks(x_hat)
        room = on_lines(xp, x_hat[blocks[0]].shape, x_hat.dtype)
        with row_by_row(width):
            for block in blocks:
                g_block, hat, out = g_rows[block], x_hat[block], g_x[block]
                p = xp.multiply(g_block, hat, out=room[: len(hat)])
                along = ones(xp, len(p), p)
                g_weight += xp.matmul(along, p)
                g_bias += xp.matmul(along, g_block)
                xp.multiply(hat, xp.matmul(p, mean_weight)[:, None], out=p)
                mean = xp.matmul(g_block, mean_weight)
                xp.multiply(g_block, weight, out=out)  # g is not needed any more: a replay has the result in its place
                out -= p
                out -= mean[:, None]
                out *= inv_std[block]
        return g_x.reshape(shape), g_weight, g_bias

    return y.reshape(shape), vjp


@kernel(rms_norm_op)
def rms_norm(xp: Any, x: Array, weight: Array, *, eps: float = 1e-6) -> Made:
    """Scale rows, block by block, with the sums as products. Kept: x̂ and 1/rms, as in the book."""
    if not rows_of(x) or x.dtype != weight.dtype:
        return book(rms_norm_op)(xp, x, weight, eps=eps)
    shape, width = x.shape, x.shape[-1]
    rows, x_hat, y, inv_rms = _begin(xp, x)
    with row_by_row(width):
        for block in _blocks(rows):
            square = xp.vecdot(rows[block], rows[block])
            square /= width
            square += eps
            xp.sqrt(square, out=square)
            xp.divide(1.0, square, out=inv_rms[block, 0])
            xp.multiply(rows[block], inv_rms[block], out=x_hat[block])
            xp.multiply(x_hat[block], weight, out=y[block])

    def vjp(g: Array) -> tuple[Array, Array]:
        g_rows = g.reshape(x_hat.shape)
        g_x, g_weight, mean_weight = on_lines(xp, x_hat.shape, x_hat.dtype), xp.zeros_like(weight), weight / width
        with row_by_row(width):
            for block in _blocks(x_hat):
                hat, out = x_hat[block], g_x[block]
                p = g_rows[block] * hat
                g_weight += xp.matmul(ones(xp, len(p), p), p)
                xp.multiply(hat, xp.matmul(p, mean_weight)[:, None], out=p)
                xp.multiply(g_rows[block], weight, out=out)
                out -= p
                out *= inv_rms[block]
        return g_x.reshape(shape), g_weight

    return y.reshape(shape), vjp

"""The last layer and its loss, a chunk at a time, with one array of logits that everything happens in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.chunked_loss import _linear_cross_entropy
from .registry import book, kernel, ones

Made = tuple[Array, Callable]


@kernel(_linear_cross_entropy)
def linear_cross_entropy(
    xp: Any, x: Array, weight: Array, target: Array, counts: Array, *, smoothing: float, chunk: int
) -> Made:
    """Compute the losses; with q = (1 − ε)·onehot + ε/V each is ln Σ eᶻ − (1 − ε)·z[target] − ε·mean z."""
    if x.dtype != weight.dtype or x.dtype.char not in "fd":
        return book(_linear_cross_entropy)(xp, x, weight, target, counts, smoothing=smoothing, chunk=chunk)
    n, classes = x.shape[0], weight.shape[0]
    pieces = [slice(i, min(i + chunk, n)) for i in range(0, n, chunk)]
    along, weight_t = ones(xp, classes, x), weight.T
    losses, levels = xp.empty(n, dtype=x.dtype), xp.empty((n, 1), dtype=x.dtype)
    room = xp.empty((min(chunk, n), classes), dtype=x.dtype)
    for rows in pieces:
        z = xp.matmul(x[rows], weight_t, out=room[: rows.stop - rows.start])
        top = z.max(axis=1)
        found = z[xp.arange(len(z)), target[rows]]
        mean = xp.matmul(z, along) / classes if smoothing else 0.0
        z -= top[:, None]
        level = top + xp.log(xp.matmul(xp.exp(z, out=z), along))
        levels[rows, 0] = level
        losses[rows] = level - (1 - smoothing) * found - smoothing * mean
    losses *= counts
    del room

    def vjp(g: Array) -> tuple[Array, Array, None, None]:
        g_x, g_weight, part = xp.empty_like(x), xp.zeros_like(weight), xp.empty_like(weight)
        g_row = (g * counts).reshape(-1, 1)
        room = xp.empty((min(chunk, n), classes), dtype=x.dtype)
        for rows in pieces:
            z = xp.matmul(x[rows], weight_t, out=room[: rows.stop - rows.start])
            z -= levels[rows]
            xp.exp(z, out=z)
            if smoothing:
                z -= smoothing / classes
            z[xp.arange(len(z)), target[rows]] -= 1 - smoothing
            z *= g_row[rows]
            xp.matmul(z, weight, out=g_x[rows])
            g_weight += xp.matmul(z.T, x[rows], out=part)
        return g_x, g_weight, None, None

    return losses, vjp

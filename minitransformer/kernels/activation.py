"""Activations in blocks, with the derivative kept from the forward: one array, and one multiplication backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.activation import CUBIC, SQRT_2_OVER_PI, _gelu_tanh
from ..ops.activation import relu as relu_op
from .registry import BLOCK_BYTES, book, kernel, rows_of

Made = tuple[Array, Callable]


@kernel(relu_op)
def relu(xp: Any, x: Array) -> Made:
    """Keep what is positive, by a clip, which NumPy does faster than a maximum; kept: one byte an element."""
    positive = x > 0

    def vjp(g: Array) -> tuple[Array]:
        return (g * positive,)

    return (xp.clip(x, 0, math.inf) if x.dtype.char in "fd" else x * positive), vjp


@kernel(_gelu_tanh)
def gelu_tanh(xp: Any, x: Array) -> Made:
    """Compute y and dy/dx together.

        t = tanh(x·(s + s·c·x²))        y = x·(1 + t)/2        dy/dx = (1 + t)/2 + x·(1 − t²)·(s + 3·s·c·x²)/2

    The constants are those of the book: s = √(2/π), c = 0.044715.
    """
    if not rows_of(x):
        return book(_gelu_tanh)(xp, x)
    s, sc = SQRT_2_OVER_PI, SQRT_2_OVER_PI * CUBIC
    flat, shape = x.reshape(-1), x.shape
    y, slope = xp.empty_like(flat), xp.empty_like(flat)
    step = BLOCK_BYTES // flat.itemsize
    u, bend = xp.empty_like(flat[:step]), xp.empty_like(flat[:step])
    for i in range(0, len(flat), step):
        part, out, d = flat[i : i + step], y[i : i + step], slope[i : i + step]
        t, b = u[: len(part)], bend[: len(part)]
        xp.multiply(part, part, out=t)
        xp.multiply(t, 1.5 * sc, out=b)
        b += 0.5 * s  # half the slope of what goes into tanh
        t *= sc
        t += s
        t *= part
        xp.tanh(t, out=t)
        xp.multiply(t, t, out=d)
        xp.subtract(1.0, d, out=d)
        d *= b
        d *= part
        t += 1.0
        t *= 0.5
        d += t
        xp.multiply(part, t, out=out)

    def vjp(g: Array) -> tuple[Array]:
        return (g * slope.reshape(shape),)

    return y.reshape(shape), vjp

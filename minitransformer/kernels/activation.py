"""Activations in blocks, with the derivative kept from the forward: one array, and one multiplication backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..ops.activation import CUBIC, SQRT_2_OVER_PI, SQRT_2_PI, _gelu_exact, _gelu_tanh
from ..ops.activation import relu as relu_op
from ..ops.activation import silu as silu_op
from .registry import BLOCK_BYTES, book, kernel, on_lines, rows_of

Made = tuple[Array, Callable]

# Φ(−a) = e^(−a²/2)·(w·c₀ + w²·c₁ + ...) with w = 1/(a + FOLD), a ≥ 0: fitted for the least relative error on 0 … 14,
# which is 1.1e-7; beyond, the factor in front is 0 in single precision.
FOLD = 3.3
TAIL = (
    0.398796380, 1.32637625, 3.66572059, 14.7219699, -17.4106452, 251.004773, -660.822250, 511.916278,
)  # fmt: skip


@kernel(relu_op)
def relu(xp: Any, x: Array) -> Made:
    """Keep what is positive, by a clip, which NumPy does faster than a maximum; kept: one byte an element."""
    positive = x > 0

    def vjp(g: Array) -> tuple[Array]:
        return (g * positive,)

    return (xp.clip(x, 0, math.inf) if x.dtype.char in "fd" else x * positive), vjp


def _in_blocks(xp: Any, x: Array, curve: Callable[..., None]) -> Made:
    """Call curve(xp, x, y, slope, scratch) on blocks of flat arrays: it fills y = f(x) and slope = f'(x)."""
    flat, shape = x.reshape(-1), x.shape
    y, slope = (on_lines(xp, flat.shape, x.dtype) for _ in range(2))
    step = BLOCK_BYTES // flat.itemsize
    scratch = on_lines(xp, (2, step if len(flat) > step else len(flat)), x.dtype)
    for i in range(0, len(flat), step):
        part = flat[i : i + step]
        curve(xp, part, y[i : i + step], slope[i : i + step], scratch[:, : len(part)])

    def vjp(g: Array) -> tuple[Array]:
        return (g * slope.reshape(shape),)

    return y.reshape(shape), vjp


@kernel(_gelu_tanh)
def gelu_tanh(xp: Any, x: Array) -> Made:
    """Compute y and dy/dx together, with s = √(2/π) and c = 0.044715.

    h = (1 + tanh(x·(s + s·c·x²)))/2        y = x·h        dy/dx = h + y·(1 − h)·(2·s + 6·s·c·x²)
    """
    return _in_blocks(xp, x, _gelu_tanh_curve) if rows_of(x) else book(_gelu_tanh)(xp, x)


def _gelu_tanh_curve(xp: Any, x: Array, y: Array, slope: Array, scratch: Array) -> None:
    s, sc = SQRT_2_OVER_PI, SQRT_2_OVER_PI * CUBIC
    t, inner = scratch
    xp.multiply(x, x, out=t)
    xp.multiply(t, 6 * sc, out=inner)
    inner += 2 * s  # twice the slope of what goes into tanh
    t *= sc
    t += s
    t *= x
    xp.tanh(t, out=t)
    t *= 0.5
    t += 0.5
    xp.multiply(x, t, out=y)
    xp.subtract(1.0, t, out=slope)  # x is not needed any more: a replay has the slope in its place
    slope *= inner
    slope *= y
    slope += t


@kernel(_gelu_exact)
def gelu_exact(xp: Any, x: Array) -> Made:
    """Compute y and dy/dx together from one e^(−x²/2) and one polynomial; double precision is the book's.

    y = max(x, 0) − |x|·Φ(−|x|)        dy/dx = Φ(x) + x·φ(x),    Φ(x) = ½ ± (½ − Φ(−|x|))
    """
    single = rows_of(x) and x.dtype.char == "f"
    return _in_blocks(xp, x, _gelu_exact_curve) if single else book(_gelu_exact)(xp, x)


def _gelu_exact_curve(xp: Any, x: Array, y: Array, slope: Array, scratch: Array) -> None:
    e, w = scratch
    xp.multiply(x, x, out=e)
    e *= -0.5
    xp.exp(e, out=e)
    xp.abs(x, out=w)
    w += FOLD
    xp.divide(1.0, w, out=w)
    xp.multiply(w, TAIL[-1], out=slope)
    for c in TAIL[-2::-1]:
        slope += c
        slope *= w
    slope *= e  # Φ(−|x|)
    xp.abs(x, out=w)
    w *= slope
    xp.clip(x, 0, math.inf, out=y)
    y -= w
    xp.subtract(0.5, slope, out=slope)
    xp.copysign(slope, x, out=slope)
    slope += 0.5
    e *= 1 / SQRT_2_PI
    e *= x
    slope += e


@kernel(silu_op)
def silu(xp: Any, x: Array) -> Made:
    """Compute y = x·s and dy/dx = s + y·(1 − s) together, with s = (1 + tanh(x/2))/2."""
    return _in_blocks(xp, x, _silu_curve) if rows_of(x) else book(silu_op)(xp, x)


def _silu_curve(xp: Any, x: Array, y: Array, slope: Array, scratch: Array) -> None:
    s, _ = scratch
    xp.multiply(x, 0.5, out=s)
    xp.tanh(s, out=s)
    s += 1.0
    s *= 0.5
    xp.multiply(x, s, out=y)
    xp.subtract(1.0, s, out=slope)
    slope *= y
    slope += s

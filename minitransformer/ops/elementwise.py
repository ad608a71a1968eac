"""Arithmetic and functions that act on each element alone.

Where two inputs differ in shape NumPy broadcasts the smaller one, that is, uses each of its elements several
times; `sum_to` adds the gradients of those uses up again. A Python number is a setting, not an input (`scale`,
`shift`, `power`), so that it stays a Python number and float32 stays float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .precision import all_half, narrow, wide

Made = tuple[Array, Callable]


def sum_to(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum g over the axes along which an array of `shape` was broadcast: the transpose of broadcasting.

    g: (..., shape broadcast) → shape
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and g.shape[extra + i] != 1)
    return narrow(wide(g).sum(axis=axes, keepdims=True), all_half(g)).reshape(shape)


@primitive
def add(xp: Any, a: Array, b: Array) -> Made:
    """Add, element by element: a + b.    a, b: broadcastable → (...)"""
    a_shape, b_shape = a.shape, b.shape  # all that the vjp mentions, and so all that it keeps

    def vjp(g: Array) -> tuple[Array, Array]:
        return sum_to(g, a_shape), sum_to(g, b_shape)

    return a + b, vjp


@primitive
def subtract(xp: Any, a: Array, b: Array) -> Made:
    """Subtract, element by element: a − b.    a, b: broadcastable → (...)"""
    a_shape, b_shape = a.shape, b.shape

    def vjp(g: Array) -> tuple[Array, Array]:
        return sum_to(g, a_shape), sum_to(-g, b_shape)

    return a - b, vjp


@primitive
def multiply(xp: Any, a: Array, b: Array) -> Made:
    """Multiply, element by element: a·b.    a, b: broadcastable → (...)"""

    def vjp(g: Array) -> tuple[Array, Array]:
        return sum_to(g * b, a.shape), sum_to(g * a, b.shape)

    return a * b, vjp


@primitive
def divide(xp: Any, a: Array, b: Array) -> Made:
    """Divide, element by element: a / b.    a, b: broadcastable → (...)"""
    y = a / b

    def vjp(g: Array) -> tuple[Array, Array]:
        g_a = g / b
        return sum_to(g_a, a.shape), sum_to(-g_a * y, b.shape)

    return y, vjp


@primitive
def scale(xp: Any, x: Array, *, factor: float) -> Made:
    """Multiply by a Python number: factor·x.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g * factor,)

    return x * factor, vjp


@primitive
def shift(xp: Any, x: Array, *, offset: float) -> Made:
    """Add a Python number: x + offset.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g,)

    return x + offset, vjp


@primitive
def reciprocal(xp: Any, x: Array, *, numerator: float = 1.0) -> Made:
    """Divide a Python number by x: numerator / x.    x: (...) → (...)"""
    y = numerator / x

    def vjp(g: Array) -> tuple[Array]:
        return (-g * y / x,)

    return y, vjp


@primitive
def power(xp: Any, x: Array, *, exponent: float) -> Made:
    """Raise to a fixed power: xⁿ, with derivative n·xⁿ⁻¹ (0 for n = 0, at x = 0 too).    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g * (exponent * x ** (exponent - 1)) if exponent else g * 0,)

    return x**exponent, vjp


@primitive
def negative(xp: Any, x: Array) -> Made:
    """Change the sign: −x.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (-g,)

    return -x, vjp


@primitive
def exp(xp: Any, x: Array) -> Made:
    """Take the exponential eˣ, which is its own derivative.    x: (...) → (...)"""
    y = xp.exp(x)

    def vjp(g: Array) -> tuple[Array]:
        return (g * y,)

    return y, vjp


@primitive
def log(xp: Any, x: Array) -> Made:
    """Take the natural logarithm ln x, with derivative 1/x.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g / x,)

    return xp.log(x), vjp


@primitive
def sqrt(xp: Any, x: Array) -> Made:
    """Take the square root √x, with derivative 1/(2√x).    x: (...) → (...)"""
    y = xp.sqrt(x)

    def vjp(g: Array) -> tuple[Array]:
        return (g / (2 * y),)

    return y, vjp


@primitive
def sin(xp: Any, x: Array) -> Made:
    """Take the sine of x in radians.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g * xp.cos(x),)

    return xp.sin(x), vjp


@primitive
def cos(xp: Any, x: Array) -> Made:
    """Take the cosine of x in radians.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (-g * xp.sin(x),)

    return xp.cos(x), vjp


@primitive
def abs(xp: Any, x: Array) -> Made:
    """Take the absolute value |x|; its derivative at 0 is taken as 0.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (g * xp.sign(x),)

    return xp.abs(x), vjp


@primitive
def sign(xp: Any, x: Array) -> Made:
    """Take the sign, −1, 0 or 1; it is flat, so no gradient passes.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[None]:
        return (None,)

    return xp.sign(x), vjp


@primitive
def maximum(xp: Any, a: Array, b: Array) -> Made:
    """Take the larger of two, element by element; where they tie each gets half of the gradient.

    a, b: broadcastable → (...)
    """
    won, tied, a_shape, b_shape = a > b, a == b, a.shape, b.shape

    def vjp(g: Array) -> tuple[Array, Array]:
        g_a = g * won + (g * 0.5) * tied
        return sum_to(g_a, a_shape), sum_to(g - g_a, b_shape)

    return xp.maximum(a, b), vjp


@primitive
def minimum(xp: Any, a: Array, b: Array) -> Made:
    """Take the smaller of two, element by element; where they tie each gets half of the gradient.

    a, b: broadcastable → (...)
    """
    won, tied, a_shape, b_shape = a < b, a == b, a.shape, b.shape

    def vjp(g: Array) -> tuple[Array, Array]:
        g_a = g * won + (g * 0.5) * tied
        return sum_to(g_a, a_shape), sum_to(g - g_a, b_shape)

    return xp.minimum(a, b), vjp


@primitive
def where(xp: Any, condition: Array, a: Array, b: Array) -> Made:
    """Take a where the condition holds and b elsewhere; the gradient goes to the one that was taken.

    condition: boolean; all three broadcastable → (...)
    """

    a_shape, b_shape = (None if _is_number(x) else x.shape for x in (a, b))

    def vjp(g: Array) -> tuple[None, Any, Any]:
        g_a = None if a_shape is None else sum_to(xp.where(condition, g, 0.0), a_shape)
        g_b = None if b_shape is None else sum_to(xp.where(condition, 0.0, g), b_shape)
        return None, g_a, g_b

    return xp.where(condition, a, b), vjp


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


@primitive
def clip(xp: Any, x: Array, *, low: float = -math.inf, high: float = math.inf) -> Made:
    """Hold x between two numbers; no gradient passes where it was held.    x: (...) → (...)"""

    def vjp(g: Array) -> tuple[Array]:
        return (xp.where((x >= low) & (x <= high), g, 0.0),)

    return xp.clip(x, low, high) if not hasattr(x, "node") else clip(x, low=low, high=high), vjp

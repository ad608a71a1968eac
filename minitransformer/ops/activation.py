"""The bends between linear layers. Without them a stack of layers would be one layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .erf import erf
from .precision import all_half, narrow, wide

Made = tuple[Array, Callable]
SQRT_2 = math.sqrt(2)
SQRT_2_PI = math.sqrt(2 * math.pi)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # Hendrycks & Gimpel's constant in the tanh form


@primitive
def relu(xp: Any, x: Array) -> Made:
    """Keep what is positive: max(x, 0), with derivative 0 at 0.    x: (...) → (...)

    Nair & Hinton 2010, "Rectified Linear Units Improve Restricted Boltzmann Machines", ICML.
    """
    positive = x > 0

    def vjp(g: Array) -> tuple[Array]:
        return (g * positive,)

    return x * positive, vjp


@primitive
def tanh(xp: Any, x: Array) -> Made:
    """Squash to −1 … 1; the derivative is 1 − y².    x: (...) → (...)"""
    y = xp.tanh(x)

    def vjp(g: Array) -> tuple[Array]:
        return (g * (1 - y * y),)

    return y, vjp


@primitive
def sigmoid(xp: Any, x: Array) -> Made:
    """Squash to 0 … 1: 1/(1 + e⁻ˣ) = (1 + tanh(x/2))/2, a form that never overflows; derivative y(1 − y).

    x: (...) → (...)
    """
    y = (xp.tanh(x * 0.5) + 1) * 0.5

    def vjp(g: Array) -> tuple[Array]:
        return (g * (y * (1 - y)),)

    return y, vjp


@primitive
def silu(xp: Any, x: Array) -> Made:
    """Weigh x by its own sigmoid: x·σ(x) (SiLU, or swish).    x: (...) → (...)

    Elfwing, Uchibe & Doya 2018, arXiv:1702.03118.
    """
    s = (xp.tanh(x * 0.5) + 1) * 0.5

    def vjp(g: Array) -> tuple[Array]:
        return (g * (s * (1 + x * (1 - s))),)

    return x * s, vjp


@primitive
def _gelu_exact(xp: Any, x: Array) -> Made:
    below = (erf(x / SQRT_2) + 1) * 0.5  # Φ(x): the share of a standard normal that lies below x

    def vjp(g: Array) -> tuple[Array]:
        density = xp.exp(x * x * -0.5) / SQRT_2_PI
        return (g * (below + x * density),)

    return x * below, vjp


@primitive
def _gelu_tanh(xp: Any, x: Array) -> Made:
    half, x = all_half(x), wide(x)  # 300² has no place in half precision
    square = x * x
    below = (xp.tanh(x * (SQRT_2_OVER_PI + SQRT_2_OVER_PI * CUBIC * square)) + 1) * 0.5  # close to Φ(x)
    y = x * below

    def vjp(g: Array) -> tuple[Array]:
        twice_inner = 2 * SQRT_2_OVER_PI + 6 * SQRT_2_OVER_PI * CUBIC * square  # 2·the slope of what tanh is taken of
        return (narrow(g * (below + y * (1 - below) * twice_inner), half),)

    return narrow(y, half), vjp


def gelu(x: Any, approximate: str = "none") -> Any:
    """Weigh x by the chance that a standard normal lies below it.    x: (...) → (...)

        "none":  x·Φ(x) = x·(1 + erf(x/√2))/2                    (BERT)
        "tanh":  x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2        (GPT-2)

    The two differ by up to 5e-4, so a model has to be run with the one it was trained with.
    Raises ValueError for another name. Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu's approximate is 'none' or 'tanh'; got {approximate!r}; write approximate='tanh'")
    return _gelu_tanh(x) if approximate == "tanh" else _gelu_exact(x)

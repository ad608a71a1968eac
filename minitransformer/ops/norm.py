"""Give every row one size, so that a deep stack neither explodes nor dies out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .elementwise import sum_to
from .precision import all_half, narrow, wide

Made = tuple[Array, Callable]


@primitive
def layer_norm(xp: Any, x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Made:
    """Give every row of x mean 0 and variance 1, then scale and shift it.

        x̂ = (x − μ) / √(σ² + ε)            y = weight·x̂ + bias

    x: (..., D)    weight, bias: (D,)    →    y: (..., D)

    μ and σ² run over the last axis; σ² divides by D, not D − 1.
    Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    half, x = all_half(x, weight, bias), wide(x)  # 300² has no place in half precision
    centred = x - x.mean(axis=-1, keepdims=True)
    inv_std = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    x_hat = centred * inv_std

    def vjp(g: Array) -> tuple[Array, Array, Array]:
        g = wide(g)
        g_hat = g * weight
        through_mean = g_hat.mean(axis=-1, keepdims=True)
        through_std = x_hat * (g_hat * x_hat).mean(axis=-1, keepdims=True)
        g_x = inv_std * (g_hat - through_mean - through_std)
        return g_x, sum_to(g * x_hat, weight.shape), sum_to(g, bias.shape)

    return narrow(weight * x_hat + bias, half), vjp


@primitive
def rms_norm(xp: Any, x: Array, weight: Array, *, eps: float = 1e-6) -> Made:
    """Give every row of x a root mean square of 1, then scale it; LayerNorm without the mean and the shift.

        x̂ = x / √(mean(x²) + ε)            y = weight·x̂

    x: (..., D)    weight: (D,)    →    y: (..., D)

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    half, x = all_half(x, weight), wide(x)
    inv_rms = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    x_hat = x * inv_rms

    def vjp(g: Array) -> tuple[Array, Array]:
        g = wide(g)
        g_hat = g * weight
        g_x = inv_rms * (g_hat - x_hat * (g_hat * x_hat).mean(axis=-1, keepdims=True))
        return g_x, sum_to(g * x_hat, weight.shape)

    return narrow(weight * x_hat, half), vjp

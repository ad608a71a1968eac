"""Give every row one size, so that a deep stack neither explodes nor dies out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .precision import all_half, narrow, wide
from .rows import row_dot, row_mean, sum_of_products, sum_of_rows

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
    centred = x - row_mean(x)
    inv_std = 1 / xp.sqrt(row_dot(centred, centred) / x.shape[-1] + eps)
    x_hat = centred * inv_std

    def vjp(g: Array) -> tuple[Array, Array, Array]:
        g = wide(g)
        g_hat = g * weight
        through_mean = row_mean(g_hat)
        through_std = x_hat * (row_dot(g_hat, x_hat) / x_hat.shape[-1])
        g_x = inv_std * (g_hat - through_mean - through_std)
        return g_x, sum_of_products(g, x_hat), sum_of_rows(g)

    return narrow(weight * x_hat + bias, half), vjp


@primitive
def rms_norm(xp: Any, x: Array, weight: Array, *, eps: float = 1e-6) -> Made:
    """Give every row of x a root mean square of 1, then scale it; LayerNorm without the mean and the shift.

        x̂ = x / √(mean(x²) + ε)            y = weight·x̂

    x: (..., D)    weight: (D,)    →    y: (..., D)

    Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    half, x = all_half(x, weight), wide(x)
    inv_rms = 1 / xp.sqrt(row_dot(x, x) / x.shape[-1] + eps)
    x_hat = x * inv_rms

    def vjp(g: Array) -> tuple[Array, Array]:
        g = wide(g)
        g_hat = g * weight
        g_x = inv_rms * (g_hat - x_hat * (row_dot(g_hat, x_hat) / x_hat.shape[-1]))
        return g_x, sum_of_products(g, x_hat)

    return narrow(weight * x_hat, half), vjp

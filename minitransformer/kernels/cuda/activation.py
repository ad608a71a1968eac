"""Activations, y and dy/dx in one launch; backwards one multiplication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.activation import _gelu_exact, _gelu_tanh
from ...ops.activation import silu as silu_op
from ..registry import book, kernel
from .source import source, suits

Made = tuple[Array, Callable]
THREADS = 256

SOURCE = source(
    "activation",
    "gelu_exact gelu_tanh silu",
    r"""
template <typename T> __global__ void gelu_exact(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    const integer i = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const W v = (W)x[i], below = (W)0.5 * erfc(-v * (W)0.70710678118654752440);
    y[i] = T(v * below);
    slope[i] = T(below + v * exp((W)-0.5 * v * v) * (W)0.39894228040143267794);
}

template <typename T> __global__ void gelu_tanh(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    const integer i = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const W v = (W)x[i], s = (W)0.79788456080286535588, c = (W)0.044715;
    const W t = tanh(s * v * (1 + c * v * v));
    y[i] = T((W)0.5 * v * (1 + t));
    slope[i] = T((W)0.5 * (1 + t) + (W)0.5 * v * (1 - t * t) * s * (1 + 3 * c * v * v));
}

template <typename T> __global__ void silu(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    const integer i = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const W v = (W)x[i], s = (W)0.5 * (tanh((W)0.5 * v) + 1);
    y[i] = T(v * s);
    slope[i] = T(s * (1 + v * (1 - s)));
}
""",
)


def _curve(name: str, xp: Any, x: Array) -> Made:
    y, slope = xp.empty_like(x), xp.empty_like(x)
    SOURCE(name, x.dtype, -(-x.size // THREADS), THREADS, (x, y, slope, np.int64(x.size)))

    def vjp(g: Array) -> tuple[Array]:
        return (g * slope,)

    return y, vjp


@kernel(_gelu_exact, "cupy")
def gelu_exact(xp: Any, x: Array) -> Made:
    """Compute x·Φ(x).    N read, 2·N written; backwards 2·N read, N written (without the slope: 2·N and N, too)"""
    return _curve("gelu_exact", xp, x) if suits(x) else book(_gelu_exact)(xp, x)


@kernel(_gelu_tanh, "cupy")
def gelu_tanh(xp: Any, x: Array) -> Made:
    """Compute the form with tanh.    It moves what `gelu_exact` moves."""
    return _curve("gelu_tanh", xp, x) if suits(x) else book(_gelu_tanh)(xp, x)


@kernel(silu_op, "cupy")
def silu(xp: Any, x: Array) -> Made:
    """Compute x·σ(x).    It moves what `gelu_exact` moves."""
    return _curve("silu", xp, x) if suits(x) else book(silu_op)(xp, x)

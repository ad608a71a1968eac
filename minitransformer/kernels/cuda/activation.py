"""Activations, y and dy/dx in one launch; backwards one multiplication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.activation import _gelu_exact, _gelu_tanh
from ...ops.activation import silu as silu_op
from ..registry import book, kernel
from .source import packed, source, suits

Made = tuple[Array, Callable]
THREADS = 256

SOURCE = source(
    "activation",
    "gelu_exact gelu_tanh silu times",
    r"""
// A thread takes 16 bytes of each array; those at the end, and where an array does not begin at such a place, singly.
// out, slope = f(v, w) for v of x and, where there is one, w of other; no slope, no second result.
template <typename T, typename F> __device__ void each(const T* x, const T* other, T* y, T* slope, integer n, F f) {
    typedef typename Wide<T>::type W;
    const int RUN = 16 / sizeof(T);
    const integer from = ((integer)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    const bool whole = from + RUN <= n && ((size_t)x | (size_t)other | (size_t)y | (size_t)slope) % 16 == 0;
    T v[RUN] = {}, w[RUN] = {};
    if (whole) {
        read_run(x + from, v);
        if (other) read_run(other + from, w);
    } else
        for (int i = 0; i < RUN && from + i < n; i++) {
            v[i] = x[from + i];
            if (other) w[i] = other[from + i];
        }
    for (int i = 0; i < RUN; i++) {
        W first, second = (W)w[i];
        f((W)v[i], first, second);
        v[i] = T(first), w[i] = T(second);
    }
    if (whole) {
        write_run(y + from, v);
        if (slope) write_run(slope + from, w);
    } else
        for (int i = 0; i < RUN && from + i < n; i++) {
            y[from + i] = v[i];
            if (slope) slope[from + i] = w[i];
        }
}

template <typename T> __global__ void gelu_exact(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    each(x, (const T*)nullptr, y, slope, n, [](W v, W& bent, W& steep) {
        const W below = (W)0.5 * erfc(-v * (W)0.70710678118654752440);
        bent = v * below;
        steep = below + v * exp((W)-0.5 * v * v) * (W)0.39894228040143267794;
    });
}

template <typename T> __global__ void gelu_tanh(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    each(x, (const T*)nullptr, y, slope, n, [](W v, W& bent, W& steep) {
        const W s = (W)0.79788456080286535588, c = (W)0.044715, t = tanh(s * v * (1 + c * v * v));
        bent = (W)0.5 * v * (1 + t);
        steep = (W)0.5 * (1 + t) + (W)0.5 * v * (1 - t * t) * s * (1 + 3 * c * v * v);
    });
}

template <typename T> __global__ void silu(const T* x, T* y, T* slope, integer n) {
    typedef typename Wide<T>::type W;
    each(x, (const T*)nullptr, y, slope, n, [](W v, W& bent, W& steep) {
        const W s = (W)0.5 * (tanh((W)0.5 * v) + 1);
        bent = v * s;
        steep = s * (1 + v * (1 - s));
    });
}

template <typename T> __global__ void times(const T* x, const T* other, T* y, integer n) {
    typedef typename Wide<T>::type W;
    each(x, other, y, (T*)nullptr, n, [](W v, W& product, W& w) { product = v * w; });
}
""",
)


def _launch(name: str, arrays: tuple[Array, ...]) -> None:
    n, dtype = arrays[0].size, arrays[0].dtype
    SOURCE(name, dtype, -(-n * dtype.itemsize // (16 * THREADS)), THREADS, (*arrays, np.int64(n)))


def _curve(name: str, xp: Any, x: Array) -> Made:
    y, slope = xp.empty_like(x), xp.empty_like(x)
    _launch(name, (x, y, slope))

    def vjp(g: Array) -> tuple[Array]:
        g, g_x = packed(xp, g), xp.empty_like(slope)
        if not suits(slope, g):
            return (g * slope,)
        _launch("times", (g, slope, g_x))
        return (g_x,)

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

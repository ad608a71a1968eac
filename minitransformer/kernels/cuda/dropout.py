"""Dropout whose mask is never stored: each thread finds its own random words, forwards and again backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array, Draw, random_state, recorder
from ...ops.dropout import PER_BLOCK, _dropout, _dropout_add, blocks_per_row
from ...ops.dropout import dropout_factors as factors_op
from ..registry import book, kernel
from .source import changing, packed, source, suits

Made = tuple[Array, Callable]
THREADS = 128

SOURCE = source(
    "dropout",
    "dropout",
    r"""
typedef unsigned long long word;

// Philox-4x64 with ten rounds, as in ops/philox.py.
__device__ void philox(word block, word call, word k0, word k1, word* c) {
    const word m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
    c[0] = block, c[1] = call, c[2] = c[3] = 0;
    for (int round = 0; round < 10; round++) {
        const word high0 = __umul64hi(m0, c[0]), low0 = m0 * c[0];
        const word high1 = __umul64hi(m1, c[2]), low1 = m1 * c[2];
        c[0] = high1 ^ c[1] ^ k0, c[1] = low1, c[2] = high0 ^ c[3] ^ k1, c[3] = low0;
        k0 += 0x9E3779B97F4A7C15ull, k1 += 0xBB67AE8584CAA73Bull;
    }
}

// out = sum + x·factor; without x the factor itself, without sum no sum. A thread takes eight elements of a row.
template <typename T>
__global__ void dropout(const T* x, const T* sum, T* out, integer width, integer per_row, integer rows, word first,
                        word call, Changing<word> key, word threshold, double survivor) {
    typedef typename Wide<T>::type W;
    const integer block = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= rows * per_row) return;
    word words[4];
    philox(first + block, call, key[0], key[1], words);
    const integer row = block / per_row, from = block % per_row * 8;
    for (integer i = 0; i < 8 && from + i < width; i++) {
        const integer at = row * width + from + i;
        const word half = words[i / 2] >> (i % 2 * 32) & 0xFFFFFFFFull;
        const W factor = half >= threshold ? (W)survivor : W(0);
        const W value = x ? (W)x[at] * factor : factor;
        out[at] = T(sum ? (W)sum[at] + value : value);
    }
}
""",
)


def _key(draw: Draw) -> Any:
    """Return the key as an argument; in a recorded step, the key that then holds."""
    return changing("u8", 2, (lambda: draw.key) if recorder() is None else (lambda: random_state()[0]))


def _run(x: Array | None, added: Array | None, out: Array, p: float, draw: Draw) -> None:
    shape = out.shape
    rows, per_row = (shape[0] if shape else 1), blocks_per_row(shape)
    if not out.size:
        return
    word, nothing = np.uint64, np.uintp(0)
    args = (
        nothing if x is None else x, nothing if added is None else added, out,
        np.int64(math.prod(shape[1:])), np.int64(per_row), np.int64(rows), word(draw.first_row * per_row),
        word(draw.call), _key(draw), word(round(p * 2**32)), np.float64(1 / (1 - p)),
    )  # fmt: skip
    SOURCE("dropout", out.dtype, -(-rows * per_row // THREADS), THREADS, args)


assert PER_BLOCK == 8


@kernel(factors_op, "cupy")
def dropout_factors(xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw) -> Made:
    """Write the factors alone, for attention weights.    N written, the fewest"""
    out = xp.empty(shape, dtype=like.dtype)
    _run(None, None, out, p, draw)
    return out, lambda g: (None,)


@kernel(_dropout, "cupy")
def dropout(xp: Any, x: Array, *, p: float, draw: Draw) -> Made:
    """Multiply by factors that are found on the way.    N read, N written, each way: the fewest; nothing is kept"""
    if not suits(x):
        return book(_dropout)(xp, x, p=p, draw=draw)
    y = xp.empty_like(x)
    _run(x, None, y, p, draw)

    def vjp(g: Array) -> tuple[Array]:
        g_x = xp.empty_like(y)
        _run(packed(xp, g), None, g_x, p, draw)
        return (g_x,)

    return y, vjp


@kernel(_dropout_add, "cupy")
def dropout_add(xp: Any, x: Array, branch: Array, *, p: float, draw: Draw) -> Made:
    """Drop and add in one pass.    2·N read, N written; backwards N and N: the fewest; nothing is kept"""
    if not suits(x, branch):
        return book(_dropout_add)(xp, x, branch, p=p, draw=draw)
    y = xp.empty_like(x)
    _run(branch, x, y, p, draw)

    def vjp(g: Array) -> tuple[Array, Array]:
        g_branch = xp.empty(g.shape, dtype=g.dtype)
        _run(packed(xp, g), None, g_branch, p, draw)
        return g, g_branch

    return y, vjp

"""Dropout whose mask is never stored: each thread finds its own random words, forwards and again backwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array, recorder
from ...draws import Draw, random_state
from ...ops.dropout import PER_BLOCK, _dropout, _dropout_add, blocks_per_row, part_shape
from ...ops.dropout import dropout_factors as factors_op
from ..registry import book, kernel
from .source import changing, packed, source, suits

Made = tuple[Array, Callable]
THREADS = 128

SOURCE = source(
    "dropout",
    "dropout factors",
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

// out = sum + x·factor; without x the factor itself, without sum no sum. A thread finds which of eight elements stay, a
// bit each. Where all is laid out for it, the threads of a warp then exchange those, so that neighbours read and write
// neighbouring 16 bytes; else each takes its own eight elements.
template <typename T>
__global__ void dropout(const T* x, const T* sum, T* out, integer width, integer per_row, integer rows, word first,
                        word call, Changing<word> key, word threshold, double survivor) {
    typedef typename Wide<T>::type W;
    const integer block = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    word words[4];
    philox(first + block, call, key[0], key[1], words);
    unsigned stay = 0;
    for (int i = 0; i < 8; i++) stay |= (unsigned)((words[i / 2] >> (i % 2 * 32) & 0xFFFFFFFFull) >= threshold) << i;
    if (width % 8 == 0 && ((size_t)x | (size_t)sum | (size_t)out) % 16 == 0) {
        const int RUN = 16 / sizeof(T), lane = threadIdx.x % 32;
        for (int j = 0; j < 8; j += RUN) {
            const int place = (j / RUN * 32 + lane) * RUN;  // among the 256 elements of the warp
            const integer at = (block - lane) * 8 + place;
            const unsigned bits = __shfl_sync(~0u, stay, place / 8) >> place % 8;
            if (at >= rows * width) continue;
            T run[RUN] = {}, before[RUN] = {};
            if (x) read_run(x + at, run);
            if (sum) read_run(sum + at, before);
            for (int i = 0; i < RUN; i++) {
                const W factor = bits >> i & 1 ? (W)survivor : W(0), value = x ? (W)run[i] * factor : factor;
                run[i] = T(sum ? (W)before[i] + value : value);
            }
            write_run(out + at, run);
        }
        return;
    }
    if (block >= rows * per_row) return;
    const integer row = block / per_row, from = block % per_row * 8;
    for (integer i = 0; i < 8 && from + i < width; i++) {
        const integer at = row * width + from + i;
        const W factor = stay >> i & 1 ? (W)survivor : W(0), value = x ? (W)x[at] * factor : factor;
        out[at] = T(sum ? (W)sum[at] + value : value);
    }
}

// The factors of a part: runs of `run` elements, of which run m of row r begins at element m·matrix + offset of its
// row. A thread takes one block of words, of which the first and the last of a run may reach beyond it.
template <typename T>
__global__ void factors(T* out, integer run, integer matrix, integer offset, integer per_row, int middle, integer most,
                        integer blocks, word first, word call, Changing<word> key, word threshold, double survivor) {
    const integer thread = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= blocks) return;
    const integer which = thread / most, begin = which % middle * matrix + offset;
    const integer block = begin / 8 + thread % most;
    word words[4];
    philox(first + which / middle * per_row + block, call, key[0], key[1], words);
    for (int i = 0; i < 8; i++) {
        const integer at = block * 8 + i - begin;
        if (at >= 0 && at < run)
            out[which * run + at] = T((words[i / 2] >> (i % 2 * 32) & 0xFFFFFFFFull) >= threshold ? survivor : 0.0);
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
def dropout_factors(
    xp: Any, like: Array, *, shape: tuple[int, ...], p: float, draw: Draw, part: tuple[int, int] | None = None
) -> Made:
    """Write the factors alone, for attention weights.    N written, the fewest"""
    out = xp.empty(part_shape(shape, part), dtype=like.dtype)
    if part is None or len(shape) == 2:
        begun = draw if part is None else draw._replace(first_row=draw.first_row + part[0])
        _run(None, None, out, p, begun)
        return out, lambda g: (None,)
    matrix, middle, per_row = shape[-2] * shape[-1], math.prod(shape[1:-2]), blocks_per_row(shape)
    run = (part[1] - part[0]) * shape[-1]
    most = -(-run // PER_BLOCK) + 1
    blocks, word = shape[0] * middle * most, np.uint64
    args = (
        out, np.int64(run), np.int64(matrix), np.int64(part[0] * shape[-1]), np.int64(per_row), np.int32(middle),
        np.int64(most), np.int64(blocks), word(draw.first_row * per_row), word(draw.call), _key(draw),
        word(round(p * 2**32)), np.float64(1 / (1 - p)),
    )  # fmt: skip
    if out.size:
        SOURCE("factors", out.dtype, -(-blocks // THREADS), THREADS, args)
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

"""Adafactor for all parameters at once, in six launches: each waits for sums that the one before it has made.

    rows      R of each row, and Σθ² of each row       N·M of g and of θ read
    columns   Σg² of each column over chunks of rows   N·M of g read
    level     mean of R and α of each parameter; C     the chunks' sums read, at most N·M/64
    size      Σu² of each row                          N·M of g read
    bound     max(1, RMS(u)/clip) of each parameter
    step      θ                                        N·M of g and θ read, of θ written

Fewest would be one read of g less: u is made twice, since storing it costs as much as making it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...backend import Array, keep, to_backend
from .many import CODE, addresses, pointers
from .source import WARP, changing, source

THREADS = 128
CHUNK = 64  # rows of a matrix that a thread adds up at least
CHUNKS = 128  # of a matrix at most: enough to keep a GPU busy, few enough to be added up in a moment

SOURCE = source(
    "adafactor",
    "rows columns level size bound step",
    CODE
    + r"""
// One parameter is a matrix of `counts` rows of `widths` elements; a vector is one row, and `flat`: it keeps all of V.
struct Factors { double weight, add, floor, least, rho, eps2, clip, beta1, decay, lr; int scaled, by_alpha; };
#define FACTORS Changing<double> a, Changing<double> b
#define USES const Factors f = {a[0], a[1], a[2], a[3], a[4], a[5], b[0], b[1], b[2], b[3], b[4] != 0, b[5] != 0};
#define TABLES                                                                                                \
    T **xs, Pointers near, T **far, T **rows_or_all, T **cols, T **ms, const int *owner, const int *first,    \
        const int *counts, const int *widths, const int *flat, const int *chunk_owner, const int *first_chunk, \
        const int *heights, const integer *begin, typename Wide<T>::type *chunks, typename Wide<T>::type *sums, \
        typename Wide<T>::type *numbers
#define G(own) (far ? far[own] : (T*)near.at[own])
// chunks: sums over `heights` rows, from begin[own] on those of a matrix; numbers: a parameter's mean R, α, and bound

template <typename T> __global__ void rows(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = owner[blockIdx.x], row = blockIdx.x - first[own], width = widths[own];
    const integer start = (integer)row * width;
    const T *gs = G(own) + start, *x = xs[own] + start;
    T* all = flat[own] ? rows_or_all[own] : nullptr;
    W square = 0, of_x = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W g = (W)gs[i], x_i = (W)x[i], s = g * g + (W)f.add;
        of_x += x_i * x_i;
        square += s;
        if (all) all[i] = T((W)all[i] + (W)f.weight * (s - (W)all[i]));
    }
    block_sums(square, of_x);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = of_x;
        if (!flat[own]) {
            T& r = rows_or_all[own][row];
            r = T((W)r + (W)f.weight * (square / width - (W)r));
        }
    }
}

template <typename T> __global__ void columns(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = chunk_owner[blockIdx.x], chunk = blockIdx.x - first_chunk[own], width = widths[own];
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const int from = chunk * heights[own], to = min(from + heights[own], counts[own]);
    const T* g = G(own) + column;
    W square = 0;
#pragma unroll 8
    for (int row = from; row < to; row++) {
        const W g_i = (W)g[(integer)row * width];
        square += g_i * g_i + (W)f.add;
    }
    chunks[begin[own] + (integer)chunk * width + column] = square;
}

// The first block of a parameter makes its numbers, the others C, each of 32 columns, whose chunks its warps share.
template <typename T> __global__ void level(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = blockIdx.y, width = widths[own], count = counts[own];
    if (blockIdx.x) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        const int column = (blockIdx.x - 1) * 32 + lane;
        const bool has = !flat[own] && column < width;
        const int all = has ? (count + heights[own] - 1) / heights[own] : 0;
        __shared__ W parts[32][32];
        W square = 0;
#pragma unroll 8
        for (int i = warp; i < all; i += warps) square += chunks[begin[own] + (integer)i * width + column];
        parts[warp][lane] = square;
        __syncthreads();
        if (warp || !has) return;
        for (int i = 1; i < warps; i++) square += parts[i][lane];
        T& c = cols[own][column];
        c = T((W)c + (W)f.weight * (square / count - (W)c));
        return;
    }
    W of_r = 0, of_x = 0;
#pragma unroll 8
    for (int row = threadIdx.x; row < count; row += blockDim.x) {
        of_x += sums[first[own] + row];
        if (!flat[own]) of_r += (W)rows_or_all[own][row];
    }
    block_sums(of_x, of_r);
    if (threadIdx.x) return;
    of_r /= count;
    const W rms = sqrt(of_x / ((W)count * width)), eps2_ = (W)f.eps2;
    numbers[3 * own] = of_r > (W)f.floor ? of_r : (W)f.floor;
    numbers[3 * own + 1] = f.scaled ? (rms > eps2_ ? rms : eps2_) * (W)f.rho : (W)f.rho;
}

// g/√V in a row. V of a vector is kept whole, that of a matrix is R/mean(R)·C.
template <typename T> struct Update {
    typedef typename Wide<T>::type W;
    const T *g, *across;
    W along, least;
    int is_flat;
    __device__ Update(const T* g, const T* kept, const T* c, int is_flat, int row, W mean, W least)
        : g(g), across(is_flat ? kept : c), least(least), is_flat(is_flat) {
        along = is_flat ? W(1) : (W)kept[row] / mean;
    }
    __device__ W at(int i) const {
        const W v = is_flat ? (W)across[i] : along * (W)across[i];
        return (W)g[i] / sqrt(v > least ? v : least);
    }
};
#define UPDATE                                                                                                 \
    const int own = owner[blockIdx.x], row = blockIdx.x - first[own], width = widths[own];                     \
    const integer start = (integer)row * width;                                                                \
    const Update<T> update(G(own) + start, rows_or_all[own], cols[own], flat[own], row, numbers[3 * own],      \
                           (W)f.least);

template <typename T> __global__ void size(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    UPDATE
    W square = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W u = update.at(i);
        square += u * u;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) sums[blockIdx.x] = square;
}

template <typename T> __global__ void bound(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = blockIdx.x;
    W square = 0;
#pragma unroll 8
    for (int row = threadIdx.x; row < counts[own]; row += blockDim.x) square += sums[first[own] + row];
    square = block_sum(square);
    const W over = sqrt(square / ((W)counts[own] * widths[own])) / (W)f.clip;
    if (threadIdx.x == 0) numbers[3 * own + 2] = over > 1 ? over : W(1);
}

template <typename T> __global__ void step(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    UPDATE
    const W alpha = numbers[3 * own + 1], over = numbers[3 * own + 2];
    const W shrink = 1 - (f.by_alpha ? alpha : (W)f.lr) * (W)f.decay;
    T *x = xs[own] + start, *m = ms ? ms[own] + start : nullptr;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        W u = update.at(i) / over * alpha;
        if (m) {
            u = (W)f.beta1 * (W)m[i] + (1 - (W)f.beta1) * u;
            m[i] = T(u);
        }
        x[i] = T((W)x[i] * shrink - u);
    }
}
""",
)


class Numbers(NamedTuple):
    """What a step of Adafactor takes beside its arrays, in the order of the kernels' arguments."""

    weight: float  # 1 − β₂
    add: float  # added to g²
    floor: float  # of the mean of R
    least: float  # of V
    rho: float
    eps2: float
    clip: float
    beta1: float
    decay: float
    lr: float
    scaled: bool  # is the step size relative to θ?
    by_alpha: bool  # is the decay?


class Tables(NamedTuple):
    """Who works on what, on the device; and how many blocks that makes."""

    owner: Array  # each row's parameter
    first: Array  # of each parameter: its first row, how many rows, how wide, whether it is a vector
    counts: Array
    widths: Array
    flat: Array
    chunk_owner: Array  # each chunk's matrix
    first_chunk: Array  # of each parameter: its first chunk, the rows of one, where the chunks' sums begin
    heights: Array
    begin: Array
    widest: int  # of the matrices
    room: int  # numbers that the chunks' sums take


@functools.lru_cache(maxsize=64)
def _tables(device: int, shapes: tuple[tuple[int, ...], ...]) -> Tables:
    counts = np.array([s[0] if len(s) == 2 else 1 for s in shapes])
    widths = np.array([s[-1] for s in shapes])
    flat = np.array([len(s) == 1 for s in shapes])
    heights = np.maximum(-(-counts // CHUNKS), CHUNK)
    chunks = np.where(flat, 0, -(-counts // heights))
    starts = [np.cumsum(n) - n for n in (counts, chunks, chunks * widths)]
    owners = [np.repeat(np.arange(len(shapes)), n) for n in (counts, chunks)]
    ints = [owners[0], starts[0], counts, widths, flat, owners[1], starts[1], heights]
    arrays = [to_backend(a.astype(np.int32), "cupy") for a in ints] + [to_backend(starts[2].astype(np.int64), "cupy")]
    return Tables._make([*arrays, int(max(widths[~flat], default=0)), int((chunks * widths).sum())])


def adafactor(xp: Any, xs: Any, gs: Any, states: list[dict], numbers: Callable[[], Numbers]) -> None:
    """Do what `optim.Adafactor` says to vectors and matrices that have had the same number of steps."""
    tables = keep(_tables(xs[0].device.id, tuple([x.shape for x in xs])))
    wide = np.dtype("f8" if xs[0].dtype.char == "d" else "f4")
    chunks = xp.empty(tables.room, dtype=wide)
    sums, levels = xp.empty(tables.owner.size, dtype=wide), xp.empty(3 * len(xs), dtype=wide)
    kept = tuple([s["variance"] if "variance" in s else s["row_var"] for s in states])
    columns = tuple([s.get("col_var", x) for s, x in zip(states, xs, strict=True)])  # a vector has none, and reads none
    momentum = addresses(xp, tuple([s["exp_avg"] for s in states])) if "exp_avg" in states[0] else np.uintp(0)
    lists = [addresses(xp, xs), *pointers(xp, gs), addresses(xp, kept), addresses(xp, columns)]
    settings = changing("f8", 6, lambda: numbers()[:6]), changing("f8", 6, lambda: numbers()[6:])
    args = (*lists, momentum, *tables[:-2], chunks, sums, levels, *settings)
    rows, tiles = tables.owner.size, (tables.chunk_owner.size, -(-tables.widest // THREADS))
    grids = {"rows": rows, "columns": tiles, "level": (1 + -(-tables.widest // WARP), len(xs)), "size": rows,
             "bound": len(xs), "step": rows}  # fmt: skip
    for name, grid in grids.items():
        if name != "columns" or tables.room:
            SOURCE(name, xs[0].dtype, grid, 2 * THREADS if name in ("level", "bound") else THREADS, args)

"""Adafactor for all parameters at once, in six launches: each waits for sums that the one before it has made.

    rows      R of each row, and Σθ² of each row       N·M of g and of θ read
    columns   C of each column                         N·M of g read
    level     mean of R and α of each parameter
    size      Σu² of each row                          N·M of g read
    bound     max(1, RMS(u)/clip) of each parameter
    step      θ                                        N·M of g and θ read, of θ written

Fewest would be one read of g less: u is made twice, since storing it costs as much as making it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...backend import Array
from .many import CODE, addresses, pointers
from .source import changing, source

THREADS = 128

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
        const int *counts, const int *widths, const int *flat, typename Wide<T>::type *sums,                  \
        typename Wide<T>::type *numbers
#define G(own) (far ? far[own] : (T*)near.at[own])
// numbers: for each parameter the mean of R, α, and the bound

template <typename T> __global__ void rows(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = owner[blockIdx.x], row = blockIdx.x - first[own], width = widths[own];
    const integer start = (integer)row * width;
    W square = 0, of_x = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W g = (W)G(own)[start + i], x = (W)xs[own][start + i], s = g * g + (W)f.add;
        of_x += x * x;
        square += s;
        if (flat[own]) {
            T& v = rows_or_all[own][start + i];
            v = T((W)v + (W)f.weight * (s - (W)v));
        }
    }
    square = block_sum(square);
    of_x = block_sum(of_x);
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
    const int own = blockIdx.y, width = widths[own], column = blockIdx.x * blockDim.x + threadIdx.x;
    if (flat[own] || column >= width) return;
    W square = 0;
    for (int row = 0; row < counts[own]; row++) {
        const W g = (W)G(own)[(integer)row * width + column];
        square += g * g + (W)f.add;
    }
    T& c = cols[own][column];
    c = T((W)c + (W)f.weight * (square / counts[own] - (W)c));
}

template <typename T> __global__ void level(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = blockIdx.x;
    W of_r = 0, of_x = 0;
    for (int row = threadIdx.x; row < counts[own]; row += blockDim.x) {
        of_x += sums[first[own] + row];
        if (!flat[own]) of_r += (W)rows_or_all[own][row];
    }
    of_x = block_sum(of_x);
    of_r = block_sum(of_r) / counts[own];
    if (threadIdx.x) return;
    const W rms = sqrt(of_x / ((W)counts[own] * widths[own])), eps2_ = (W)f.eps2;
    numbers[3 * own] = of_r > (W)f.floor ? of_r : (W)f.floor;
    numbers[3 * own + 1] = f.scaled ? (rms > eps2_ ? rms : eps2_) * (W)f.rho : (W)f.rho;
}

template <typename T>
__device__ typename Wide<T>::type update_of(T g, T* v_or_r, T* c, int is_flat, int row, int column,
                                            typename Wide<T>::type mean, typename Wide<T>::type least) {
    typedef typename Wide<T>::type W;
    W v = is_flat ? (W)v_or_r[column] : (W)v_or_r[row] / mean * (W)c[column];
    v = v > least ? v : least;
    return (W)g / sqrt(v);
}

template <typename T> __global__ void size(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = owner[blockIdx.x], row = blockIdx.x - first[own], width = widths[own];
    W square = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W u = update_of<T>(G(own)[(integer)row * width + i], rows_or_all[own], cols[own], flat[own], row, i,
                                 numbers[3 * own], (W)f.least);
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
    for (int row = threadIdx.x; row < counts[own]; row += blockDim.x) square += sums[first[own] + row];
    square = block_sum(square);
    const W over = sqrt(square / ((W)counts[own] * widths[own])) / (W)f.clip;
    if (threadIdx.x == 0) numbers[3 * own + 2] = over > 1 ? over : W(1);
}

template <typename T> __global__ void step(TABLES, FACTORS) {
    typedef typename Wide<T>::type W;
    USES
    const int own = owner[blockIdx.x], row = blockIdx.x - first[own], width = widths[own];
    const W alpha = numbers[3 * own + 1], shrink = 1 - (f.by_alpha ? alpha : (W)f.lr) * (W)f.decay;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const integer at = (integer)row * width + i;
        W u = update_of<T>(G(own)[at], rows_or_all[own], cols[own], flat[own], row, i, numbers[3 * own], (W)f.least);
        u = u / numbers[3 * own + 2] * alpha;
        if (ms) {
            u = (W)f.beta1 * (W)ms[own][at] + (1 - (W)f.beta1) * u;
            ms[own][at] = T(u);
        }
        xs[own][at] = T((W)xs[own][at] * shrink - u);
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


@functools.lru_cache(maxsize=64)
def _tables(device: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[Array, ...]:
    """Return on the device: each row's parameter; its first row, how many rows, how wide, whether it is a vector."""
    import cupy

    counts = [s[0] if len(s) == 2 else 1 for s in shapes]
    widths = [s[-1] for s in shapes]
    owner = np.repeat(np.arange(len(shapes)), counts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    flat = [len(s) == 1 for s in shapes]
    return tuple(cupy.asarray(np.asarray(a, dtype=np.int32)) for a in (owner, first, counts, widths, flat))


def adafactor(xp: Any, xs: Any, gs: Any, states: list[dict], numbers: Callable[[], Numbers]) -> None:
    """Do what `optim.Adafactor` says to vectors and matrices that have had the same number of steps."""
    device, shapes = xs[0].device.id, tuple([x.shape for x in xs])
    owner, first, counts, widths, flat = _tables(device, shapes)
    wide = np.dtype("f8" if xs[0].dtype.char == "d" else "f4")
    sums, levels = xp.empty(owner.size, dtype=wide), xp.empty(3 * len(xs), dtype=wide)
    kept = tuple([s["variance"] if "variance" in s else s["row_var"] for s in states])
    columns = tuple([s.get("col_var", x) for s, x in zip(states, xs, strict=True)])  # a vector has none, and reads none
    momentum = addresses(xp, tuple([s["exp_avg"] for s in states])) if "exp_avg" in states[0] else np.uintp(0)
    lists = [addresses(xp, xs), *pointers(xp, gs), addresses(xp, kept), addresses(xp, columns)]
    settings = changing("f8", 6, lambda: numbers()[:6]), changing("f8", 6, lambda: numbers()[6:])
    args = (*lists, momentum, owner, first, counts, widths, flat, sums, levels, *settings)
    rows, most = int(owner.size), math.ceil(max(s[-1] for s in shapes) / THREADS)
    grids = {"rows": rows, "columns": (most, len(xs)), "level": len(xs), "size": rows, "bound": len(xs), "step": rows}
    for name, grid in grids.items():
        SOURCE(name, xs[0].dtype, grid, THREADS, args)

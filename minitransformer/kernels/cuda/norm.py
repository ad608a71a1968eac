"""LayerNorm and RMSNorm, a launch forward and a launch backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.norm import layer_norm as layer_norm_op
from ...ops.norm import rms_norm as rms_norm_op
from ..registry import book, kernel
from .source import HELD, MOST_THREADS, ROWS_AT_ONCE, WARP, arrived, packed, processors, source, suits, threads_for

Made = tuple[Array, Callable]
ROWS_EACH = 4  # that a team of threads adds up at least, backwards
WARPS = 32  # on a processor at once, of 64 registers a thread
FAN = 16  # blocks whose sums are added up together
WIDEST = HELD * MOST_THREADS  # the threads of a row hold all of it

SOURCE = source(
    "norm",
    "norm_forward norm_backward",
    r"""
template <typename T>
__global__ void BY_ROWS norm_forward(const T* x, const T* weight, const T* bias, T* y, typename Wide<T>::type* means,
                                     typename Wide<T>::type* inverses, double eps, int centred, int rows, int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)x | (size_t)weight | (size_t)bias | (size_t)y);
    if (own.row >= rows) return;
    const integer start = own.row * width;
    W v[HELD], scale[HELD], shift[HELD] = {}, mean = 0, square = 0;
    own.load(x + start, 0, width, W(0), v);
    own.load(weight, 0, width, W(0), scale);
    if (centred) {
        own.load(bias, 0, width, W(0), shift);
        for (int k = 0; k < HELD; k++) mean += v[k];
        mean = block_sum(mean) / width;
    }
    for (int k = 0; k < HELD; k++) {
        v[k] = own.at(0, k) < width ? v[k] - mean : W(0);
        square += v[k] * v[k];
    }
    const W inverse = 1 / sqrt(block_sum(square) / width + (W)eps);
    for (int k = 0; k < HELD; k++) v[k] = v[k] * inverse * scale[k] + shift[k];
    own.store(y + start, 0, v);
    if (threadIdx.x == 0) {
        means[own.row] = mean;
        inverses[own.row] = inverse;
    }
}

// Each thread keeps to its columns, and so holds their weights and the sums over its rows. The sums of the rows beside
// it in the block are added to them, then those of other blocks: FAN at a time, by the last to come of that group, who
// goes on to the next level. Who that is differs from run to run; what is added, and in which order, does not.
template <typename T>
__global__ void BY_ROWS norm_backward(const T* x, const T* g, const T* weight, const typename Wide<T>::type* means,
                                      const typename Wide<T>::type* inverses, T* g_x, T* g_weight, T* g_bias,
                                      typename Wide<T>::type* partial, int* arrived, int centred, int rows,
                                      int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)x | (size_t)g | (size_t)weight | (size_t)g_x | (size_t)g_weight | (size_t)g_bias);
    W scale[HELD], of_weight[HELD] = {}, of_bias[HELD] = {};
    own.load(weight, 0, width, W(0), scale);
    for (integer row = own.row; row < rows; row += gridDim.x * blockDim.y) {
        const integer start = row * width;
        const W mean = means[row], inverse = inverses[row];
        W hat[HELD], g_y[HELD], along = 0, across = 0;  // the sums of g·w·x̂, and of g·w
        own.load(x + start, 0, width, mean, hat);
        own.load(g + start, 0, width, W(0), g_y);
        for (int k = 0; k < HELD; k++) {
            hat[k] = (hat[k] - mean) * inverse;
            of_weight[k] += g_y[k] * hat[k];
            of_bias[k] += g_y[k];
            g_y[k] *= scale[k];
            along += g_y[k] * hat[k];
            across += g_y[k];
        }
        block_sums(along, across);
        along /= width;
        across = centred ? across / width : W(0);
        for (int k = 0; k < HELD; k++) g_y[k] = inverse * (g_y[k] - across - hat[k] * along);
        own.store(g_x + start, 0, g_y);
    }

    __shared__ W beside[ROWS_AT_ONCE][2][HELD][32];
    const bool leads = threadIdx.y == 0;
    if (blockDim.y > 1) {
        for (int k = 0; k < HELD; k++) {
            beside[threadIdx.y][0][k][threadIdx.x] = of_weight[k];
            beside[threadIdx.y][1][k][threadIdx.x] = of_bias[k];
        }
        __syncthreads();
        for (int y = 1; leads && y < blockDim.y; y++)
            for (int k = 0; k < HELD; k++) {
                of_weight[k] += beside[y][0][k][threadIdx.x];
                of_bias[k] += beside[y][1][k][threadIdx.x];
            }
    }
    int slot = blockIdx.x;
    for (int step = 1; step < gridDim.x; step *= FAN) {
        if (leads) {
            own.store(partial + (integer)slot * 2 * width, 0, of_weight);
            own.store(partial + (integer)slot * 2 * width + width, 0, of_bias);
        }
        __shared__ int is_last;
        const int group = slot / (step * FAN);
        slot = group * step * FAN;
        const int members = min(FAN, ((int)gridDim.x - slot + step - 1) / step);
        __threadfence();  // what this block wrote is there before it says that it has arrived
        __syncthreads();
        if (leads && threadIdx.x == 0) {
            is_last = atomicAdd(arrived + group, 1) == members - 1;
            if (is_last) arrived[group] = 0;  // for the next launch
        }
        __syncthreads();
        if (!is_last) return;
        __threadfence();
        for (int k = 0; k < HELD; k++) of_weight[k] = of_bias[k] = 0;
        for (int m = 0; leads && m < members; m++) {
            const W* sums = partial + (integer)(slot + m * step) * 2 * width;
            W more[HELD], of_it[HELD];
            own.load(sums, 0, width, W(0), more);
            own.load(sums + width, 0, width, W(0), of_it);
            for (int k = 0; k < HELD; k++) of_weight[k] += more[k], of_bias[k] += of_it[k];
        }
        arrived += (gridDim.x + step * FAN - 1) / (step * FAN);  // the next level has counters of its own
    }
    if (!leads) return;
    own.store(g_weight, 0, of_weight);
    if (centred) own.store(g_bias, 0, of_bias);
}
""".replace("ROWS_AT_ONCE", str(ROWS_AT_ONCE)).replace("FAN", str(FAN)),
)


def blocks_for(rows: int, width: int, device: int) -> int:
    """Return how many blocks share the rows backwards: all that a device can work on at once, if there are so many."""
    threads, at_once = threads_for(width)
    most = processors(device) * WARPS // (threads * at_once // WARP)
    return min(-(-rows // (at_once * ROWS_EACH)), most)


def _norm(xp: Any, x: Array, weight: Array, bias: Array, eps: float, centred: bool) -> Made:
    wide = np.dtype("f8" if x.dtype.char == "d" else "f4")
    width, shape = x.shape[-1], x.shape
    rows = x.size // width
    y, means, inverses = xp.empty_like(x), xp.empty(rows, dtype=wide), xp.empty(rows, dtype=wide)
    args = (x, weight, bias, y, means, inverses, np.float64(eps), np.int32(centred))
    SOURCE.by_rows("norm_forward", x.dtype, rows, width, args)

    def vjp(g: Array) -> tuple[Array, ...]:
        g, blocks = packed(xp, g), blocks_for(rows, width, x.device.id)
        g_x, g_weight, g_bias = xp.empty(shape, dtype=x.dtype), xp.empty_like(weight), xp.empty_like(weight)
        partial = xp.empty((blocks, 2, width), dtype=wide)
        arrays = x, g, weight, means, inverses, g_x, g_weight, g_bias, partial, arrived(x.device.id)
        sizes = np.int32(centred), np.int32(rows), np.int32(width)
        SOURCE("norm_backward", x.dtype, blocks, threads_for(width), (*arrays, *sizes))
        return (g_x, g_weight, g_bias) if centred else (g_x, g_weight)

    return y, vjp


@kernel(layer_norm_op, "cupy")
def layer_norm(xp: Any, x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Made:
    """Normalise rows.

    Forward N·D read, N·D written; backward 2·N·D read and N·D written: the fewest, but for the sums of blocks, written
    and read: 2·D for each ROWS_EACH rows or more, and 9 MB at most on a GPU of 132 processors. Kept: x itself, and two
    numbers a row.
    """
    if not suits(x, weight, bias) or x.shape[-1] > WIDEST:
        return book(layer_norm_op)(xp, x, weight, bias, eps=eps)
    return _norm(xp, x, weight, bias, eps, centred=True)


@kernel(rms_norm_op, "cupy")
def rms_norm(xp: Any, x: Array, weight: Array, *, eps: float = 1e-6) -> Made:
    """Scale rows. It moves what `layer_norm` moves."""
    if not suits(x, weight) or x.shape[-1] > WIDEST:
        return book(rms_norm_op)(xp, x, weight, eps=eps)
    return _norm(xp, x, weight, weight, eps, centred=False)

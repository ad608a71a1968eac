"""LayerNorm and RMSNorm, a launch forward and a launch backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.norm import layer_norm as layer_norm_op
from ...ops.norm import rms_norm as rms_norm_op
from ..registry import book, kernel
from .source import arrived, packed, source, suits, threads_for

Made = tuple[Array, Callable]
BLOCKS = 128  # at most, backwards: each adds up the weight's gradient over its rows, and the last one over the blocks
WIDEST = 48 * 1024 // 16  # two sums a column in double precision have to fit into shared memory

SOURCE = source(
    "norm",
    "norm_forward norm_backward",
    r"""
template <typename T>
__global__ void norm_forward(const T* x, const T* weight, const T* bias, T* y, typename Wide<T>::type* means,
                             typename Wide<T>::type* inverses, int width, double eps, int centred) {
    typedef typename Wide<T>::type W;
    const integer start = (integer)blockIdx.x * width;
    W mean = 0;
    if (centred) {
        for (int i = threadIdx.x; i < width; i += blockDim.x) mean += (W)x[start + i];
        mean = block_sum(mean) / width;
    }
    W square = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W d = (W)x[start + i] - mean;
        square += d * d;
    }
    const W inverse = 1 / sqrt(block_sum(square) / width + (W)eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const W hat = ((W)x[start + i] - mean) * inverse;
        y[start + i] = T(centred ? hat * (W)weight[i] + (W)bias[i] : hat * (W)weight[i]);
    }
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        inverses[blockIdx.x] = inverse;
    }
}

template <typename T>
__global__ void norm_backward(const T* x, const T* g, const T* weight, const typename Wide<T>::type* means,
                              const typename Wide<T>::type* inverses, T* g_x, T* g_weight, T* g_bias,
                              typename Wide<T>::type* partial, int* arrived, int rows, int width, int centred) {
    typedef typename Wide<T>::type W;
    extern __shared__ char memory[];
    W* of_weight = (W*)memory;  // this block's sums, a column each; a thread keeps to its own columns
    W* of_bias = of_weight + width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) of_weight[i] = of_bias[i] = 0;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const integer start = (integer)row * width;
        const W mean = means[row], inverse = inverses[row];
        W along = 0, across = 0;  // of g·w·x̂, and of g·w
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const W hat = ((W)x[start + i] - mean) * inverse, g_i = (W)g[start + i], g_hat = g_i * (W)weight[i];
            along += g_hat * hat;
            across += g_hat;
            of_weight[i] += g_i * hat;
            of_bias[i] += g_i;
        }
        along = block_sum(along) / width;
        across = centred ? block_sum(across) / width : W(0);
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const W hat = ((W)x[start + i] - mean) * inverse;
            g_x[start + i] = T(inverse * ((W)g[start + i] * (W)weight[i] - across - hat * along));
        }
    }
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        partial[(integer)blockIdx.x * 2 * width + i] = of_weight[i];
        partial[(integer)blockIdx.x * 2 * width + width + i] = of_bias[i];
    }
    __shared__ int is_last;
    __threadfence();  // what this block wrote is there before it says that it has arrived
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        W sum_weight = 0, sum_bias = 0;
        for (int b = 0; b < gridDim.x; b++) {
            sum_weight += partial[(integer)b * 2 * width + i];
            sum_bias += partial[(integer)b * 2 * width + width + i];
        }
        g_weight[i] = T(sum_weight);
        if (centred) g_bias[i] = T(sum_bias);
    }
    if (threadIdx.x == 0) *arrived = 0;  // for the next launch
}
""",
)


def _norm(xp: Any, x: Array, weight: Array, bias: Array, eps: float, centred: bool) -> Made:
    wide = np.dtype("f8" if x.dtype.char == "d" else "f4")
    width, shape = x.shape[-1], x.shape
    rows, (threads, _) = x.size // width, threads_for(width)
    y, means, inverses = xp.empty_like(x), xp.empty(rows, dtype=wide), xp.empty(rows, dtype=wide)
    sizes = np.int32(width), np.float64(eps), np.int32(centred)
    SOURCE("norm_forward", x.dtype, rows, threads, (x, weight, bias, y, means, inverses, *sizes))

    def vjp(g: Array) -> tuple[Array, ...]:
        g, blocks = packed(xp, g), min(rows, BLOCKS)
        g_x, g_weight, g_bias = xp.empty(shape, dtype=x.dtype), xp.empty_like(weight), xp.empty_like(weight)
        partial = xp.empty((blocks, 2, width), dtype=wide)
        arrays = x, g, weight, means, inverses, g_x, g_weight, g_bias, partial, arrived(x.device.id)
        sizes = np.int32(rows), np.int32(width), np.int32(centred)
        SOURCE("norm_backward", x.dtype, blocks, threads, (*arrays, *sizes), shared=2 * width * wide.itemsize)
        return (g_x, g_weight, g_bias) if centred else (g_x, g_weight)

    return y, vjp


@kernel(layer_norm_op, "cupy")
def layer_norm(xp: Any, x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Made:
    """Normalise rows.

    Forward N·D read, N·D written (the later reads of a row find it in the nearest cache); backward 2·N·D read and
    N·D written: the fewest, but for 2·BLOCKS·D of partial sums. Kept: x itself, and two numbers a row.
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

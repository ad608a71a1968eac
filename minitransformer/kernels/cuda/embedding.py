"""The gradient of a table, added up in the order of the tokens: the same bits in every run.

Adding by atomics is quicker and sums in whatever order the threads come. Sorting the ids takes a dozen launches. Here
each token first finds the next one with its id; then the first token of each id walks along that chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.indexing import embedding as embedding_op
from ..registry import book, kernel
from .source import WARP, packed, source, suits

Made = tuple[Array, Callable]
THREADS = 128

SOURCE = source(
    "embedding",
    "gather chains embedding_backward",
    r"""
// found: which row each id names, for the backward.
template <typename T>
__global__ void BY_ROWS gather(const integer* ids, const T* weight, T* y, int* found, integer vocabulary, int rows,
                               int width) {
    const Rows<T> own(width, (size_t)weight | (size_t)y);
    if (own.row >= rows) return;
    integer id = ids[own.row];
    if (id < 0 || id >= vocabulary) id = (id % vocabulary + vocabulary) % vocabulary;  // as CuPy has it
    if (threadIdx.x == 0) found[own.row] = id;
    typename Wide<T>::type v[HELD];
    for (int from = 0; from < width; from += own.span) {
        own.load(weight + id * width, from, width, 0, v);
        own.store(y + own.row * width, from, v);
    }
}

// next[i]: the first j > i with the id of token i, or n; negative, −1 − next, where an earlier token has that id, too.
// A warp takes a token, looks ahead until it has found one, and then back: an id that is common is soon met again.
template <typename T> __global__ void chains(const int* ids, int* next, int n) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, AT_ONCE = 8;
    if (i >= n) return;
    const int id = ids[i];
    int nearest = n;
    for (int from = i + 1; from < n && nearest == n; from += 32 * AT_ONCE) {
        for (int k = AT_ONCE - 1; k >= 0; k--) {
            const int j = from + 32 * k + lane;
            if (j < n && ids[j] == id) nearest = j;
        }
        for (int by = 16; by; by /= 2) nearest = min(nearest, __shfl_xor_sync(~0u, nearest, by));
    }
    bool met = false;
    for (int to = i - 1; to >= 0 && !met; to -= 32 * AT_ONCE) {
        for (int k = 0; k < AT_ONCE; k++) {
            const int j = to - 32 * k - lane;
            met |= j >= 0 && ids[j] == id;
        }
        met = __any_sync(~0u, met);
    }
    if (lane == 0) next[i] = met ? -1 - nearest : nearest;
}

template <typename T>
__global__ void embedding_backward(const int* ids, const int* next, const T* g, T* g_weight, int n, int width) {
    typedef typename Wide<T>::type W;
    const int first = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x;
    if (next[first] < 0 || column >= width) return;
    W sum = 0;
    for (int i = first; i < n;) {
        sum += (W)g[(integer)i * width + column];
        const int after = next[i];
        i = after < 0 ? -1 - after : after;
    }
    g_weight[(integer)ids[first] * width + column] = T(sum);
}
""",
)


@kernel(embedding_op, "cupy")
def embedding(xp: Any, ids: Array, weight: Array) -> Made:
    """Look rows up in a launch; backwards a table of zeros and two launches.

    N·D read, and written as many rows as there are different ids: the fewest, beside the comparisons of ids: of each
    token with those up to the next of its kind, and back to the one before, at worst N².
    """
    if not suits(weight) or ids.dtype.kind not in "iu" or not ids.size:
        return book(embedding_op)(xp, ids, weight)
    shape, dtype = weight.shape, weight.dtype
    flat, y = packed(xp, ids).astype(np.int64, copy=False).ravel(), xp.empty((*ids.shape, shape[1]), dtype=dtype)
    found = xp.empty(flat.size, dtype=np.int32)
    SOURCE.by_rows("gather", dtype, flat.size, shape[1], (flat, weight, y, found, np.int64(shape[0])))

    def vjp(g: Array) -> tuple[None, Array]:
        g_weight, after = xp.zeros(shape, dtype=dtype), xp.empty(found.size, dtype=np.int32)
        SOURCE("chains", dtype, -(-found.size * WARP // THREADS), THREADS, (found, after, np.int32(found.size)))
        grid = (found.size, -(-shape[1] // THREADS))
        args = (found, after, packed(xp, g), g_weight, np.int32(found.size), np.int32(shape[1]))
        SOURCE("embedding_backward", dtype, grid, THREADS, args)
        return None, g_weight

    return y, vjp

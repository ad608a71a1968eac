"""The gradient of a table by atomics: rows arrive in any order, and their sum differs by rounding from run to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.indexing import embedding as embedding_op
from ..registry import book, kernel
from .source import packed, source

Made = tuple[Array, Callable]
THREADS = 256

SOURCE = source(
    "embedding",
    "embedding_backward",
    r"""
template <typename T>
__global__ void embedding_backward(const integer* ids, const T* g, typename Wide<T>::type* g_weight, integer n,
                                   int width) {
    typedef typename Wide<T>::type W;
    const integer i = (integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n * width) atomicAdd(&g_weight[ids[i / width] * width + i % width], (W)g[i]);
}
""",
)


@kernel(embedding_op, "cupy")
def embedding(xp: Any, ids: Array, weight: Array) -> Made:
    """Look rows up as the book does (a launch); backwards a table of zeros, and N·D read and added to it.

    Sorting the ids first would fix the order of the sums, at the price of a sort; where bits have to be the same from
    run to run, `use_kernels(False)` does not help either (CuPy's add.at uses atomics, too), but NumPy does.
    """
    y, plain = book(embedding_op)(xp, ids, weight)
    if weight.dtype.char not in "efd" or not ids.size:
        return y, plain
    shape, dtype = weight.shape, weight.dtype

    def vjp(g: Array) -> tuple[None, Array]:
        total = xp.zeros(shape, dtype="f8" if dtype.char == "d" else "f4")
        args = (ids.astype(np.int64, copy=False).ravel(), packed(xp, g), total, np.int64(ids.size), np.int32(shape[1]))
        SOURCE("embedding_backward", dtype, -(-ids.size * shape[1] // THREADS), THREADS, args)
        return None, total.astype(dtype, copy=False)

    return y, vjp

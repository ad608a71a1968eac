"""Attention: two GEMMs and a softmax forward, four GEMMs and its gradient backward, on heads as they lie.

cuBLAS multiplies matrices that lie a step apart, as all stored scores do, and the heads of a batch of one. Heads are
slices of a row, so that in a larger batch no single step leads from each matrix to the next. Then cuBLAS takes lists of
addresses; a tiny kernel writes those of all operands on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.attention import _attention
from ..attention import in_heads, room
from ..registry import book, kernel
from .products import batched, layout
from .softmax import softmax_rows, softmax_rows_backward
from .source import source

Made = tuple[Array, Callable]
THREADS = 128
MOST = 10  # stacks whose addresses one launch writes

STACKS = np.dtype([("at", "u8", (MOST,)), ("step_b", "i8", (MOST,)), ("step_h", "i8", (MOST,))])
SOURCE = source(
    "attention",
    "addresses",
    r"""
struct Stacks { unsigned long long at[MOST]; integer step_b[MOST], step_h[MOST]; };
template <typename T> __global__ void addresses(Stacks stacks, unsigned long long* out, int b, int h) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < b * h)
        out[blockIdx.y * b * h + i] =
            stacks.at[blockIdx.y] + i / h * stacks.step_b[blockIdx.y] + i % h * stacks.step_h[blockIdx.y];
}
""".replace("MOST", str(MOST)),
)


class Stack:
    """Matrices (B, H, N, M) and where they lie: the step between them, or the list of their addresses on the device."""

    def __init__(self, array: Array, place: Any):
        self.array, self.place = array, place

    @property
    def turned(self) -> Stack:
        """The same matrices, transposed; they lie where they are."""
        return Stack(self.array.swapaxes(-1, -2), self.place)


def step_between(x: Array) -> int | None:
    """Return how many elements lead from each of the matrices (B, H, N, M) to the next, or None if it varies."""
    (b, h), (step_b, step_h) = x.shape[:2], x.strides[:2]
    if b > 1 and h > 1 and step_b != h * step_h:
        return None
    return int(step_h if h > 1 else step_b) // x.itemsize


def stacks(xp: Any, *arrays: Array) -> list[Stack]:
    """Make stacks (B, H, N, M); where no step will do, write all their addresses in one launch.

    Half precision needs neither.
    """
    first = arrays[0]
    if first.dtype.char not in "fd":
        return [Stack(a, None) for a in arrays]
    steps = [step_between(a) for a in arrays]
    if None not in steps:
        return [Stack(a, step) for a, step in zip(arrays, steps, strict=True)]
    b, h = first.shape[:2]
    where = np.zeros((), dtype=STACKS)
    where["at"][: len(arrays)] = [a.data.ptr for a in arrays]
    where["step_b"][: len(arrays)] = [a.strides[0] for a in arrays]
    where["step_h"][: len(arrays)] = [a.strides[1] for a in arrays]
    lists = xp.empty((len(arrays), b * h), dtype=np.uint64)
    grid = (-(-b * h // THREADS), len(arrays))
    SOURCE("addresses", first.dtype, grid, THREADS, (where, lists, np.int32(b), np.int32(h)))
    return [Stack(a, lists[i]) for i, a in enumerate(arrays)]


def products(xp: Any, a_stack: Stack, b_stack: Stack, out_stack: Stack, add: bool = False) -> None:
    """Fill out with a·b, or add that to it, for stacks of matrices (B, H, N, M)·(B, H, M, P): one call, without a copy.

    Half precision, which this call does not take, and unusual layouts go by CuPy's matmul.
    """
    a, b, out = a_stack.array, b_stack.array, out_stack.array
    layouts = layout(a), layout(b), layout(out)
    if a.dtype.char not in "fd" or None in layouts or layouts[2][0]:  # type: ignore[index]
        if add:
            out += xp.matmul(a, b)
        else:
            out[...] = xp.matmul(a, b)
        return
    batched(a, b, out, [stack.place for stack in (b_stack, a_stack, out_stack)], layouts, add)


@kernel(_attention, "cupy")
def attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, bias: Array | None, *, scale: float,
    causal: bool, window: int = 0,
) -> Made:  # fmt: skip
    """Attend; q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ). Other ranks, and a bias, are the book's.

    The weights are stored once (T·S, and once more with dropout) for the backward. Products move what they read and
    write; the softmax between them reads and writes T·S once each way.
    """
    many_axes = mask is not None and mask.ndim > 4
    if bias is not None or not in_heads(q, k, v) or q.dtype.char not in "efd" or many_axes:
        return book(_attention)(xp, q, k, v, mask, kept, bias, scale=scale, causal=causal, window=window)
    inner = scale
    if q.dtype.char == "e":  # unscaled scores could leave half precision
        q, inner = q * scale, 1.0
    p = xp.empty((*q.shape[:3], k.shape[2]), dtype=q.dtype)
    mixed = p if kept is None else xp.empty_like(p)
    y = room(xp, (*q.shape[:3], v.shape[-1]), q.dtype)
    of_q, of_k, of_v, of_p, of_mixed, of_y = stacks(xp, q, k, v, p, mixed, y)
    products(xp, of_q, of_k.turned, of_p)
    softmax_rows(p, p, mask, causal, inner, None if kept is None else mixed, kept, window=window)
    products(xp, of_mixed, of_v, of_y)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None, None]:
        g_q, g_k, g_v = (room(xp, x.shape, x.dtype) for x in (q, k, v))
        g_p = xp.empty_like(p)
        arrays = q, k, v, mixed, g, g_q, g_k, g_v, g_p  # together: a product takes three steps, or three lists
        of_q, of_k, of_v, of_mixed, of_g, of_g_q, of_g_k, of_g_v, of_g_p = stacks(xp, *arrays)
        products(xp, of_mixed.turned, of_g, of_g_v)
        products(xp, of_g, of_v.turned, of_g_p)
        softmax_rows_backward(p, g_p, g_p, inner, kept)
        products(xp, of_g_p, of_k, of_g_q)
        products(xp, of_g_p.turned, of_q, of_g_k)
        if inner != scale:
            g_q *= scale
        return g_q, g_k, g_v, None, None, None

    return y, vjp

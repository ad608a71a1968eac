"""Attention: two GEMMs and a softmax forward, four GEMMs and its gradient backward, on heads as they lie.

Heads are slices of a row, so that no single step leads from the one matrix of a batch to the next, as cuBLAS's strided
form wants. Its other form takes lists of addresses; a tiny kernel writes those of all operands on the device.
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
MOST = 6  # stacks whose addresses one launch writes

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
    """Matrices (B, H, N, M) at any distance from one another, and the list of their addresses on the device."""

    def __init__(self, array: Array, addresses: Any):
        self.array, self.addresses = array, addresses

    @property
    def turned(self) -> Stack:
        """The same matrices, transposed; they lie where they are."""
        return Stack(self.array.swapaxes(-1, -2), self.addresses)


def stacks(xp: Any, *arrays: Array) -> list[Stack]:
    """Make stacks (B, H, N, M), and write all their addresses in one launch. Half precision needs none."""
    first = arrays[0]
    if first.dtype.char not in "fd":
        return [Stack(a, None) for a in arrays]
    b, h = first.shape[:2]
    where = np.zeros((), dtype=STACKS)
    for i, a in enumerate(arrays):
        where["at"][i], where["step_b"][i], where["step_h"][i] = a.data.ptr, a.strides[0], a.strides[1]
    lists = xp.empty((len(arrays), b * h), dtype=np.uint64)
    grid = (-(-b * h // THREADS), len(arrays))
    SOURCE("addresses", first.dtype, grid, THREADS, (where, lists, np.int32(b), np.int32(h)))
    return [Stack(a, lists[i]) for i, a in enumerate(arrays)]


def products(xp: Any, a_stack: Stack, b_stack: Stack, out_stack: Stack) -> None:
    """Fill out with a·b for stacks of matrices (B, H, N, M)·(B, H, M, P), in one call of cuBLAS and without a copy.

    Half precision, which this call does not take, and unusual layouts go by CuPy's matmul.
    """
    a, b, out = a_stack.array, b_stack.array, out_stack.array
    layouts = layout(a), layout(b), layout(out)
    if a.dtype.char not in "fd" or None in layouts or layouts[2][0]:  # type: ignore[index]
        out[...] = xp.matmul(a, b)
        return
    batched(a, b, out, [stack.addresses for stack in (b_stack, a_stack, out_stack)], layouts)


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
        of_g, of_g_q, of_g_k, of_g_v, of_g_p = stacks(xp, g, g_q, g_k, g_v, g_p)
        products(xp, of_mixed.turned, of_g, of_g_v)
        products(xp, of_g, of_v.turned, of_g_p)
        softmax_rows_backward(p, g_p, g_p, inner, kept)
        products(xp, of_g_p, of_k, of_g_q)
        products(xp, of_g_p.turned, of_q, of_g_k)
        if inner != scale:
            g_q *= scale
        return g_q, g_k, g_v, None, None, None

    return y, vjp

"""Attention: two GEMMs and a softmax forward, four GEMMs and its gradient backward, on heads as they lie.

Heads are slices of a row, so that no single step leads from the one matrix of a batch to the next, as cuBLAS's strided
form wants. Its other form takes a list of addresses. They are worked out on the host once for each place in memory;
CuPy's pool gives a training step the same places every time, so that nothing is sent in a steady state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.attention import _attention
from ..registry import book, kernel
from .softmax import softmax_rows, softmax_rows_backward

Made = tuple[Array, Callable]
REMEMBERED = 4096  # lists of addresses

_addresses: OrderedDict[tuple, Array] = OrderedDict()


def _address_list(xp: Any, x: Array) -> Array:
    """Return the addresses of the matrices (B, H) of a stack (B, H, N, M), on the device."""
    key = (x.device.id, x.data.ptr, x.shape[:2], x.strides[:2])
    found = _addresses.get(key)
    if found is None:
        b, h = np.ogrid[: x.shape[0], : x.shape[1]]
        found = xp.asarray((x.data.ptr + b * x.strides[0] + h * x.strides[1]).astype(np.uint64).ravel())
        _addresses[key] = found
        if len(_addresses) > REMEMBERED:
            _addresses.popitem(last=False)
    else:
        _addresses.move_to_end(key)
    return found


def _layout(x: Array) -> tuple[int, int] | None:
    """Return (is it transposed?, the step between rows in elements) of the matrices of a stack; None if neither is."""
    n, m = x.shape[-2:]
    down, along = (s // x.itemsize for s in x.strides[-2:])
    if along == 1 and down >= m:
        return 0, down
    return (1, along) if down == 1 and along >= n else None


def products(xp: Any, a: Array, b: Array, out: Array) -> None:
    """Fill out with a·b for stacks of matrices (B, H, N, M)·(B, H, M, P), in one call of cuBLAS and without a copy.

    cuBLAS counts columns first, so it is asked for outᵀ = bᵀ·aᵀ. Half precision, which this call does not take, and
    unusual layouts go by CuPy's matmul.
    """
    layouts = _layout(a), _layout(b), _layout(out)
    if a.dtype.char not in "fd" or None in layouts or layouts[2][0]:  # type: ignore[index]
        out[...] = xp.matmul(a, b)
        return
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    (ta, lda), (tb, ldb), (_, ldc) = layouts  # type: ignore[misc]
    call = cublas.sgemmBatched if a.dtype.char == "f" else cublas.dgemmBatched
    one, zero = np.ones(1, dtype=a.dtype), np.zeros(1, dtype=a.dtype)
    n, m, p = a.shape[-2], a.shape[-1], b.shape[-1]
    lists = [_address_list(xp, x).data.ptr for x in (b, a, out)]
    call(
        device.get_cublas_handle(), tb, ta, p, n, m, one.ctypes.data, lists[0], ldb, lists[1], lda,
        zero.ctypes.data, lists[2], ldc, a.shape[0] * a.shape[1],
    )  # fmt: skip


def _room(xp: Any, x: Array) -> Array:
    """Return an empty stack whose heads lie side by side in a row, as they are joined.    (B, H, T, K)"""
    b, h, t, width = x.shape
    return xp.empty((b, t, h, width), dtype=x.dtype).swapaxes(1, 2)


@kernel(_attention, "cupy")
def attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, *, scale: float, causal: bool
) -> Made:
    """Attend; q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ). Other ranks are the book's.

    The weights are stored once (T·S, and once more with dropout) for the backward. Products move what they read and
    write; the softmax between them reads and writes T·S once each way.
    """
    plain = q.ndim != 4 or not q.shape[:2] == k.shape[:2] == v.shape[:2] or not q.dtype == k.dtype == v.dtype
    if plain or q.dtype.char not in "efd" or not (q.size and k.size and v.size) or (mask is not None and mask.ndim > 4):
        return book(_attention)(xp, q, k, v, mask, kept, scale=scale, causal=causal)
    p = xp.empty((*q.shape[:3], k.shape[2]), dtype=q.dtype)
    products(xp, q, k.swapaxes(-1, -2), p)
    mixed = p if kept is None else xp.empty_like(p)
    softmax_rows(p, p, mask, causal, scale, None if kept is None else mixed, kept)
    y = _room(xp, xp.broadcast_to(v[:, :, :1], (*q.shape[:3], v.shape[-1])))
    products(xp, mixed, v, y)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None]:
        g_q, g_k, g_v, g_p = _room(xp, q), _room(xp, k), _room(xp, v), xp.empty_like(p)
        products(xp, mixed.swapaxes(-1, -2), g, g_v)
        products(xp, g, v.swapaxes(-1, -2), g_p)
        softmax_rows_backward(p, g_p, g_p, scale, kept)
        products(xp, g_p, k, g_q)
        products(xp, g_p.swapaxes(-1, -2), q, g_k)
        return g_q, g_k, g_v, None, None

    return y, vjp

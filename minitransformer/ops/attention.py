"""Attention: each query mixes the values, in the shares in which its keys match."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array, namespace
from ..tensor import as_array, primitive
from .dropout import dropout_mask
from .elementwise import sum_to
from .precision import lowered
from .softmax import softmax

Made = tuple[Array, Callable]


@primitive
def _attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, *, scale: float, causal: bool
) -> Made:
    mask = _allowed(q, k, mask, causal)
    p = softmax(xp.matmul(q, k.swapaxes(-1, -2)) * scale, mask=mask)
    mixed = p if kept is None else p * kept  # kept: 0, or 1/(1 − dropout)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None]:
        g_v = xp.matmul(mixed.swapaxes(-1, -2), g)
        g_p = xp.matmul(g, v.swapaxes(-1, -2))
        g_p = g_p if kept is None else g_p * kept
        g_scores = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True)) * scale
        g_q = xp.matmul(g_scores, k)
        g_k = xp.matmul(g_scores.swapaxes(-1, -2), q)
        return sum_to(g_q, q.shape), sum_to(g_k, k.shape), sum_to(g_v, v.shape), None, None

    return xp.matmul(mixed, v), vjp


@primitive
def split_heads(xp: Any, x: Array, *, heads: int) -> Made:
    """Give each head its slice of the width, as a matrix of its own.    x: (..., T, H·K) → (..., H, T, K)"""
    before = x.shape

    def vjp(g: Array) -> tuple[Array]:
        return (g.swapaxes(-3, -2).reshape(before),)

    return x.reshape((*before[:-1], heads, before[-1] // heads)).swapaxes(-3, -2), vjp


@primitive
def join_heads(xp: Any, x: Array) -> Made:
    """Put the heads' slices side by side again: the inverse of `split_heads`.    x: (..., H, T, K) → (..., T, H·K)"""
    heads, width = x.shape[-3], x.shape[-1]

    def vjp(g: Array) -> tuple[Array]:
        return (g.reshape((*g.shape[:-1], heads, width)).swapaxes(-3, -2),)

    y = x.swapaxes(-3, -2)
    return y.reshape((*y.shape[:-2], heads * width)), vjp


def causal_mask(queries: int, keys: int, xp: Any) -> Array:
    """Return the mask under which a query sees itself and what came before it.    → boolean (T, S)

    The queries are the last T of the S positions, so that a query with a cache behind it sees all of the cache:
    query i may look at keys 0 … i + (S − T). (PyTorch's is_causal counts from the front when T ≠ S.)
    """
    return xp.arange(keys)[None, :] <= xp.arange(queries)[:, None] + (keys - queries)


def _boolean(mask: Any) -> Array | None:
    mask = as_array(mask)
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"a mask is boolean, True = may look; got {mask.dtype}; write mask.astype(bool)")
    return mask


def _allowed(q: Any, k: Any, mask: Array | None, causal: bool) -> Array | None:
    """Return which query may look at which key: what the mask says, and with causal only the past."""
    if not causal:
        return mask
    past = causal_mask(q.shape[-2], k.shape[-2], namespace((as_array(q),)))
    return past if mask is None else mask & past


def attention_weights(q: Any, k: Any, mask: Any = None, causal: bool = False, scale: float | None = None) -> Any:
    """Return how much each query looks at each key: softmax(q·kᵀ/√K), each row summing to 1 (or 0, if fully masked).

    q: (..., T, K), k: (..., S, K) → (..., T, S)
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return softmax(q @ k.swapaxes(-1, -2) * scale, mask=_allowed(q, k, _boolean(mask), causal))


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Any:
    """Mix the values by how well each query matches each key.

        y = softmax(q·kᵀ/√K)·v

    q: (..., T, K), k: (..., S, K), v: (..., S, Kᵥ) → y: (..., T, Kᵥ);    mask: boolean, broadcastable to (..., T, S)

    mask: True = may look. causal: only at oneself and before (the last query sits at the last key). A row that may
    look nowhere gives zeros and zero gradient. Scores have a spread of √K where q and k have one of 1; dividing by
    it (not by √D) keeps the softmax out of its flat ends. dropout_p drops weights, for training only.
    Raises ValueError for shapes, TypeError for a mask that is not boolean. Vaswani et al. 2017, arXiv:1706.03762.
    """
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        came = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"attention needs q (..., T, K), k (..., S, K), v (..., S, Kv); got {came}; match K, and S")
    q, k, v = lowered(q, k, v)
    mask, kept = _boolean(mask), None
    if dropout_p:
        shape = (*q.shape[:-1], k.shape[-2])
        kept = dropout_mask(shape, dropout_p, as_array(q))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return _attention(q, k, v, mask, kept, scale=scale, causal=causal)

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
from .shape import broadcast_to
from .softmax import softmax

Made = tuple[Array, Callable]


@primitive
def _attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, bias: Array | None, *, scale: float,
    causal: bool,
) -> Made:  # fmt: skip
    mask = _allowed(q, k, mask, causal)
    scores = xp.matmul(q, k.swapaxes(-1, -2)) * scale
    p = softmax(scores if bias is None else scores + bias, mask=mask)
    mixed = p if kept is None else p * kept  # kept: 0, or 1/(1 − dropout)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None, Array | None]:
        g_v = xp.matmul(mixed.swapaxes(-1, -2), g)
        g_p = xp.matmul(g, v.swapaxes(-1, -2))
        g_p = g_p if kept is None else g_p * kept
        g_scores = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True))
        g_q = xp.matmul(g_scores, k) * scale
        g_k = xp.matmul(g_scores.swapaxes(-1, -2), q) * scale
        g_bias = None if bias is None else sum_to(g_scores, bias.shape)
        return sum_to(g_q, q.shape), sum_to(g_k, k.shape), sum_to(g_v, v.shape), None, None, g_bias

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


def repeat_heads(x: Any, groups: int) -> Any:
    """Let each head serve `groups` queries' heads, side by side.    x: (..., H, S, K) → (..., H·groups, S, K)

    Head h of the queries then meets head h // groups of the keys. Its gradient is the sum over those it serves.
    """
    *lead, heads, length, width = x.shape
    wide = broadcast_to(x.reshape(*lead, heads, 1, length, width), (*lead, heads, groups, length, width))
    return wide.reshape(*lead, heads * groups, length, width)


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


def attention_weights(
    q: Any, k: Any, mask: Any = None, causal: bool = False, scale: float | None = None, bias: Any = None
) -> Any:
    """Return how much each query looks at each key: softmax(q·kᵀ/√K + bias), each row summing to 1 (or 0, if masked).

    q: (..., T, K), k: (..., S, K), bias: broadcastable to (..., T, S) → (..., T, S)
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q @ k.swapaxes(-1, -2) * scale
    return softmax(scores if bias is None else scores + bias, mask=_allowed(q, k, _boolean(mask), causal))


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    bias: Any = None,
) -> Any:
    """Mix the values by how well each query matches each key.

        y = softmax(q·kᵀ/√K + bias)·v

    q: (..., T, K), k: (..., S, K), v: (..., S, Kᵥ) → y: (..., T, Kᵥ);    mask, bias: broadcastable to (..., T, S)

    mask: True = may look. causal: only at oneself and before (the last query sits at the last key). A row that may
    look nowhere gives zeros and zero gradient. Scores have a spread of √K where q and k have one of 1; dividing by
    it (not by √D) keeps the softmax out of its flat ends. dropout_p drops weights, for training only. bias is added to
    the scores, and may be learned.
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
    return _attention(q, k, v, mask, kept, bias, scale=scale, causal=causal)

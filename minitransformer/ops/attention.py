"""Attention: each query mixes the values, in the shares in which its keys match."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array, namespace
from ..tensor import as_array, primitive
from .blockwise import blockwise_attention
from .dropout import dropout_mask
from .elementwise import sum_to
from .mask import band_mask, boolean, check_attention
from .position import by_distance
from .precision import lowered
from .shape import broadcast_to
from .softmax import softmax, through_softmax

Made = tuple[Array, Callable]
MANY_SCORES = 1 << 24  # 64 MiB of them in float32, and a step holds several such arrays
MANY_QUERIES = 512  # from so many on, blocks are the quicker way through any window, too


@primitive
def _attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, bias: Array | None, *, scale: float,
    causal: bool, window: int = 0,
) -> Made:  # fmt: skip
    mask = _allowed(q, k, mask, causal, window)
    scores = xp.matmul(q * scale, k.swapaxes(-1, -2))  # scaled first: q·kᵀ alone might leave half precision
    p = softmax(scores if bias is None else scores + bias, mask=mask)
    mixed = p if kept is None else p * kept  # kept: 0, or 1/(1 − dropout)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None, Array | None]:
        g_v = xp.matmul(mixed.swapaxes(-1, -2), g)
        g_p = xp.matmul(g, v.swapaxes(-1, -2))
        g_p = g_p if kept is None else g_p * kept
        g_scores = through_softmax(p, g_p)
        g_q = xp.matmul(g_scores, k * scale)
        g_k = xp.matmul(g_scores.swapaxes(-1, -2), q * scale)
        g_bias = None if bias is None else sum_to(g_scores, bias.shape)
        return sum_to(g_q, q.shape), sum_to(g_k, k.shape), sum_to(g_v, v.shape), None, None, g_bias

    return xp.matmul(mixed, v), vjp


@primitive
def split_heads(xp: Any, x: Array, *, heads: int) -> Made:
    """Give each head its slice of the width, as a matrix of its own.    x: (..., T, H·K) → (..., H, T, K)

    Raises ValueError unless the heads divide the width.
    """
    before = x.shape
    if len(before) < 2 or isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or before[-1] % heads:
        raise ValueError(
            f"heads divide the width of x (..., T, H·K); got {tuple(before)} for heads={heads!r}; write heads=1"
        )

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
    Raises ValueError for less than one group.
    """
    if x.ndim < 3 or isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        came = f"{tuple(x.shape)} and groups={groups!r}"
        raise ValueError(
            f"repeat_heads needs x (..., H, S, K), and serves at least one head each; got {came}; write groups=1"
        )
    *lead, heads, length, width = x.shape
    wide = broadcast_to(x.reshape(*lead, heads, 1, length, width), (*lead, heads, groups, length, width))
    return wide.reshape(*lead, heads * groups, length, width)


def _allowed(q: Any, k: Any, mask: Array | None, causal: bool, window: int) -> Array | None:
    """Return which query may look at which key: what the mask says, in the past and in the window alone."""
    if not causal and not window:
        return mask
    t, s, xp = q.shape[-2], k.shape[-2], namespace((as_array(q),))
    near = band_mask(xp.arange(t) + (s - t), xp.arange(s), causal, window)
    return near if mask is None else mask & near


def _total_bias(bias: Any, distance_bias: Any, queries: int) -> Any:
    """Return both biases as one, (..., T, S), or None."""
    if distance_bias is None:
        return bias
    spread = by_distance(distance_bias, queries=queries)
    return spread if bias is None else bias + spread


def attention_weights(
    q: Any,
    k: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    bias: Any = None,
    distance_bias: Any = None,
    window: int = 0,
) -> Any:
    """Return how much each query looks at each key: softmax(q·kᵀ/√K + bias), each row summing to 1 (or 0, if masked).

    q: (..., T, K), k: (..., S, K), bias: broadcastable to (..., T, S) → (..., T, S)

    The arguments are those of `scaled_dot_product_attention`.
    """
    check_attention(q, k, k, distance_bias, window, 0.0, mask, bias, causal, scale)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    scores = (q * scale) @ k.swapaxes(-1, -2)
    bias = _total_bias(bias, distance_bias, q.shape[-2])
    return softmax(scores if bias is None else scores + bias, mask=_allowed(q, k, boolean(mask), causal, window))


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    bias: Any = None,
    distance_bias: Any = None,
    window: int = 0,
    blockwise: bool | None = None,
) -> Any:
    """Mix the values by how well each query matches each key.

        y = softmax(q·kᵀ/√K + bias)·v

    q: (..., T, K), k: (..., S, K), v: (..., S, Kᵥ) → y: (..., T, Kᵥ);    mask, bias: broadcastable to (..., T, S);
    distance_bias: (..., T + S − 1), of which entry d is for a key that stands d − (S − 1) after the query

    mask: True = may look. causal: only at oneself and before (the last query sits at the last key). window: W > 0 for
    the W nearest keys, one's own among them (Beltagy, Peters & Cohan 2020, arXiv:2004.05150); both apply. A row that
    may look nowhere gives zeros and zero gradient. Scores have a spread of √K where q and k have one of 1; dividing by
    it (not by √D) keeps the softmax out of its flat ends. dropout_p drops weights, for training only. Biases are added
    to the scores, and may be learned.

    blockwise: True computes block by block, without ever holding T·S scores (see `blockwise_attention`); None does so
    where there are more than 2²⁴ of them, for a window that leaves most of them out, and from 512 queries on for any.
    Raises ValueError for shapes, TypeError for a mask that is not boolean. Vaswani et al. 2017, arXiv:1706.03762.
    """
    check_attention(q, k, v, distance_bias, window, dropout_p, mask, bias, causal, scale)
    if _in_blocks(q, k, causal, window) if blockwise is None else blockwise:
        return blockwise_attention(q, k, v, mask, causal, scale, dropout_p, bias, distance_bias, window)
    q, k, v = lowered(q, k, v)
    mask, kept = boolean(mask), None
    if dropout_p:
        shape = (*q.shape[:-1], k.shape[-2])
        kept = dropout_mask(shape, dropout_p, as_array(q))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    bias = _total_bias(bias, distance_bias, q.shape[-2])
    return _attention(q, k, v, mask, kept, bias, scale=scale, causal=causal, window=window)


def _in_blocks(q: Any, k: Any, causal: bool, window: int) -> bool:
    """Tell whether computing in blocks is worth it: too many scores to hold, or a window that leaves enough out.

    Enough are three quarters of them for a few queries, and any for many: memory is not to grow with T·S there.
    """
    t, s = q.shape[-2], k.shape[-2]
    if math.prod(q.shape[:-1]) * s > MANY_SCORES:
        return True
    seen = window * (1 if causal else 2)
    return 0 < window < s and (t >= MANY_QUERIES or (4 * seen <= s and t > 1))

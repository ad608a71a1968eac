"""Attention a strip of queries at a time: as many rows of scores as fit into a fixed room, against all their keys.

A strip is made by the products and the softmax of `attention`, and made again in the backward pass, so that memory
grows with T + S. With whole rows in a strip no running maximum is needed, and the products stay large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array, Draw
from ...ops.blockwise import Blocks, _blockwise_attention, distances, tile
from ...ops.dropout import dropout_factors
from ...ops.elementwise import sum_to
from ...ops.position import by_distance, sum_by_distance
from ..attention import in_heads, room
from ..registry import book, kernel
from .attention import products, stacks
from .softmax import softmax_rows, softmax_rows_backward

Made = tuple[Array, Callable]
STRIP_SCORES = 1 << 24  # scores held at once: 64 MiB in float32
FEWEST = 16  # queries of a strip


class Strips:
    """How the scores of a problem are made, strip by strip."""

    def __init__(
        self, xp: Any, q: Array, k: Array, mask: Any, biases: tuple[Any, Any], scale: float, causal: bool, window: int,
        dropout: tuple[float, Draw] | None,
    ):  # fmt: skip
        self.xp, self.q, self.k, self.mask, self.dropout = xp, q, k, mask, dropout
        (self.bias, self.distance_bias), self.causal, self.window = biases, causal, window
        b, h, self.t, _ = q.shape
        self.s = k.shape[2]
        size = max(FEWEST, STRIP_SCORES // max(b * h * self.s, 1))
        self.blocks = Blocks(self.t, self.s, None, self.causal, self.window, size)
        # Half precision might not hold unscaled scores, and biases are added to scaled ones.
        before = q.dtype.char == "e" or any(x is not None for x in biases)
        self.q_scaled, self.inner = (q * scale, 1.0) if before else (q, scale)

    def __iter__(self) -> Any:
        """Yield the strips: a slice of queries, and one of the keys that they may reach."""
        for rows in self.blocks.rows():
            low, high = self.blocks.reached(rows)
            if low < high:
                yield rows, slice(low, high)

    def weights(self, rows: slice, keys: slice) -> tuple[Array, Array, Array | None]:
        """Return the softmax of a strip, the same with dropout, and the factors of dropout."""
        xp, q = self.xp, self.q_scaled[:, :, rows]
        p = xp.empty((*q.shape[:3], keys.stop - keys.start), dtype=q.dtype)
        of_q, of_k, of_p = stacks(xp, q, self.k[:, :, keys], p)
        products(xp, of_q, of_k.turned, of_p)
        if self.bias is not None:
            p += tile(self.bias, rows, keys)
        if self.distance_bias is not None:
            near = self.distance_bias[..., distances(self.t, rows, keys)]
            p += by_distance(near, queries=rows.stop - rows.start)
        mask, kept, mixed = None if self.mask is None else tile(self.mask, rows, keys), None, p
        if self.dropout is not None:
            chance, draw = self.dropout
            shape = (*self.q.shape[:3], self.s)
            kept = dropout_factors(q, shape=shape, p=chance, draw=draw, part=(rows.start, rows.stop))[..., keys]
            kept, mixed = xp.ascontiguousarray(kept), xp.empty_like(p)
        offset = rows.start + self.s - self.t - keys.start
        softmax_rows(p, p, mask, self.causal, self.inner, None if kept is None else mixed, kept, offset, self.window)
        return p, mixed, kept


@kernel(_blockwise_attention, "cupy")
def blockwise_attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, distance_bias: Array | None, *,
    scale: float, causal: bool, window: int, dropout: tuple[float, Draw] | None, learned: bool, size: int = 0,
) -> Made:  # fmt: skip
    """Attend; q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ). Strips are of their own size.

    Kept: the inputs and nothing else. A strip's scores are written and read three times forwards, seven backwards.
    """
    added = [x for x in (mask, bias, distance_bias) if x is not None]
    if not in_heads(q, k, v) or q.dtype.char not in "efd" or any(x.ndim > 4 for x in added):
        settings = {"scale": scale, "causal": causal, "window": window, "dropout": dropout, "learned": learned}
        more = {"size": size} if size else {}
        return book(_blockwise_attention)(xp, q, k, v, mask, bias, distance_bias, **settings, **more)
    strips = Strips(xp, q, k, mask, (bias, distance_bias), scale, causal, window, dropout)
    y = room(xp, (*q.shape[:3], v.shape[-1]), q.dtype)
    if causal and q.shape[2] > k.shape[2]:
        y[...] = 0  # the first queries stand before the first key
    for rows, keys in strips:
        _, mixed, _ = strips.weights(rows, keys)
        of_mixed, of_v, of_y = stacks(xp, mixed, v[:, :, keys], y[:, :, rows])
        products(xp, of_mixed, of_v, of_y)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g_q, g_k, g_v = (room(xp, x.shape, x.dtype) for x in (q, k, v))
        for x in (g_q, g_k, g_v):
            x[...] = 0
        g_bias, g_distance = (None if x is None or not learned else xp.zeros_like(x) for x in (bias, distance_bias))
        for rows, keys in strips:
            p, mixed, kept = strips.weights(rows, keys)
            g_z, k_part, v_part = xp.empty_like(p), *(room(xp, x[:, :, keys].shape, x.dtype) for x in (k, v))
            q_rows, k_keys, v_keys, g_rows = strips.q_scaled[:, :, rows], k[:, :, keys], v[:, :, keys], g[:, :, rows]
            of_g, of_mixed, of_v, of_v_part, of_g_z = stacks(xp, g_rows, mixed, v_keys, v_part, g_z)
            products(xp, of_mixed.turned, of_g, of_v_part)
            products(xp, of_g, of_v.turned, of_g_z)
            softmax_rows_backward(p, g_z, g_z, strips.inner, kept)
            of_g_z, of_q, of_k, of_k_part, of_g_q = stacks(xp, g_z, q_rows, k_keys, k_part, g_q[:, :, rows])
            products(xp, of_g_z, of_k, of_g_q)
            products(xp, of_g_z.turned, of_q, of_k_part)
            g_k[:, :, keys] += k_part
            g_v[:, :, keys] += v_part
            if g_bias is not None:
                to = tile(g_bias, rows, keys)
                to += sum_to(g_z, to.shape)
            if g_distance is not None:
                along = sum_by_distance(g_z)
                to = g_distance[..., distances(q.shape[2], rows, keys)]
                to += sum_to(along, to.shape)
        if strips.inner != scale:  # the scale went into q beforehand
            g_q *= scale
        return g_q, g_k, g_v, None, g_bias, g_distance

    return y, vjp

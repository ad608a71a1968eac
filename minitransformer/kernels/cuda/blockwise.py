"""Attention a strip of queries at a time: as many rows of scores as fit into a fixed room, against all their keys.

A strip is made by the products and the softmax of `attention`, and made again in the backward pass, so that memory
grows with T + S. With whole rows in a strip no running maximum is needed, and the products stay large.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...draws import Draw
from ...ops.blockwise import Blocks, _blockwise_attention, distances, tile
from ...ops.dropout import dropout_factors
from ...ops.elementwise import sum_to
from ...ops.position import by_distance, sum_by_distance
from ..attention import in_heads, room
from ..registry import book, kernel
from .attention import Stack, products, stacks
from .softmax import softmax_rows, softmax_rows_backward

Made = tuple[Array, Callable]
FEWEST_SCORES, MOST_SCORES = 1 << 24, 1 << 27  # of a strip: 64 and 512 MiB in float32
SHARE = 256  # of a device's memory that a strip takes, between those: larger ones are fewer calls
STEPS = 8  # strips of causal attention, where that leaves each the fewest: half of a strip's last square is for nothing
FEWEST = 16  # queries of a strip


@functools.cache
def scores_at_once(device: int) -> int:
    """Return how many scores a strip holds on a device."""
    import cupy

    with cupy.cuda.Device(device):
        memory = cupy.cuda.runtime.memGetInfo()[1]
    return min(max(memory // SHARE // 4, FEWEST_SCORES), MOST_SCORES)


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
        most = scores_at_once(q.device.id)
        if causal:
            most = max(min(most, b * h * self.t // STEPS * self.s), min(most, FEWEST_SCORES))
        size = max(FEWEST, most // max(b * h * self.s, 1))
        self.blocks = Blocks(self.t, self.s, None, self.causal, self.window, size)
        self.all = []  # the strips: a slice of queries, and one of the keys that they may reach
        for rows in self.blocks.rows():
            low, high = self.blocks.reached(rows)
            if low < high:
                self.all.append((rows, slice(low, high)))
        areas = [(rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in self.all]
        self.largest = b * h * max(areas, default=0)
        # Half precision might not hold unscaled scores, and biases are added to scaled ones.
        before = q.dtype.char == "e" or any(x is not None for x in biases)
        self.q_scaled, self.inner = (q * scale, 1.0) if before else (q, scale)

    def room(self) -> Callable[[slice, slice], Array]:
        """Return what gives each strip its scores, all in the one place, so that the pool need not keep many sizes."""
        memory, lead = self.xp.empty(self.largest, dtype=self.q.dtype), self.q.shape[:2]

        def scores(rows: slice, keys: slice) -> Array:
            shape = (*lead, rows.stop - rows.start, keys.stop - keys.start)
            return memory[: math.prod(shape)].reshape(shape)

        return scores

    def rooms(self) -> list[Callable[[slice, slice], Array]]:
        """Return three: for the weights, those with dropout, and its factors. Without it, all of them are the first."""
        weights = self.room()
        return [weights, weights, weights] if self.dropout is None else [weights, self.room(), self.room()]

    def weights(
        self, rows: slice, keys: slice, of_q: Stack, of_k: Stack, of_p: Stack, mixed: Array, kept: Array
    ) -> Array | None:
        """Fill in the softmax of a strip and, with dropout, its factors and the product of both; return the factors."""
        p = of_p.array
        products(self.xp, of_q, of_k.turned, of_p)
        if self.bias is not None:
            p += tile(self.bias, rows, keys)
        if self.distance_bias is not None:
            near = self.distance_bias[..., distances(self.t, rows, keys)]
            p += by_distance(near, queries=rows.stop - rows.start)
        mask = None if self.mask is None else tile(self.mask, rows, keys)
        offset = rows.start + self.s - self.t - keys.start
        if self.dropout is None:
            softmax_rows(p, p, mask, self.causal, self.inner, None, None, offset, self.window)
            return None
        chance, draw = self.dropout
        shape = (*self.q.shape[:3], self.s)
        kept[...] = dropout_factors(p, shape=shape, p=chance, draw=draw, part=(rows.start, rows.stop))[..., keys]
        softmax_rows(p, p, mask, self.causal, self.inner, mixed, kept, offset, self.window)
        return kept


@kernel(_blockwise_attention, "cupy")
def blockwise_attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, distance_bias: Array | None, *,
    scale: float, causal: bool, window: int, dropout: tuple[float, Draw] | None, learned: bool, size: int = 0,
) -> Made:  # fmt: skip
    """Attend; q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ). Strips are of their own size.

    Kept: the inputs and nothing else. Scores are written twice and read twice forwards, written four times and read six
    backwards. One kernel for all of it would move none.
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
    rooms = strips.rooms()
    for rows, keys in strips.all:
        p, mixed, kept = (room_of(rows, keys) for room_of in rooms)
        arrays = strips.q_scaled[:, :, rows], k[:, :, keys], p, mixed, v[:, :, keys], y[:, :, rows]
        of_q, of_k, of_p, of_mixed, of_v, of_y = stacks(xp, *arrays)
        strips.weights(rows, keys, of_q, of_k, of_p, mixed, kept)
        products(xp, of_mixed, of_v, of_y)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g_q, g_k, g_v = (room(xp, x.shape, x.dtype) for x in (q, k, v))
        for x in (g_q, g_k, g_v):
            x[...] = 0
        g_bias, g_distance = (None if x is None or not learned else xp.zeros_like(x) for x in (bias, distance_bias))
        *rooms, more = *strips.rooms(), strips.room()
        for rows, keys in strips.all:
            p, mixed, kept, g_z = (room_of(rows, keys) for room_of in (*rooms, more))
            arrays = [strips.q_scaled[:, :, rows], k[:, :, keys], p, mixed, v[:, :, keys], g[:, :, rows], g_z,
                      g_q[:, :, rows], g_k[:, :, keys], g_v[:, :, keys]]  # fmt: skip
            of_q, of_k, of_p, of_mixed, of_v, of_g, of_g_z, of_g_q, of_g_k, of_g_v = stacks(xp, *arrays)
            factors = strips.weights(rows, keys, of_q, of_k, of_p, mixed, kept)
            products(xp, of_mixed.turned, of_g, of_g_v, add=True)
            products(xp, of_g, of_v.turned, of_g_z)
            softmax_rows_backward(p, g_z, g_z, strips.inner, factors)
            products(xp, of_g_z, of_k, of_g_q)
            products(xp, of_g_z.turned, of_q, of_g_k, add=True)
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

"""Attention over blocks of queries, in place.

With p = exp(scores)/Σ the backward makes two passes over T×S: the gradient of the scores is p·(g·vᵀ − δ), where
δ = Σ_k g·y is a sum over K numbers and no longer one over S, since Σ_j p_j·(g·v_j) = g·y. The factor 1/√K costs no
pass: keys and values, which are copied in any case, are multiplied by it on the way.

The shift by the row's maximum is there against overflow only. The largest score of a whole block is found in a tenth
of the time that the largest of each row takes; where it is small enough, and no row's sum has come out near 0, the
exponentials are right as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import Array
from ..ops.attention import _allowed, _attention
from .blas import blas_threads, unpacked
from .products import by_rows
from .registry import book, kernel, ones

Made = tuple[Array, Callable]
SAFE_SCORE = 40.0  # e⁴⁰ = 2e17: the sum of a million of them, and its square, fits into float32
LEAST_SUM = 1e-20  # of a row's exponentials; what vanished beside it, below 1e-38 each, is below 1e-12 of it
TILE = 64  # keys of a product, where BLAS is faster at small ones
QUERIES = 64  # rows of scores in a block, at most
BLOCK_SCORES = 128 * 1024  # scores in a block: half a megabyte in float32, which the second cache holds


class Block(NamedTuple):
    """Some batch rows × some queries, the keys any of them may look at, and the shares in which they do."""

    batch: slice
    queries: slice
    keys: slice
    p: Array


class _Tiles:
    """Keys (or values) cut up for products as they suit BLAS: tiles of TILE, each of which lies by itself, or one.

    Small ones are faster where `blas.unpacked` says so; then whole matrices have to lie row by row, too.
    """

    def __init__(self, xp: Any, keys: int, scores: int):
        small = scores * TILE > unpacked() >= TILE**3 and keys % TILE == 0 and blas_threads() == 1
        self.xp, self.size, self.whole = xp, TILE if small else keys, not small

    def end(self, end: int) -> int:
        """Return where some first keys end, if tiles are taken whole."""
        return end if self.whole else -(-end // self.size) * self.size

    def rows(self, x: Array) -> Array:
        """Return a stack of matrices for products that read its rows.    (B, H, S, K) → the same"""
        return x if self.whole else self.xp.ascontiguousarray(x)

    def columns(self, x: Array, factor: float) -> Array:
        """Return the transpose in tiles, times a factor.    (B, H, S, K) → (B, H, S/size, K, size)"""
        tiles = x.reshape(*x.shape[:2], -1, self.size, x.shape[-1]).swapaxes(-1, -2)
        by_itself = self.xp.empty(tiles.shape, dtype=x.dtype)  # small products by a transposed view are slow
        return self.xp.multiply(tiles, factor, out=by_itself)

    def product(self, a: Array, columns: Array, end: int) -> Array:
        """Return a·b for the first columns of b.    (B, H, N, K), (B, H, S/size, K, size) → (B, H, N, end)"""
        count, size = -(-end // self.size), min(end, self.size)
        out = self.xp.empty((*a.shape[:3], end), dtype=a.dtype)
        parts = out.reshape(*a.shape[:3], count, size).swapaxes(2, 3)
        self.xp.matmul(a[:, :, None], columns[:, :, :count, :, :size], out=parts)
        return out

    def transposed_product(self, a: Array, b: Array, out: Array) -> None:
        """Make aᵀ·b in `out`.    (B, H, N, S), (B, H, N, K) → (B, H, S, K)"""
        size = min(self.size, a.shape[-1])
        left = a.reshape(*a.shape[:3], -1, size).transpose(0, 1, 3, 4, 2)
        self.xp.matmul(left, b[:, :, None], out=out.reshape(*out.shape[:2], -1, size, out.shape[-1]))


def _plan(xp: Any, q: Array, k: Array, mask: Array | None, tiles: _Tiles) -> list[tuple[slice, slice, slice]]:
    """Cut B × T into blocks, and leave out keys at the end that no query of a block may look at."""
    b, h, t, s = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    step = min(t, QUERIES)
    at_once = max(1, BLOCK_SCORES // (h * step * s))
    plan = []
    for first in range(0, t, step):
        queries, end = slice(first, first + step), s
        if mask is not None and t > step and mask.shape[-2] == t and mask.shape[-1] == s:
            looked_at = mask[..., queries, :].reshape(-1, s).any(axis=0)
            end = tiles.end(s - int(looked_at[::-1].argmax()) if looked_at.any() else 1)
        plan += [(slice(i, i + at_once), queries, slice(0, end)) for i in range(0, b, at_once)]
    return plan


def in_heads(q: Array, k: Array, v: Array) -> bool:
    """Tell whether these are heads of batches, (B, H, ., .), of one type and not empty: what kernels are made for."""
    alike = q.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2] and q.dtype == k.dtype == v.dtype
    return bool(alike and q.size and k.size and v.size)


def room(xp: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an empty stack whose heads lie side by side in a row, as they are joined.    → (B, H, T, K)"""
    b, h, t, width = shape
    return xp.empty((b, t, h, width), dtype=dtype).swapaxes(1, 2)


@kernel(_attention)
def attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, kept: Array | None, bias: Array | None, *, scale: float,
    causal: bool, window: int = 0,
) -> Made:  # fmt: skip
    """Attend; see above. q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ); the rest is the book's."""
    if bias is not None or not in_heads(q, k, v) or q.dtype.char not in "fd":
        return book(_attention)(xp, q, k, v, mask, kept, bias, scale=scale, causal=causal, window=window)
    mask = _allowed(q, k, mask, causal, window)
    b, h, t, width = q.shape
    s = k.shape[2]
    tiles = _Tiles(xp, s, min(t, QUERIES) * s)
    plan = _plan(xp, q, k, mask, tiles)
    shares = None if mask is None else mask.astype(q.dtype)

    def part_of(x: Array | None, *block: slice) -> Array | None:
        """Return what belongs to a block of something that broadcasts to (B, H, T, S)."""
        if x is None or len(plan) == 1:
            return x
        batch, queries, keys = block
        return xp.broadcast_to(x, (b, h, t, s))[batch, :, queries, keys]

    y = room(xp, (b, h, t, v.shape[-1]), q.dtype)
    k_columns, v_rows, blocks = tiles.columns(k, scale), tiles.rows(v), []
    for batch, queries, keys in plan:
        left, right = q[batch, :, queries], k_columns[batch]
        p, total = tiles.product(left, right, keys.stop), None
        if p.max() <= SAFE_SCORE:  # nan is not
            total = _exponentials(xp, p, part_of(shares, batch, queries, keys))
            if not total.min() >= LEAST_SUM:
                p, total = tiles.product(left, right, keys.stop), None
        if total is None:
            p = _shifted(xp, p, part_of(mask, batch, queries, keys))
            total = _exponentials(xp, p, None)
            total[total == 0] = math.inf  # a row that may look nowhere
        p *= xp.divide(1.0, total, out=total)
        factors = part_of(kept, batch, queries, keys)
        mixed = p if factors is None else p * factors
        by_rows(xp, mixed, y[batch, :, queries])(v_rows[batch, :, keys])
        blocks.append(Block(batch, queries, keys, p))

    def vjp(g: Array) -> tuple[Array, Array, Array, None, None, None]:
        sizes = (t, width), (s, width), (s, v.shape[-1])
        g_q, g_k, g_v = (room(xp, (b, h, n, d), g.dtype) for n, d in sizes)
        rows = (g * y).swapaxes(1, 2)
        delta = xp.matmul(rows.reshape(-1, g.shape[-1]), ones(xp, g.shape[-1], g)).reshape(b, t, h, 1).swapaxes(1, 2)
        delta *= scale
        v_columns, k_rows, begun = tiles.columns(v, scale), tiles.rows(k), set()
        for batch, queries, keys, p in sorted(blocks, key=lambda block: -block.keys.stop):  # the furthest first
            g_block = g[batch, :, queries]
            factors = part_of(kept, batch, queries, keys)
            mixed = p if factors is None else p * factors
            g_p = tiles.product(g_block, v_columns[batch], keys.stop)
            if factors is not None:
                g_p *= factors
            g_p -= delta[batch, :, queries]
            g_p *= p
            by_rows(xp, g_p, g_q[batch, :, queries])(k_rows[batch, :, keys])
            for total, left, right in ((g_v, mixed, g_block), (g_k, g_p, q[batch, :, queries])):
                part = total[batch, :, keys]
                if batch.start in begun:
                    more = xp.empty(part.shape, dtype=part.dtype)
                    tiles.transposed_product(left, right, more)
                    part += more
                else:
                    tiles.transposed_product(left, right, part)
                    total[batch, :, keys.stop :] = 0
            begun.add(batch.start)
        return g_q, g_k, g_v, None, None, None

    return y, vjp


def _exponentials(xp: Any, scores: Array, shares: Array | None) -> Array:
    """Write e^score over the scores, times 0 where one may not look, and return the sums.    → (B, H, T, 1)"""
    xp.exp(scores, out=scores)
    if shares is not None:
        scores *= shares
    rows = scores.reshape(-1, scores.shape[-1])
    return xp.matmul(rows, ones(xp, rows.shape[1], rows)).reshape(*scores.shape[:-1], 1)


def _shifted(xp: Any, scores: Array, allowed: Array | None) -> Array:
    """Hide what may not be looked at and subtract the maximum of each row.    (B, H, T, S) → (B, H, T, S)"""
    if allowed is not None:
        scores = xp.where(allowed, scores, -math.inf)
    top = scores.max(axis=-1, keepdims=True)
    top[top == -math.inf] = 0.0
    scores -= top
    return scores

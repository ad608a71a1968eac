"""Attention in blocks, in place, on as many threads as a product of matrices may use.

What differs from the book's page: a thread takes a head, and all products inside are its own; blocks are taller than
wide, so that keys and values pass by less often, and their products are cut up where BLAS is faster at small ones;
calls are few, since a thread that comes back from one may have to wait for Python; a row's maximum is looked for only
where the scores could overflow without it; and backwards, where p = e^(s − level), the level is one more column of q
against a row of ones below kᵀ, so that the product subtracts it, and −δ is one more column of g. Bounded scores may be
in units of ln 2, for powers of 2.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..draws import Draw
from ..ops.blockwise import BLOCK, Blocks, _blockwise_attention, distances, tile
from ..ops.elementwise import sum_to
from ..ops.position import sum_by_distance
from .attention import SAFE_SCORE, in_heads, room
from .blas import blas_threads, limit_blas_threads, unpacked
from .block_terms import Task, Terms, of_head, quick_power
from .products import by_rows, most_parts, of_transposed
from .registry import book, kernel, on_lines, ones

Made = tuple[Array, Callable]
WORTH_THREADS = 1 << 19  # scores; below, starting a thread takes longer than it saves


class Sizes(NamedTuple):
    """Of a block, at most: its keys, its queries, and how many of these are not torn apart."""

    keys: int
    queries: int
    together: int


def sizes() -> Sizes:
    """Return the sizes that suit BLAS."""
    return Sizes(192, 800, 80) if unpacked() else Sizes(256, 512, 64)


def _bounded(xp: Any, q: Array, k: Array, scale: float) -> bool:
    """Tell whether no score of a head can be too large for its exponential: |q·k| ≤ |q|·|k|.    q: (T, K), k: (S, K)"""
    longest = [float(xp.vecdot(x, x).max()) for x in (q, k)]
    return scale * scale * longest[0] * longest[1] <= SAFE_SCORE**2  # nan is not


def _height(t: int) -> int:
    """Return how many queries a block has: of several heights the one that leaves the least of the last block empty."""
    _, queries, together = sizes()
    units, most = -(-t // together), queries // together
    height = min(range(most, most // 2, -1), key=lambda height: -(-units // height) * height)
    return min(height * together, t)


def _tasks(b: int, h: int, scores: int) -> tuple[list[Task], int]:
    """Return the tasks, and how many threads share them: at least one for each, the last not much later than others."""
    threads = max(blas_threads(), 1) if scores >= WORTH_THREADS else 1
    parts = 1 if b * h % threads == 0 or b * h >= 4 * threads else threads
    return [Task(i, j, part, parts) for i in range(b) for j in range(h) for part in range(parts)], threads


def _share(run: Callable, tasks: list[Task], threads: int) -> list[Any]:
    """Run all tasks, on one thread of products each."""
    if threads == 1:
        return [run(task) for task in tasks]
    with limit_blas_threads(1), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, tasks))


class Scratch:
    """Room for two blocks of scores and for what they add, so that no block asks for memory."""

    def __init__(self, dtype: Any, blocks: Blocks, width: int):
        tall, m = blocks.tall, min(blocks.size, blocks.s)
        self.scores, self.sums = on_lines(np, (2, tall * m), dtype), on_lines(np, (2, max(tall, m) * width), dtype)
        self.parts = on_lines(np, (2 * most_parts(tall, m, width) * m * width,), dtype)

    def blocks(self, n: int, m: int) -> Array:
        """Return room for two blocks of scores.    → (2, n, m)"""
        return self.scores[:, : n * m].reshape(2, n, m)

    def added(self, n: int, width: int) -> Array:
        """Return room for what two blocks add to something.    → (2, n, width)"""
        return self.sums[:, : n * width].reshape(2, n, width)


@kernel(_blockwise_attention)
def blockwise_attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, distance_bias: Array | None, *,
    scale: float, causal: bool, window: int, dropout: tuple[float, Draw] | None, learned: bool, size: int = BLOCK,
) -> Made:  # fmt: skip
    """Attend; see above. q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ); blocks are of its own size."""
    added = [x for x in (mask, bias, distance_bias) if x is not None]
    if not in_heads(q, k, v) or q.dtype.char not in "fd" or any(x.ndim > 4 for x in added):
        settings = {"scale": scale, "causal": causal, "window": window, "dropout": dropout, "learned": learned}
        return book(_blockwise_attention)(xp, q, k, v, mask, bias, distance_bias, **settings, size=size)
    b, h, t, width = q.shape
    s, shape = k.shape[2], (*q.shape[:3], k.shape[2])
    tasks, threads = _tasks(b, h, b * h * t * s)
    shifted: dict[tuple[int, int], bool] = {}  # of each head
    y, level = room(xp, (b, h, t, v.shape[-1]), q.dtype), xp.empty((b, h, t), dtype=q.dtype)
    wide, tall = sizes().keys, _height(t)

    def terms(task: Task) -> tuple[Terms, float]:
        """Return the terms of a head, and the unit of its scores."""
        blocks = Blocks(t, s, of_head(mask, 2, task), causal, window, wide, tall)
        along = None if distance_bias is None else xp.ascontiguousarray(of_head(distance_bias, 1, task))
        unbounded = shifted[task.b, task.h]
        exp, unit = (xp.exp, 1.0) if unbounded else quick_power()
        return Terms(blocks, of_head(bias, 2, task), along, dropout, task, shape, unbounded, exp), unit

    def forward(task: Task) -> None:
        q_head, v_head = (_laid_out(xp, x[task.b, task.h]) for x in (q, v))
        biased = bias is not None or distance_bias is not None
        shifted[task.b, task.h] = biased or not _bounded(xp, q_head, k[task.b, task.h], scale)
        own, unit = terms(task)
        scratch = Scratch(q.dtype, own.blocks, v.shape[-1])
        q_head *= scale / unit
        k_t = [panel[0] for panel in _panels(xp, wide, k[task.b, task.h])]
        for rows in own.blocks.rows()[task.part :: task.parts]:
            mixed, tops, totals = _rows_forward(xp, own, scratch, rows, q_head, k_t, v_head)
            y[task.b, task.h, rows], level[task.b, task.h, rows] = mixed, tops + xp.log(totals) / unit

    _share(forward, tasks, threads)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g_q, g_k, g_v = (room(xp, (b, h, n, d), g.dtype) for n, d in ((t, width), (s, width), (s, v.shape[-1])))
        g_bias, g_distance = (None if x is None or not learned else xp.zeros_like(x) for x in (bias, distance_bias))
        lock = threading.Lock()  # around what several heads add to

        def backward(task: Task) -> tuple[Task, Array | None]:
            (own, unit), at = terms(task), (task.b, task.h)
            delta = xp.vecdot(g[at], y[at])[:, None]
            arrays = _Backward(xp, own, q[at] * (scale / unit), k[at], v[at], g[at], level[at][:, None], delta)
            for rows in own.blocks.rows()[task.part :: task.parts]:
                for queries, keys, g_z in arrays.blocks_of(rows):
                    if g_bias is not None:
                        to = tile(of_head(g_bias, 2, task), queries, keys)
                        part = sum_to(g_z, to.shape)
                        with lock:
                            to += part
                    if g_distance is not None:
                        along = of_head(g_distance, 1, task)[distances(t, queries, keys)]  # type: ignore[index]
                        part = sum_by_distance(g_z)
                        with lock:
                            along += part
                xp.multiply(arrays.g_q, scale, out=g_q[(*at, rows)])
            arrays.g_kv[0] *= unit  # made with q / unit
            if not task.part:
                g_k[at], g_v[at] = arrays.g_kv[0, :, :width], arrays.g_kv[1, :, : v.shape[-1]]
            return task, arrays.g_kv if task.part else None

        for task, more in _share(backward, tasks, threads):
            if more is not None:
                g_k[task.b, task.h] += more[0, :, :width]
                g_v[task.b, task.h] += more[1, :, : v.shape[-1]]
        return g_q, g_k, g_v, None, g_bias, g_distance

    return y, vjp


def _laid_out(xp: Any, x: Array) -> Array:
    """Return a matrix row by row, beginning where a line of cache does."""
    out = on_lines(xp, x.shape, x.dtype)
    out[...] = x
    return out


def _panels(xp: Any, wide: int, *matrices: Array, last: float | None = None) -> list[Array]:
    """Return transposes cut into blocks of columns, each of which lies by itself.    n times (S, K) → (n, K, wide), ...

    A narrower matrix gets zeros. last: a number that stands below each column, so that there are K + 1 rows.
    """
    s, n, width = len(matrices[0]), len(matrices), max(x.shape[1] for x in matrices)
    whole, left = divmod(s, wide)
    panels: list[Array] = []
    for count, size, first in ((whole, wide, 0), (1, left, whole * wide)):
        if count and size:
            room = on_lines(xp, (count, n, width + (last is not None), size), matrices[0].dtype)
            for i, x in enumerate(matrices):
                own = x.shape[1]
                room[:, i, :own] = x[first : first + count * size].reshape(count, size, own).swapaxes(1, 2)
                room[:, i, own:width] = 0
            room[:, :, width:] = last
            panels += list(room)
    return panels


def _rows_forward(
    xp: Any, own: Terms, scratch: Scratch, rows: slice, q: Array, k_t: Array, v: Array
) -> tuple[Array, Array, Array]:
    """Attend with a block of queries.    → y (n, Kᵥ), shift (n,), total (n,): level = shift + ln total

    An empty row's scores are all −∞: at any level it has p = 0.
    """
    n = rows.stop - rows.start
    mixed, total = xp.zeros((n, v.shape[-1]), dtype=q.dtype), xp.zeros(n, dtype=q.dtype)
    top, shift = xp.full(n, -math.inf, dtype=q.dtype), xp.zeros(n, dtype=q.dtype)
    kept, shape = own.kept(rows), (0, 0, 0)
    for keys, queries, inside in own.steps(rows):
        now = queries.start, queries.stop, keys.stop - keys.start
        if now != shape:  # else all stays where it is
            shape, (first, end, m) = now, now
            here = slice(first - rows.start, end - rows.start)
            z, more = scratch.blocks(end - first, m)[0], scratch.added(end - first, v.shape[1])[0]
            scores_with, mix = by_rows(xp, q[queries], z), by_rows(xp, z, more)
            along, total_here, mixed_here = ones(xp, m, z), total[here], mixed[here]
        scores_with(k_t[keys.start // own.blocks.size])
        own.before(z, queries, keys, inside)
        if own.shifted:
            new_top = xp.maximum(top[here], z.max(axis=1))
            shift[here] = xp.where(new_top == -math.inf, 0.0, new_top)
            shrunk = own.exp(top[here] - shift[here])
            total_here *= shrunk
            mixed_here *= shrunk[:, None]
            z -= shift[here, None]
            top[here] = new_top
        own.exp(z, out=z)
        own.after(z, inside)
        total_here += z @ along
        if kept is not None:
            z *= kept[here, keys]
        mix(v[keys])
        mixed_here += more
    empty = total == 0
    total[empty] = 1.0
    mixed *= (own.survivor / total)[:, None]
    return mixed, shift, total


class _Backward:
    """The gradients of one head's q, k and v, that grow with every block. q: in units.

    Scores and their gradients, and the two sums over queries that they end in, are made by one call each.
    """

    def __init__(self, xp: Any, own: Terms, q: Array, k: Array, v: Array, g: Array, level: Array, delta: Array):
        self.xp, self.own, self.width = xp, own, max(k.shape[1], v.shape[1])  # the narrower one gets zeros
        self.scratch = Scratch(q.dtype, own.blocks, self.width)
        self.delta = delta if own.dropout else None  # else subtracted by the product
        self.left = on_lines(xp, (2, len(q), self.width + 1), q.dtype)
        if k.shape[1] != v.shape[1]:
            self.left[...] = 0
        self.left[0, :, : k.shape[1]], self.left[0, :, -1:] = q, -level
        xp.multiply(g, own.survivor, out=self.left[1, :, : v.shape[1]])
        self.left[1, :, -1:] = 0 if own.dropout else -delta
        self.right, self.k = _panels(xp, own.blocks.size, k, v, last=1.0), _laid_out(xp, k)
        self.g_kv = on_lines(xp, (2, len(k), self.width), q.dtype)
        self.g_kv[...] = 0

    def blocks_of(self, rows: slice) -> Any:
        """Go through the keys of a block of queries; yield who looks, at what, and the gradient of those scores.

        At the end, g_q holds what these queries get (but for the scale).
        """
        xp, own, scratch = self.xp, self.own, self.scratch
        kept = own.kept(rows)
        self.g_q = xp.zeros((rows.stop - rows.start, self.k.shape[1]), dtype=self.k.dtype)
        shape = 0, 0, 0
        for keys, queries, inside in own.steps(rows):
            now = queries.start, queries.stop, keys.stop - keys.start
            if now != shape:  # else all stays where it is
                shape, (first, end, m) = now, now
                here = slice(first - rows.start, end - rows.start)
                left, both = self.left[:, queries], scratch.blocks(end - first, m)
                (p, g_z), more = both, scratch.added(m, self.width)
                more_q = scratch.added(end - first, self.k.shape[1])[0]
                scores_with, to_queries, g_q = by_rows(xp, left, both), by_rows(xp, g_z, more_q), self.g_q[here]
                to_keys = of_transposed(xp, both[::-1], left[..., :-1], more, scratch.parts)
            scores_with(self.right[keys.start // own.blocks.size])
            own.before(p, queries, keys, inside)
            own.exp(p, out=p)
            own.after(p, inside)
            if kept is not None:
                g_z *= kept[here, keys]
                g_z -= self.delta[queries]  # type: ignore[index]
            g_z *= p
            if kept is not None:
                p *= kept[here, keys]
            to_keys()
            self.g_kv[:, keys] += more
            to_queries(self.k[keys])
            g_q += more_q
            yield queries, keys, g_z

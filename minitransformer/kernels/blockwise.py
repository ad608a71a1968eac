"""Attention in blocks, in place, on as many threads as a product of matrices may use.

What differs from the book's page: a thread takes a head, and all products inside are its own; blocks are taller than
wide, so that keys and values pass by less often; a row's maximum is looked for only where the scores could overflow
without it; and backwards, where p = e^(s − level), the level is one more column of q against a row of ones below kᵀ, so
that the product subtracts it, and −δ is one more column of g. Bounded scores may be in units of ln 2, for powers of 2.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..backend import Array, Draw
from ..ops.blockwise import Blocks, _blockwise_attention, distances, tile
from ..ops.elementwise import sum_to
from ..ops.position import sum_by_distance
from .attention import SAFE_SCORE, in_heads, room
from .blas import blas_threads, limit_blas_threads
from .block_terms import Task, Terms, of_head, quick_power
from .registry import book, kernel, ones

Made = tuple[Array, Callable]
SIZE, TALL = 256, 512  # keys and queries of a block: two of them in float32 are half of a second cache, or all of it
WORTH_THREADS = 1 << 19  # scores; below, starting a thread takes longer than it saves


def squared_norm(xp: Any, x: Array) -> float:
    """Return the largest |row|².    x: (B, H, T, K)"""
    rows = x.swapaxes(1, 2)  # as they lie in memory, where heads are slices of one row
    return float(xp.matmul((rows * rows).reshape(-1, x.shape[-1]), ones(xp, x.shape[-1], x)).max())


def _tasks(b: int, h: int, scores: int) -> tuple[list[Task], int]:
    """Return the tasks, and how many threads share them: at least one for each, the last not much later than others."""
    threads = max(blas_threads(), 1) if scores >= WORTH_THREADS else 1
    parts = 1 if b * h % threads == 0 or b * h >= 4 * threads else threads
    return [Task(i, j, part, parts) for i in range(b) for j in range(h) for part in range(parts)], threads


def _share(run: Callable, tasks: list[Task], threads: int) -> list[Any]:
    """Run all tasks, on one thread of products each."""
    if threads == 1:
        return [run(task) for task in tasks]
    with _one_blas_thread(threads), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, tasks))


def _one_blas_thread(threads: int) -> Any:
    """Keep products on one thread each, where several threads make them.

    Any product before them, too: for a tenth of a second after one, OpenBLAS's own threads go round in circles, each
    on a core that ours could use.
    """
    return limit_blas_threads(1) if threads > 1 else contextlib.nullcontext()


class Scratch:
    """Two arrays with room for a block, and one for what it adds, so that no block asks for memory."""

    def __init__(self, dtype: Any, t: int, s: int, width: int):
        n, m = min(TALL, t), min(SIZE, s)
        sizes = n * m, n * m, max(n, m) * width
        self.arrays = [np.empty(size, dtype=dtype) for size in sizes]

    def block(self, which: int, n: int, m: int) -> Array:
        """Return an array (n, m) of what is there."""
        return self.arrays[which][: n * m].reshape(n, m)

    def product(self, a: Array, b: Array) -> Array:
        """Multiply two matrices into the last of the arrays: until the next product."""
        return np.matmul(a, b, out=self.block(2, len(a), b.shape[1]))


@kernel(_blockwise_attention)
def blockwise_attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, distance_bias: Array | None, *,
    scale: float, causal: bool, window: int, dropout: tuple[float, Draw] | None, learned: bool, size: int = SIZE,
) -> Made:  # fmt: skip
    """Attend; see above. q: (B, H, T, K), k: (B, H, S, K), v: (B, H, S, Kᵥ); blocks are of its own size."""
    added = [x for x in (mask, bias, distance_bias) if x is not None]
    if not in_heads(q, k, v) or q.dtype.char not in "fd" or any(x.ndim > 4 for x in added):
        settings = {"scale": scale, "causal": causal, "window": window, "dropout": dropout, "learned": learned}
        return book(_blockwise_attention)(xp, q, k, v, mask, bias, distance_bias, **settings, size=size)
    b, h, t, width = q.shape
    s, shape = k.shape[2], (*q.shape[:3], k.shape[2])
    tasks, threads = _tasks(b, h, b * h * t * s)
    with _one_blas_thread(threads):
        bound = scale * scale * squared_norm(xp, q) * squared_norm(xp, k)
    shifted = not bound <= SAFE_SCORE**2 or len(added) > (mask is not None)  # so that nan counts, too
    y, level = room(xp, (b, h, t, v.shape[-1]), q.dtype), xp.empty((b, h, t), dtype=q.dtype)
    exp, unit = (xp.exp, 1.0) if shifted else quick_power()

    def terms(task: Task) -> Terms:
        blocks = Blocks(t, s, of_head(mask, 2, task), causal, window, SIZE, TALL)
        along = None if distance_bias is None else xp.ascontiguousarray(of_head(distance_bias, 1, task))
        return Terms(blocks, of_head(bias, 2, task), along, dropout, task, shape, shifted, exp)

    def forward(task: Task) -> None:
        own, scratch = terms(task), Scratch(q.dtype, t, s, v.shape[-1])
        q_head, v_head = q[task.b, task.h] * (scale / unit), v[task.b, task.h]
        k_t = xp.ascontiguousarray(k[task.b, task.h].T)
        for rows in own.blocks.rows()[task.part :: task.parts]:
            mixed, tops, totals = _rows_forward(xp, own, scratch, rows, q_head, k_t, v_head)
            y[task.b, task.h, rows], level[task.b, task.h, rows] = mixed, tops + xp.log(totals) / unit

    _share(forward, tasks, threads)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g_q, g_k, g_v = (room(xp, (b, h, n, d), g.dtype) for n, d in ((t, width), (s, width), (s, v.shape[-1])))
        g_bias, g_distance = (None if x is None or not learned else xp.zeros_like(x) for x in (bias, distance_bias))
        lock = threading.Lock()  # around what several heads add to

        def backward(task: Task) -> tuple[Task, Array, Array]:
            own, at = terms(task), (task.b, task.h)
            delta = (g[at] * y[at]).sum(axis=-1, keepdims=True)
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
            arrays.g_k *= unit  # made with q / unit
            return task, arrays.g_k, arrays.g_v

        for task, g_k_part, g_v_part in _share(backward, tasks, threads):
            for whole, part in ((g_k, g_k_part), (g_v, g_v_part)):
                if task.part:
                    whole[task.b, task.h] += part
                else:
                    whole[task.b, task.h] = part
        return g_q, g_k, g_v, None, g_bias, g_distance

    return y, vjp


def _rows_forward(
    xp: Any, own: Terms, scratch: Scratch, rows: slice, q: Array, k_t: Array, v: Array
) -> tuple[Array, Array, Array]:
    """Attend with a block of queries.    → y (n, Kᵥ), shift (n,), total (n,): level = shift + ln total

    An empty row's scores are all −∞: at any level it has p = 0.
    """
    n = rows.stop - rows.start
    mixed, total = xp.zeros((n, v.shape[-1]), dtype=q.dtype), xp.zeros(n, dtype=q.dtype)
    top, shift = xp.full(n, -math.inf, dtype=q.dtype), xp.zeros(n, dtype=q.dtype)
    kept = own.kept(rows)
    for keys in own.blocks.of(rows):
        queries = own.blocks.looking(rows, keys)
        here = slice(queries.start - rows.start, queries.stop - rows.start)
        z = scratch.block(0, here.stop - here.start, keys.stop - keys.start)
        xp.matmul(q[queries], k_t[:, keys], out=z)
        own.before(z, queries, keys)
        if own.shifted:
            new_top = xp.maximum(top[here], z.max(axis=1))
            shift[here] = xp.where(new_top == -math.inf, 0.0, new_top)
            shrunk = own.exp(top[here] - shift[here])
            total[here] *= shrunk
            mixed[here] *= shrunk[:, None]
            z -= shift[here, None]
            top[here] = new_top
        own.exp(z, out=z)
        own.after(z, queries, keys)
        total[here] += z @ ones(xp, z.shape[1], z)
        if kept is not None:
            z *= kept[here, keys]
        mixed[here] += scratch.product(z, v[keys])
    empty = total == 0
    total[empty] = 1.0
    mixed *= (own.survivor / total)[:, None]
    return mixed, shift, total


class _Backward:
    """The gradients of one head's q, k and v, that grow with every block. q: in units."""

    def __init__(self, xp: Any, own: Terms, q: Array, k: Array, v: Array, g: Array, level: Array, delta: Array):
        self.xp, self.own, self.scratch = xp, own, Scratch(q.dtype, len(q), len(k), max(k.shape[1], v.shape[1]))
        self.k, self.g, self.q = k, g * own.survivor, q
        one = xp.ones((1, k.shape[0]), dtype=q.dtype)
        self.q_level, self.k_one = xp.concatenate([q, -level], axis=1), xp.concatenate([k.T, one])
        self.delta = delta if own.dropout else None  # else subtracted by the product
        self.g_delta, self.v_one = self.g, xp.ascontiguousarray(v.T)
        if not own.dropout:
            self.g_delta, self.v_one = xp.concatenate([g, -delta], axis=1), xp.concatenate([v.T, one])
        self.g_k, self.g_v = xp.zeros(k.shape, dtype=q.dtype), xp.zeros(v.shape, dtype=q.dtype)

    def blocks_of(self, rows: slice) -> Any:
        """Go through the keys of a block of queries; yield who looks, at what, and the gradient of those scores.

        At the end, g_q holds what these queries get (but for the scale).
        """
        xp, own = self.xp, self.own
        kept, product = own.kept(rows), self.scratch.product
        self.g_q = xp.zeros((rows.stop - rows.start, self.q.shape[1]), dtype=self.q.dtype)
        for keys in own.blocks.of(rows):
            queries = own.blocks.looking(rows, keys)
            here = slice(queries.start - rows.start, queries.stop - rows.start)
            p, g_z = (self.scratch.block(i, here.stop - here.start, keys.stop - keys.start) for i in (0, 1))
            xp.matmul(self.q_level[queries], self.k_one[:, keys], out=p)
            own.before(p, queries, keys)
            own.exp(p, out=p)
            own.after(p, queries, keys)
            xp.matmul(self.g_delta[queries], self.v_one[:, keys], out=g_z)
            if kept is None:
                self.g_v[keys] += product(p.T, self.g[queries])
                g_z *= p
            else:
                g_z *= kept[here, keys]
                g_z -= self.delta[queries]  # type: ignore[index]
                g_z *= p
                p *= kept[here, keys]
                self.g_v[keys] += product(p.T, self.g[queries])
            self.g_q[here] += product(g_z, self.k[keys])
            self.g_k[keys] += product(g_z.T, self.q[queries])
            yield queries, keys, g_z

"""Attention in blocks, in place, on as many threads as a product of matrices may use.

What differs from the book's page: a thread takes a head, and all products inside are its own; a row's maximum is
looked for only where the scores could overflow without it; and backwards, where p = e^(s − level), the level is one
more column of q against a row of ones below kᵀ, so that the product subtracts it, and −δ is one more column of g.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Draw
from ..ops.blockwise import Blocks, _blockwise_attention, distances, tile
from ..ops.elementwise import sum_to
from ..ops.position import sum_by_distance
from .attention import SAFE_SCORE, in_heads, room, squared_norm
from .blas import blas_threads, limit_blas_threads
from .dropout import kept_rows
from .registry import book, kernel, ones

Made = tuple[Array, Callable]
SIZE = 256  # queries, and keys: a block of scores in float32 takes half of a second cache
WORTH_THREADS = 1 << 19  # scores; below, starting a thread takes longer than it saves


class Task(NamedTuple):
    """One head of one sequence, and which share of its blocks of queries."""

    b: int
    h: int
    part: int
    parts: int


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
    """Two arrays with room for a block, so that no block asks for memory."""

    def __init__(self, dtype: Any):
        self.arrays = [np.empty(SIZE * SIZE, dtype=dtype) for _ in range(2)]

    def block(self, which: int, n: int, m: int) -> Array:
        """Return an array (n, m) of what is there."""
        return self.arrays[which][: n * m].reshape(n, m)


class Terms(NamedTuple):
    """What is added to the scores of one head, or hides them, or drops their weights."""

    blocks: Blocks
    bias: Array | None  # (t or 1, s or 1)
    distance_bias: Array | None  # (t + s − 1,)
    dropout: tuple[float, Draw] | None
    task: Task
    shape: tuple[int, ...]

    def add_to(self, z: Array, rows: slice, keys: slice) -> None:
        """Add biases to a block of scores, and put −∞ where nobody may look."""
        if self.bias is not None:
            z += tile(self.bias, rows, keys)
        if self.distance_bias is not None:
            near = self.distance_bias[distances(self.blocks.t, rows, keys)]
            step, last = near.strides[0], z.shape[0] - 1
            z += np.lib.stride_tricks.as_strided(near[last:], z.shape, (-step, step))
        allowed = self.blocks.allowed(np, rows, keys)
        if allowed is not None and not allowed.all():
            np.copyto(z, -math.inf, where=~allowed)

    def kept(self, rows: slice) -> Array | None:
        """Return which weights of a block of queries dropout keeps, (rows, s)."""
        if self.dropout is None:
            return None
        p, draw = self.dropout
        return kept_rows(draw, self.shape, p, self.task.b, self.task.h, rows)

    @property
    def survivor(self) -> float:
        """What a kept weight is multiplied by."""
        return 1.0 if self.dropout is None else 1 / (1 - self.dropout[0])


def _head(x: Array | None, axes: int, task: Task) -> Array | None:
    """Return what belongs to a head, of something that broadcasts to (B, H) and `axes` more."""
    if x is None:
        return None
    x = x.reshape((1,) * (2 + axes - x.ndim) + x.shape)
    return x[task.b if x.shape[0] > 1 else 0, task.h if x.shape[1] > 1 else 0]


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
    bound = scale * scale * squared_norm(xp, q) * squared_norm(xp, k)
    shifted = not bound <= SAFE_SCORE**2 or len(added) > (mask is not None)  # so that nan counts, too
    tasks, threads = _tasks(b, h, b * h * t * s)
    y, level = room(xp, (b, h, t, v.shape[-1]), q.dtype), xp.empty((b, h, t), dtype=q.dtype)

    def terms(task: Task) -> Terms:
        blocks = Blocks(t, s, _head(mask, 2, task), causal, window, SIZE)
        along = None if distance_bias is None else xp.ascontiguousarray(_head(distance_bias, 1, task))
        return Terms(blocks, _head(bias, 2, task), along, dropout, task, shape)

    def forward(task: Task) -> None:
        own, scratch = terms(task), Scratch(q.dtype)
        q_head, v_head = q[task.b, task.h] * scale, v[task.b, task.h]
        k_t = xp.ascontiguousarray(k[task.b, task.h].T)
        for rows in own.blocks.rows()[task.part :: task.parts]:
            mixed, sums = _rows_forward(xp, own, scratch, rows, q_head, k_t, v_head, shifted)
            y[task.b, task.h, rows], level[task.b, task.h, rows] = mixed, sums

    _share(forward, tasks, threads)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g_q, g_k, g_v = (room(xp, (b, h, n, d), g.dtype) for n, d in ((t, width), (s, width), (s, v.shape[-1])))
        g_bias, g_distance = (None if x is None or not learned else xp.zeros_like(x) for x in (bias, distance_bias))
        lock = threading.Lock()  # around what several heads add to

        def backward(task: Task) -> tuple[Task, Array, Array]:
            own, at = terms(task), (task.b, task.h)
            delta = (g[at] * y[at]).sum(axis=-1, keepdims=True)
            arrays = _Backward(xp, own, q[at] * scale, k[at], v[at], g[at], level[at][:, None], delta)
            for rows in own.blocks.rows()[task.part :: task.parts]:
                for keys, g_z in arrays.blocks_of(rows):
                    with lock:
                        if g_bias is not None:
                            to = tile(_head(g_bias, 2, task), rows, keys)
                            to += sum_to(g_z, to.shape)
                        if g_distance is not None:
                            _head(g_distance, 1, task)[distances(t, rows, keys)] += sum_by_distance(g_z)  # type: ignore[index]
                xp.multiply(arrays.g_q, scale, out=g_q[(*at, rows)])
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
    xp: Any, own: Terms, scratch: Scratch, rows: slice, q: Array, k_t: Array, v: Array, shifted: bool
) -> tuple[Array, Array]:
    """Attend with a block of queries.    → y (n, Kᵥ), and max s + ln Σ e^(s − max s) of each row (n,)"""
    n = rows.stop - rows.start
    mixed, total = xp.zeros((n, v.shape[-1]), dtype=q.dtype), xp.zeros(n, dtype=q.dtype)
    top = shift = xp.full(n, -math.inf if shifted else 0.0, dtype=q.dtype)
    kept, part = own.kept(rows), xp.empty_like(mixed)
    for keys in own.blocks.of(rows):
        z = scratch.block(0, n, keys.stop - keys.start)
        xp.matmul(q[rows], k_t[:, keys], out=z)
        own.add_to(z, rows, keys)
        if shifted:
            new_top = xp.maximum(top, z.max(axis=1))
            shift = xp.where(new_top == -math.inf, 0.0, new_top)
            shrunk = xp.exp(top - shift)
            total *= shrunk
            mixed *= shrunk[:, None]
            z -= shift[:, None]
            top = new_top
        xp.exp(z, out=z)
        total += z @ ones(xp, z.shape[1], z)
        if kept is not None:
            z *= kept[:, keys]
        mixed += xp.matmul(z, v[keys], out=part)
    empty = total == 0
    total[empty] = 1.0
    mixed *= (own.survivor / total)[:, None]
    return mixed, shift + xp.log(total)  # an empty row's scores are all −∞: any level gives it p = 0


class _Backward:
    """The gradients of one head's q, k and v, that grow with every block."""

    def __init__(self, xp: Any, own: Terms, q: Array, k: Array, v: Array, g: Array, level: Array, delta: Array):
        self.xp, self.own, self.scratch = xp, own, Scratch(q.dtype)
        self.k, self.g, self.q = k, g * own.survivor, q
        one = xp.ones((1, k.shape[0]), dtype=q.dtype)
        self.q_level, self.k_one = xp.concatenate([q, -level], axis=1), xp.concatenate([k.T, one])
        self.delta = delta if own.dropout else None  # else subtracted by the product
        self.g_delta, self.v_one = self.g, xp.ascontiguousarray(v.T)
        if not own.dropout:
            self.g_delta, self.v_one = xp.concatenate([g, -delta], axis=1), xp.concatenate([v.T, one])
        self.g_k, self.g_v = xp.zeros(k.shape, dtype=q.dtype), xp.zeros(v.shape, dtype=q.dtype)

    def blocks_of(self, rows: slice) -> Any:
        """Go through the keys of a block of queries; yield each block's keys and the gradient of its scores.

        At the end, g_q holds what these queries get (but for the scale).
        """
        xp, own, n = self.xp, self.own, rows.stop - rows.start
        kept, g_rows, q_rows = own.kept(rows), self.g[rows], self.q[rows]
        self.g_q = xp.zeros((n, self.q.shape[1]), dtype=self.q.dtype)
        for keys in own.blocks.of(rows):
            m = keys.stop - keys.start
            p, g_z = self.scratch.block(0, n, m), self.scratch.block(1, n, m)
            xp.matmul(self.q_level[rows], self.k_one[:, keys], out=p)
            own.add_to(p, rows, keys)
            xp.exp(p, out=p)
            xp.matmul(self.g_delta[rows], self.v_one[:, keys], out=g_z)
            if kept is None:
                self.g_v[keys] += xp.matmul(p.T, g_rows)
                g_z *= p
            else:
                g_z *= kept[:, keys]
                g_z -= self.delta[rows]  # type: ignore[index]
                g_z *= p
                p *= kept[:, keys]
                self.g_v[keys] += xp.matmul(p.T, g_rows)
            self.g_q += xp.matmul(g_z, self.k[keys])
            self.g_k[keys] += xp.matmul(g_z.T, q_rows)
            yield keys, g_z

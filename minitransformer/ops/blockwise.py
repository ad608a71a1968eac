"""Attention without the T×S matrix: a block of scores at a time, forwards and again backwards.

The softmax of a row needs the sum over all its keys, but it can be made while they come. After some keys there are

    m = the largest score so far        l = Σ e^(s − m)        a = Σ e^(s − m)·v

and a block of new ones changes m to m′ and multiplies l and a by e^(m − m′) before its own terms are added. At the end
y = a/l, and m + ln l, one number a row, is all that has to be kept: the backward pass makes each block of scores again
and finds p = e^(s − (m + ln l)) at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from ..backend import Array, namespace
from ..draws import Draw, next_draw
from ..tensor import as_array, primitive
from .dropout import dropout_factors
from .elementwise import sum_to
from .indexing import scatter_add
from .mask import band, band_mask, boolean, check_attention
from .position import by_distance, sum_by_distance
from .precision import all_half, lowered, narrow, wide
from .rows import row_dot, row_max, row_sum

Made = tuple[Array, Callable]
BLOCK = 128  # queries, and keys, of a block


class Blocks:
    """Which blocks of T×S there are, and which of them anybody looks at.

    causal, window: see `band`; the last query stands at the last key. A block that nobody looks at is left out.
    size: of the keys in a block, and of its queries, unless `tall` says how many those are.
    """

    def __init__(self, t: int, s: int, mask: Array | None, causal: bool, window: int, size: int = BLOCK, tall: int = 0):
        self.t, self.s, self.mask, self.causal, self.window = t, s, mask, causal, window
        self.size, self.tall = size, tall or size
        self.behind, self.ahead = band(causal, window)

    def rows(self) -> list[slice]:
        """Return the blocks of queries."""
        return [slice(i, min(i + self.tall, self.t)) for i in range(0, self.t, self.tall)]

    def columns(self) -> list[slice]:
        """Return the blocks of keys."""
        return [slice(j, min(j + self.size, self.s)) for j in range(0, self.s, self.size)]

    def reached(self, rows: slice) -> tuple[int, int]:
        """Return the first key that a block of queries may reach, and the one after the last, whatever the mask."""
        first, last = rows.start + self.s - self.t, rows.stop - 1 + self.s - self.t  # positions of the queries
        low, high = max(first + self.behind, 0), min(last + self.ahead, self.s - 1)
        return (int(low), int(high) + 1) if low <= high else (0, 0)

    def looking(self, rows: slice, keys: slice) -> slice:
        """Return which of some queries may reach any of some keys, whatever the mask; it may be none."""
        first, last = keys.start - self.ahead, keys.stop - 1 - self.behind  # positions of such queries
        offset = self.s - self.t
        start = min(max(first - offset, rows.start), rows.stop)
        return slice(int(start), int(max(start, min(last + 1 - offset, rows.stop))))

    def of(self, rows: slice) -> Iterator[slice]:
        """Yield the blocks of keys that a block of queries looks at."""
        low, high = self.reached(rows)
        near = [keys for keys in self.columns() if keys.start < high and keys.stop > low]
        seen = [keys for keys in near if self.mask is None or tile(self.mask, rows, keys).any()]
        yield from seen or self.columns()[:1]  # queries that may look nowhere find that out in one block

    def crossed(self, rows: slice, keys: slice) -> bool:
        """Tell whether causality or the window hides a part of a block."""
        offset = self.s - self.t
        nearest, farthest = keys.start - (rows.stop - 1 + offset), keys.stop - 1 - (rows.start + offset)
        return nearest < self.behind or farthest > self.ahead

    def allowed(self, xp: Any, rows: slice, keys: slice) -> Array | None:
        """Return who may look at what in a block, (..., rows, keys), or None where everybody may at everything."""
        near = None
        if self.crossed(rows, keys):
            places = xp.arange(rows.start, rows.stop) + (self.s - self.t)
            near = band_mask(places, xp.arange(keys.start, keys.stop), self.causal, self.window)
        if self.mask is None:
            return near
        own = tile(self.mask, rows, keys)
        return own if near is None else own & near


def tile(x: Any, rows: slice, keys: slice) -> Any:
    """Return a block of what broadcasts to (..., T, S).    → (..., rows, keys), of which either may be 1"""
    if x.ndim > 1 and x.shape[-2] > 1:
        x = x[..., rows, :]
    return x[..., keys] if x.shape[-1] > 1 else x


def distances(t: int, rows: slice, keys: slice) -> slice:
    """Return which of the T + S − 1 distances occur in a block."""
    return slice(keys.start - (rows.stop - 1) + t - 1, keys.stop - 1 - rows.start + t)


@primitive
def _blockwise_attention(
    xp: Any, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, distance_bias: Array | None, *,
    scale: float, causal: bool, window: int, dropout: tuple[float, Draw] | None, learned: bool, size: int = BLOCK,
) -> Made:  # fmt: skip
    t, s, half = q.shape[-2], k.shape[-2], all_half(q, k, v, bias, distance_bias)
    q, k, v = wide(q), wide(k), wide(v)  # half precision holds neither the sums of many keys nor a level of 1e4 + ln 2
    blocks = Blocks(t, s, mask, causal, window, size)
    arrays = namespace((as_array(q),))  # what makes masks, also where this runs on Tensors

    def scores(rows: slice, keys: slice) -> Array:
        z = xp.matmul(q[..., rows, :] * scale, k[..., keys, :].swapaxes(-1, -2))
        if bias is not None:
            z = z + tile(bias, rows, keys)
        if distance_bias is not None:
            near = distance_bias[..., distances(t, rows, keys)]
            z = z + by_distance(near, queries=rows.stop - rows.start)
        allowed = blocks.allowed(arrays, rows, keys)
        return z if allowed is None else xp.where(allowed, z, -math.inf)

    def kept(rows: slice) -> Array | None:
        """Return the factors of dropout for a block of queries: those that the whole T×S would have."""
        if dropout is None:
            return None
        p, draw = dropout
        return dropout_factors(as_array(q), shape=(*q.shape[:-1], s), p=p, draw=draw, part=(rows.start, rows.stop))

    outputs, levels = [], []
    for rows in blocks.rows():
        factors, top = kept(rows), None
        for keys in blocks.of(rows):
            z = scores(rows, keys)
            highest = row_max(z)
            new_top = highest if top is None else xp.maximum(top, highest)
            shift = xp.where(new_top == -math.inf, 0.0, new_top)  # nothing was allowed yet: e^(−∞ − 0) = 0
            e = xp.exp(z - shift)
            more, part = row_sum(e), xp.matmul(dropped(e, factors, keys), v[..., keys, :])
            if top is None:
                total, mixed = more, part
            else:
                shrunk = xp.exp(top - shift)
                total, mixed = total * shrunk + more, mixed * shrunk + part
            top = new_top
        safe = xp.where(total == 0, 1.0, total)
        outputs.append(mixed / safe)
        levels.append(xp.where(total == 0, math.inf, shift + xp.log(safe)))
    y = xp.concatenate(outputs, axis=-2)

    def vjp(g: Array) -> tuple[Array, Array, Array, None, Array | None, Array | None]:
        g = wide(g)
        delta = row_dot(g, y)  # Σⱼ pⱼ·(g·vⱼ)
        g_q, g_k, g_v = [], {}, {}  # type: ignore[var-annotated]
        g_bias = g_distance = None
        for rows, level in zip(blocks.rows(), levels, strict=True):
            factors, g_rows, g_q_rows = kept(rows), g[..., rows, :], None
            for keys in blocks.of(rows):
                p = xp.exp(scores(rows, keys) - level)
                g_p = dropped(xp.matmul(g_rows, v[..., keys, :].swapaxes(-1, -2)), factors, keys)
                g_z = p * (g_p - delta[..., rows, :])
                g_q_rows = _plus(g_q_rows, xp.matmul(g_z, k[..., keys, :] * scale))
                at, g_z_t, mixed_t = keys.start, g_z.swapaxes(-1, -2), dropped(p, factors, keys).swapaxes(-1, -2)
                g_k[at] = _plus(g_k.get(at), xp.matmul(g_z_t, q[..., rows, :] * scale))
                g_v[at] = _plus(g_v.get(at), xp.matmul(mixed_t, g_rows))
                if bias is not None and learned:
                    g_bias = _plus(g_bias, _put_tile(g_z, rows, keys, bias.shape))
                if distance_bias is not None and learned:
                    index, shape = (Ellipsis, distances(t, rows, keys)), distance_bias.shape
                    g_near = sum_to(sum_by_distance(g_z), (*shape[:-1], g_z.shape[-2] + g_z.shape[-1] - 1))
                    g_distance = _plus(g_distance, scatter_add(g_near, index=index, shape=shape))
            g_q.append(g_q_rows)
        g_q = sum_to(xp.concatenate(g_q, axis=-2), q.shape)
        g_k, g_v = (_put_rows(xp, parts, x, blocks.columns()) for parts, x in ((g_k, k), (g_v, v)))
        return g_q, g_k, g_v, None, g_bias, g_distance

    return narrow(y, half), vjp


def dropped(x: Any, factors: Any, keys: slice) -> Any:
    """Multiply a block by its factors of dropout, where there are any."""
    return x if factors is None else x * factors[..., keys]


def _plus(total: Any, part: Any) -> Any:
    return part if total is None else total + part


def _put_tile(g: Any, rows: slice, keys: slice, shape: tuple[int, ...]) -> Any:
    """Return the gradient of a bias of some shape: that of one block, and zero elsewhere."""
    at = [slice(None) if n == 1 else s for n, s in zip(shape[-2:], (rows, keys)[-len(shape[-2:]) :], strict=True)]
    sizes = [1 if n == 1 else s.stop - s.start for n, s in zip(shape[-2:], at, strict=True)]
    return scatter_add(sum_to(g, (*shape[:-2], *sizes)), index=(Ellipsis, *at), shape=shape)


def _put_rows(xp: Any, parts: dict[int, Any], x: Any, columns: list[slice]) -> Any:
    """Return the gradient of keys, or of values, from those of their blocks; zero where nobody looked."""
    nothing = next(iter(parts.values()))[..., :1, :] * 0.0  # with the leading axes that all of them have
    whole = [parts[c.start] if c.start in parts else nothing + x[..., c, :] * 0.0 for c in columns]
    return sum_to(xp.concatenate(whole, axis=-2), x.shape)


def blockwise_attention(
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
) -> Any:
    """Attend exactly as `scaled_dot_product_attention` does, and never hold more than a block of scores.

        y = softmax(q·kᵀ/√K + bias)·v

    q: (..., T, K), k: (..., S, K), v: (..., S, Kᵥ) → y: (..., T, Kᵥ)

    Memory grows with T + S and no longer with T·S (unless a mask or a bias of that size is given), time does not
    grow: the backward pass makes the scores once more, and saves the passes over T·S numbers in memory. Blocks that
    causality, the window or the mask empty are skipped. With one seed, dropout takes the weights that the dense op
    takes. Masks and biases broadcast to q's leading axes; an array of True and False for each query and key is T·S
    bytes, so say causal, window and distance_bias where they will do.
    Raises as `scaled_dot_product_attention` does. Milakov & Gimelshein 2018, arXiv:1805.02867 (the sum while keys
    come); Rabe & Staats 2021, arXiv:2112.05682; Dao et al. 2022, arXiv:2205.14135.
    """
    check_attention(q, k, v, distance_bias, window, dropout_p, mask, bias, causal, scale)
    if not q.shape[-2]:
        raise ValueError(f"a block holds at least a query; got {tuple(q.shape)}; leave out what is empty")
    q, k, v = lowered(q, k, v)
    dropout = (dropout_p, next_draw(q.shape[0])) if dropout_p else None
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    learned = any(getattr(x, "node", None) is not None for x in (bias, distance_bias))
    return _blockwise_attention(
        q, k, v, boolean(mask), bias, distance_bias,
        scale=scale, causal=causal, window=window, dropout=dropout, learned=learned,
    )  # fmt: skip

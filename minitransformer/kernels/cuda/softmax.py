"""Softmax with scale, mask and dropout: a launch forward and a launch backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array
from ...ops.softmax import _softmax
from ..registry import book, kernel
from .source import packed, source, suits

Made = tuple[Array, Callable]

SOURCE = source(
    "softmax",
    "softmax_forward softmax_backward",
    r"""
// softmax(scale·x) where a query may look: where a mask of any broadcast shape over (a, b, queries, keys) is true, and
// perhaps only into the past, or a window; query i stands at key i + offset. Elsewhere zeros, whatever x is there.
template <typename T>
__global__ void BY_ROWS softmax_forward(const T* x, T* y, T* mixed, const T* kept, const bool* mask, integer step_a,
                                integer step_b, integer step_query, integer step_key, int b, int queries, int causal,
                                int offset, int window, double scale, int rows, int keys) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(keys, (size_t)x | (size_t)y | (size_t)mixed | (size_t)kept);
    if (own.row >= rows) return;
    const int row = own.row, query = row % queries;
    const integer place = query + (integer)offset, start = own.row * keys;
    int low = 0, high = keys, begin = 0;  // the keys that causality and the window leave: low up to high
    if (causal) high = max(min(place + 1, (integer)high), (integer)0);
    if (window) {
        low = min(max(place - window + 1, (integer)0), (integer)high);
        high = max(min(place + window, (integer)high), (integer)low);
        begin = low / own.span * own.span;
    }
    const bool* may = mask;
    if (mask) may += row / queries / b * step_a + row / queries % b * step_b + query * step_query;
    const bool once = high - begin <= own.span;  // all that a thread looks at it holds
    const W nothing = -1 / W(0);
    W v[HELD], top = nothing;
    unsigned looks = 0;  // a bit for each of the HELD
    auto look = [&](int from) {
        own.load(x + start, from, high, nothing, v);
        looks = 0;
        for (int k = 0; k < HELD; k++) {
            const int i = own.at(from, k);
            const bool sees = i >= low && i < high && (!may || may[i * step_key]);
            looks |= (unsigned)sees << k;
            v[k] = sees ? v[k] * (W)scale : nothing;
        }
    };
    auto raise = [&]() {
        for (int k = 0; k < HELD; k++) v[k] = looks >> k & 1 ? exp(v[k] - top) : W(0);
    };
    for (int from = begin; from < high; from += own.span) {
        look(from);
        for (int k = 0; k < HELD; k++) top = v[k] > top || v[k] != v[k] ? v[k] : top;
    }
    top = block_max(top);
    if (top == nothing) top = 0;  // a row that may look nowhere
    W sum = 0;
    for (int from = begin; from < high; from += own.span) {
        if (!once) look(from);
        raise();
        for (int k = 0; k < HELD; k++) sum += v[k];
    }
    sum = block_sum(sum);
    const W share = sum == 0 ? W(0) : 1 / sum;
    for (int from = 0; from < keys; from += own.span) {
        const bool near = from >= begin && from < high;
        if (near && !once) look(from), raise();
        W p[HELD], factors[HELD];
        for (int k = 0; k < HELD; k++) p[k] = near && looks >> k & 1 ? v[k] * share : W(0);
        own.store(y + start, from, p);
        if (!kept) continue;
        own.load(kept + start, from, near ? high : 0, W(0), factors);
        for (int k = 0; k < HELD; k++) p[k] *= factors[k];
        own.store(mixed + start, from, p);
    }
}

template <typename T>
__global__ void BY_ROWS softmax_backward(const T* y, const T* g, const T* kept, T* g_x, double scale, int rows,
                                         int keys) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(keys, (size_t)y | (size_t)g | (size_t)kept | (size_t)g_x);
    if (own.row >= rows) return;
    const integer start = own.row * keys;
    const bool once = keys <= own.span;
    W p[HELD], g_p[HELD], along = 0;
    auto read = [&](int from) {
        own.load(y + start, from, keys, W(0), p);
        own.load(g + start, from, keys, W(0), g_p);
        if (!kept) return;
        W factors[HELD];
        own.load(kept + start, from, keys, W(0), factors);
        for (int k = 0; k < HELD; k++) g_p[k] *= factors[k];
    };
    for (int from = 0; from < keys; from += own.span) {
        read(from);
        for (int k = 0; k < HELD; k++) along += p[k] * g_p[k];
    }
    along = block_sum(along);
    for (int from = 0; from < keys; from += own.span) {
        if (!once) read(from);
        for (int k = 0; k < HELD; k++) p[k] *= (g_p[k] - along) * (W)scale;
        own.store(g_x + start, from, p);
    }
}
""",
)


def softmax_rows(
    scores: Array, y: Array, mask: Array | None, causal: bool, scale: float, mixed: Any = None, kept: Any = None,
    offset: int | None = None, window: int = 0,
) -> None:  # fmt: skip
    """Fill y with softmax(scale·scores) along the last axis, and mixed with y·kept.    scores: (..., T, S), S last

    offset: at which key the first query stands; by default the last query stands at the last key. mask: boolean, of up
    to four axes, broadcastable to the scores. N·S written and those read that causality and the window leave, the
    fewest; of rows beyond HELD·MOST_THREADS keys, three times.
    """
    queries, keys = scores.shape[-2], scores.shape[-1]
    steps: tuple[int, ...] = (0, 0, 0, 0)
    b = 1
    if mask is not None:
        lead = scores.shape[:-2]
        b = lead[-1] if lead else 1
        steps = _steps(mask)
    nothing = np.uintp(0)
    args = (
        scores, y, nothing if mixed is None else mixed, nothing if kept is None else kept,
        nothing if mask is None else mask, *[np.int64(s) for s in steps],
        np.int32(b), np.int32(queries), np.int32(causal),
        np.int32(keys - queries if offset is None else offset), np.int32(window), np.float64(scale),
    )  # fmt: skip
    SOURCE.by_rows("softmax_forward", scores.dtype, scores.size // keys, keys, args)


def _steps(mask: Array) -> tuple[int, ...]:
    """Return how far to go in a boolean array for each of four axes, 0 where it is repeated."""
    steps = [0] * (4 - mask.ndim)
    return tuple(steps + [s if n > 1 else 0 for n, s in zip(mask.shape, mask.strides, strict=True)])


def softmax_rows_backward(y: Array, g: Array, g_x: Array, scale: float, kept: Any = None) -> None:
    """Fill g_x with the gradient of the scores.    2·N·S read (3 with dropout), N·S written: the fewest, as above"""
    keys = y.shape[-1]
    args = (y, g, np.uintp(0) if kept is None else kept, g_x, np.float64(scale))
    SOURCE.by_rows("softmax_backward", y.dtype, y.size // keys, keys, args)


@kernel(_softmax, "cupy")
def softmax(xp: Any, x: Array, mask: Array | None, *, axis: int) -> Made:
    """Take the softmax of rows; see `softmax_rows`. Along other axes, and with masks of five or more, the book's."""
    plain = mask is not None and (mask.ndim > x.ndim or mask.ndim > 4 or x.ndim < 2 or x.ndim > 4)
    if not suits(x) or axis not in (-1, x.ndim - 1) or plain:
        return book(_softmax)(xp, x, mask, axis=axis)
    y, rows = xp.empty_like(x), x if x.ndim > 1 else x[None]
    softmax_rows(rows, y, mask, causal=False, scale=1.0)

    def vjp(g: Array) -> tuple[Array, None]:
        g_x = xp.empty_like(y)
        softmax_rows_backward(y, packed(xp, g), g_x, 1.0)
        return g_x, None

    return y, vjp

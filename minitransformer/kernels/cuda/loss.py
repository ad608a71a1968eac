"""The logarithm of a softmax, and the loss: a launch forward and a launch backward each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...ops.softmax import _cross_entropy
from ...ops.softmax import log_softmax as log_softmax_op
from ..registry import book, kernel
from .source import packed, source, suits

Made = tuple[Array, Callable]

SOURCE = source(
    "loss",
    "log_softmax_forward log_softmax_backward loss_forward loss_backward",
    r"""
// ln Σ eˣ of a row, with its maximum in front; its threads all get it. v: what they hold of the row's last span.
template <typename T, typename W> __device__ W log_of_sum(const Rows<T>& own, const T* x, W* v) {
    const W nothing = -1 / W(0);
    W top = nothing, sum = 0;
    for (int from = 0; from < own.width; from += own.span) {
        own.load(x, from, own.width, nothing, v);
        for (int k = 0; k < HELD; k++) top = v[k] > top || v[k] != v[k] ? v[k] : top;
    }
    top = block_max(top);
    for (int from = 0; from < own.width; from += own.span) {
        if (own.width > own.span) own.load(x, from, own.width, nothing, v);
        for (int k = 0; k < HELD; k++) sum += own.at(from, k) < own.width ? exp(v[k] - top) : W(0);
    }
    return top + log(block_sum(sum));
}

template <typename T> __global__ void BY_ROWS log_softmax_forward(const T* x, T* y, int rows, int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)x | (size_t)y);
    if (own.row >= rows) return;
    x += own.row * width, y += own.row * width;
    W v[HELD];
    const W level = log_of_sum(own, x, v);
    for (int from = 0; from < width; from += own.span) {
        if (width > own.span) own.load(x, from, width, W(0), v);
        for (int k = 0; k < HELD; k++) v[k] -= level;
        own.store(y, from, v);
    }
}

template <typename T>
__global__ void BY_ROWS log_softmax_backward(const T* y, const T* g, T* g_x, int rows, int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)y | (size_t)g | (size_t)g_x);
    if (own.row >= rows) return;
    y += own.row * width, g += own.row * width, g_x += own.row * width;
    W g_y[HELD], v[HELD], sum = 0;
    for (int from = 0; from < width; from += own.span) {
        own.load(g, from, width, W(0), g_y);
        own.load(y, from, width, W(0), v);  // while the sum is made
        for (int k = 0; k < HELD; k++) sum += g_y[k];
    }
    sum = block_sum(sum);
    for (int from = 0; from < width; from += own.span) {
        if (width > own.span) own.load(g, from, width, W(0), g_y), own.load(y, from, width, W(0), v);
        for (int k = 0; k < HELD; k++) g_y[k] -= exp(v[k]) * sum;
        own.store(g_x, from, g_y);
    }
}

template <typename T>
__global__ void BY_ROWS loss_forward(const T* x, const T* wanted, T* losses, typename Wide<T>::type* levels, int rows,
                                     int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)x | (size_t)wanted);
    if (own.row >= rows) return;
    x += own.row * width, wanted += own.row * width;
    W v[HELD], q[HELD], sum = 0;
    own.load(wanted, 0, width, W(0), q);  // while the level is made
    const W level = log_of_sum(own, x, v);
    for (int from = 0; from < width; from += own.span) {
        if (from) own.load(wanted, from, width, W(0), q);
        if (width > own.span) own.load(x, from, width, W(0), v);
        for (int k = 0; k < HELD; k++) sum += own.at(from, k) < width ? q[k] * (level - v[k]) : W(0);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        losses[own.row] = T(sum);
        levels[own.row] = level;
    }
}

template <typename T>
__global__ void BY_ROWS loss_backward(const T* x, const T* wanted, const typename Wide<T>::type* levels, const T* g,
                                      T* g_x, int rows, int width) {
    typedef typename Wide<T>::type W;
    const Rows<T> own(width, (size_t)x | (size_t)wanted | (size_t)g_x);
    if (own.row >= rows) return;
    x += own.row * width, wanted += own.row * width, g_x += own.row * width;
    const W level = levels[own.row], g_row = (W)g[own.row];
    W v[HELD], q[HELD], weight = 0;
    for (int from = 0; from < width; from += own.span) {
        own.load(wanted, from, width, W(0), q);
        own.load(x, from, width, W(0), v);
        for (int k = 0; k < HELD; k++) weight += q[k];
    }
    weight = block_sum(weight);
    for (int from = 0; from < width; from += own.span) {
        if (width > own.span) own.load(wanted, from, width, W(0), q), own.load(x, from, width, W(0), v);
        for (int k = 0; k < HELD; k++) v[k] = g_row * (exp(v[k] - level) * weight - q[k]);
        own.store(g_x, from, v);
    }
}
""",
)


@kernel(log_softmax_op, "cupy")
def log_softmax(xp: Any, x: Array, *, axis: int = -1) -> Made:
    """Take the logarithm of a softmax of rows.    N·D read and written forwards, 2·N·D and N·D backwards: the fewest

    For rows that their threads hold, as in `softmax_rows`; longer ones are read again.
    """
    if not suits(x) or axis not in (-1, x.ndim - 1):
        return book(log_softmax_op)(xp, x, axis=axis)
    width, y = x.shape[-1], xp.empty_like(x)
    rows = x.size // width
    SOURCE.by_rows("log_softmax_forward", x.dtype, rows, width, (x, y))

    def vjp(g: Array) -> tuple[Array]:
        g_x = xp.empty_like(y)
        SOURCE.by_rows("log_softmax_backward", y.dtype, rows, width, (y, packed(xp, g), g_x))
        return (g_x,)

    return y, vjp


@kernel(_cross_entropy, "cupy")
def cross_entropy(xp: Any, logits: Array, wanted: Array) -> Made:
    """Compute −Σ q·ln p by rows.    2·N·V read and N written forwards, 2·N·V read and N·V written backwards

    Kept: the logits themselves and one number a row. The gradient of `wanted`, which nobody has asked for yet, is the
    book's.
    """
    if not suits(logits, wanted) or logits.shape != wanted.shape:
        return book(_cross_entropy)(xp, logits, wanted)
    width, shape = logits.shape[-1], logits.shape
    rows = logits.size // width
    losses = xp.empty(shape[:-1], dtype=logits.dtype)
    levels = xp.empty(rows, dtype="f8" if logits.dtype.char == "d" else "f4")
    SOURCE.by_rows("loss_forward", logits.dtype, rows, width, (logits, wanted, losses, levels))

    def vjp(g: Array) -> tuple[Array, None]:
        g_x = xp.empty(shape, dtype=logits.dtype)
        args = (logits, wanted, levels, packed(xp, g), g_x)
        SOURCE.by_rows("loss_backward", logits.dtype, rows, width, args)
        return g_x, None

    return losses, vjp

"""From scores to probabilities, and from probabilities to a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array, backend_of, namespace
from ..tensor import as_array, primitive
from .mask import boolean
from .precision import all_half, narrow, raised, wide
from .rows import row_dot, row_max, row_sum

Made = tuple[Array, Callable]


@primitive
def _softmax(xp: Any, x: Array, mask: Array | None, *, axis: int) -> Made:
    half, x = all_half(x), wide(x)  # the sum of a row has no place in half precision
    if mask is not None:
        x = xp.where(mask, x, -math.inf)
    top = row_max(x, axis)
    top = xp.where(top == -math.inf, 0.0, top)  # a row that may look nowhere: e^(−∞ − 0) = 0
    e = xp.exp(x - top)
    total = row_sum(e, axis)
    y = narrow(e / xp.where(total == 0, 1.0, total), half)

    def vjp(g: Array) -> tuple[Array, None]:
        return through_softmax(y, g, axis), None

    return y, vjp


def through_softmax(y: Any, g: Any, axis: int = -1) -> Any:
    """Return the gradient of what the shares y were made from: y·(g − Σ g·y).    (..., N), (..., N) → (..., N)"""
    half, y, g = all_half(y), wide(y), wide(g)
    return narrow(y * (g - row_dot(g, y, axis)), half)


def softmax(x: Any, axis: int = -1, mask: Any = None) -> Any:
    """Turn scores into shares that are positive and sum to 1 along an axis.

        y = e^(x − max x) / Σ e^(x − max x)

    x: (..., N) → y: (..., N).    mask: boolean, broadcastable to x; False elements get exactly 0.

    Subtracting the maximum changes nothing but the overflow. A row whose mask is False throughout gives zeros,
    and zero gradient. Raises TypeError for a mask that is not boolean.
    """
    return _softmax(x, boolean(mask), axis=axis)


@primitive
def log_softmax(xp: Any, x: Array, *, axis: int = -1) -> Made:
    """Take the logarithm of softmax without leaving the logarithm: x − max x − ln Σ e^(x − max x).

    x: (..., N) → (..., N)
    """
    half, x = all_half(x), wide(x)
    z = x - row_max(x, axis)
    y = z - xp.log(row_sum(xp.exp(z), axis))

    def vjp(g: Array) -> tuple[Array]:
        g = wide(g)
        return (g - xp.exp(y) * row_sum(g, axis),)

    return narrow(y, half), vjp


@primitive
def _cross_entropy(xp: Any, logits: Array, wanted: Array) -> Made:
    z = logits - row_max(logits)
    log_p = z - xp.log(row_sum(xp.exp(z)))

    def vjp(g: Array) -> tuple[Array, Array]:
        g_row = g.reshape((*g.shape, 1))
        return g_row * (xp.exp(log_p) * row_sum(wanted) - wanted), -g_row * log_p

    return -(wanted * log_p).sum(axis=-1), vjp


def check_loss(label_smoothing: float, reduction: str) -> None:
    """Raise ValueError for settings of a loss that do not exist."""
    if not 0 <= label_smoothing <= 1 or reduction not in ("mean", "sum", "none"):
        raise ValueError(
            "label_smoothing lies in 0 … 1 and reduction is mean, sum or none; "
            f"got {label_smoothing} and {reduction!r}; correct it"
        )


def real_targets(xp: Any, target: Array, classes: int, ignore_index: int) -> tuple[Array, Array]:
    """Return which targets count, and the targets with 0 for those that do not.    integers (...) → (...), (...)

    Raises ValueError for one out of range, on the host; a GPU is not waited for.
    """
    counts = target != ignore_index
    safe = xp.where(counts, target, 0)
    if backend_of(target) == "numpy" and safe.size and (safe.min() < 0 or safe.max() >= classes):
        bad = safe.min() if safe.min() < 0 else safe.max()
        raise ValueError(
            f"targets lie in 0 … {classes - 1} (or are ignore_index={ignore_index}); got {bad}; check the vocabulary"
        )
    return counts, safe


def cross_entropy(
    logits: Any,
    target: Any,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Any = None,
    reduction: str = "mean",
) -> Any:
    """Measure the surprise at the right classes, in nats per token.

        loss = −Σ_c w_c·q_c·ln p_c,    p = softmax(logits),    q = (1 − ε)·onehot(target) + ε/V

    logits: (..., V), target: integers (...) or probabilities (..., V) → a number; (...) with reduction="none"

    Targets equal to ignore_index count for nothing. "mean" divides by Σ w[target] over the targets that count (by
    their number, for probabilities), as PyTorch does; where none counts the loss is 0, and PyTorch's is NaN. Classes
    are the last axis here, the second in PyTorch. Raises ValueError for shapes, settings or classes out of range.
    Label smoothing: Szegedy et al. 2016, arXiv:1512.00567.
    """
    data, logits = as_array(target), raised(logits)
    half, logits = all_half(logits), wide(logits)
    classes, soft = logits.shape[-1], data.dtype.kind == "f"
    if data.shape != (logits.shape if soft else logits.shape[:-1]):
        raise ValueError(
            "cross_entropy needs logits (..., V) and target, integers (...) or probabilities (..., V); "
            f"got {logits.shape} and {data.shape} of {data.dtype}; classes go last"
        )
    xp = namespace((as_array(logits), data))
    check_loss(label_smoothing, reduction)
    if soft:
        counts, safe, one_hot = xp.ones(logits.shape[:-1], dtype=bool), None, data
    else:
        counts, safe = real_targets(xp, data, classes, ignore_index)
        one_hot = (safe[..., None] == xp.arange(classes)) * counts[..., None]
    q = one_hot.astype(logits.dtype) * (1 - label_smoothing) + (label_smoothing / classes) * counts[..., None].astype(
        logits.dtype
    )
    if weight is not None:
        if weight.shape != (classes,):
            raise ValueError(
                f"weight gives one number for each class; got {weight.shape} for {classes} classes; pass (V,)"
            )
        weight = as_array(weight)
        q = q * weight.astype(logits.dtype)
    losses = _cross_entropy(logits, q)
    if reduction == "none":
        return narrow(losses, half)
    if reduction == "sum":
        return narrow(losses.sum(), half)
    shares = counts if weight is None or soft else counts * xp.take(weight, safe)
    total = shares.sum().astype(logits.dtype)
    return narrow(losses.sum() / xp.where(total == 0, xp.ones_like(total), total), half)

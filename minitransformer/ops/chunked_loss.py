"""The last layer and its loss in one op, some rows at a time: with a large vocabulary, logits are what fills memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, namespace
from ..tensor import as_array, primitive
from .precision import all_half, is_autocast, lowered, narrow, wide
from .rows import row_max, row_sum
from .softmax import check_loss, real_targets

Made = tuple[Array, Callable]


@primitive
def _linear_cross_entropy(
    xp: Any, x: Array, weight: Array, target: Array, counts: Array, *, smoothing: float, chunk: int
) -> Made:
    pieces = [slice(i, min(i + chunk, x.shape[0])) for i in range(0, x.shape[0], chunk)]
    classes, half = weight.shape[0], all_half(x, weight)  # then products are half, and all that adds up is float32
    places = namespace((target,)).arange(classes)

    def wanted(rows: slice, dtype: Any) -> Array:
        """Return the distribution that is asked for, a row for each token; zeros for one that is ignored."""
        one_hot = (target[rows, None] == places).astype(dtype)
        return (one_hot * (1 - smoothing) + smoothing / classes) * counts[rows, None].astype(dtype)

    def shifted_logits(rows: slice) -> Array:
        z = wide(xp.matmul(x[rows], weight.swapaxes(0, 1)))
        return z - row_max(z)

    losses = []
    for rows in pieces:
        z = shifted_logits(rows)
        log_p = z - xp.log(row_sum(xp.exp(z)))
        losses.append(-(log_p * wanted(rows, z.dtype)).sum(axis=-1))

    def vjp(g: Array) -> tuple[Array, Array, None, None]:
        g_x, g_weight = [], None
        for rows in pieces:
            e = xp.exp(shifted_logits(rows))
            q = wanted(rows, e.dtype)
            p = e / row_sum(e)
            g_z = narrow((p * row_sum(q) - q) * g[rows].reshape((-1, 1)), half)
            g_x.append(xp.matmul(g_z, weight))
            part = xp.matmul(g_z.swapaxes(0, 1), x[rows])
            g_weight = part if g_weight is None else g_weight + part
        return xp.concatenate(g_x, axis=0), g_weight, None, None

    return xp.concatenate(losses, axis=0), vjp


def linear_cross_entropy(
    x: Any, weight: Any, target: Any, ignore_index: int = -100, label_smoothing: float = 0.0, reduction: str = "mean",
    chunk: int = 1024,
) -> Any:  # fmt: skip
    """Measure `cross_entropy(linear(x, weight), target)` without ever holding the logits of more than a chunk of rows.

        loss = −Σ_v q_v·ln softmax(x·weightᵀ)_v

    x: (..., D), weight: (V, D), target: integers (...) → () for reduction "mean" or "sum", (...) for "none"

    In nats per token. The logits of N tokens are N·V numbers, and the plain loss keeps several such arrays; here there
    are chunk·V at a time, made once more in the backward pass, for a third product of matrices more. Arguments are
    those of `cross_entropy`. Raises ValueError for shapes and settings, and for targets that are none.
    Losses in chunks are common practice, of no one paper. Wijmans et al. 2024, arXiv:2411.09009, go further: their
    kernels keep no logits in the memory of a GPU at all.
    """
    if x.shape[:-1] != target.shape or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        came = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"needs x (..., D), weight (V, D) and target (...); got {came}; match D, and the tokens")
    if target.dtype.kind not in "iu":
        came = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(
            f"target is integers (...); got {came}; write target.astype(int), cross_entropy for probabilities"
        )
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk is a number of rows of at least 1; got {chunk!r}; write chunk=1024")
    check_loss(label_smoothing, reduction)
    target = as_array(target)
    xp = namespace((as_array(x), target))
    counts, safe = real_targets(xp, target, weight.shape[0], ignore_index)
    x, weight = lowered(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    losses = _linear_cross_entropy(
        rows, weight, safe.reshape(-1), counts.reshape(-1), smoothing=label_smoothing, chunk=chunk
    )
    half = all_half(x, weight) and not is_autocast()
    if reduction == "none":
        return narrow(losses.reshape(target.shape), half)
    if reduction == "sum":
        return narrow(losses.sum(), half)
    return narrow(losses.sum() / xp.maximum(counts.sum(), 1).astype(losses.dtype), half)

"""Products: matrix by matrix, a linear layer, and Einstein's summation for all the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import primitive
from .elementwise import sum_to
from .precision import lowered
from .rows import sum_of_rows

Made = tuple[Array, Callable]


@primitive
def _matmul(xp: Any, a: Array, b: Array) -> Made:
    def vjp(g: Array) -> tuple[Array, Array]:
        g_a = xp.matmul(g, b.swapaxes(-1, -2))
        g_b = xp.matmul(a.swapaxes(-1, -2), g)
        return sum_to(g_a, a.shape), sum_to(g_b, b.shape)

    return xp.matmul(a, b), vjp


def matmul(a: Any, b: Any) -> Any:
    """Multiply matrices over the last two axes; the axes before them broadcast. A vector stands for one row or column.

    a: (..., N, M), b: (..., M, P) → (..., N, P)

    Raises ValueError when the inner sizes differ or one of them has no axis.
    """
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"matmul needs (..., N, M) and (..., M, P); got {a.shape} and {b.shape}; transpose one of them"
        )
    a, b = lowered(a, b)
    y = _matmul(a.reshape(1, -1) if a.ndim == 1 else a, b.reshape(-1, 1) if b.ndim == 1 else b)
    if a.ndim == 1:
        y = y.reshape(*y.shape[:-2], y.shape[-1])
    return y.reshape(y.shape[:-1]) if b.ndim == 1 else y


@primitive
def _linear(xp: Any, x: Array, weight: Array, bias: Array | None) -> Made:
    rows = x.reshape(-1, x.shape[-1])  # one large product instead of many small ones
    y = xp.matmul(rows, weight.swapaxes(0, 1))
    if bias is not None:
        y += bias

    def vjp(g: Array) -> tuple[Array, Array, Array | None]:
        g_rows = g.reshape(-1, g.shape[-1])
        g_x = xp.matmul(g_rows, weight).reshape(x.shape)
        g_weight = xp.matmul(g_rows.swapaxes(0, 1), rows)
        return g_x, g_weight, None if bias is None else sum_of_rows(g_rows)

    return y.reshape((*x.shape[:-1], weight.shape[0])), vjp


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Apply one matrix, and perhaps a bias, to every row: y = x·weightᵀ + bias.

    x: (..., D), weight: (F, D), bias: (F,) or None → y: (..., F)

    Raises ValueError when the sizes do not meet.
    """
    if (
        weight.ndim != 2
        or not x.ndim
        or x.shape[-1] != weight.shape[1]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        came = f"x {x.shape}, weight {weight.shape}" + ("" if bias is None else f", bias {bias.shape}")
        raise ValueError(f"linear needs x (..., D), weight (F, D), bias (F,); got {came}; weight is (out, in)")
    return _linear(*lowered(x, weight, bias))


@primitive
def _einsum(xp: Any, *arrays: Array, inputs: tuple[str, ...], output: str) -> Made:
    def vjp(g: Array) -> tuple[Array, ...]:
        grads = []
        for i, own in enumerate(inputs):
            others = [(s, a) for j, (s, a) in enumerate(zip(inputs, arrays, strict=True)) if j != i]
            reach = output + "".join(s for s, _ in others)
            met = "".join(c for c in own if c in reach)  # a letter nobody else has was summed: its gradient repeats
            g_own = einsum(",".join([output, *[s for s, _ in others]]) + "->" + met, g, *[a for _, a in others])
            kept = tuple(n if c in reach else 1 for c, n in zip(own, arrays[i].shape, strict=True))
            grads.append(xp.broadcast_to(g_own.reshape(kept), arrays[i].shape))
        return tuple(grads)

    if hasattr(arrays[0], "data") and any(hasattr(a, "node") for a in arrays):
        return _einsum(*arrays, inputs=inputs, output=output), vjp
    return xp.einsum(",".join(inputs) + "->" + output, *arrays, optimize=True), vjp


def einsum(subscripts: str, *arrays: Any) -> Any:
    """Multiply arrays along named axes and sum over the letters that the output does not have.

    einsum("bqk,bsk->bqs", q, s): (B, Q, K), (B, S, K) → (B, Q, S)

    The output is written out ("->"); a letter comes once in each operand. Raises ValueError otherwise.
    """
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = tuple(left.split(","))
    letters = "".join(inputs)
    if not arrow or len(inputs) != len(arrays) or any(len(s) != a.ndim for s, a in zip(inputs, arrays, strict=False)):
        shapes = [tuple(a.shape) for a in arrays]
        raise ValueError(
            f"einsum needs one group of letters for each array, then ->; got {subscripts!r} for {shapes}; "
            "write 'ij,jk->ik'"
        )
    if any(len(set(s)) != len(s) for s in (*inputs, output)) or not set(output) <= set(letters):
        raise ValueError(
            f"einsum takes a letter once in each operand, and out only what came in; got {subscripts!r}; "
            "take the diagonal first"
        )
    return _einsum(*arrays, inputs=inputs, output=output)

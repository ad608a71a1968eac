"""Positions that turn: each pair of a query's numbers is rotated by an angle that grows with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..tensor import as_array, primitive

Made = tuple[Array, Callable]
PAIRINGS = ("halves", "neighbours")


def _turned(xp: Any, x: Any, cos: Any, sin: Any, pairing: str) -> Any:
    if pairing == "halves":
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return xp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


@primitive
def _rotary(xp: Any, x: Array, cos: Array, sin: Array, *, pairing: str) -> Made:
    def vjp(g: Array) -> tuple[Array, None, None]:
        return _turned(xp, g, cos, -sin, pairing), None, None  # turned back: a rotation's transpose is its inverse

    return _turned(xp, x, cos, sin, pairing), vjp


def rotary(x: Any, cos: Any, sin: Any, pairing: str = "halves") -> Any:
    """Rotate pairs of numbers, each position by its own angles.

        (a, b) → (a·cos − b·sin, a·sin + b·cos)

    x: (..., T, K), cos, sin: (T, K/2) → (..., T, K)

    pairing: "halves" pairs number i with i + K/2, as Llama's published weights want; "neighbours" pairs 2i with
    2i + 1, as in the paper. One is the other with its numbers in another order, so that weights fit one alone.
    Raises ValueError for another name, an odd K, or angles of another shape. Su et al. 2021, arXiv:2104.09864.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is one of {', '.join(PAIRINGS)}; got {pairing!r}; write pairing='halves'")
    wanted = (x.shape[-2], x.shape[-1] // 2)
    if x.shape[-1] % 2 or cos.shape != wanted or sin.shape != wanted:
        came = f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
        raise ValueError(f"rotary needs x (..., T, K) with an even K, cos and sin (T, K/2); got {came}; match them")
    cos, sin = (as_array(a).astype(x.dtype, copy=False) for a in (cos, sin))  # constants: they widen nothing
    return _rotary(x, cos, sin, pairing=pairing)

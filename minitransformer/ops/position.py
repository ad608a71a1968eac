"""Positions inside attention: pairs of numbers that turn with their place, and biases that depend on a distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, namespace
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


def check_pairing(pairing: Any, name: str = "pairing") -> None:
    """Raise ValueError for a way to make pairs that does not exist."""
    if pairing not in PAIRINGS:
        raise ValueError(f"{name} is one of {', '.join(PAIRINGS)}; got {pairing!r}; write {name}={PAIRINGS[0]}")


def rotary(x: Any, cos: Any, sin: Any, pairing: str = "halves") -> Any:
    """Rotate pairs of numbers, each position by its own angles.

        (a, b) → (a·cos − b·sin, a·sin + b·cos)

    x: (..., T, K), cos, sin: (T, K/2) → (..., T, K)

    pairing: "halves" pairs number i with i + K/2, as Llama's published weights want; "neighbours" pairs 2i with
    2i + 1, as in the paper. One is the other with its numbers in another order, so that weights fit one alone.
    Raises ValueError for another name, an odd K, or angles of another shape. Su et al. 2021, arXiv:2104.09864.
    """
    check_pairing(pairing)
    wanted = (x.shape[-2], x.shape[-1] // 2)
    if x.shape[-1] % 2 or cos.shape != wanted or sin.shape != wanted:
        came = f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
        raise ValueError(f"rotary needs x (..., T, K) with an even K, cos and sin (T, K/2); got {came}; match them")
    cos, sin = (as_array(a).astype(x.dtype, copy=False) for a in (cos, sin))  # constants: they widen nothing
    return _rotary(x, cos, sin, pairing=pairing)


@primitive
def by_distance(xp: Any, x: Array, *, queries: int) -> Made:
    """Give each query and key the number that belongs to their distance: y[i, j] = x[j − i + T − 1].

    x: (..., T + S − 1) → (..., T, S), where T = queries

    A matrix that is constant along its diagonals (a Toeplitz matrix): all that a relative position can say.
    """
    keys = x.shape[-1] - queries + 1
    places = namespace((as_array(x),)).arange(max(queries, keys))
    index = places[None, :keys] - places[:queries, None] + (queries - 1)

    def vjp(g: Array) -> tuple[Array]:
        return (sum_by_distance(g),)

    return x[..., index], vjp


@primitive
def sum_by_distance(xp: Any, x: Array) -> Made:
    """Add up each diagonal: y[d] = Σ x[i, j] over all j − i + T − 1 = d; the transpose of `by_distance`.

    x: (..., T, S) → (..., T + S − 1)

    With the rows in reverse order, each is to be shifted by one more than the one before. T zeros behind every row,
    read again as rows that are one shorter, do that.
    """
    *lead, queries, keys = x.shape
    rows = x[..., ::-1, :]
    wide = xp.concatenate([rows, xp.broadcast_to(x[..., :1, :1] * 0, (*lead, queries, queries))], axis=-1)
    flat = wide.reshape((*lead, queries * (keys + queries)))[..., : queries * (keys + queries - 1)]

    def vjp(g: Array) -> tuple[Array]:
        return (by_distance(g, queries=queries),)

    return flat.reshape((*lead, queries, keys + queries - 1)).sum(axis=-2), vjp

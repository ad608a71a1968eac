"""Where am I? Attention alone cannot tell the order of its inputs, so each position adds a mark of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from .. import backend, ops
from ..ops.position import check_pairing
from ..tensor import as_array
from . import init
from .module import Module


def _check_length(end: int, limit: int) -> None:
    if end > limit:
        raise ValueError(
            f"positions go up to max_length={limit}; got a sequence of {end}; shorten it or raise max_length"
        )


def _places(start: Any, length: int, limit: int) -> Any:
    """Return where a sequence stands in a table: a slice, or, where each row has a start of its own, indices (B, T).

    A start below 0 is that of a row padded at its left: what pads stands at 0, and nobody looks at it.
    """
    if isinstance(start, int):
        _check_length(start + length, limit)
        return slice(start, start + length)
    _check_length(int(start.max()) + length, limit)
    xp = backend.namespace((start,))
    return xp.maximum(start[:, None] + xp.arange(length), 0)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return the table of sinusoidal positions, float64.    → (length, width)

        table[t, 2i] = sin(t / 10000^(2i/D))        table[t, 2i + 1] = cos(t / 10000^(2i/D))

    A shift by a fixed offset is a rotation of each pair. Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    angle = np.arange(length)[:, None] * np.exp(-math.log(10000) * np.arange(0, width, 2) / width)
    table = np.empty((length, width))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : width // 2])
    return table


class _Sent:
    """Tables that are the same at each step, kept where they are used, so that they go to a GPU once."""

    most = 64

    def __init__(self) -> None:
        self.tables: dict[tuple, Any] = {}

    def get(self, like: Any, key: tuple, make: Callable[[], np.ndarray]) -> Any:
        """Return a table on the backend of `like`, made now if it is new."""
        where = backend.backend_of(as_array(like))
        if (where, *key) not in self.tables:
            if len(self.tables) >= self.most:  # lengths that come and go
                self.tables.clear()
            self.tables[where, *key] = backend.to_backend(make(), where)
        return backend.keep(self.tables[where, *key])


class SinusoidalPositions(Module):
    """Add fixed waves to a sequence: y = x + table[start : start + T].

    x: (B, T, D), start: a number, or one for each row (B,) → (B, T, D).    Raises ValueError beyond max_length.
    """

    def __init__(self, max_length: int, width: int):
        self.table = sinusoids(max_length, width)
        self._tables = _Sent()

    def forward(self, x: Any, start: Any = 0) -> Any:
        places = _places(start, x.shape[-2], len(self.table))
        data = x.data if hasattr(x, "node") else x
        table = self._tables.get(data, (data.dtype.char,), lambda: self.table.astype(data.dtype))
        return x + table[places]


class LearnedPositions(Module):
    """Add a learned vector for each position: y = x + weight[start : start + T].

    x: (B, T, D), start: a number, or one for each row (B,) → (B, T, D).    weight: (max_length, D), normal.

    Raises ValueError beyond max_length. Gehring et al. 2017, arXiv:1705.03122, section 3.1.
    """

    def __init__(self, max_length: int, width: int, std: float = 0.02):
        self.weight = init.normal((max_length, width), std)

    def forward(self, x: Any, start: Any = 0) -> Any:
        places = _places(start, x.shape[-2], self.weight.shape[0])
        return x + (self.weight[places] if isinstance(places, slice) else ops.embedding(places, self.weight))


class RotaryPositions(Module):
    """Rotate queries and keys, so that their product depends on how far apart they are and on nothing else.

        angle[t, i] = t/scaling · base^(−2i/K)        see `ops.rotary`

    x: (..., T, K) → (..., T, K); the first row stands at position `start`.

    pairing: "halves" (Llama's weights) or "neighbours" (the paper). scaling > 1 squeezes longer texts into the
    positions that were trained on (Chen et al. 2023, arXiv:2306.15595). Raises ValueError for an odd K, settings that
    turn nothing, or beyond max_length. Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(
        self, width: int, max_length: int, base: float = 10000.0, pairing: str = "halves", scaling: float = 1.0
    ):
        if width < 2 or width % 2:
            raise ValueError(f"rotary positions turn pairs; got a width of {width} a head; write heads for an even one")
        if not all(isinstance(n, Real) and 0 < n < math.inf for n in (base, scaling)):
            came = f"{base!r} and {scaling!r}"
            raise ValueError(f"base and scaling are positive numbers; got {came}; write base=10000, scaling=1")
        check_pairing(pairing)
        angle = np.arange(max_length)[:, None] / scaling * base ** (-np.arange(0, width, 2) / width)
        self.pairing, self.cos, self.sin = pairing, np.cos(angle), np.sin(angle)
        self._tables = _Sent()

    def forget_tables(self) -> None:
        """Forget what was sent to where queries live, after cos or sin have been changed."""
        self._tables.tables.clear()

    def forward(self, x: Any, start: int = 0) -> Any:
        end = start + x.shape[-2]
        _check_length(end, len(self.cos))
        data = as_array(x)
        both = self._tables.get(data, (data.dtype.char,), lambda: np.stack([self.cos, self.sin]).astype(data.dtype))
        return ops.rotary(x, both[0, start:end], both[1, start:end], self.pairing)


def alibi_slopes(heads: int) -> list[float]:
    """Return how steeply each head forgets with distance: 2^(−8/H), 2^(−16/H), ... for a power of two.

    For other H, those of the power of two below, and every other one of the power above (as the authors' code does).
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


def _check_heads(heads: Any) -> None:
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ValueError(f"a bias is for at least one head; got {heads!r}; write heads=4")


class AlibiBias(Module):
    """Make each head care less for what is farther: bias[h, i, j] = −slopeₕ·|i − j|, and nothing is learned.

    (T, S) → by distance (H, T + S − 1), see `ops.by_distance`; the last query stands at the last key. Where no look
    ahead is allowed, this is the paper's bias; in an encoder both sides fade alike. Raises ValueError below one head.
    Press et al. 2021, arXiv:2108.12409.
    """

    def __init__(self, heads: int):
        _check_heads(heads)
        self.slopes = np.array(alibi_slopes(heads))
        self._tables = _Sent()

    @property
    def heads(self) -> int:
        """For how many heads it makes a bias."""
        return len(self.slopes)

    def forward(self, queries: int, keys: int, like: Any) -> Any:
        def bias() -> np.ndarray:
            return (-self.slopes[:, None] * np.abs(distances(queries, keys))).astype(like.dtype)

        return self._tables.get(like, (queries, keys, like.dtype.char), bias)


def distances(queries: int, keys: int) -> np.ndarray:
    """Return how far ahead of a query a key may stand: all that occur, the last query at the last key.    → (T+S−1,)"""
    return np.arange(1 - keys, queries)


def relative_buckets(ahead: np.ndarray, buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Return the bucket of each distance between a query and a key: exact nearby, then ever wider.    (...) → int (...)

    Half of the buckets (of each direction) are for the distances 0, 1, 2, ...; the others grow as a logarithm up to
    max_distance, and the last holds all beyond. Without `bidirectional` keys after the query share bucket 0.
    """
    if bidirectional:
        buckets //= 2
        offset, distance = (ahead > 0) * buckets, np.abs(ahead)
    else:
        offset, distance = np.zeros_like(ahead), np.maximum(-ahead, 0)
    exact = buckets // 2
    far = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    return offset + np.where(distance < exact, distance, np.minimum(exact + far.astype(int), buckets - 1))


class RelativeBias(Module):
    """Learn, for each head, a bias for each bucket of distances.

    (T, S) → by distance (H, T + S − 1), see `ops.by_distance`; the last query stands at the last key.
    weight: (buckets, H), as in T5.

    Raises ValueError below one head, for fewer than 4 buckets or a max_distance that they reach exactly. Raffel et al.
    2019, arXiv:1910.10683, section 2.1.
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True):
        _check_heads(heads)
        if buckets < 4 or max_distance <= buckets // 2:
            raise ValueError(
                f"relative positions have at least 4 buckets, and a max_distance beyond them; got {buckets} and "
                f"{max_distance}; write buckets=32, max_distance=128"
            )
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.weight = init.normal((buckets, heads), 0.02)
        self._tables = _Sent()

    @property
    def heads(self) -> int:
        """For how many heads it makes a bias."""
        return int(self.weight.shape[1])

    def forward(self, queries: int, keys: int, like: Any = None) -> Any:
        def buckets() -> np.ndarray:
            return relative_buckets(distances(queries, keys), self.buckets, self.max_distance, self.bidirectional)

        ids = self._tables.get(self.weight, (queries, keys), buckets)
        return ops.embedding(ids, self.weight).transpose(1, 0)


class NoPositions(Module):
    """Add nothing: to see what a Transformer cannot do without positions.    (B, T, D) → (B, T, D)"""

    def forward(self, x: Any, start: Any = 0) -> Any:
        return x

"""Where am I? Attention alone cannot tell the order of its inputs, so each position adds a mark of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import backend
from . import init
from .module import Module


def _check_length(end: int, limit: int) -> None:
    if end > limit:
        raise ValueError(
            f"positions go up to max_length={limit}; got a sequence of {end}; shorten it or raise max_length"
        )


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


class SinusoidalPositions(Module):
    """Add fixed waves to a sequence: y = x + table[start : start + T].

    x: (B, T, D) → (B, T, D).    Raises ValueError beyond max_length.
    """

    def __init__(self, max_length: int, width: int):
        self.table = sinusoids(max_length, width)
        self._tables: dict[tuple[str, str], Any] = {}  # the same, by backend and dtype: sent to a GPU once

    def forward(self, x: Any, start: int = 0) -> Any:
        _check_length(start + x.shape[-2], len(self.table))
        data = x.data if hasattr(x, "node") else x
        kind = backend.backend_of(data), data.dtype.char
        if kind not in self._tables:
            self._tables[kind] = backend.to_backend(self.table.astype(data.dtype), kind[0])
        return x + self._tables[kind][start : start + x.shape[-2]]


class LearnedPositions(Module):
    """Add a learned vector for each position: y = x + weight[start : start + T].

    x: (B, T, D) → (B, T, D).    weight: (max_length, D), normal.    Raises ValueError beyond max_length.
    """

    def __init__(self, max_length: int, width: int, std: float = 0.02):
        self.weight = init.normal((max_length, width), std)

    def forward(self, x: Any, start: int = 0) -> Any:
        _check_length(start + x.shape[-2], self.weight.shape[0])
        return x + self.weight[start : start + x.shape[-2]]


class NoPositions(Module):
    """Add nothing: to see what a Transformer cannot do without positions.    (B, T, D) → (B, T, D)"""

    def forward(self, x: Any, start: int = 0) -> Any:
        return x

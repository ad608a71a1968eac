"""Sums and maxima of rows: Σ x, Σ a·b and max x along an axis, which stays with size 1; and sums over all rows.

For rows as short as a head's scores NumPy's own reductions take up to five times as long as the calls here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import backend_of
from .precision import all_half, narrow, wide

LONGEST = 1024  # numbers; of more, NumPy's sum is as fast, and adds pairs up, which rounds less


def _on_host(x: Any) -> bool:
    """Tell whether this is an array of NumPy: no Tensor, and not on a GPU."""
    return not hasattr(x, "node") and backend_of(x) == "numpy"


def _is_short(x: Any, axis: int) -> bool:
    return _on_host(x) and axis in (-1, x.ndim - 1) and x.shape[-1] <= LONGEST


def row_sum(x: Any, axis: int = -1) -> Any:
    """Add up.    x: (..., N) → (..., 1)"""
    return np.einsum("...n->...", x)[..., None] if _is_short(x, axis) else x.sum(axis=axis, keepdims=True)


def row_dot(a: Any, b: Any, axis: int = -1) -> Any:
    """Multiply and add up.    a, b: (..., N) → (..., 1)"""
    return np.einsum("...n,...n->...", a, b)[..., None] if _is_short(a, axis) else (a * b).sum(axis=axis, keepdims=True)


def row_mean(x: Any) -> Any:
    """Average.    x: (..., N) → (..., 1)"""
    return row_sum(x) / x.shape[-1]


def row_max(x: Any, axis: int = -1) -> Any:
    """Take the largest; of no number at all it is −∞.    x: (..., N) → (..., 1)"""
    if not _on_host(x):
        return x.max(axis=axis, keepdims=True)
    return x.max(axis=axis, keepdims=True, initial=-math.inf)  # else it begins at the second number, off the vectors


def sum_of_rows(x: Any) -> Any:
    """Add all rows up.    x: (..., N) → (N,)"""
    half, rows = all_half(x), wide(x).reshape(-1, x.shape[-1])
    return narrow(np.einsum("in->n", rows) if _on_host(x) else rows.sum(axis=0), half)


def sum_of_products(a: Any, b: Any) -> Any:
    """Multiply rows and add all up.    a, b: (..., N) → (N,)"""
    if not _on_host(a):
        return sum_of_rows(a * b)
    return np.einsum("in,in->n", a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))

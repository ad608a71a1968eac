"""Products of a tall matrix, cut up where BLAS is faster at small ones (see `blas.unpacked`).

The matrices have to lie in memory row by row: an operand whose rows are far apart costs more than a cut gains.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from .blas import blas_threads, unpacked
from .registry import on_lines, ones

FEWEST = 16  # rows worth a product of their own
PANEL = 64  # columns
PAYS = 128  # rows for which copying the panels pays
WORKING_SET = 2 << 20  # bytes of the three matrices; larger ones gain nothing


def rows_at_once(rows: int, each: int) -> int:
    """Return how many rows to multiply at a time, a divisor of their count; 0 for all of them.

    each: multiplications that a row takes. Where BLAS may use several threads it is left to do so.
    """
    return _rows_at_once(rows, each) if blas_threads() == 1 else 0


@functools.lru_cache(maxsize=1024)
def _rows_at_once(rows: int, each: int) -> int:
    limit = unpacked()
    if rows * each <= limit or FEWEST * each > limit:
        return 0
    return next((many for many in range(limit // each, FEWEST - 1, -1) if rows % many == 0), 0)


def by_rows(xp: Any, a: Array, out: Array) -> Callable[[Array], Array]:
    """Return b ↦ a·b, made in `out`, for one `a` and many b.    a: (..., N, K), b: (..., K, M), out: (..., N, M)"""
    (*stack, n, inner), m = a.shape, out.shape[-1]
    many = rows_at_once(n, inner * m)
    if not many:
        return lambda b: xp.matmul(a, b, out=out)
    rows, to = a.reshape(*stack, -1, many, inner), out.reshape(*stack, -1, many, m)

    def product(b: Array) -> Array:
        xp.matmul(rows, b[..., None, :, :], out=to)
        return out

    return product


def in_panels(xp: Any, a: Array, b: Array, out: Array | None = None) -> Array:
    """Return a·b, some rows and PANEL columns at a time, if that is faster.    a: (N, K), b: (K, M) → (N, M)

    The columns of each panel are copied, so that they lie by themselves; that takes enough rows to pay.
    """
    (n, inner), m = a.shape, b.shape[1]
    many = _panel_rows(n, inner, m, a.itemsize) if blas_threads() == 1 else 0
    if not many or not a.flags.c_contiguous:
        return xp.matmul(a, b, out=out)
    panels = xp.ascontiguousarray(b.reshape(inner, -1, PANEL).swapaxes(0, 1))
    y = on_lines(xp, (n, m), a.dtype) if out is None else out
    xp.matmul(a.reshape(-1, 1, many, inner), panels, out=y.reshape(-1, many, m // PANEL, PANEL).swapaxes(1, 2))
    return y


@functools.lru_cache(maxsize=256)
def _panel_rows(n: int, inner: int, m: int, itemsize: int) -> int:
    """Return how many rows to take at a time; 0 where a product is better left whole."""
    large = (n * inner + inner * m + n * m) * itemsize > WORKING_SET
    return 0 if m % PANEL or n < PAYS or large else _rows_at_once(n, inner * PANEL)


def by_columns(xp: Any, a: Array, b: Array) -> Array:
    """Return aᵀ·b, a few columns of `a` at a time.    a: (N, K), b: (N, M) → (K, M)"""
    many = rows_at_once(a.shape[1], b.size)
    if not many:
        return xp.matmul(a.T, b)
    columns = a.reshape(len(a), -1, many).transpose(1, 2, 0)
    return xp.matmul(columns, b).reshape(a.shape[1], b.shape[1])


@functools.lru_cache(maxsize=64)
def most_parts(n: int, k: int, m: int) -> int:
    """Return how many parts `of_transposed` adds up at most, of up to N rows."""
    return max((rows // many for rows in range(1, n + 1) if (many := _rows_at_once(rows, k * m))), default=0)


def of_transposed(xp: Any, a: Array, b: Array, out: Array, room: Array) -> Callable[[], Array]:
    """Return a function that makes aᵀ·b in `out`.    a: (..., N, K), b: (..., N, M), out: (..., K, M)

    room: flat, for the parts that are added up, which is a product with ones.
    """
    (*stack, n, k), m = a.shape, b.shape[-1]
    many = rows_at_once(n, k * m)
    if not many:
        return lambda: xp.matmul(a.swapaxes(-1, -2), b, out=out)
    count = n // many
    parts = room[: math.prod(stack) * count * k * m].reshape(*stack, count, k, m)
    left, right = a.reshape(*stack, count, -1, k).swapaxes(-1, -2), b.reshape(*stack, count, -1, m)
    along, flat, to = ones(xp, count, a), parts.reshape(*stack, count, k * m), out.reshape(*stack, k * m)

    def product() -> Array:
        xp.matmul(left, right, out=parts)
        xp.matmul(along, flat, out=to)
        return out

    return product

"""Products of a tall matrix, cut up where BLAS is faster at small ones (see `blas.unpacked`).

The matrices have to lie in memory row by row: an operand whose rows are far apart costs more than a cut gains.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from ..backend import Array
from .blas import unpacked
from .registry import ones

FEWEST = 16  # rows worth a product of their own


@functools.lru_cache(maxsize=1024)
def rows_at_once(rows: int, each: int) -> int:
    """Return how many rows to multiply at a time, a divisor of their count; 0 for all of them.

    each: multiplications that a row takes.
    """
    limit = unpacked()
    if rows * each <= limit or FEWEST * each > limit:
        return 0
    return next((many for many in range(limit // each, FEWEST - 1, -1) if rows % many == 0), 0)


def multiply(xp: Any, a: Array, b: Array, out: Array) -> Array:
    """Return a·b, made in `out`.    a: (..., N, K), b: (..., K, M) → (..., N, M)"""
    (*stack, n, inner), m = a.shape, b.shape[-1]
    many = rows_at_once(n, inner * m)
    if not many:
        return xp.matmul(a, b, out=out)
    xp.matmul(a.reshape(*stack, -1, many, inner), b[..., None, :, :], out=out.reshape(*stack, -1, many, m))
    return out


def parts_of_transposed(n: int, k: int, m: int) -> int:
    """Return how many parts `multiply_transposed` adds up; 0 for none.    sizes: as there"""
    many = rows_at_once(n, k * m)
    return n // many if many else 0


def multiply_transposed(xp: Any, a: Array, b: Array, out: Array, room: Array) -> Array:
    """Return aᵀ·b, made in `out`.    a: (..., N, K), b: (..., N, M) → (..., K, M)

    room: flat, for the parts that are added up, which is a product with ones.
    """
    (*stack, n, k), m = a.shape, b.shape[-1]
    count = parts_of_transposed(n, k, m)
    if not count:
        return xp.matmul(a.swapaxes(-1, -2), b, out=out)
    parts = room[: math.prod(stack) * count * k * m].reshape(*stack, count, k, m)
    xp.matmul(a.reshape(*stack, count, -1, k).swapaxes(-1, -2), b.reshape(*stack, count, -1, m), out=parts)
    xp.matmul(ones(xp, count, a), parts.reshape(*stack, count, k * m), out=out.reshape(*stack, k * m))
    return out

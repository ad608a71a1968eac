"""Which op has which kernel."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import keep, on_record

KERNELS: dict[tuple[str, str], Callable] = {}  # (op, backend) → body
LINE = 64  # bytes
ALIGNED = 256 * 1024  # bytes; for less the calls that find a line cost more than they save
MOST_ONES = 256  # vectors of ones
WIDE = 256  # elements: rows from here on are worth a loop of their own


def _second_cache() -> int:
    """Return the bytes of a core's second cache; a megabyte where the system does not tell."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 1 << 20


SECOND_CACHE = _second_cache()
# of each array in a blocked loop: a few of them fit into the second cache together
BLOCK_BYTES = min(max(SECOND_CACHE // 8, 128 * 1024), 256 * 1024)


def kernel(op: Any, backend: str = "numpy") -> Callable[[Callable], Callable]:
    """Register a function as the body of `op` on a backend."""

    def register(body: Callable) -> Callable:
        op.kernels[backend] = KERNELS[op.__name__, backend] = body
        return body

    return register


def book(op: Any) -> Callable:
    """Return the plain body of an op, for what a kernel was not made for."""
    return op.body


def rows_of(x: Any) -> bool:
    """Tell whether x is single or double precision and lies in memory row by row."""
    return x.dtype.char in "fd" and x.flags.c_contiguous and x.ndim > 0 and x.size > 0


def ones(xp: Any, n: int, like: Any, kept: dict[Any, Any] = {}) -> Any:  # noqa: B006  (a cache)
    """Return a vector of n ones in the dtype of `like`; a product with it adds up.    → (n,)"""
    key = (xp.__name__, n, like.dtype.char)
    found = kept.get(key)
    if found is None:
        if len(kept) > MOST_ONES:  # sizes that come and go, such as the lengths of sentences
            kept.clear()
        found = kept[key] = xp.ones(n, dtype=like.dtype)
    return keep(found)


def on_lines(xp: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an empty array that begins where a line of cache does, unless it is small.

    A vector that is written across two lines takes twice as long, and what `empty` returns begins in the middle of one.
    It is a view of something a little longer.
    """
    size, itemsize = math.prod(shape), np.dtype(dtype).itemsize
    if size * itemsize < ALIGNED:
        return xp.empty(shape, dtype=dtype)
    longer = xp.empty(size + LINE // itemsize, dtype=dtype)
    first = -longer.ctypes.data % LINE // itemsize
    return longer[first : first + size].reshape(shape)


class _RowByRow(contextlib.AbstractContextManager):
    def __enter__(self) -> None:
        self.before = np.setbufsize(WIDE)
        on_record(np.setbufsize, WIDE)

    def __exit__(self, *exception: Any) -> None:
        np.setbufsize(self.before)
        on_record(np.setbufsize, self.before)


def row_by_row(width: int) -> contextlib.AbstractContextManager[None]:
    """Let NumPy work on wide rows as they are when one number belongs to each, or one row to all.

    By itself it copies such operands into a buffer of 8,192 elements, which costs more than a loop a row.
    """
    return _RowByRow() if width >= WIDE else contextlib.nullcontext()

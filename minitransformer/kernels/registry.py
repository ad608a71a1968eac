"""Which op has which kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KERNELS: dict[tuple[str, str], Callable] = {}  # (op, backend) → body

BLOCK_BYTES = 128 * 1024  # of each array in a blocked loop: a few of them fit into the second cache together


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
        if len(kept) > 256:  # sizes that come and go, such as the lengths of sentences
            kept.clear()
        found = kept[key] = xp.ones(n, dtype=like.dtype)
    return found

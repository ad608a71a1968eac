"""Mixed precision: products in half the bits, everything that adds up or normalises in float32.

Half precision has 11 significant bits and ends at 65,504. A product of matrices bears that, and a GPU does it several
times faster; sums over rows, softmax, LayerNorm, the loss and the weights themselves do not, and stay in float32.
Small gradients would become zero, so the loss is multiplied by a large number first (`optim.GradScaler`).
Micikevicius et al. 2017, arXiv:1710.03740.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

HALF, SINGLE = "e", "f"  # the characters by which arrays name the two types


class _Products(threading.local):
    """In which type products are made, for each thread on its own."""

    dtype: str | None = None


_products = _Products()


@contextlib.contextmanager
def autocast(enabled: bool = True) -> Iterator[None]:
    """Make products of float32 matrices in half precision inside a `with` block; float64 is left alone.

    What `linear`, `matmul` and attention give is then half, too; `cross_entropy` turns its logits back.
    """
    before, _products.dtype = _products.dtype, HALF if enabled else None
    try:
        yield
    finally:
        _products.dtype = before


def is_autocast() -> bool:
    """Tell whether products are made in half precision here."""
    return _products.dtype is not None


def lowered(*values: Any) -> tuple[Any, ...]:
    """Return what a product is made of: in half precision inside `autocast`, else as it is."""
    if _products.dtype is None:
        return values
    return tuple([_as(v, HALF) if v is not None and v.dtype.char == SINGLE else v for v in values])


def raised(value: Any) -> Any:
    """Return what is to be added up: inside `autocast`, half precision as float32."""
    return _as(value, SINGLE) if _products.dtype is not None and value.dtype.char == HALF else value


def wide(value: Any) -> Any:
    """Return as float32 what is half, for the inside of an op: half precision has no room for 70,000 ones, or 300²."""
    return _as(value, SINGLE) if value.dtype.char == HALF else value


def all_half(*values: Any) -> bool:
    """Tell whether the arrays among the values are half precision, and so what is made of them is to be, too."""
    return all(v is None or v.dtype.char == HALF for v in values)


def narrow(value: Any, half: bool) -> Any:
    """Return what was made of `wide` numbers: in half precision if all inputs were (see `all_half`), else as it is."""
    return _as(value, HALF) if half else value


def _as(value: Any, dtype: str) -> Any:
    return value.to(dtype) if hasattr(value, "node") else value.astype(dtype)

"""Forget at random, so that no unit can rely on one other."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, backend_of, random_words, to_backend
from ..tensor import as_array


def dropout_mask(shape: tuple[int, ...], p: float, like: Array) -> Array:
    """Draw the factors of dropout: 0 with chance p, else 1/(1 − p), so that the mean stays 1.    → shape, as `like`

    Each element takes 32 random bits; row i of the first axis takes its own stretch of the stream, so that a batch
    gets the same mask however it is split. The numbers come from the host's generator: one seed gives the same mask
    on every backend. Raises ValueError unless 0 ≤ p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write 0.1")
    rows = shape[0] if shape else 1
    size = math.prod(shape[1:])
    words = random_words(rows, (size + 1) // 2)  # 64 bits each: two elements
    kept = words.view("uint32")[:, :size] >= round(p * 2**32)
    mask = kept.reshape(shape).astype(like.dtype)
    mask *= 1 / (1 - p)
    return to_backend(mask, backend_of(like))


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """Set each element to 0 with chance p and multiply the others by 1/(1 − p); outside training, do nothing.

    x: (...) → (...)

    Raises ValueError unless 0 ≤ p < 1. Srivastava et al. 2014, Journal of Machine Learning Research 15.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write 0.1")
    return x * dropout_mask(x.shape, p, as_array(x)) if training and p else x

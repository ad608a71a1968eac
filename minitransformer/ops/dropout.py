"""Forget at random, so that no unit can rely on one other."""

from __future__ import annotations

from typing import Any

from ..backend import Array, backend_of, generator, to_backend
from ..tensor import as_array


def dropout_mask(shape: tuple[int, ...], p: float, like: Array) -> Array:
    """Draw the factors of dropout: 0 with chance p, else 1/(1 − p), so that the mean stays 1.    → shape, as `like`

    The numbers come from the host's generator: one seed gives the same mask on every backend.
    Raises ValueError unless 0 ≤ p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write 0.1")
    kept = generator().random(shape, dtype="float32") >= p
    return to_backend(kept.astype(like.dtype) * (1 / (1 - p)), backend_of(like)).astype(like.dtype, copy=False)


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """Set each element to 0 with chance p and multiply the others by 1/(1 − p); outside training, do nothing.

    x: (...) → (...)

    Raises ValueError unless 0 ≤ p < 1. Srivastava et al. 2014, Journal of Machine Learning Research 15.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write 0.1")
    return x * dropout_mask(x.shape, p, as_array(x)) if training and p else x

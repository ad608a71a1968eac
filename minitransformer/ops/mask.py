"""Where attention may look: masks that are made from positions, and what is refused at its door."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..tensor import as_array


def band(causal: bool, window: int) -> tuple[float, float]:
    """Return how far behind itself (a negative number) and how far ahead a query may look; ∞ for no limit.

    A window of W holds W keys with the query's own position among them, and as many ahead where that is allowed.
    """
    behind = -math.inf if not window else 1 - window
    return behind, 0 if causal else -behind


def band_mask(queries: Any, keys: Any, causal: bool, window: int) -> Array:
    """Return which query may look at which key.    positions: integers (T,) and (S,) → boolean (T, S)"""
    behind, ahead = band(causal, window)
    apart = keys[None, :] - queries[:, None]
    return (apart >= behind) & (apart <= ahead)


def causal_mask(queries: int, keys: int, xp: Any) -> Array:
    """Return the mask under which a query sees itself and what came before it.    → boolean (T, S)

    The queries are the last T of the S positions, so that a query with a cache behind it sees all of the cache:
    query i may look at keys 0 … i + (S − T). (PyTorch's is_causal counts from the front when T ≠ S.)
    """
    return band_mask(xp.arange(queries) + (keys - queries), xp.arange(keys), causal=True, window=0)


def boolean(mask: Any) -> Array | None:
    """Return a mask as an array. Raises TypeError for one that is not boolean."""
    mask = as_array(mask)
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"a mask is boolean, True = may look; got {mask.dtype}; write mask.astype(bool)")
    return mask


def check_attention(q: Any, k: Any, v: Any, distance_bias: Any = None, window: int = 0, dropout_p: float = 0.0) -> None:
    """Raise ValueError for shapes and settings that attention has no meaning for."""
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        came = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"attention needs q (..., T, K), k (..., S, K), v (..., S, Kv); got {came}; match K, and S")
    if not k.shape[-2]:
        raise ValueError(f"attention needs at least a key; got k {tuple(k.shape)}; leave out what is empty")
    distances = q.shape[-2] + k.shape[-2] - 1
    if distance_bias is not None and distance_bias.shape[-1] != distances:
        came = f"{tuple(distance_bias.shape)} for {distances} distances"
        raise ValueError(f"distance_bias has a number for each distance, (..., T + S - 1); got {came}; make it longer")
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(f"window is a number of keys, 0 for all; got {window!r}; write window=128")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={dropout_p}; write 0.1")

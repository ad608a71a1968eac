"""Where attention may look: masks that are made from positions, and what is refused at its door."""

from __future__ import annotations

import math
from numbers import Real
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
    """Return a mask as an array. Raises TypeError for one that is none, or not boolean."""
    mask = as_array(mask)
    _is_array("mask", mask)
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"a mask is boolean, True = may look; got {mask.dtype}; write mask.astype(bool)")
    return mask


def _is_array(name: str, value: Any) -> None:
    """Raise TypeError for a list of numbers where an array belongs."""
    if value is not None and not hasattr(value, "dtype"):
        raise TypeError(f"a {name} is an array; got a {type(value).__name__}; write np.array({name})")


def check_attention(
    q: Any, k: Any, v: Any, distance_bias: Any = None, window: int = 0, dropout_p: float = 0.0, mask: Any = None,
    bias: Any = None, causal: bool = False, scale: float | None = None,
) -> None:  # fmt: skip
    """Raise ValueError for shapes and settings that attention has no meaning for."""
    of_q, of_k, of_v = q.shape, k.shape, v.shape  # asked for once: this stands before every attention
    if min(len(of_q), len(of_k), len(of_v)) < 2 or of_q[-1] != of_k[-1] or of_k[-2] != of_v[-2]:
        came = f"{tuple(of_q)}, {tuple(of_k)}, {tuple(of_v)}"
        raise ValueError(f"attention needs q (..., T, K), k (..., S, K), v (..., S, Kv); got {came}; match K, and S")
    t, s, lead = of_q[-2], of_k[-2], of_q[:-2]
    if not s:
        raise ValueError(f"attention needs at least a key; got k {tuple(of_k)}; leave out what is empty")
    if not lead == of_k[:-2] == of_v[:-2]:
        lead = _shared_lead(of_q, of_k, of_v)
    for name, x in (("mask", mask), ("bias", bias)):
        _is_array(name, x)
        if x is not None and not _broadcasts(x.shape, (*lead, t, s)):
            came = f"{tuple(x.shape)} for scores {(*lead, t, s)}"
            raise ValueError(f"a {name} broadcasts to (..., T, S), in each axis 1 or all; got {came}; match its axes")
    if distance_bias is not None:
        _check_distance_bias(distance_bias.shape, lead, t + s - 1)
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(f"window is a number of keys, 0 for all; got {window!r}; write window=128")
    if causal not in (True, False):
        raise ValueError(f"causal is True or False; got {causal!r}; write causal=True")
    if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale)):
        raise ValueError(f"scale is a number, None for 1/√K; got {scale!r}; leave it out")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout drops a share 0 <= p < 1; got p={dropout_p}; write 0.1")


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...], least: int = 1) -> bool:
    """Tell whether an array of a shape, of so many axes at least, can be repeated until it has the whole one."""
    extra = len(whole) - len(shape)
    return least <= len(shape) and extra >= 0 and all(n in (1, w) for n, w in zip(shape, whole[extra:], strict=True))


def _check_distance_bias(shape: tuple[int, ...], lead: tuple[int, ...], distances: int) -> None:
    if not _broadcasts(shape[:-1], lead, 0):
        came = f"{tuple(shape)} for heads {tuple(lead)}"
        raise ValueError(f"distance_bias (..., T + S - 1) has q's leading axes, or 1; got {came}; make one a head")
    if shape[-1:] != (distances,):
        came = f"{tuple(shape)} for {distances} distances"
        raise ValueError(f"distance_bias has a number for each distance, (..., T + S - 1); got {came}; make it longer")


def _shared_lead(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the leading axes that those of q, k and v broadcast to. Raises ValueError where they do not."""
    leads = [shape[:-2] for shape in shapes]
    axes = max(map(len, leads))
    columns = zip(*[(1,) * (axes - len(lead)) + tuple(lead) for lead in leads], strict=True)
    lead = tuple([next((n for n in column if n != 1), 1) for column in columns])
    if not all(_broadcasts(own, lead, 0) for own in leads):
        came = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"attention needs q, k and v of the same leading axes, or 1; got {came}; match them")
    return lead

"""Attention without a softmax: a sum that can be kept, so that the cost of a token does not depend on how many came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, namespace
from ..tensor import as_array, primitive
from .elementwise import where
from .mask import boolean, causal_mask, check_attention
from .precision import all_half, autocast, narrow, wide
from .rows import row_sum
from .shape import concatenate

CHUNK = 64  # queries whose scores among themselves are made at once
TOGETHER = 64  # chunks that are computed side by side


@primitive
def positive_features(xp: Any, x: Array) -> tuple[Array, Callable]:
    """Make each number positive: φ(x) = elu(x) + 1, that is x + 1 above 0 and eˣ below.    x: (...) → (...)"""
    above = x > 0
    y = xp.where(above, x + 1, xp.exp(xp.where(above, 0.0, x)))

    def vjp(g: Array) -> tuple[Array]:
        return (g * xp.where(above, 1.0, y),)

    return y, vjp


def _features(q: Any, k: Any, key_mask: Any) -> tuple[Any, Any]:
    """Return φ(q) and φ(k), zero for keys that are hidden."""
    q, k, key_mask = positive_features(q), positive_features(k), as_array(key_mask)
    return q, k if key_mask is None else where(key_mask[..., None], k, 0.0)


def _check(q: Any, k: Any, v: Any, key_mask: Any, causal: bool) -> None:
    check_attention(q, k, v, causal=causal)
    if causal and q.shape[-2] > k.shape[-2]:
        came = f"{q.shape[-2]} and {k.shape[-2]}"
        raise ValueError(f"causal linear attention needs at least a key for each query; got {came}; leave queries out")
    boolean(key_mask)


def _shares(mixed: Any, total: Any) -> Any:
    """Divide by the sum of the weights; where there are none, nothing was mixed either."""
    return mixed / where(as_array(total) == 0, 1.0, total)


def linear_attention(q: Any, k: Any, v: Any, key_mask: Any = None, causal: bool = False, chunk: int = CHUNK) -> Any:
    """Mix the values by φ(q)·φ(k) in the place of e^(q·k): an approximation of nothing, but a cheap attention.

        yᵢ = φ(qᵢ)·Σⱼ φ(kⱼ)ᵀvⱼ / φ(qᵢ)·Σⱼ φ(kⱼ)        φ(x) = elu(x) + 1;    causal: j up to i

    q: (..., T, K), k: (..., S, K), v: (..., S, Kᵥ) → (..., T, Kᵥ);    key_mask: (..., S), True = a real token

    The sums are matrices (K, Kᵥ), made once; time and memory are those of T·K·Kᵥ and no longer of T·S. Its weights are
    smoother than a softmax's and cannot be all but one-hot. Causal sums grow chunk by chunk of queries, many of
    which are computed at once; inside a chunk scores are made. The last query stands at the last key. Half precision is
    added up in float32.
    Raises ValueError for shapes and settings, TypeError for a mask that is not boolean. Katharopoulos et al. 2020,
    arXiv:2006.16236 (whose code adds 1e-6 to the denominator; here a row without keys gives zeros).
    """
    _check(q, k, v, key_mask, causal)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk is a number of queries of at least 1; got {chunk!r}; write chunk={CHUNK}")
    with autocast(False):
        y = _mix(*_features(wide(q), wide(k), key_mask), wide(v), causal, chunk)
    return narrow(y, all_half(q, k, v))


def _mix(q: Any, k: Any, v: Any, causal: bool, chunk: int) -> Any:
    """Mix the values by products of features."""
    t, s = q.shape[-2], k.shape[-2]
    if not causal:
        return _shares(q @ (k.swapaxes(-1, -2) @ v), q @ k.sum(axis=-2, keepdims=True).swapaxes(-1, -2))
    arrays, past, outputs = namespace((as_array(q),)), s - t, []  # past: keys that all queries see
    v = concatenate([v, arrays.ones((*v.shape[:-1], 1), dtype=v.dtype)], axis=-1)  # its sums are the denominators
    state = k[..., :past, :].swapaxes(-1, -2) @ v[..., :past, :]
    for first in range(0, t, chunk * TOGETHER):
        last = min(first + chunk * TOGETHER, t)
        queries, keys, size = slice(first, last), slice(past + first, past + last), min(chunk, last - first)
        q_i, k_i, v_i = (_in_chunks(x, size, arrays) for x in (q[..., queries, :], k[..., keys, :], v[..., keys, :]))
        scores = where(causal_mask(size, size, arrays), q_i @ k_i.swapaxes(-1, -2), 0.0)
        sums = k_i.swapaxes(-1, -2) @ v_i  # of each chunk                            (..., C, K, Kᵥ + 1)
        flat, count = sums.reshape(*sums.shape[:-2], -1), sums.shape[-3]
        before = causal_mask(count, count, arrays).astype(q.dtype) - arrays.eye(count, dtype=q.dtype)
        states = (before @ flat).reshape(*sums.shape) + state[..., None, :, :]  # of all keys before each chunk
        mixed = scores @ v_i + q_i @ states
        mixed = mixed.reshape(*mixed.shape[:-3], -1, v.shape[-1])[..., : last - first, :]
        outputs.append(_shares(mixed[..., :-1], mixed[..., -1:]))
        state = state + sums.sum(axis=-3)
    return concatenate(outputs, axis=-2)


def _in_chunks(x: Any, size: int, arrays: Any) -> Any:
    """Cut into chunks, of which the last is filled up with zeros.    (..., T, K) → (..., C, size, K)"""
    missing = -x.shape[-2] % size
    if missing:
        x = concatenate([x, arrays.zeros((*x.shape[:-2], missing, x.shape[-1]), dtype=x.dtype)], axis=-2)
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def linear_attention_weights(q: Any, k: Any, key_mask: Any = None, causal: bool = False) -> Any:
    """Return the weights that `linear_attention` never makes, to look at.    (..., T, K), (..., S, K) → (..., T, S)"""
    _check(q, k, k, key_mask, causal)
    q, k = _features(q, k, key_mask)
    scores = q @ k.swapaxes(-1, -2)
    if causal:
        scores = where(causal_mask(q.shape[-2], k.shape[-2], namespace((as_array(q),))), scores, 0.0)
    return _shares(scores, row_sum(scores))

"""Solutions of lesson 14."""

import numpy as np


def merge(m1, l1, a1, m2, l2, a2):
    """Bring both parts to the larger m, and add."""
    m = np.maximum(m1, m2)
    shrink1, shrink2 = np.exp(m1 - m), np.exp(m2 - m)
    return m, shrink1 * l1 + shrink2 * l2, shrink1 * a1 + shrink2 * a2


def spread_heads(k, heads):
    """Repeat each head for its neighbours."""
    return np.repeat(k, heads // k.shape[1], axis=1)


def window_mask(queries, keys, window):
    """Count how far each key lies behind each query."""
    back = np.arange(keys - queries, keys)[:, None] - np.arange(keys)
    return (back >= 0) & (back < window)


def causal_linear_attention(q, k, v):
    """Walk along the text with a running matrix and a running vector."""
    q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    state = np.zeros((k.shape[1], v.shape[1]), v.dtype)
    norm = np.zeros(k.shape[1], k.dtype)
    y = np.empty_like(v)
    for i in range(len(q)):
        state += np.outer(k[i], v[i])
        norm += k[i]
        y[i] = q[i] @ state / (q[i] @ norm)
    return y


SOLUTIONS = {
    "14.1": merge,
    "14.2": spread_heads,
    "14.3": window_mask,
    "14.4": causal_linear_attention,
}

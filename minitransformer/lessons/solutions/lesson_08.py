"""Solutions of lesson 08."""

import numpy as np


def scores(q, k):
    """Multiply each query by each key, and divide by the square root of how many numbers a query has."""
    return q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5


def causal_mask(queries, keys):
    """Let the last query stand at the last key, and look at nothing that lies ahead."""
    places = np.arange(queries)[:, None] + (keys - queries)
    return np.arange(keys)[None, :] <= places


def weights(scores, mask):
    """Take only what may be seen into the maximum and into the sum; where nothing may be, give zeros."""
    seen = np.where(mask, scores, -np.inf)
    top = seen.max(axis=-1, keepdims=True)
    e = np.exp(seen - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def attention_vjp(q, k, v, p, g):
    """Go back through mix, softmax and scores."""
    g_p = g @ v.T
    g_scores = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True)) / q.shape[-1] ** 0.5
    return g_scores @ k, g_scores.T @ q, p.T @ g


SOLUTIONS = {"08.1": scores, "08.2": causal_mask, "08.3": weights, "08.4": attention_vjp}

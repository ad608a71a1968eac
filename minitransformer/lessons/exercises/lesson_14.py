"""Lesson 14, cheaper attention: the online softmax, shared heads, windows, linear attention."""

import numpy as np

from ... import ops
from ...ops.mask import band_mask
from ..exercise import exercise


def _parts(rng):
    """Make what two parts of three rows' keys leave behind; in each seed both parts have some of the largest scores."""
    made = []
    for size in (5, 2):
        s, v = 2 * rng.standard_normal((3, size)), rng.standard_normal((size, 4))
        m = s.max(axis=1, keepdims=True)
        e = np.exp(s - m)
        made += [m, e.sum(axis=1, keepdims=True), e @ v]
    made[3] = made[0] + np.array([[0.7], [-0.9], [1.3]])  # the largest of the second part
    return tuple(made)


@exercise(
    "14.1",
    "Two parts of a row",
    task="""Each part has its largest score m, l = Σ e^(s − m) and a = Σ e^(s − m)·v. Return the three for all keys
    together, relative to the larger m.""",
    inputs=_parts,
    returns=("m", "l", "a"),
)
def merge(m1, l1, a1, m2, l2, a2):
    """Let the library's softmax mix two keys whose scores are the levels m + ln l, and whose values are a/l."""
    levels = np.concatenate([m1 + np.log(l1), m2 + np.log(l2)], axis=1)
    share = ops.softmax(levels)
    whole = levels[:, :1] - ops.log_softmax(levels)[:, :1]  # ln of the sum over all keys
    m = np.maximum(m1, m2)
    l = np.exp(whole - m)  # noqa: E741  (the lesson's name)
    return m, l, l * (share[:, :1] * (a1 / l1) + share[:, 1:] * (a2 / l2))


@merge.mistake("not rescaled", "l and a of a part are relative to its own m: multiply by e^(m_part − m) before adding.")
def _(m1, l1, a1, m2, l2, a2):
    return np.maximum(m1, m2), l1 + l2, a1 + a2


@merge.mistake("a not rescaled", "l is right; a was made with the same weights, and shrinks in the same way.")
def _(m1, l1, a1, m2, l2, a2):
    m = np.maximum(m1, m2)
    return m, np.exp(m1 - m) * l1 + np.exp(m2 - m) * l2, a1 + a2


@merge.mistake("grown and not shrunk", "the exponent is m_part − m, which is at most 0; here it has the other sign.")
def _(m1, l1, a1, m2, l2, a2):
    m = np.maximum(m1, m2)
    f1, f2 = np.exp(m - m1), np.exp(m - m2)
    return m, f1 * l1 + f2 * l2, f1 * a1 + f2 * a2


@merge.mistake("always the second", "either part may have the largest score: take the maximum of both, row by row.")
def _(m1, l1, a1, m2, l2, a2):
    f = np.exp(m1 - m2)
    return m2, f * l1 + l2, f * a1 + a2


@merge.mistake("already divided", "a is divided by l once, at the very end; until then it stays a sum.")
def _(m1, l1, a1, m2, l2, a2):
    m = np.maximum(m1, m2)
    f1, f2 = np.exp(m1 - m), np.exp(m2 - m)
    total = f1 * l1 + f2 * l2
    return m, total, (f1 * a1 + f2 * a2) / total


@merge.mistake("one m for all rows", "each row has a largest score of its own: np.maximum(m1, m2), not max over all.")
def _(m1, l1, a1, m2, l2, a2):
    m = np.full_like(m1, max(m1.max(), m2.max()))
    f1, f2 = np.exp(m1 - m), np.exp(m2 - m)
    return m, f1 * l1 + f2 * l2, f1 * a1 + f2 * a2


@exercise(
    "14.2",
    "Shared heads",
    task="Return k for `heads` heads of queries: heads // kv_heads neighbours share a head of the keys.",
    inputs=lambda rng: (rng.standard_normal((2, 3, 5, 4)), 6),
    returns=("the keys",),
)
def spread_heads(k, heads):
    return ops.repeat_heads(k, heads // k.shape[1])


@spread_heads.mistake(
    "in turns", "neighbours share: 0, 0, 1, 1, ... and not 0, 1, ..., 0, 1, ...: repeat, do not tile."
)
def _(k, heads):
    return np.tile(k, (1, heads // k.shape[1], 1, 1))


@spread_heads.mistake("places repeated", "heads are the second axis; here the places of the text were repeated.")
def _(k, heads):
    return np.repeat(k, heads // k.shape[1], axis=2)


@spread_heads.mistake("batch repeated", "heads are the second axis; here the rows of the batch were repeated.")
def _(k, heads):
    return np.repeat(k, heads // k.shape[1], axis=0)


@spread_heads.mistake("too often", "each head serves heads // kv_heads others, not `heads` of them.")
def _(k, heads):
    return np.repeat(k, heads, axis=1)


@spread_heads.mistake("only the first", "that is one head for all; each head of the keys serves its own neighbours.")
def _(k, heads):
    return np.repeat(k[:, :1], heads, axis=1)


@exercise(
    "14.3",
    "A window with a past",
    task="""The last query stands at the last key. Return a boolean array (queries, keys): True for its own place and
    the window − 1 places before it.""",
    inputs=lambda rng: (int(rng.integers(3, 5)), int(rng.integers(7, 10)), int(rng.integers(2, 4))),
    returns=("the mask",),
)
def window_mask(queries, keys, window):
    return band_mask(np.arange(queries) + keys - queries, np.arange(keys), causal=True, window=window)


def _back(queries, keys, offset):
    """Return how far each key lies behind each query."""
    return np.arange(queries)[:, None] + offset - np.arange(keys)


@window_mask.mistake("one too many", "the own place is one of the window: window − 1 places before it, not window.")
def _(queries, keys, window):
    back = _back(queries, keys, keys - queries)
    return (back >= 0) & (back <= window)


@window_mask.mistake("itself left out", "a query sees its own place, too.")
def _(queries, keys, window):
    back = _back(queries, keys, keys - queries)
    return (back > 0) & (back < window)


@window_mask.mistake("no past", "query 0 does not stand at key 0 but keys − queries places on.")
def _(queries, keys, window):
    back = _back(queries, keys, 0)
    return (back >= 0) & (back < window)


@window_mask.mistake("ahead", "the window reaches back and not ahead.")
def _(queries, keys, window):
    return np.abs(_back(queries, keys, keys - queries)) < window


@window_mask.mistake("no window", "that is causal; leave out what lies window places back or further, too.")
def _(queries, keys, window):
    return _back(queries, keys, keys - queries) >= 0


@exercise(
    "14.4",
    "Linear attention, causal",
    task="""y[i] = φ(q[i])·Σ φ(k[j])ᵀ v[j] / φ(q[i])·Σ φ(k[j]), the sums over j ≤ i; φ(x) = x + 1 above 0 and eˣ below.
    """,
    inputs=lambda rng: (rng.standard_normal((7, 3)), rng.standard_normal((7, 3)), rng.standard_normal((7, 5))),
    returns=("y",),
)
def causal_linear_attention(q, k, v):
    return ops.linear_attention(q, k, v, causal=True)


def _phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def _shares(scores):
    return scores / scores.sum(axis=-1, keepdims=True)


@causal_linear_attention.mistake("all keys", "place i may not look ahead: its sums end with j = i.")
def _(q, k, v):
    return _shares(_phi(q) @ _phi(k).T) @ v


@causal_linear_attention.mistake("not divided", "divide by φ(q)·Σ φ(k), so that the weights sum to 1.")
def _(q, k, v):
    return np.tril(_phi(q) @ _phi(k).T) @ v


@causal_linear_attention.mistake("divided by all", "the denominator is a sum over j ≤ i, too, and not over all keys.")
def _(q, k, v):
    scores = _phi(q) @ _phi(k).T
    return np.tril(scores) @ v / scores.sum(axis=1, keepdims=True)


@causal_linear_attention.mistake("no features", "queries and keys go through φ first, which makes them positive.")
def _(q, k, v):
    return _shares(np.tril(q @ k.T)) @ v


@causal_linear_attention.mistake("keys without features", "the keys go through φ, too.")
def _(q, k, v):
    return _shares(np.tril(_phi(q) @ k.T)) @ v


@causal_linear_attention.mistake("softmax", "that is softmax attention; here there is no exponential of a product.")
def _(q, k, v):
    return _shares(np.tril(np.exp(q @ k.T / np.sqrt(q.shape[1]).astype(q.dtype)))) @ v


@causal_linear_attention.mistake("elu", "φ is elu(x) + 1, so that it is never negative.")
def _(q, k, v):
    return _shares(np.tril((_phi(q) - 1) @ (_phi(k) - 1).T)) @ v

"""Lesson 08, attention: scores, mask, weights, and the way back."""

import math

import numpy as np

from ... import ops
from ...ops.mask import causal_mask as library_mask
from ..exercise import exercise, gradients


def _queries_and_keys(rng):
    return rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 7, 5))


@exercise(
    "08.1",
    "Scores, and their scale",
    task="""q holds the queries of two heads, (2, 3, 5), and k their keys, (2, 7, 5): K is 5 numbers in each head, and
    the model is D = 10 wide. Return the scaled scores, (2, 3, 7).""",
    inputs=_queries_and_keys,
    returns=("scores",),
    float32=False,  # NumPy's sqrt of an integer is float64, and a fair way to write it
)
def scores(q, k):
    # The library hands out weights, not scores. Give it one more key, of zeros, whose score is 0 at any scale: the
    # logarithm of a weight over the weight of that key is a score, scaled as the library does it.
    p = ops.attention_weights(q, np.concatenate([k, np.zeros_like(k[:, :1])], axis=1))
    return np.log(p[..., :-1] / p[..., -1:])


def _dots(q, k):
    return q @ k.swapaxes(-1, -2)


@scores.mistake("no scale", "a sum of K products has a spread of √K: divide by it.")
def _(q, k):
    return _dots(q, k)


@scores.mistake(
    "√D for √K",
    "the sum runs over the K numbers of one head, not over the D = H·K of all heads: its spread is √K, and √D would "
    "make the softmax too flat.",
)
def _(q, k):
    return _dots(q, k) / math.sqrt(q.shape[-1] * q.shape[0])


@scores.mistake("K for √K", "the variance of the sum is K; its spread is the root of that: divide by √K.")
def _(q, k):
    return _dots(q, k) / q.shape[-1]


@scores.mistake("√S for √K", "how many keys there are does not change the spread of one score; K does.")
def _(q, k):
    return _dots(q, k) / math.sqrt(k.shape[-2])


@scores.mistake("multiplied by √K", "the scale makes scores smaller: divide by √K.")
def _(q, k):
    return _dots(q, k) * math.sqrt(q.shape[-1])


@scores.mistake(
    "keys by queries", "a row belongs to a query: q on the left, the transposed k on the right. This is the transpose."
)
def _(q, k):
    return _dots(k, q) / math.sqrt(q.shape[-1])


def _lengths(rng):
    """Make more keys than queries, as when some were read before."""
    queries = int(rng.integers(2, 6))
    return queries, queries + int(rng.integers(1, 4))


@exercise(
    "08.2",
    "The causal mask",
    task="""Return a boolean array (queries, keys): True where a query may look, at itself and at what came before. The
    last query stands at the last key; there may be more keys than queries.""",
    inputs=_lengths,
    returns=("mask",),
)
def causal_mask(queries, keys):
    return library_mask(queries, keys, np)


def _ahead(queries, keys):
    return np.arange(keys)[None, :] - np.arange(queries)[:, None] - (keys - queries)


@causal_mask.mistake("not at itself", "a query may look at its own place, too: ≤, not <.")
def _(queries, keys):
    return _ahead(queries, keys) < 0


@causal_mask.mistake(
    "counted from the front",
    "with more keys than queries, the first keys were there before: query i stands at key i + (keys − queries).",
)
def _(queries, keys):
    return np.tri(queries, keys, dtype=bool)


@causal_mask.mistake("True = masked", "True means that a query may look; this is True where it may not.")
def _(queries, keys):
    return _ahead(queries, keys) > 0


@causal_mask.mistake("turned in time", "this looks ahead and not back: a query sees itself and what came before it.")
def _(queries, keys):
    return _ahead(queries, keys) >= 0


@causal_mask.mistake("keys by queries", "rows are queries and columns are keys: this is the transpose.")
def _(queries, keys):
    return (_ahead(queries, keys) <= 0).T


def _scores_and_mask(rng):
    mask = rng.random((4, 5)) < 0.6
    mask[np.arange(4), rng.integers(0, 5, 4)] = True  # each row may look somewhere
    mask[np.arange(4), (mask.argmax(axis=-1) + 1) % 5] = False  # and not everywhere
    mask[int(rng.integers(4))] = False  # but for one, which may look nowhere
    return 2 * rng.standard_normal((4, 5)), mask


@exercise(
    "08.3",
    "Weights under a mask",
    task="""Return the softmax of each row of scores over those keys that the mask lets through (True = may look); the
    others get exactly 0. A row that may look nowhere gives zeros.""",
    inputs=_scores_and_mask,
    returns=("p",),
)
def weights(scores, mask):
    return ops.softmax(scores, mask=mask)


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@weights.mistake(
    "NaN in the empty row",
    "where a row may look nowhere everything is −∞, and −∞ − (−∞) is NaN: treat a maximum of −∞ and a sum of 0 apart.",
)
def _(scores, mask):
    return _softmax(np.where(mask, scores, -np.inf))


@weights.mistake(
    "a large negative number",
    "with −10⁹ in place of −∞ a row that may look nowhere is a row of equal scores, and looks everywhere: give zeros.",
)
def _(scores, mask):
    return _softmax(np.where(mask, scores, -1e9))


@weights.mistake(
    "mask after softmax",
    "what is set to 0 after the softmax has already taken its share of the sum: the rest does not sum to 1.",
)
def _(scores, mask):
    return _softmax(scores) * mask


@weights.mistake("score 0", "a score of 0 is not nothing, e⁰ = 1: what may not be seen has the score −∞.")
def _(scores, mask):
    return _softmax(np.where(mask, scores, 0))


@weights.mistake("polarity", "True means that a query may look: this looks where it must not, and nowhere else.")
def _(scores, mask):
    p = _softmax(np.where(mask, -1e9, scores))
    return np.where(mask.all(axis=-1, keepdims=True), 0, p)


@weights.mistake("no mask", "this is the softmax over all keys: the mask is not used.")
def _(scores, mask):
    return _softmax(scores)


def _attended(rng):
    q, k, v, g = (rng.standard_normal((3, width)) for width in (3, 3, 5, 5))
    return q, k, v, np.asarray(ops.attention_weights(q, k)), g


@exercise(
    "08.4",
    "Attention backwards",
    task="""y = p @ v with p = softmax(q @ k.T / √K). The forward pass has kept q, k, v and p; g is the gradient of y.
    Return the gradients of q, k and v.""",
    inputs=_attended,
    returns=("g_q", "g_k", "g_v"),
    float32=False,  # as in 08.1
)
def attention_vjp(q, k, v, p, g):
    return gradients(ops.scaled_dot_product_attention, q, k, v, g=g)


def _back(q, k, v, p, g, scale=None, through_softmax=None, turn=np.transpose):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    g_p = g @ v.T
    if through_softmax is None:
        g_s = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True)) * scale
    else:
        g_s = through_softmax(p, g_p) * scale
    return g_s @ k, turn(g_s) @ q, p.T @ g


@attention_vjp.mistake("no scale", "the scores were divided by √K on the way there: divide on the way back, too.")
def _(q, k, v, p, g):
    return _back(q, k, v, p, g, scale=1)


@attention_vjp.mistake(
    "softmax left out", "g @ v.T is the gradient of the weights p; to reach the scores it goes through the softmax."
)
def _(q, k, v, p, g):
    return _back(q, k, v, p, g, through_softmax=lambda p, g_p: g_p)


@attention_vjp.mistake(
    "diagonal of the softmax",
    "each weight depends on all scores of its row: take the row's sum of g_p·p from each g_p, as in lesson 06.",
)
def _(q, k, v, p, g):
    return _back(q, k, v, p, g, through_softmax=lambda p, g_p: p * g_p)


@attention_vjp.mistake(
    "sum over queries", "the softmax runs along the keys, the last axis: so does the sum in its vjp."
)
def _(q, k, v, p, g):
    return _back(q, k, v, p, g, through_softmax=lambda p, g_p: p * (g_p - (g_p * p).sum(axis=0)))


@attention_vjp.mistake(
    "no transpose for k",
    "a key gets a share from every query: the sum runs over the rows of g_scores, so transpose it.",
)
def _(q, k, v, p, g):
    return _back(q, k, v, p, g, turn=lambda g_s: g_s)


@attention_vjp.mistake(
    "no transpose for v", "a value gets a share from every query that has looked at it: p.T @ g, not p @ g."
)
def _(q, k, v, p, g):
    g_q, g_k, _ = _back(q, k, v, p, g)
    return g_q, g_k, p @ g

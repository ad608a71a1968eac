"""Lesson 09, many heads: split, its way back, the whole of it, and what it costs."""

import numpy as np

from ... import nn, ops
from ..exercise import exercise, gradients


@exercise(
    "09.1",
    "Split into heads",
    task="Give each of H heads its slice of the width: x (B, T, D) → (B, H, T, K), where K = D/H.",
    inputs=lambda rng: (rng.standard_normal((2, 5, 21)), 3),
)
def split_heads(x, heads):
    return ops.split_heads(x, heads=heads)


@split_heads.mistake(
    "reshape alone",
    "the shape is right, but a head's row holds numbers of several tokens: reshape to (B, T, H, K) first, then bring "
    "the heads forward.",
)
def _(x, heads):
    b, t, d = x.shape
    return x.reshape(b, heads, t, d // heads)


@split_heads.mistake("heads left behind", "that is (B, T, H, K), cut rightly; the heads still stand behind the tokens.")
def _(x, heads):
    b, t, d = x.shape
    return x.reshape(b, t, heads, d // heads)


@split_heads.mistake(
    "interleaved", "head h has the columns h, h + H, h + 2H, ... here; it gets K neighbouring ones, from h·K on."
)
def _(x, heads):
    b, t, d = x.shape
    return x.reshape(b, t, d // heads, heads).transpose(0, 3, 1, 2)


@split_heads.mistake(
    "every axis turned", "that is (B, H, K, T): exchange the axes of tokens and heads, and leave K as the last."
)
def _(x, heads):
    b, t, d = x.shape
    return x.reshape(b, t, heads, d // heads).transpose(0, 2, 3, 1)


@split_heads.mistake("batch moved", "that is (H, B, T, K), as a list of heads stacks up; the batch stays in front.")
def _(x, heads):
    return np.stack(np.split(x, heads, axis=-1))


@exercise(
    "09.2",
    "The vjp of the split",
    task="""g is the gradient of split_heads(x, heads), of shape (B, H, T, K). Return g_x, of shape (B, T, H·K): each
    number of g goes back to the place that it came from.""",
    inputs=lambda rng: (rng.standard_normal((2, 3, 5, 7)),),
    returns=("g_x",),
)
def split_vjp(g):
    b, h, t, k = g.shape
    return gradients(lambda x: ops.split_heads(x, heads=h), np.zeros((b, t, h * k), g.dtype), g=g)[0]


@split_vjp.mistake(
    "reshape alone",
    "the shape is right, but the numbers of several tokens are in one row: bring the heads back behind the tokens "
    "first, then reshape.",
)
def _(g):
    b, h, t, k = g.shape
    return g.reshape(b, t, h * k)


@split_vjp.mistake(
    "interleaved", "the heads' numbers alternate here; the K numbers of a head belong side by side: (B, T, H, K)."
)
def _(g):
    b, h, t, k = g.shape
    return g.transpose(0, 2, 3, 1).reshape(b, t, h * k)


@split_vjp.mistake(
    "not joined", "the heads stand behind the tokens as they should; now put H and K into one axis again."
)
def _(g):
    return g.swapaxes(1, 2)


@split_vjp.mistake(
    "summed over heads", "no number went to several heads, so nothing is to be added up: H·K numbers come back."
)
def _(g):
    return g.sum(axis=1)


def _x_and_weights(rng):
    """Make an input and four square weights, with scores large enough for the softmax to tell scales apart."""
    return (rng.standard_normal((5, 6)), *(rng.standard_normal((6, 6)) / 2 for _ in range(4)), 2)


@exercise(
    "09.3",
    "Multi-head attention",
    task="""x: (T, D); w_q, w_k, w_v, w_out: (D, D), as Linear keeps them, rows are outputs. Project to q, k and v,
    split them into heads, mix in each head by softmax(q·kᵀ/√K), join the heads and project by w_out.""",
    inputs=_x_and_weights,
    returns=("y",),
)
def multi_head(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (ops.split_heads(ops.linear(x, w), heads=heads) for w in (w_q, w_k, w_v))
    return ops.linear(ops.join_heads(ops.scaled_dot_product_attention(q, k, v)), w_out)


def _split(x, heads):
    t, d = x.shape
    return x.reshape(t, heads, d // heads).swapaxes(0, 1)


def _join(x):
    h, t, k = x.shape
    return x.swapaxes(0, 1).reshape(t, h * k)


def _softmax(scores, axis=-1):
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _attend(q, k, v, scale, axis=-1):
    return _softmax(q @ k.swapaxes(-1, -2) / scale, axis) @ v


@multi_head.mistake("scale of D", "a score in a head is a sum of K = D/H products: divide by √K, not by √D.")
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w.T, heads) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, x.shape[-1] ** 0.5)) @ w_out.T


@multi_head.mistake("no scale", "the scores are not divided by √K.")
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w.T, heads) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, 1)) @ w_out.T


@multi_head.mistake("one head", "this is a single head of the full width: the split is missing.")
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (x @ w.T for w in (w_q, w_k, w_v))
    return _attend(q, k, v, x.shape[-1] ** 0.5) @ w_out.T


@multi_head.mistake(
    "weights not transposed", "the rows of a weight are its outputs, as in Linear: multiply by wᵀ from the right."
)
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w, heads) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, (x.shape[-1] // heads) ** 0.5)) @ w_out


@multi_head.mistake("no output projection", "the heads stand side by side, and w_out has still to mix them.")
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w.T, heads) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, (x.shape[-1] // heads) ** 0.5))


@multi_head.mistake(
    "softmax over queries", "each query's weights over the keys add up to 1: softmax over the last axis."
)
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w.T, heads) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, (x.shape[-1] // heads) ** 0.5, axis=-2)) @ w_out.T


@multi_head.mistake(
    "joined by reshape", "(H, T, K) becomes (T, D) by bringing the tokens to the front first; reshape alone mixes them."
)
def _(x, w_q, w_k, w_v, w_out, heads):
    q, k, v = (_split(x @ w.T, heads) for w in (w_q, w_k, w_v))
    return _attend(q, k, v, (x.shape[-1] // heads) ** 0.5).reshape(x.shape) @ w_out.T


@multi_head.mistake(
    "split by reshape",
    "(T, D) becomes (H, T, K) by way of (T, H, K); reshape alone gives a head pieces of other tokens.",
)
def _(x, w_q, w_k, w_v, w_out, heads):
    width = x.shape[-1] // heads
    q, k, v = ((x @ w.T).reshape(heads, len(x), width) for w in (w_q, w_k, w_v))
    return _join(_attend(q, k, v, width**0.5)) @ w_out.T


def _sizes(rng):
    groups, kv_heads, width = int(rng.integers(2, 4)), int(rng.integers(2, 4)), int(rng.integers(3, 8))
    return groups * kv_heads * width, groups * kv_heads, kv_heads


@exercise(
    "09.4",
    "Parameters with grouped queries",
    task="""Return how many parameters the projections to q, k and v and the output projection have together, with their
    biases. The projections to k and v make kv_heads heads, the others heads of them.""",
    inputs=_sizes,
    returns=("parameters",),
)
def count_parameters(d_model, heads, kv_heads):
    module = nn.MultiHeadAttention(d_model, heads, kv_heads=kv_heads)
    return sum(parameter.size for parameter in module.parameters())


@count_parameters.mistake(
    "all heads", "4·D² + 4·D is right when every head has keys of its own; two of the four projections are narrower."
)
def _(d_model, heads, kv_heads):
    return 4 * d_model**2 + 4 * d_model


@count_parameters.mistake("no biases", "each projection also has a bias, one number for each of its outputs.")
def _(d_model, heads, kv_heads):
    return 2 * d_model**2 + 2 * d_model * kv_heads * d_model // heads


@count_parameters.mistake("keys alone", "the values are shared like the keys: both projections are narrower.")
def _(d_model, heads, kv_heads):
    narrow = kv_heads * d_model // heads
    return 3 * d_model**2 + d_model * narrow + 3 * d_model + narrow


@count_parameters.mistake(
    "biases not narrowed", "a bias is as long as the output of its projection: kv_heads·K for k and v."
)
def _(d_model, heads, kv_heads):
    return 2 * d_model**2 + 2 * d_model * kv_heads * d_model // heads + 4 * d_model


@count_parameters.mistake(
    "times heads", "heads divide the width and do not multiply it: all heads of queries together are D wide."
)
def _(d_model, heads, kv_heads):
    return heads * (4 * d_model**2 + 4 * d_model)

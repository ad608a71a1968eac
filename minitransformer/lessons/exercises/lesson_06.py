"""Lesson 06, softmax and LayerNorm: rows that are normalised, and what that takes from their gradients."""

import numpy as np

from ... import ops
from ..exercise import exercise, gradients


def _far_apart(rng):
    """Make rows at very different heights: e to the power of them overflows, or is 0, unless each row is shifted."""
    return (rng.standard_normal((3, 3)) + np.array([[0.0], [2000.0], [-2000.0]]),)


@exercise(
    "06.1",
    "A softmax that never overflows",
    task="""Return the softmax of each row of x. Some rows hold numbers around 2000, some around −2000; every row of the
    result still sums to 1.""",
    inputs=_far_apart,
    returns=("y",),
)
def softmax(x):
    return ops.softmax(x)


@softmax.mistake(
    "no shift", "e to the power of 2000 is no float: subtract the largest score of each row before you take exp."
)
def _(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


@softmax.mistake(
    "one maximum for all rows",
    "below the largest number of the whole array, e to the power of −2000 is 0 and a low row becomes 0/0: "
    "each row needs its own maximum (axis=-1, keepdims=True).",
)
def _(x):
    e = np.exp(x - x.max())
    return e / e.sum(axis=-1, keepdims=True)


@softmax.mistake(
    "lost axis",
    "x.max(axis=-1) has a number for each row, but NumPy lays them along the columns: keepdims=True makes a column.",
)
def _(x):
    e = np.exp(x - x.max(axis=-1))
    return e / e.sum(axis=-1)


@softmax.mistake("wrong axis", "that makes each column sum to 1: a row is the last axis, axis=-1.")
def _(x):
    e = np.exp(x - x.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


@softmax.mistake("not divided", "these are e to the power of the shifted scores: divide each row by its sum.")
def _(x):
    return np.exp(x - x.max(axis=-1, keepdims=True))


@exercise(
    "06.2",
    "The vjp of softmax",
    task="y is the softmax of each row of some x, and g the gradient of y. Return g_x, from y and g alone.",
    inputs=lambda rng: (np.asarray(ops.softmax(rng.standard_normal((3, 5)))), rng.standard_normal((3, 5))),
    returns=("g_x",),
)
def softmax_vjp(y, g):
    return gradients(ops.softmax, np.log(y), g=g)[0]  # ln y is an x that has this softmax


@softmax_vjp.mistake(
    "diagonal only",
    "y·(1 − y) is how each share grows with its own score; through the sum it depends on all other scores, too.",
)
def _(y, g):
    return g * y * (1 - y)


@softmax_vjp.mistake(
    "sum left out", "that is the slope of e^x alone: the sum below the fraction line depends on x, too."
)
def _(y, g):
    return g * y


@softmax_vjp.mistake(
    "g not weighted", "what is subtracted from g is its mean weighted by y, the sum of g·y, not the sum of g."
)
def _(y, g):
    return y * (g - g.sum(axis=-1, keepdims=True))


@softmax_vjp.mistake("mean for sum", "y weights already: the sum of g·y is a mean, and is not divided by n again.")
def _(y, g):
    return y * (g - (g * y).mean(axis=-1, keepdims=True))


@softmax_vjp.mistake("sum over everything", "each row has a sum of its own: axis=-1, keepdims=True.")
def _(y, g):
    return y * (g - (g * y).sum())


@softmax_vjp.mistake("log_softmax", "that is the vjp of log_softmax, which has no y in front of the bracket.")
def _(y, g):
    return g - y * g.sum(axis=-1, keepdims=True)


def _rows(rng):
    return 3 * rng.standard_normal((3, 5)) + 2, rng.standard_normal(5), rng.standard_normal(5), 0.1


def _centred(x):
    return x - x.mean(axis=-1, keepdims=True)


@exercise(
    "06.3",
    "LayerNorm forwards",
    task="""Give each row of x mean 0 and variance 1 (divide by √(σ² + ε), where σ² is the mean of the squared
    deviations), then multiply by weight and add bias. Return y.""",
    inputs=_rows,
    returns=("y",),
)
def layer_norm(x, weight, bias, eps):
    return ops.layer_norm(x, weight, bias, eps=eps)


@layer_norm.mistake(
    "unbiased variance",
    "dividing by D − 1 (ddof=1) estimates a variance from a sample; here the row is all there is: divide by D.",
)
def _(x, weight, bias, eps):
    return weight * _centred(x) / np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + eps) + bias


@layer_norm.mistake("epsilon outside", "ε stands under the root, beside the variance, not beside its root.")
def _(x, weight, bias, eps):
    return weight * _centred(x) / (x.std(axis=-1, keepdims=True) + eps) + bias


@layer_norm.mistake(
    "no root", "dividing by the variance leaves rows of a spread of 1/σ: divide by its root, the standard deviation."
)
def _(x, weight, bias, eps):
    return weight * _centred(x) / (x.var(axis=-1, keepdims=True) + eps) + bias


@layer_norm.mistake("mean left in", "without the mean taken away this is not LayerNorm: subtract it first.")
def _(x, weight, bias, eps):
    return weight * x / np.sqrt(x.var(axis=-1, keepdims=True) + eps) + bias


@layer_norm.mistake("RMSNorm", "that is RMSNorm: LayerNorm subtracts the mean, and takes the variance around it.")
def _(x, weight, bias, eps):
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) + bias


@layer_norm.mistake(
    "wrong axis", "mean and variance run over one row (axis=-1), not over the batch; that would be batch normalisation."
)
def _(x, weight, bias, eps):
    return weight * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + eps) + bias


@layer_norm.mistake(
    "weight and bias left out", "that is x̂: it is still to be multiplied by weight, and bias is to be added."
)
def _(x, weight, bias, eps):
    return _centred(x) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


@layer_norm.mistake("bias scaled", "first weight, then bias: the bias is not multiplied by the weight.")
def _(x, weight, bias, eps):
    return weight * (_centred(x) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) + bias)


def _kept(rng):
    """Make what LayerNorm's forward pass keeps for its backward pass."""
    x, weight, _, eps = _rows(rng)
    inv_std = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    return _centred(x) * inv_std, inv_std, weight, rng.standard_normal(x.shape)


@exercise(
    "06.4",
    "LayerNorm backwards",
    task="""y = weight·x̂ + bias, where x̂ = (x − μ)·inv_std. The forward pass has kept x̂ and inv_std = 1/√(σ² + ε).
    Return the gradients of x, weight and bias.""",
    inputs=_kept,
    returns=("g_x", "g_weight", "g_bias"),
)
def layer_norm_vjp(x_hat, inv_std, weight, g):
    # Any x with these x_hat and inv_std has the same gradients: this one has mean 0.
    x, eps = x_hat / inv_std, 1 / inv_std**2 - ((x_hat / inv_std) ** 2).mean(axis=-1, keepdims=True)
    return gradients(
        lambda x, w, b: ops.layer_norm(x, w, b, eps=float(eps.mean())), x, weight, np.zeros_like(weight), g=g
    )


def _g_x(x_hat, inv_std, g_hat, mean=1.0, std=1.0):
    through_std = x_hat * (g_hat * x_hat).mean(axis=-1, keepdims=True)
    return inv_std * (g_hat - mean * g_hat.mean(axis=-1, keepdims=True) - std * through_std)


@layer_norm_vjp.mistake(
    "only the straight way",
    "the mean and the standard deviation depend on x, too: each takes its term from the gradient.",
)
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g * weight, mean=0, std=0), (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake(
    "mean forgotten", "a shift of the whole row changes nothing, so g_x sums to 0 in each row: take the mean away."
)
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g * weight, mean=0), (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake(
    "standard deviation forgotten", "σ depends on x: take x̂·mean(ĝ·x̂) away, what would only stretch the row."
)
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g * weight, std=0), (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake(
    "weight forgotten", "on its way to x̂ the gradient passes the weight: ĝ = g·weight, in all three terms."
)
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g), (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake("weight last", "ĝ = g·weight goes into both means: multiply before you average, not after.")
def _(x_hat, inv_std, weight, g):
    return weight * _g_x(x_hat, inv_std, g), (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake(
    "lost broadcast sum",
    "weight and bias were used in every row: their gradients are sums over the rows, of shape (D,).",
)
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g * weight), g * x_hat, g


@layer_norm_vjp.mistake("x for x̂", "the weight multiplies x̂, the normalised row, so g_weight sums g·x̂.")
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, inv_std, g * weight), (g * x_hat / inv_std).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake(
    "means over everything", "each row has its own two means, as it had its own μ and σ: axis=-1, keepdims=True."
)
def _(x_hat, inv_std, weight, g):
    g_hat = g * weight
    g_x = inv_std * (g_hat - g_hat.mean() - x_hat * (g_hat * x_hat).mean())
    return g_x, (g * x_hat).sum(axis=0), g.sum(axis=0)


@layer_norm_vjp.mistake("inv_std forgotten", "x̂ grows 1/σ times as fast as x: multiply the bracket by inv_std.")
def _(x_hat, inv_std, weight, g):
    return _g_x(x_hat, 1.0, g * weight), (g * x_hat).sum(axis=0), g.sum(axis=0)

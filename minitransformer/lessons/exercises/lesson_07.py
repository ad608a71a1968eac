"""Lesson 07, residuals and dropout: a way that stays open, and factors that leave the mean alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from ... import ops
from ...nn import EncoderLayer
from ...tensor import as_array, tensor
from ..exercise import exercise, gradients


def _layer(rng):
    return rng.standard_normal((5, 3)), rng.standard_normal((3, 3)), rng.standard_normal((5, 3))


@exercise(
    "07.1",
    "The vjp of a residual",
    task="For y = x + relu(x) @ w return g_x and g_w; g is the gradient of y.",
    inputs=_layer,
    returns=("g_x", "g_w"),
)
def residual_vjp(x, w, g):
    return gradients(lambda x, w: x + ops.relu(x) @ w, x, w, g=g)


def _g_w(x, g):
    return np.maximum(x, 0).T @ g


@residual_vjp.mistake(
    "straight way forgotten",
    "x is used twice: in the branch, and as it is. The second use hands on g unchanged: add it.",
)
def _(x, w, g):
    return (g @ w.T) * (x > 0), _g_w(x, g)


@residual_vjp.mistake(
    "branch forgotten",
    "g as it is comes through the straight way; x is used in the branch, too, whose share is missing.",
)
def _(x, w, g):
    return g.copy(), _g_w(x, g)


@residual_vjp.mistake("no transpose", "through @ w a gradient comes back by the transpose, g @ wᵀ.")
def _(x, w, g):
    return g + (g @ w) * (x > 0), _g_w(x, g)


@residual_vjp.mistake("relu forgotten", "where x is negative, relu lets nothing through: in neither direction.")
def _(x, w, g):
    return g + g @ w.T, _g_w(x, g)


@residual_vjp.mistake(
    "relu on both ways", "relu is in the branch alone: what comes straight is not cut where x is negative."
)
def _(x, w, g):
    return (g + g @ w.T) * (x > 0), _g_w(x, g)


@residual_vjp.mistake("weight sees x", "what w is multiplied by is relu(x), not x: so is its gradient.")
def _(x, w, g):
    return g + (g @ w.T) * (x > 0), x.T @ g


@exercise(
    "07.2",
    "The gradient on its way down",
    task="""In a stack of layers x ← x + f(x), jacobians[l] is the Jacobian of the branch f of layer l, of shape (D, D),
    and g the gradient of the output of the last. Return the gradients in front of each layer and behind the last, first
    layer first: an array (L + 1, D), whose last row is g.""",
    inputs=lambda rng: (0.5 * rng.standard_normal((4, 3, 3)), rng.standard_normal(3)),
    returns=("gradients",),
)
def gradients_down(jacobians, g):
    xs = [tensor(np.zeros_like(g), requires_grad=True)]
    for jacobian in jacobians:
        xs.append((xs[-1] + ops.matmul(jacobian, xs[-1])).retain_grad())
    xs[-1].backward(g)
    return np.stack([as_array(x.grad) for x in xs])


def _down(jacobians, g, step):
    found = [g]
    for jacobian in jacobians[::-1]:
        found.append(step(found[-1], jacobian))
    return np.stack(found[::-1])


@gradients_down.mistake(
    "straight way forgotten", "J.T @ g comes through the branch; what comes straight, g itself, is added to it."
)
def _(jacobians, g):
    return _down(jacobians, g, lambda above, J: J.T @ above)


@gradients_down.mistake("no transpose", "a vjp multiplies by the transposed Jacobian, J.T @ g.")
def _(jacobians, g):
    return _down(jacobians, g, lambda above, J: above + J @ above)


@gradients_down.mistake(
    "from below", "the gradient enters at the end: the last layer is the first to multiply it, so go from L − 1 to 0."
)
def _(jacobians, g):
    return _down(jacobians[::-1], g, lambda above, J: above + J.T @ above)


@gradients_down.mistake(
    "always the g of the end", "each layer gets what the layer above has handed on, not the g of the last output."
)
def _(jacobians, g):
    return _down(jacobians, g, lambda above, J: g + J.T @ g)


@gradients_down.mistake(
    "turned round", "the rows are right, but the first row belongs to the first layer: turn them round."
)
def _(jacobians, g):
    return _down(jacobians, g, lambda above, J: above + J.T @ above)[::-1]


def _norm(x):
    return (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)


def _sublayer(rng):
    w = rng.standard_normal((5, 5))
    return 2 * rng.standard_normal((3, 5)) + 1, lambda x: np.tanh(x @ w), _norm


def _both_kinds(function, x, branch, norm):
    pre, post = (function(x, branch, norm, kind) for kind in ("pre", "post"))
    return None if pre is None and post is None else (pre, post)


@exercise(
    "07.3",
    "Pre-norm and post-norm",
    task="""branch and norm are functions. Return the output of one layer with a residual: in pre-norm the norm stands
    in front of the branch, in post-norm behind the sum. kind is "pre" or "post".""",
    inputs=_sublayer,
    returns=("pre-norm", "post-norm"),
    run=_both_kinds,
    float32=False,  # branch holds a weight in float64
)
def residual(x, branch, norm, kind):
    layer: Any = SimpleNamespace(norm=kind, add=lambda x, y: x + y)  # as an EncoderLayer, without dropout
    return EncoderLayer.residual(layer, x, norm, branch)


@residual.mistake("always pre-norm", "this puts the norm in front of the branch for both kinds: kind is not used.")
def _(x, branch, norm, kind):
    return x + branch(norm(x))


@residual.mistake("always post-norm", "this puts the norm behind the sum for both kinds: kind is not used.")
def _(x, branch, norm, kind):
    return norm(x + branch(x))


@residual.mistake("exchanged", "the two are exchanged: pre means that the norm stands in front of the branch.")
def _(x, branch, norm, kind):
    return norm(x + branch(x)) if kind == "pre" else x + branch(norm(x))


@residual.mistake(
    "straight way normed",
    "in pre-norm the norm is a part of the branch; x goes into the sum as it is, or the way is not open any more.",
)
def _(x, branch, norm, kind):
    return norm(x) + branch(norm(x)) if kind == "pre" else norm(x + branch(x))


@residual.mistake(
    "norm behind the branch", "in pre-norm the norm acts on what goes into the branch, not on what comes out."
)
def _(x, branch, norm, kind):
    return x + norm(branch(x)) if kind == "pre" else norm(x + branch(x))


@residual.mistake("norm within the sum", "in post-norm the norm acts on the whole sum, x + branch(x).")
def _(x, branch, norm, kind):
    return x + branch(norm(x)) if kind == "pre" else x + norm(branch(x))


@residual.mistake("no straight way", "nothing adds x: that is a plain layer, not a residual.")
def _(x, branch, norm, kind):
    return branch(norm(x)) if kind == "pre" else norm(branch(x))


def _dropped(rng):
    kept = np.array(
        [[True, False, True, True, True], [False, True, True, True, False], [True, True, False, True, True]]
    )
    return rng.standard_normal((3, 5)), rng.permuted(kept, axis=1), 0.25, rng.standard_normal((3, 5))


def _both_modes(function, x, kept, p, g):
    results = []
    for training in (True, False):
        made = function(x, kept, p, training)
        if made is None:
            return None
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise TypeError(f"return two values, y and the function vjp; got {type(made).__name__}")
        y, vjp = made
        results += [y, vjp(g)]
    return results


@exercise(
    "07.4",
    "Dropout, there and back",
    task="""kept is boolean and says which elements stay, p is the chance to be dropped. Return y and a function vjp,
    where vjp(g) returns g_x: with dropout when training is True, and without it when it is False.""",
    inputs=_dropped,
    returns=("y in training", "vjp(g) in training", "y in use", "vjp(g) in use"),
    run=_both_modes,
    float32=False,  # kept / (1 − p) is float64, and a fair way to write it
)
def dropout(x, kept, p, training):
    factors = kept.astype(x.dtype) / (1 - p) if training else np.ones_like(x)
    return ops.multiply(x, factors), lambda g: gradients(lambda t: ops.multiply(t, factors), x, g=g)[0]


@dropout.mistake(
    "no scale", "without 1/(1 − p) a layer sees smaller sums in training than in use: multiply what is kept by it."
)
def _(x, kept, p, training):
    factors = kept if training else np.ones_like(kept)
    return x * factors, lambda g: g * factors


@dropout.mistake(
    "scale in use",
    "here training stays unscaled and use is multiplied by 1 − p: the mean is right, but in use dropout should cost "
    "nothing; so divide by 1 − p in training.",
)
def _(x, kept, p, training):
    return (x * kept, lambda g: g * kept) if training else (x * (1 - p), lambda g: g * (1 - p))


@dropout.mistake("1/p", "a share of 1 − p is kept, so 1/(1 − p) makes up for what is lost, not 1/p.")
def _(x, kept, p, training):
    return (x * kept / p, lambda g: g * kept / p) if training else (x, lambda g: g)


@dropout.mistake("dropped in use, too", "outside training nothing is dropped: return x, and a vjp that hands g on.")
def _(x, kept, p, training):
    return x * kept / (1 - p), lambda g: g * kept / (1 - p)


@dropout.mistake("polarity", "kept is True where an element stays: the others become 0.")
def _(x, kept, p, training):
    return (x * ~kept / (1 - p), lambda g: g * ~kept / (1 - p)) if training else (x, lambda g: g)


@dropout.mistake("g not dropped", "what was set to 0 has no gradient: g is multiplied by the same factors as x.")
def _(x, kept, p, training):
    return (x * kept / (1 - p), lambda g: g.copy()) if training else (x, lambda g: g)


@dropout.mistake("g not scaled", "the factors are 0 and 1/(1 − p), on the way back as on the way there.")
def _(x, kept, p, training):
    return (x * kept / (1 - p), lambda g: g * kept) if training else (x, lambda g: g)

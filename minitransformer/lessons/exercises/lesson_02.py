"""Lesson 02, tensors and the tape: vjps of whole arrays."""

import numpy as np

from ... import ops
from ..exercise import exercise, gradients


def _square(rng):
    """Make square matrices: a transpose that is left out then gives wrong numbers, not an error of shapes."""
    return tuple(rng.standard_normal((3, 3)) for _ in range(3))


@exercise(
    "02.1",
    "The vjp of a matrix product",
    task="For y = a @ b return g_a and g_b; g is the gradient of y.",
    inputs=_square,
    returns=("g_a", "g_b"),
)
def matmul_vjp(a, b, g):
    return gradients(ops.matmul, a, b, g=g)


@matmul_vjp.mistake("no transpose", "the way back multiplies by the transpose of the other factor.")
def _(a, b, g):
    return g @ b, a @ g


@matmul_vjp.mistake("order", "a stands on the left of b, so g_b has aᵀ on its left; matrices do not commute.")
def _(a, b, g):
    return b.T @ g, g @ a.T


@matmul_vjp.mistake("swapped", "the two are right and stand in the wrong order: g_a comes first.")
def _(a, b, g):
    return a.T @ g, g @ b.T


@matmul_vjp.mistake("element by element", "that would be the vjp of a * b; each row of a meets each column of b.")
def _(a, b, g):
    return g * b, g * a


@exercise(
    "02.2",
    "The vjp of a running sum",
    task="""y = np.cumsum(x): y[i] = x[0] + ... + x[i]. Return g_x. (Which elements of y does x[j] go into?)""",
    inputs=lambda rng: (rng.standard_normal(7), rng.standard_normal(7)),
    returns=("g_x",),
)
def cumsum_vjp(x, g):
    triangle = np.tril(np.ones((len(x), len(x)), x.dtype))
    return gradients(lambda t: ops.matmul(triangle, t), x, g=g)[0]


@cumsum_vjp.mistake("forwards", "x[j] goes into y[j] and all later elements: sum g from j to the end, not up to j.")
def _(x, g):
    return np.cumsum(g)


@cumsum_vjp.mistake("left itself out", "x[j] goes into y[j], too: the sum begins with g[j].")
def _(x, g):
    return np.cumsum(g[::-1])[::-1] - g


@cumsum_vjp.mistake("turned round twice", "the sums are right and stand in the wrong order: turn them round again.")
def _(x, g):
    return np.cumsum(g[::-1])


@cumsum_vjp.mistake("all of them", "only x[0] goes into every element of y; later ones go into fewer.")
def _(x, g):
    return np.full_like(x, g.sum())


@cumsum_vjp.mistake("only its own", "x[j] goes into y[j] and into every element after it.")
def _(x, g):
    return g.copy()


def _both(function, x, g):
    """Call an op in the library's form, and its vjp."""
    made = function(x)
    if made is None:
        return None
    y, vjp = made
    return y, vjp(g)


@exercise(
    "02.3",
    "An op of your own",
    task="""Write the op sigmoid in the form of the library: return y = 1/(1 + e⁻ˣ) and a function vjp, where vjp(g)
    returns g_x. Let vjp mention y and not x.""",
    inputs=lambda rng: (rng.standard_normal((2, 5)), rng.standard_normal((2, 5))),
    returns=("y", "vjp(g)"),
    run=_both,
)
def sigmoid(x):
    return ops.sigmoid(x), lambda g: gradients(ops.sigmoid, x, g=g)[0]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


@sigmoid.mistake("g left out", "a vjp multiplies the slope by what arrives: where is g?")
def _(x):
    y = _sigmoid(x)
    return y, lambda g: y * (1 - y)


@sigmoid.mistake("slope of tanh", "1 − y² is the slope of tanh; that of the sigmoid is y·(1 − y).")
def _(x):
    y = _sigmoid(x)
    return y, lambda g: g * (1 - y * y)


@sigmoid.mistake("x for y", "y·(1 − y) takes the result of the step, not what went in.")
def _(x):
    return _sigmoid(x), lambda g: g * x * (1 - x)


@sigmoid.mistake("sign of x", "that is 1/(1 + eˣ), the mirror image: the exponent is −x.")
def _(x):
    y = _sigmoid(-x)
    return y, lambda g: -g * y * (1 - y)


@sigmoid.mistake("sign", "y is right; it grows with x, so its slope y·(1 − y) is positive.")
def _(x):
    y = _sigmoid(x)
    return y, lambda g: -g * y * (1 - y)

"""Lesson 05, linear layers, GELU and initialisation."""

import math

import numpy as np

from ... import backend, draws, nn, ops
from ..exercise import exercise, gradients


def _layer(rng):
    return rng.standard_normal((2, 5, 3)), rng.standard_normal((3, 3)), rng.standard_normal((2, 5, 3))


@exercise(
    "05.1",
    "The vjp of a linear layer",
    task="""For y = x @ weight.T + bias return g_x, g_weight and g_bias. x and g have axes in front of the last one: all
    their rows share one weight and one bias.""",
    inputs=_layer,
    returns=("g_x", "g_weight", "g_bias"),
)
def linear_vjp(x, weight, g):
    return gradients(ops.linear, x, weight, np.zeros(len(weight), x.dtype), g=g)


def _rows(a):
    return a.reshape(-1, a.shape[-1])


@linear_vjp.mistake("g_weight turned", "weight is (out, in), and so is its gradient: gᵀ·x over all rows, not xᵀ·g.")
def _(x, weight, g):
    return g @ weight, _rows(x).T @ _rows(g), _rows(g).sum(axis=0)


@linear_vjp.mistake("transposed weight", "y = x·weightᵀ, so the way back multiplies by weight as it is.")
def _(x, weight, g):
    return g @ weight.T, _rows(g).T @ _rows(x), _rows(g).sum(axis=0)


@linear_vjp.mistake(
    "lost sum of the bias", "every row used the bias: sum g over all axes but the last; one of them is still there."
)
def _(x, weight, g):
    return g @ weight, _rows(g).T @ _rows(x), g.sum(axis=0)


@linear_vjp.mistake("bias not summed", "every row used the bias: its gradient is the sum of all rows of g.")
def _(x, weight, g):
    return g @ weight, _rows(g).T @ _rows(x), g.copy()


@linear_vjp.mistake("batch kept apart", "all examples share one weight: sum over the batch, too.")
def _(x, weight, g):
    return g @ weight, g.swapaxes(-1, -2) @ x, _rows(g).sum(axis=0)


@linear_vjp.mistake("mean over rows", "rows add their shares; a mean belongs to the loss, if it has one.")
def _(x, weight, g):
    n = len(_rows(x))
    return g @ weight, _rows(g).T @ _rows(x) / n, _rows(g).mean(axis=0)


def _normal(x):
    return ops.divide(ops.shift(ops.erf(x / math.sqrt(2)), offset=1), np.array(2, x.dtype))


def _density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@exercise(
    "05.2",
    "The slope of GELU",
    task="""gelu(x) = x·Φ(x), where Φ(x) is the share of a standard normal that lies below x. You are given x and
    Φ(x) as below. Return the slope of gelu. The density of the normal, Φ′(x) = exp(−x²/2)/√(2π), is yours to write.""",
    inputs=lambda rng: (lambda x: (x, _normal(x)))(rng.uniform(-2, 2, 11)),
    returns=("slope",),
)
def gelu_slope(x, below):
    return gradients(ops.gelu, x, g=np.ones_like(x))[0]


@gelu_slope.mistake("Φ alone", "x·Φ(x) is a product: its slope has two terms, and the second is x·Φ′(x).")
def _(x, below):
    return below


@gelu_slope.mistake("x left out", "in the second term of the product rule the factor x stays: x·Φ′(x).")
def _(x, below):
    return below + _density(x)


@gelu_slope.mistake("density alone", "that is the second term, x·Φ′(x); the first is 1·Φ(x).")
def _(x, below):
    return x * _density(x)


@gelu_slope.mistake("no 1/√(2π)", "a density has area 1: exp(−x²/2) is to be divided by √(2π).")
def _(x, below):
    return below + x * np.exp(-x * x / 2)


@gelu_slope.mistake("no half", "the exponent of a normal density is −x²/2, with the half.")
def _(x, below):
    return below + x * np.exp(-x * x) / math.sqrt(2 * math.pi)


@gelu_slope.mistake("tanh form", "that is the slope of GPT-2's form with tanh, which is close and not the same.")
def _(x, below):
    return gradients(lambda t: ops.gelu(t, approximate="tanh"), x, g=np.ones_like(x))[0]


def _sizes(rng):
    return int(rng.integers(200, 400)), int(rng.integers(500, 700))


def _widest(draw, shape):
    """Return the largest of many drawn weights; the library's own random state is left as it was."""
    before = draws.random_state()
    try:
        with backend.use_backend("numpy"):
            return float(np.abs(draw(shape).data).max())
    finally:
        draws.set_random_state(*before)


@exercise(
    "05.3",
    "How wide to draw",
    task="""Weights of a layer are drawn evenly from −bound … bound. Return the bound of Glorot and Bengio (Xavier), for
    which the variance of a weight is 2/(fan_in + fan_out). (The variance of such an even draw is bound²/3.)""",
    inputs=_sizes,
    returns=("bound",),
    rtol=1e-3,
)
def xavier_bound(fan_in, fan_out):
    return _widest(nn.init.xavier_uniform, (fan_out, fan_in))  # of 100,000 or more: within 1e-4 of the bound


@xavier_bound.mistake("spread, not bound", "that is the standard deviation; an even draw reaches √3 times as far.")
def _(fan_in, fan_out):
    return math.sqrt(2 / (fan_in + fan_out))


@xavier_bound.mistake("no root", "6/(fan_in + fan_out) is the square of the bound.")
def _(fan_in, fan_out):
    return 6 / (fan_in + fan_out)


@xavier_bound.mistake(
    "fan_in alone", "that keeps signals on the way forwards only; Xavier takes the mean of both fans."
)
def _(fan_in, fan_out):
    return math.sqrt(3 / fan_in)


@xavier_bound.mistake("fan_out alone", "that keeps gradients on the way back only; Xavier takes the mean of both fans.")
def _(fan_in, fan_out):
    return math.sqrt(3 / fan_out)


@xavier_bound.mistake("He's bound", "√(6/fan_in) is He's bound for ReLU, which looks at the way forwards alone.")
def _(fan_in, fan_out):
    return math.sqrt(6 / fan_in)


@xavier_bound.mistake("3 for 6", "bound²/3 = 2/(fan_in + fan_out): under the root stands 6, not 3.")
def _(fan_in, fan_out):
    return math.sqrt(3 / (fan_in + fan_out))

"""Lesson 04, gradient checking: differences of a whole array, extrapolated, and along one direction."""

import numpy as np

from ... import ops
from ...tensor import grad
from ..exercise import exercise


def _f(x):
    """Mix all elements, so that each one's slope depends on the others."""
    return (ops.sin(x) * x.sum()).sum()


def _point(rng):
    return _f, rng.standard_normal((2, 3)), 1e-4


def _moved(x, i, h):
    x = x.copy()
    x[i] += h
    return x


@exercise(
    "04.1",
    "Differences for a whole array",
    task="""f takes an array and returns a number. Return the gradient of f at x by central differences with step h, one
    element of x at a time. Leave x as it was.""",
    inputs=_point,
    returns=("gradient",),
    rtol=1e-6,
    float32=False,
)
def central_gradient(f, x, h):
    return grad(f)(x)


@central_gradient.mistake(
    "forward difference", "that is (f(x + h) − f(x))/h, whose error shrinks like h; step to both sides."
)
def _(f, x, h):
    return np.array([(f(_moved(x, i, h)) - f(x)) / h for i in np.ndindex(x.shape)]).reshape(x.shape)


@central_gradient.mistake("backward difference", "that is (f(x) − f(x − h))/h; step to both sides.")
def _(f, x, h):
    return np.array([(f(x) - f(_moved(x, i, -h))) / h for i in np.ndindex(x.shape)]).reshape(x.shape)


@central_gradient.mistake("not halved", "from x − h to x + h it is two steps: divide by 2h.")
def _(f, x, h):
    both = [(f(_moved(x, i, h)), f(_moved(x, i, -h))) for i in np.ndindex(x.shape)]
    return np.array([(up - down) / h for up, down in both]).reshape(x.shape)


@central_gradient.mistake(
    "not put back", "an element that was moved stays moved while the next ones are measured: put it back."
)
def _(f, x, h):
    x, gradient = x.copy(), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        x[i] += h
        up = f(x)
        x[i] -= 2 * h
        gradient[i] = (up - f(x)) / (2 * h)
    return gradient


@central_gradient.mistake(
    "all at once", "all elements moved together: that measures the sum of the slopes; move one at a time."
)
def _(f, x, h):
    return np.full_like(x, (f(x + h) - f(x - h)) / (2 * h))


def _polynomial(rng):
    c = rng.uniform(0.5, 1.5, 5).tolist()
    return (lambda t: c[0] + c[1] * t + c[2] * t**2 + c[3] * t**3 + c[4] * t**4), 0.25


def _central(f, h):
    return (f(h) - f(-h)) / (2 * h)


@exercise(
    "04.2",
    "Richardson's extrapolation",
    task="""f takes a number. Combine the central differences of f at 0 with the steps h and h/2 so that the error in h²
    cancels, and return the result.""",
    inputs=_polynomial,
    returns=("slope",),
    float32=False,
)
def richardson(f, h):
    return grad(f)(np.array(0.0))


@richardson.mistake(
    "coarse only", "that is the difference with step h alone; its error is h²/6 times the third derivative."
)
def _(f, h):
    return _central(f, h)


@richardson.mistake(
    "fine only", "that is the difference with step h/2 alone: a quarter of the error of step h; now let the two cancel."
)
def _(f, h):
    return _central(f, h / 2)


@richardson.mistake(
    "weights for h",
    "2·D(h/2) − D(h) cancels an error in h; that of central differences goes with h², so it is a quarter.",
)
def _(f, h):
    return 2 * _central(f, h / 2) - _central(f, h)


@richardson.mistake("swapped", "the weights 4/3 and −1/3 are right; the larger one belongs to the finer step.")
def _(f, h):
    return (4 * _central(f, h) - _central(f, h / 2)) / 3


@richardson.mistake("not divided", "the weights must add up to 1, or the slope itself is multiplied: divide by 3.")
def _(f, h):
    return 4 * _central(f, h / 2) - _central(f, h)


@richardson.mistake(
    "mean", "both errors have the same sign: a mean lies between them; the weights must differ in sign."
)
def _(f, h):
    return (_central(f, h / 2) + _central(f, h)) / 2


@exercise(
    "04.3",
    "All at once, along a direction",
    task="""Return the slope of f at x along the direction v, by one central difference with step h: how fast does
    f(x + t·v) grow with t, at t = 0?""",
    inputs=lambda rng: (_f, rng.standard_normal((2, 3)), rng.standard_normal((2, 3)), 1e-4),
    returns=("slope",),
    rtol=1e-6,
    float32=False,
)
def directional(f, x, v, h):
    return (grad(f)(x).numpy() * v).sum()


@directional.mistake("of length 1", "v is not to be divided by its length: t counts in lengths of v.")
def _(f, x, v, h):
    v = v / np.sqrt((v * v).sum())
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


@directional.mistake("not halved", "from x − h·v to x + h·v it is two steps: divide by 2h.")
def _(f, x, v, h):
    return (f(x + h * v) - f(x - h * v)) / h


@directional.mistake("forward difference", "step to both sides: the error then shrinks like h² and not like h.")
def _(f, x, v, h):
    return (f(x + h * v) - f(x)) / h


@directional.mistake("v left out", "that moves all elements by the same h; move each by h times its part of v.")
def _(f, x, v, h):
    return (f(x + h) - f(x - h)) / (2 * h)

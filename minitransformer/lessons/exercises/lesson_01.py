"""Lesson 01, a number that remembers: slopes of one step, and the walk backwards."""

import numpy as np

from ... import ops
from ...tensor import tensor
from ..exercise import exercise, gradients


def _two_numbers(rng):
    return float(rng.uniform(1.5, 3)), float(-rng.uniform(0.4, 0.9))


@exercise(
    "01.1",
    "The slopes of a quotient",
    task="For y = a / b return two numbers: how fast y grows with a, and how fast it grows with b.",
    inputs=_two_numbers,
    returns=("slope_a", "slope_b"),
)
def quotient_slopes(a, b):
    return gradients(ops.divide, np.array(a), np.array(b))


@quotient_slopes.mistake(
    "lost sign", "a larger b makes a / b smaller where both are positive: where is the minus of −a/b²?"
)
def _(a, b):
    return 1 / b, a / b**2


@quotient_slopes.mistake("no square", "b stands in the denominator: the derivative of 1/b is −1/b², with a square.")
def _(a, b):
    return 1 / b, -a / b


@quotient_slopes.mistake("a left out", "y = a·(1/b): the slope along b is a times that of 1/b.")
def _(a, b):
    return 1 / b, -1 / b**2


@quotient_slopes.mistake("swapped", "both numbers are right and stand in the wrong order: the slope of a comes first.")
def _(a, b):
    return -a / b**2, 1 / b


@quotient_slopes.mistake("as a product", "these are the slopes of a·b; division is another step.")
def _(a, b):
    return b, a


@exercise(
    "01.2",
    "A slope from the result",
    task="For y = tanh(x) return the slope dy/dx. You are given y, not x: a step can keep its result for the way back.",
    inputs=lambda rng: (np.tanh(rng.uniform(-1.5, 1.5, 7)),),
    returns=("slope",),
)
def tanh_slope(y):
    return gradients(ops.tanh, np.arctanh(y), g=np.ones_like(y))[0]


@tanh_slope.mistake("tanh twice", "y is tanh(x) already; 1 − tanh(y)² would take it a second time.")
def _(y):
    return 1 - np.tanh(y) ** 2


@tanh_slope.mistake("no square", "the slope is 1 − y², with a square: it is the same for x and −x.")
def _(y):
    return 1 - y


@tanh_slope.mistake("plus", "the slope is largest at 0 and falls to both sides: 1 − y², not 1 + y².")
def _(y):
    return 1 + y**2


@tanh_slope.mistake("sigmoid", "y·(1 − y) is the slope of the sigmoid, whose values lie between 0 and 1.")
def _(y):
    return y * (1 - y)


def _tape(rng):
    """Make a small computation: entries in order of birth, each with the places of its parents and its slopes."""
    slopes = iter((rng.uniform(0.5, 1.5, 12) * rng.choice([-1, 1], 12)).tolist())
    parents = [(), (), (0, 1), (0, 2), (2,), (3, 4, 2), (5, 5)]
    return ([(places, tuple(next(slopes) for _ in places)) for places in parents],)


@exercise(
    "01.3",
    "The walk backwards",
    task="""tape is a list in order of birth; each entry is (parents, slopes), where parents are places in the list and
    slopes belong to them. Return a list: for each entry, how fast the last one grows with it.""",
    inputs=_tape,
    returns=("grads",),
)
def backward(tape):
    made: list = []
    for parents, slopes in tape:
        total = tensor(np.array(1.0), requires_grad=True)  # linear in its parents, with these very slopes
        for place, slope in zip(parents, slopes, strict=True):
            total = total + made[place] * slope
        made.append(total.retain_grad())
    made[-1].backward()
    return [t.grad.item() for t in made]


@backward.mistake(
    "assignment", "an entry may be the parent of several: its gradients add up, so write grads[parent] += ..., not =."
)
def _(tape):
    grads = [0.0] * len(tape)
    grads[-1] = 1.0
    for i in reversed(range(len(tape))):
        for parent, slope in zip(*tape[i], strict=True):
            grads[parent] = slope * grads[i]
    return grads


@backward.mistake(
    "forwards", "an entry can hand on its gradient only when all of it has arrived: walk from the last to the first."
)
def _(tape):
    grads = [0.0] * len(tape)
    grads[-1] = 1.0
    for i in range(len(tape)):
        for parent, slope in zip(*tape[i], strict=True):
            grads[parent] += slope * grads[i]
    return grads


@backward.mistake("slopes left out", "what a parent gets is the gradient of its child times the slope of that step.")
def _(tape):
    grads = [0.0] * len(tape)
    grads[-1] = 1.0
    for i in reversed(range(len(tape))):
        for parent in tape[i][0]:
            grads[parent] += grads[i]
    return grads


@backward.mistake("no beginning", "the last entry grows with itself at the rate 1: begin with grads[-1] = 1.")
def _(tape):
    return [0.0] * len(tape)


@backward.mistake(
    "one step only", "multiply by the gradient of the child, not by 1: the chain goes on to the last entry."
)
def _(tape):
    grads = [0.0] * len(tape)
    grads[-1] = 1.0
    for parents, slopes in tape:
        for parent, slope in zip(parents, slopes, strict=True):
            grads[parent] += slope
    return grads

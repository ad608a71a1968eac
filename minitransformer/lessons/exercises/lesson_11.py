"""Lesson 11, optimizers: steps that remember, moments from sums, a bound on gradients."""

import numpy as np

from ... import optim
from ...tensor import as_array, tensor
from ..exercise import exercise


def _weights_and_gradients(rng):
    return rng.standard_normal(5), rng.standard_normal((7, 5))


def _steps(make, theta, gradients):
    """Let an optimizer of the library take a step for each gradient."""
    weights = tensor(theta.copy(), requires_grad=True)
    optimizer = make([weights])
    for g in gradients:
        weights.grad = g.copy()
        optimizer.step()
    return weights.numpy()


@exercise(
    "11.1",
    "Momentum",
    task="""Take a step for each row of gradients: b ← mu·b + g, then θ ← θ − lr·b; b is 0 before the first. Return θ
    after the last.""",
    inputs=lambda rng: (*_weights_and_gradients(rng), float(rng.uniform(0.05, 0.2)), float(rng.uniform(0.6, 0.95))),
    returns=("theta",),
)
def momentum(theta, gradients, lr, mu):
    return _steps(lambda p: optim.SGD(p, lr=lr, momentum=mu), theta, gradients)


@momentum.mistake("no memory", "this is plain SGD: b has to keep a share mu of what it was before.")
def _(theta, gradients, lr, mu):
    return theta - lr * gradients.sum(axis=0)


@momentum.mistake(
    "a mean, not a sum", "b ← mu·b + g, without a factor 1 − mu at g: momentum adds up, and its steps grow."
)
def _(theta, gradients, lr, mu):
    b = np.zeros_like(theta)
    for g in gradients:
        b = mu * b + (1 - mu) * g
        theta = theta - lr * b
    return theta


@momentum.mistake("Nesterov", "the step is lr·b; g + mu·b is the step of Nesterov's variant.")
def _(theta, gradients, lr, mu):
    b = np.zeros_like(theta)
    for g in gradients:
        b = mu * b + g
        theta = theta - lr * (g + mu * b)
    return theta


@momentum.mistake("step before the gradient", "b takes in the new gradient first, and then the weights are moved.")
def _(theta, gradients, lr, mu):
    b = np.zeros_like(theta)
    for g in gradients:
        theta = theta - lr * b
        b = mu * b + g
    return theta


@momentum.mistake("uphill", "the weights move against the gradient: subtract lr·b.")
def _(theta, gradients, lr, mu):
    b = np.zeros_like(theta)
    for g in gradients:
        b = mu * b + g
        theta = theta + lr * b
    return theta


@momentum.mistake("last step only", "each gradient makes a step, within the loop; only the last one was made.")
def _(theta, gradients, lr, mu):
    b = np.zeros_like(theta)
    for g in gradients:
        b = mu * b + g
    return theta - lr * b


def _of_adamw(rng):
    rates = (float(rng.uniform(0.05, 0.2)), float(rng.uniform(0.6, 0.95)), float(rng.uniform(0.9, 0.99)))
    return (*_weights_and_gradients(rng), *rates, 0.01, 0.3)


@exercise(
    "11.2",
    "AdamW",
    task="""Take a step for each row of gradients, counted from t = 1: m ← beta1·m + (1 − beta1)·g, v ← beta2·v +
    (1 − beta2)·g², θ ← (1 − lr·decay)·θ − lr·(m/(1 − beta1ᵗ)) / (√(v/(1 − beta2ᵗ)) + eps). Return θ after the last.""",
    inputs=_of_adamw,
    returns=("theta",),
)
def adamw(theta, gradients, lr, beta1, beta2, eps, decay):
    return _steps(lambda p: optim.AdamW(p, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay), theta, gradients)


def _adamw(
    theta, gradients, lr, beta1, beta2, eps, decay, *, correct=(1, 1), power=2, penalty=False, within=False, late=False,
    shrink=None, start=1,
):  # fmt: skip
    """Step as AdamW does, but for what the options spoil."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    factor = 1 - (lr * decay if shrink is None else shrink)
    for t, g in enumerate(gradients, start=start):
        if penalty:
            g = g + decay * theta
        elif not late:
            theta = factor * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * np.abs(g) ** power
        first = m / (1 - beta1**t if correct[0] else 1)
        second = v / (1 - beta2**t if correct[1] else 1)
        theta = theta - lr * first / (np.sqrt(second + eps) if within else np.sqrt(second) + eps)
        if late:
            theta = factor * theta
    return theta


@adamw.mistake(
    "no bias correction", "m and v begin at 0 and are too small at first: divide them by 1 − beta1ᵗ and 1 − beta2ᵗ."
)
def _(*inputs):
    return _adamw(*inputs, correct=(0, 0))


@adamw.mistake("only m corrected", "v begins at 0, too: divide it by 1 − beta2ᵗ before the root.")
def _(*inputs):
    return _adamw(*inputs, correct=(1, 0))


@adamw.mistake("only v corrected", "m begins at 0, too: divide it by 1 − beta1ᵗ.")
def _(*inputs):
    return _adamw(*inputs, correct=(0, 1))


@adamw.mistake(
    "a penalty", "this is Adam with decay·θ added to the gradient; AdamW shrinks θ beside the step, past m and v."
)
def _(*inputs):
    return _adamw(*inputs, penalty=True)


@adamw.mistake("eps within the root", "eps is added after the root: √v̂ + eps, not √(v̂ + eps).")
def _(*inputs):
    return _adamw(*inputs, within=True)


@adamw.mistake("decay without lr", "θ shrinks by lr·decay in a step, not by decay: a lower lr shrinks less, too.")
def _(*inputs):
    return _adamw(*inputs, shrink=inputs[-1])


@adamw.mistake("no decay", "this is Adam: where does θ shrink by lr·decay?")
def _(*inputs):
    return _adamw(*inputs, shrink=0.0)


@adamw.mistake("decay after the step", "the old θ shrinks, not the new one: the step itself is not shortened.")
def _(*inputs):
    return _adamw(*inputs, late=True)


@adamw.mistake(
    "steps counted from two", "t is 1 at the first step; where it is raised twice, the means are corrected too little."
)
def _(*inputs):
    return _adamw(*inputs, start=2)


@exercise(
    "11.3",
    "Factored second moments",
    task="""R is the mean of g² over the columns, one number for each row of g (N, M); C is its mean over the rows, one
    number for each column. Return V[i, j] = R[i]·C[j] / (mean of R).""",
    inputs=lambda rng: (rng.standard_normal((5, 7)),),
    returns=("V",),
)
def factored_moment(g):
    weight = tensor(np.ones_like(g), requires_grad=True)
    weight.grad = g
    adafactor = optim.Adafactor([weight])
    adafactor.step()  # the first step: the running means are those of this gradient
    rows, columns = adafactor.state[0]["row_var"], adafactor.state[0]["col_var"]
    return rows / rows.mean() * columns


@factored_moment.mistake("not divided", "R·C counts the overall size twice: divide by the mean of R.")
def _(g):
    return (g * g).mean(axis=1, keepdims=True) * (g * g).mean(axis=0)


@factored_moment.mistake("sums", "with sums for R and C, divide by the sum of R: by its mean everything is too large.")
def _(g):
    rows = (g * g).sum(axis=1, keepdims=True)
    return rows * (g * g).sum(axis=0) / rows.mean()


@factored_moment.mistake("not squared", "second moments are means of g², not of |g|.")
def _(g):
    rows = np.abs(g).mean(axis=1, keepdims=True)
    return rows * np.abs(g).mean(axis=0) / rows.mean()


@factored_moment.mistake(
    "square of the mean", "first square each number, then take means: the mean of g² is not the square of a mean."
)
def _(g):
    rows = g.mean(axis=1, keepdims=True) ** 2
    return rows * g.mean(axis=0) ** 2 / rows.mean()


@factored_moment.mistake("the root", "V estimates g² itself; the root is taken later, in the step.")
def _(g):
    rows = (g * g).mean(axis=1, keepdims=True)
    return np.sqrt(rows * (g * g).mean(axis=0) / rows.mean())


@factored_moment.mistake(
    "divided by the sum", "divide by the mean of R, which is the mean of all squares; its sum is N times that."
)
def _(g):
    rows = (g * g).mean(axis=1, keepdims=True)
    return rows * (g * g).mean(axis=0) / rows.sum()


def _gradients_and_bound(rng):
    """Make two gradients, and a bound that is above their norm every now and then."""
    g_a, g_b = rng.standard_normal((3, 5)), rng.standard_normal(7)
    norm = float(np.sqrt((g_a**2).sum() + (g_b**2).sum()))
    return g_a, g_b, norm * (0.3 if rng.random() < 0.6 else 1.5)


@exercise(
    "11.4",
    "Clipping by norm",
    task="""g_a and g_b are the gradients of two parameters, taken together as one long vector. Return both, scaled by
    one factor so that the norm of that vector is at most bound; where it is already, return them as they are.""",
    inputs=_gradients_and_bound,
    returns=("g_a", "g_b"),
    rtol=1e-5,  # the library's factor has 1e-6 in its denominator
)
def clip_by_norm(g_a, g_b, bound):
    parameters = [tensor(np.zeros_like(g), requires_grad=True) for g in (g_a, g_b)]
    for parameter, g in zip(parameters, (g_a, g_b), strict=True):
        parameter.grad = g.copy()
    optim.clip_grad_norm_(parameters, bound)
    return tuple(as_array(parameter.grad) for parameter in parameters)


def _norm(*gradients):
    return np.sqrt(sum((g * g).sum() for g in gradients))


@clip_by_norm.mistake(
    "each by itself", "both together make one vector with one norm, and one factor keeps its direction."
)
def _(g_a, g_b, bound):
    return tuple(g * min(1.0, bound / _norm(g)) for g in (g_a, g_b))


@clip_by_norm.mistake("short ones made longer", "a norm below the bound is left alone: the factor is at most 1.")
def _(g_a, g_b, bound):
    return tuple(g * (bound / _norm(g_a, g_b)) for g in (g_a, g_b))


@clip_by_norm.mistake("by value", "this cuts each number alone, which changes the direction; scale all by one factor.")
def _(g_a, g_b, bound):
    return tuple(np.clip(g, -bound, bound) for g in (g_a, g_b))


@clip_by_norm.mistake("no root", "the norm is the root of the sum of squares: the root is missing.")
def _(g_a, g_b, bound):
    return tuple(g * min(1.0, bound / _norm(g_a, g_b) ** 2) for g in (g_a, g_b))


@clip_by_norm.mistake("norms added", "norms do not add up, their squares do: √(‖g_a‖² + ‖g_b‖²).")
def _(g_a, g_b, bound):
    return tuple(g * min(1.0, bound / (_norm(g_a) + _norm(g_b))) for g in (g_a, g_b))


@clip_by_norm.mistake("nothing clipped", "where the common norm is above the bound both are to be scaled down.")
def _(g_a, g_b, bound):
    return g_a.copy(), g_b.copy()

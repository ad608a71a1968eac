"""Solutions of lesson 07."""

import numpy as np


def residual_vjp(x, w, g):
    """Let g arrive straight, and through the branch; the weight is in the branch alone."""
    return g + (g @ w.T) * (x > 0), np.maximum(x, 0).T @ g


def gradients_down(jacobians, g):
    """From the last layer to the first, add what comes through the branch to what comes straight."""
    found = [g]
    for jacobian in jacobians[::-1]:
        found.append(found[-1] + jacobian.T @ found[-1])
    return np.stack(found[::-1])


def residual(x, branch, norm, kind):
    """Normalise what goes into the branch, or the sum."""
    if kind == "pre":
        return x + branch(norm(x))
    return norm(x + branch(x))


def dropout(x, kept, p, training):
    """Multiply by the same factors in both directions; outside training, by none."""
    if not training:
        return x, lambda g: g
    return x * kept / (1 - p), lambda g: g * kept / (1 - p)


SOLUTIONS = {"07.1": residual_vjp, "07.2": gradients_down, "07.3": residual, "07.4": dropout}

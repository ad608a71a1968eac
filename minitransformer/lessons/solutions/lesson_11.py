"""Solutions of lesson 11."""

import numpy as np


def momentum(theta, gradients, lr, mu):
    """Add the gradients up, forget slowly, and step against the sum."""
    b = np.zeros_like(theta)
    for g in gradients:
        b = mu * b + g
        theta = theta - lr * b
    return theta


def adamw(theta, gradients, lr, beta1, beta2, eps, decay):
    """Shrink the weights, and step by the corrected means."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        theta = (1 - lr * decay) * theta - lr * u
    return theta


def factored_moment(g):
    """Make the squares from the means of their rows and columns."""
    rows = (g * g).mean(axis=1, keepdims=True)
    columns = (g * g).mean(axis=0)
    return rows * columns / rows.mean()


def clip_by_norm(g_a, g_b, bound):
    """Scale both by one factor, at most 1."""
    norm = np.sqrt((g_a * g_a).sum() + (g_b * g_b).sum())
    factor = min(1.0, float(bound / norm))
    return g_a * factor, g_b * factor


SOLUTIONS = {"11.1": momentum, "11.2": adamw, "11.3": factored_moment, "11.4": clip_by_norm}

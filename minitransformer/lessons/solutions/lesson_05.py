"""Solutions of lesson 05."""

import math

import numpy as np


def linear_vjp(x, weight, g):
    """Put all rows under one another; then it is a matrix product and a sum."""
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return g @ weight, g_rows.T @ rows, g_rows.sum(axis=0)


def gelu_slope(x, below):
    """Apply the product rule: Φ(x) + x·Φ′(x)."""
    return below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def xavier_bound(fan_in, fan_out):
    """Return the root of 3 · 2/(fan_in + fan_out)."""
    return math.sqrt(6 / (fan_in + fan_out))


SOLUTIONS = {"05.1": linear_vjp, "05.2": gelu_slope, "05.3": xavier_bound}

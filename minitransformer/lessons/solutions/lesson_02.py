"""Solutions of lesson 02."""

import numpy as np


def matmul_vjp(a, b, g):
    """Return g·bᵀ and aᵀ·g."""
    return g @ b.T, a.T @ g


def cumsum_vjp(x, g):
    """Return the running sum of g from the other end."""
    return np.cumsum(g[::-1])[::-1]


def sigmoid(x):
    """Return y and its vjp, which keeps y alone."""
    y = 1 / (1 + np.exp(-x))
    return y, lambda g: g * y * (1 - y)


SOLUTIONS = {"02.1": matmul_vjp, "02.2": cumsum_vjp, "02.3": sigmoid}

"""Solutions of lesson 03."""

import numpy as np


def sum_to(g, shape):
    """Sum over the axes in front, then over those of length 1."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    ones = tuple(i for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=ones, keepdims=True)


def multiply_vjp(a, b, g):
    """Multiply by the other factor; sum over the rows for the one that was used in each."""
    return g * b, (g * a).sum(axis=0)


def lookup_vjp(ids, g, rows):
    """Add each use to its row."""
    table = np.zeros((rows, g.shape[1]), g.dtype)
    np.add.at(table, ids, g)
    return table


def mean_vjp(x, g):
    """Give each element of a row its share, 1/n."""
    return np.broadcast_to(g[:, None] / x.shape[1], x.shape)


SOLUTIONS = {"03.1": sum_to, "03.2": multiply_vjp, "03.3": lookup_vjp, "03.4": mean_vjp}

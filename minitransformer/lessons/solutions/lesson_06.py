"""Solutions of lesson 06."""

import numpy as np


def softmax(x):
    """Shift each row by its own maximum, then divide by the sum."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_vjp(y, g):
    """Take from g the mean that y weights, then weight by y."""
    return y * (g - (g * y).sum(axis=-1, keepdims=True))


def layer_norm(x, weight, bias, eps):
    """Centre each row, divide by its biased standard deviation, then scale and shift."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return weight * centred / np.sqrt(variance + eps) + bias


def layer_norm_vjp(x_hat, inv_std, weight, g):
    """Three terms for x; sums over the rows for what every row has used."""
    g_hat = g * weight
    through_mean = g_hat.mean(axis=-1, keepdims=True)
    through_std = x_hat * (g_hat * x_hat).mean(axis=-1, keepdims=True)
    return inv_std * (g_hat - through_mean - through_std), (g * x_hat).sum(axis=0), g.sum(axis=0)


SOLUTIONS = {"06.1": softmax, "06.2": softmax_vjp, "06.3": layer_norm, "06.4": layer_norm_vjp}

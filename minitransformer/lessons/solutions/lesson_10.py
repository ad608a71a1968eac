"""Solutions of lesson 10."""

import numpy as np


def sinusoids(length, width):
    """Put sines into the even columns and cosines into the odd ones."""
    angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    table = np.empty((length, width))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)
    return table


def rotate(x, angle):
    """Turn the pairs (i, i + K/2)."""
    half = x.shape[1] // 2
    a, b = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def alibi_bias(slopes, length):
    """Take off slope times distance."""
    place = np.arange(length)
    distance = np.abs(place[:, None] - place).astype(slopes.dtype)
    return -slopes[:, None, None] * distance


def learned_positions_vjp(starts, g, rows):
    """Add each gradient to the row that was used; a row may be used several times."""
    g_weight = np.zeros((rows, g.shape[2]), g.dtype)
    for start, g_text in zip(starts, g, strict=True):
        g_weight[start : start + len(g_text)] += g_text
    return g_weight


SOLUTIONS = {"10.1": sinusoids, "10.2": rotate, "10.3": alibi_bias, "10.4": learned_positions_vjp}

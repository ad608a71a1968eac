"""Lesson 10, positions: a table of waves, a rotation, a bias, and the way back into a learned table."""

import numpy as np

from ... import ops
from ...nn.position import sinusoids as table_of_waves
from ..exercise import exercise, gradients


@exercise(
    "10.1",
    "The table of waves",
    task="""Return the table of sinusoidal positions, (length, width), for an even width: table[t, 2i] =
    sin(t / 10000^(2i/width)) and table[t, 2i + 1] = cos(t / 10000^(2i/width)); t counts from 0.""",
    inputs=lambda rng: (int(rng.integers(5, 12)), 2 * int(rng.integers(3, 6))),
    returns=("table",),
)
def sinusoids(length, width):
    return table_of_waves(length, width)


def _angles(length, width, first=0, base=10000.0):
    return np.arange(first, first + length)[:, None] * base ** (-np.arange(0, width, 2) / width)


def _alternating(even, odd):
    return np.stack([even, odd], axis=-1).reshape(len(even), -1)


@sinusoids.mistake(
    "a frequency for each column",
    "columns 2i and 2i + 1 share the frequency 10000^(−2i/width): there are width/2 of them, not width.",
)
def _(length, width):
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(width) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))


@sinusoids.mistake(
    "half the exponent", "the exponent is 2i/width with i = 0, 1, 2, ...: the 2 is missing, so the waves are too fast."
)
def _(length, width):
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(width // 2) / width)
    return _alternating(np.sin(angle), np.cos(angle))


@sinusoids.mistake("two halves", "the numbers are right; sines and cosines alternate, and do not stand in two halves.")
def _(length, width):
    angle = _angles(length, width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


@sinusoids.mistake(
    "sine and cosine exchanged", "the even columns are sines, the odd ones cosines: row 0 is 0, 1, 0, 1, ..."
)
def _(length, width):
    angle = _angles(length, width)
    return _alternating(np.cos(angle), np.sin(angle))


@sinusoids.mistake("from one", "places count from 0: the first row has the angle 0 everywhere.")
def _(length, width):
    angle = _angles(length, width, first=1)
    return _alternating(np.sin(angle), np.cos(angle))


@sinusoids.mistake("multiplied", "t is divided by 10000^(2i/width): the waves get slower from column to column.")
def _(length, width):
    angle = np.arange(length)[:, None] * 10000.0 ** (np.arange(0, width, 2) / width)
    return _alternating(np.sin(angle), np.cos(angle))


@exercise(
    "10.2",
    "Turn by an angle",
    task="""x: (T, K), angle: (T, K/2). Turn each pair a = x[:, i], b = x[:, i + K/2] by angle[:, i]: a becomes
    a·cos − b·sin, and b becomes a·sin + b·cos.""",
    inputs=lambda rng: (rng.standard_normal((5, 6)), rng.uniform(-3, 3, (5, 3))),
    returns=("y",),
)
def rotate(x, angle):
    return ops.rotary(x, np.cos(angle), np.sin(angle))


def _halves(x):
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


@rotate.mistake("turned back", "this turns by −angle: the minus stands before b·sin, in the new a.")
def _(x, angle):
    a, b = _halves(x)
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=1)


@rotate.mistake(
    "neighbours", "this turns the pairs (2i, 2i + 1); asked for are (i, i + K/2), as Llama's weights want it."
)
def _(x, angle):
    a, b = x[:, 0::2], x[:, 1::2]
    return _alternating(a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle))


@rotate.mistake("new a in b", "b is turned with the new a: keep the old one, both come from what stood there before.")
def _(x, angle):
    a, b = _halves(x)
    a = a * np.cos(angle) - b * np.sin(angle)
    return np.concatenate([a, b * np.cos(angle) + a * np.sin(angle)], axis=1)


@rotate.mistake("two minuses", "a rotation has one minus, in the new a; with two the lengths would not stay.")
def _(x, angle):
    a, b = _halves(x)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)], axis=1)


@rotate.mistake("no minus", "a rotation has a minus, in the new a; without it the lengths would not stay.")
def _(x, angle):
    a, b = _halves(x)
    return np.concatenate([a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)


@rotate.mistake(
    "alternating", "the pairs are turned rightly; put the new a in the first half and the new b in the second."
)
def _(x, angle):
    a, b = _halves(x)
    return _alternating(a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle))


@exercise(
    "10.3",
    "The bias of ALiBi",
    task="Return what is added to the scores: bias[h, t, u] = −slopes[h]·|t − u|, for all places t and u below length.",
    inputs=lambda rng: (rng.uniform(0.1, 1, 3), int(rng.integers(5, 9))),
    returns=("bias",),
)
def alibi_bias(slopes, length):
    far = np.abs(np.arange(1 - length, length))
    return ops.by_distance((-slopes[:, None] * far).astype(slopes.dtype), queries=length)


def _ahead(length):
    place = np.arange(length)
    return place - place[:, None]


@alibi_bias.mistake("reward", "far keys lose: the bias is negative, and 0 for the token itself.")
def _(slopes, length):
    return slopes[:, None, None] * np.abs(_ahead(length)).astype(slopes.dtype)


@alibi_bias.mistake("no absolute value", "keys to the right would gain by distance: take |t − u|.")
def _(slopes, length):
    return slopes[:, None, None] * _ahead(length).astype(slopes.dtype)


@alibi_bias.mistake("signed", "keys to the left would gain by distance: take |t − u|.")
def _(slopes, length):
    return -slopes[:, None, None] * _ahead(length).astype(slopes.dtype)


@alibi_bias.mistake("squared", "the penalty grows in a straight line with the distance, not with its square.")
def _(slopes, length):
    return -slopes[:, None, None] * (_ahead(length) ** 2).astype(slopes.dtype)


@alibi_bias.mistake("absolute places", "every query gives key u the same here: what counts is the distance of t and u.")
def _(slopes, length):
    return -slopes[:, None, None] * np.broadcast_to(np.arange(length), (length, length)).astype(slopes.dtype)


@alibi_bias.mistake("slopes by place", "a slope belongs to a head, the first axis: write slopes[:, None, None].")
def _(slopes, length):
    far = np.abs(_ahead(length)).astype(slopes.dtype)
    return np.stack([-far * slopes[t % len(slopes)] for t in range(length)])


def _starts(rng):
    """Make a batch of which two rows begin at the same place, and others overlap."""
    first = int(rng.integers(0, 3))
    return [first, first + 2, first], rng.standard_normal((3, 5, 2)), 11


@exercise(
    "10.4",
    "The vjp of learned positions",
    task="""y[b, t] = x[b, t] + weight[starts[b] + t], where weight is (rows, D); g: (B, T, D) is the gradient of y.
    Return the gradient of weight, (rows, D).""",
    inputs=_starts,
    returns=("g_weight",),
)
def learned_positions_vjp(starts, g, rows):
    places = np.asarray(starts)[:, None] + np.arange(g.shape[1])
    return gradients(lambda weight: ops.embedding(places, weight), np.zeros((rows, g.shape[2]), g.dtype), g=g)[0]


def _places(starts, g):
    return np.asarray(starts)[:, None] + np.arange(g.shape[1])


@learned_positions_vjp.mistake(
    "assignment",
    "a row that several texts have used gets a share from each; an assignment, and += with repeated indices, keep one: "
    "use np.add.at, or a loop.",
)
def _(starts, g, rows):
    g_weight = np.zeros((rows, g.shape[2]), g.dtype)
    g_weight[_places(starts, g)] = g
    return g_weight


@learned_positions_vjp.mistake("starts left out", "row b of the batch begins at starts[b], not at 0.")
def _(starts, g, rows):
    g_weight = np.zeros((rows, g.shape[2]), g.dtype)
    g_weight[: g.shape[1]] = g.sum(axis=0)
    return g_weight


@learned_positions_vjp.mistake(
    "mean", "the shares of the texts are added up, not averaged: the loss knows about the mean."
)
def _(starts, g, rows):
    g_weight = np.zeros((rows, g.shape[2]), g.dtype)
    np.add.at(g_weight, _places(starts, g), g)
    return g_weight / g.dtype.type(len(starts))


@learned_positions_vjp.mistake("mean of each row", "a row that was used twice gets both shares, not their mean.")
def _(starts, g, rows):
    g_weight, used = np.zeros((rows, g.shape[2]), g.dtype), np.zeros((rows, 1), g.dtype)
    np.add.at(g_weight, _places(starts, g), g)
    np.add.at(used, _places(starts, g), 1)
    return g_weight / np.maximum(used, 1)


@learned_positions_vjp.mistake("first of a text only", "a text uses T rows, from starts[b] on, and not only its first.")
def _(starts, g, rows):
    g_weight = np.zeros((rows, g.shape[2]), g.dtype)
    np.add.at(g_weight, np.asarray(starts), g.sum(axis=1))
    return g_weight

"""Rotation of pairs: its formula number by number, its inverse, and what it refuses. (Llama's: tests/nn.)"""

import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops

ANGLES = np.array([[0.0, 0.3], [0.5, -1.0], [2.0, 4.0]])


@pytest.mark.parametrize("pairing, pairs", [("halves", [(0, 2), (1, 3)]), ("neighbours", [(0, 1), (2, 3)])])
def test_each_pair_is_rotated_by_its_angle(pairing, pairs, rng):
    x = rng.standard_normal((2, 3, 4))
    y = ops.rotary(mt.tensor(x), np.cos(ANGLES), np.sin(ANGLES), pairing).numpy()
    for t in range(3):
        for i, (a, b) in enumerate(pairs):
            c, s = math.cos(ANGLES[t, i]), math.sin(ANGLES[t, i])
            np.testing.assert_allclose(y[:, t, a], x[:, t, a] * c - x[:, t, b] * s, atol=1e-12)
            np.testing.assert_allclose(y[:, t, b], x[:, t, a] * s + x[:, t, b] * c, atol=1e-12)


@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
def test_turning_back_gives_what_was_there(pairing, rng):
    x = rng.standard_normal((2, 3, 4)).astype("float32")
    angles = ANGLES.astype("float32")
    there = ops.rotary(mt.tensor(x), np.cos(angles), np.sin(angles), pairing)
    back = ops.rotary(there, np.cos(angles), -np.sin(angles), pairing)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back.numpy(), x, atol=1e-6)


@pytest.mark.parametrize(
    "x, angles, pairing, text",
    [
        ((3, 4), (3, 2), "both", "halves, neighbours; got 'both'"),
        ((3, 4), (2, 2), "halves", r"cos \(2, 2\)"),
        ((3, 5), (3, 2), "halves", "with an even K"),
    ],
)
def test_misuse_is_named(x, angles, pairing, text):
    with pytest.raises(ValueError, match=text):
        ops.rotary(np.ones(x), np.ones(angles), np.ones(angles), pairing)

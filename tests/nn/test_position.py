"""Positions: the table of the paper, what a shift does, the end of the table."""

import numpy as np
import pytest

from minitransformer import nn
from minitransformer.nn.position import sinusoids


def test_the_table_is_that_of_the_paper():
    table = sinusoids(50, 8)
    for t in (0, 1, 7, 49):
        for i in range(4):
            angle = t / 10000 ** (2 * i / 8)
            np.testing.assert_allclose(table[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-12)
    assert sinusoids(5, 7).shape == (5, 7)  # an odd width loses its last cosine


def test_a_shift_is_a_rotation_of_each_pair():
    table, shift = sinusoids(60, 6).reshape(60, 3, 2), 7
    angle = shift / 10000 ** (2 * np.arange(3) / 6)
    sin, cos = table[:-shift, :, 0], table[:-shift, :, 1]
    moved = np.stack([sin * np.cos(angle) + cos * np.sin(angle), cos * np.cos(angle) - sin * np.sin(angle)], -1)
    np.testing.assert_allclose(table[shift:], moved, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.SinusoidalPositions, nn.LearnedPositions])
def test_positions_start_where_told_and_end_with_the_table(kind, rng):
    module = kind(10, 6)
    x = rng.standard_normal((2, 10, 6)).astype("float32")
    whole = module(x)
    np.testing.assert_array_equal(np.asarray(module(x[:, 4:7], start=4)), np.asarray(whole)[:, 4:7])
    assert np.asarray(whole).dtype == np.float32
    with pytest.raises(ValueError, match="max_length=10; got a sequence of 11"):
        module(x[:, :6], start=5)


def test_no_positions_add_nothing(rng):
    x = rng.standard_normal((2, 3, 6))
    assert nn.NoPositions()(x) is x

"""Dropout: what is dropped, what the rest is multiplied by, and that evaluation is left alone."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


def test_survivors_are_multiplied_by_one_over_one_minus_p(rng):
    y = ops.dropout(np.ones((400, 500), "float32"), 0.2)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.unique(y), [0, 1.25], rtol=1e-6)
    assert abs((y == 0).mean() - 0.2) < 0.005 and abs(y.mean() - 1) < 0.01


def test_the_gradient_goes_where_the_values_went(rng):
    x = mt.tensor(np.ones((20, 30), "float32"), requires_grad=True)
    y = ops.dropout(x, 0.5)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_evaluation_and_p_zero_do_nothing():
    x = np.ones(9)
    assert ops.dropout(x, 0.9, training=False) is x
    assert ops.dropout(x, 0.0) is x


def test_a_seed_names_the_mask():
    def draw(seed):
        mt.manual_seed(seed)
        return ops.dropout(np.ones(50), 0.5)

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


@pytest.mark.parametrize("p", [-0.1, 1.0, 2])
def test_an_impossible_share_is_refused(p):
    with pytest.raises(ValueError, match="0 <= p < 1"):
        ops.dropout(np.ones(3), p)

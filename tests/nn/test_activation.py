"""Activation modules, by name, and dropout that knows its mode."""

import numpy as np
import pytest

from minitransformer import nn, ops
from minitransformer.nn.activation import ACTIVATIONS, activation


def test_each_name_gives_its_op(rng):
    x = rng.standard_normal((3, 5))
    expected = {"relu": ops.relu(x), "silu": ops.silu(x), "gelu": ops.gelu(x), "gelu_tanh": ops.gelu(x, "tanh")}
    assert set(ACTIVATIONS) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(activation(name)(x), value)
    with pytest.raises(ValueError, match="one of relu, silu, gelu, gelu_tanh; got 'swish'"):
        activation("swish")


def test_dropout_is_off_in_eval():
    drop, x = nn.Dropout(0.5), np.ones((30, 30), "float32")
    assert (drop(x) == 0).any()
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match="0 <= p < 1"):
        nn.Dropout(1.0)

"""Mixed precision: which values are half, which stay single, and that gradients come out in the weights' type."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn, ops


def test_products_are_half_and_the_loss_single(rng):
    layer = nn.Linear(5, 3)
    x = mt.tensor(rng.standard_normal((2, 5)).astype("float32"), requires_grad=True)
    with mt.autocast():
        y = layer(x)
        loss = ops.cross_entropy(y, mt.tensor(np.array([0, 2])).data)
        assert (y.dtype, (x @ layer.weight.T).dtype, loss.dtype) == (np.float16, np.float16, np.float32)
        assert ops.layer_norm(x, layer.bias[:1] * 0 + np.ones(5, "float32"), np.zeros(5, "float32")).dtype == np.float32
    assert layer(x).dtype == np.float32
    loss.backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == x.grad.dtype == np.float32


def test_float64_is_left_alone(rng):
    x, w = (mt.tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(2))
    with mt.autocast():
        assert ops.linear(x, w).dtype == np.float64


def test_it_ends_with_its_block_and_can_be_taken_back_inside(rng):
    x = mt.tensor(np.ones((2, 2), "float32"))
    with mt.autocast():
        with mt.autocast(False):
            assert (x @ x).dtype == np.float32
        assert (x @ x).dtype == np.float16
    assert (x @ x).dtype == np.float32


@pytest.mark.parametrize("causal", [True, False])
def test_attention_agrees_with_single_precision(causal, rng):
    attention = nn.MultiHeadAttention(8, 2)
    x = mt.tensor(rng.standard_normal((2, 5, 8)).astype("float32"), requires_grad=True)
    results = []
    for half in (False, True):
        with mt.autocast(half):
            y = attention(x, causal=causal)
        x.grad = attention.q_proj.weight.grad = None
        y.backward(mt.tensor(np.ones(y.shape, y.numpy().dtype)).data)
        results.append((y.numpy(), x.grad.numpy(), attention.q_proj.weight.grad.numpy()))
    for a, b in zip(*results, strict=True):
        assert a.dtype != np.float16
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-2 * np.abs(a).max())

"""Sums, means and extremes against PyTorch, over every kind of axis."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


@pytest.mark.parametrize("name", ["sum", "mean"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1,)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_and_means_agree_with_torch(name, axis, keepdims, agrees_with_torch, torch, rng):
    x = rng.standard_normal((2, 3, 5))
    ours, theirs = getattr(ops, name), getattr(torch, name)
    every = (0, 1, 2) if axis is None else axis
    agrees_with_torch(lambda t: ours(t, axis=axis, keepdims=keepdims), lambda t: theirs(t, every, keepdim=keepdims), x)


@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes_agree_with_torch_where_nothing_ties(name, agrees_with_torch, torch, rng):
    x = rng.permutation(30).reshape(2, 3, 5) / 7.0
    ours, theirs = getattr(ops, name), getattr(torch, "a" + name)
    for axis in (0, -1, (0, 2)):
        agrees_with_torch(lambda t, axis=axis: ours(t, axis=axis), lambda t, axis=axis: theirs(t, axis), x)
    agrees_with_torch(lambda t: ours(t, axis=1, keepdims=True), lambda t: theirs(t, 1, keepdim=True), x)


def test_a_tie_is_shared():
    x = mt.tensor([[3.0, 3.0, 1.0]], requires_grad=True)
    x.max(axis=1).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[0.5, 0.5, 0]])


def test_methods_and_empty_sums():
    x = mt.tensor(np.ones((3, 0), "float32"), requires_grad=True)
    x.sum().backward()
    assert x.sum().item() == 0 and x.grad.shape == (3, 0)
    assert mt.tensor(5.0).sum().item() == 5


def test_half_numbers_add_up_beyond_2048():
    x = mt.tensor(np.ones((5000, 3), "float16"), requires_grad=True)
    total = x.sum(axis=0)
    assert total.dtype == "float16" and (total.numpy() == 5000).all()
    total.sum().backward()
    assert x.grad.dtype == "float16" and (x.grad.numpy() == 1).all()
    weight, bias = (mt.tensor(np.zeros(shape, "float16"), requires_grad=True) for shape in ((2, 3), (2,)))
    y = ops.linear(x.detach(), weight, bias)
    y.backward(np.ones((5000, 2), "float16"))
    assert bias.grad.dtype == "float16" and (bias.grad.numpy() == 5000).all()

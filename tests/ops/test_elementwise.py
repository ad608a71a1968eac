"""Elementwise ops: values and gradients against PyTorch, ties, broadcasting, what stays float32."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops

UNARY = ["exp", "sin", "cos", "abs", "negative"]
POSITIVE = ["log", "sqrt"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum"]


@pytest.mark.parametrize("name", UNARY + POSITIVE)
def test_unary_ops_agree_with_torch(name, agrees_with_torch, torch, rng):
    x = rng.standard_normal((3, 5))
    agrees_with_torch(getattr(ops, name), getattr(torch, name), np.abs(x) + 0.1 if name in POSITIVE else x)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shapes", [((3, 5), (3, 5)), ((3, 1), (5,)), ((2, 3, 5), (3, 1)), ((), (4,)), ((0, 3), (3,))])
def test_binary_ops_agree_with_torch_and_broadcast(name, shapes, agrees_with_torch, torch, rng):
    a, b = (rng.standard_normal(s) + (3 if name == "divide" else 0) for s in shapes)
    agrees_with_torch(getattr(ops, name), getattr(torch, name), np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("exponent", [2, 3, 0.5, -1, 0])
def test_power_agrees_with_torch(exponent, agrees_with_torch, rng):
    x = 0.2 + rng.random((3, 5))
    agrees_with_torch(lambda t: t**exponent, lambda t: t**exponent, x)


def test_power_zero_has_no_gradient_at_zero():
    x = mt.tensor([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 0)


def test_clip_and_where_agree_with_torch(agrees_with_torch, torch, rng):
    x, y = rng.standard_normal((3, 5)), rng.standard_normal(5)
    agrees_with_torch(lambda t: ops.clip(t, low=-0.5, high=0.7), lambda t: t.clamp(-0.5, 0.7), x)
    condition = rng.random((3, 5)) > 0.5
    agrees_with_torch(
        lambda a, b: ops.where(condition, a, b), lambda a, b: torch.where(torch.tensor(condition), a, b), x, y
    )


def test_ties_share_the_gradient_evenly():
    a, b = mt.tensor([1.0, 2.0, 3.0], requires_grad=True), mt.tensor([1.0, 3.0, 2.0], requires_grad=True)
    ops.maximum(a, b).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), [0.5, 0, 1])
    np.testing.assert_array_equal(b.grad.numpy(), [0.5, 1, 0])


def test_sum_to_is_the_transpose_of_broadcasting(rng):
    g = rng.standard_normal((2, 3, 5))
    for shape in ((2, 3, 5), (3, 5), (5,), (), (1, 3, 1), (2, 1, 5), (1,)):
        x = rng.standard_normal(shape)
        left = (np.broadcast_to(x, g.shape) * g).sum()
        np.testing.assert_allclose(left, (x * ops.sum_to(g, shape)).sum(), rtol=1e-12)
        assert ops.sum_to(g, shape).shape == shape


def test_ops_on_plain_arrays_give_plain_arrays(rng):
    x = rng.standard_normal((3, 5)).astype("float32")
    assert type(ops.exp(x)) is np.ndarray and ops.exp(x).dtype == np.float32
    assert isinstance(ops.add(x, mt.tensor(x)), mt.Tensor)


@pytest.mark.parametrize("name", [*UNARY, "maximum", "minimum"])
def test_no_vjp_leaves_float32(name, rng):
    x = rng.standard_normal((3, 5)).astype("float32")
    arrays = [x, x[0]] if name in BINARY else [x]
    y, vjp = getattr(ops, name).body(np, *arrays)
    assert all(g is None or g.dtype == np.float32 for g in vjp(y))


def test_sign_is_flat():
    x = mt.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    np.testing.assert_array_equal(ops.sign(x).numpy(), [-1, 0, 1])
    (x * ops.sign(x)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [-1, 0, 1])


def test_operators_and_comparisons(rng):
    a, b = rng.standard_normal((2, 3, 5))
    x, y = mt.tensor(a), mt.tensor(b)
    np.testing.assert_allclose((abs(-x) / 2 - 3 / (y + 9)).numpy(), np.abs(a) / 2 - 3 / (b + 9))
    np.testing.assert_allclose((abs(x) ** y).numpy(), np.abs(a) ** b)
    assert ((x < y).numpy() == (a < b)).all() and ((x >= 0).numpy() == (a >= 0)).all()
    assert (~(x > 0) | (x > 0)).numpy().all() and not ((x > 0) & (x < 0)).numpy().any()

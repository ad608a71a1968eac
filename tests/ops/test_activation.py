"""Activations against PyTorch; which GELU is which; nothing overflows."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "silu"])
def test_activations_agree_with_torch(name, agrees_with_torch, torch, rng):
    theirs = torch.nn.functional.silu if name == "silu" else getattr(torch, name)
    agrees_with_torch(getattr(ops, name), theirs, 3 * rng.standard_normal((3, 50)))


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_both_gelus_agree_with_torch(form, agrees_with_torch, torch):
    agrees_with_torch(
        lambda t: ops.gelu(t, approximate=form), lambda t: torch.nn.functional.gelu(t, approximate=form),
        np.linspace(-9, 9, 501),
    )  # fmt: skip


def test_the_two_gelus_differ_where_they_should():
    x = np.linspace(-6, 6, 4001)
    gap = np.abs(ops.gelu(x) - ops.gelu(x, approximate="tanh"))
    assert 3e-4 < gap.max() < 5e-4
    with pytest.raises(ValueError, match="'none' or 'tanh'; got 'erf'"):
        ops.gelu(x, approximate="erf")


@pytest.mark.parametrize("f", [ops.sigmoid, ops.silu, ops.gelu, ops.tanh, lambda x: ops.gelu(x, "tanh")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_stay_finite_forward_and_backward(f, dtype):
    with np.errstate(all="raise", under="ignore"):
        x = mt.tensor(np.array([-1e4, -100, -30, 0, 30, 100, 1e4], dtype), requires_grad=True)
        y = f(x)
        y.sum().backward()
    assert np.isfinite(y.numpy()).all() and np.isfinite(x.grad.numpy()).all()
    assert y.dtype == x.grad.dtype == dtype


def test_relu_has_no_slope_at_zero():
    x = mt.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    ops.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 1])


STRAIGHT = [300, 0, 60_000, 0], [1, 0, 1, 0]  # of 300, -300, 60,000 and -60,000: values, slopes
FAR = dict.fromkeys(["relu", "silu", "gelu", "gelu_tanh"], STRAIGHT)
FAR |= {"sigmoid": ([1, 0, 1, 0], [0, 0, 0, 0]), "tanh": ([1, -1, 1, -1], [0, 0, 0, 0])}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("kernels", [True, False])
def test_half_precision_far_from_0(name, kernels):
    f = (lambda x: ops.gelu(x, approximate="tanh")) if name == "gelu_tanh" else getattr(ops, name)
    x = mt.tensor(np.array([300, -300, 60_000, -60_000], dtype=np.float16), requires_grad=True)
    with mt.use_kernels(kernels), np.errstate(all="ignore"):
        y = f(x)
        y.sum().backward()
    values, slopes = FAR[name]
    np.testing.assert_array_equal(y.numpy(), values)
    np.testing.assert_array_equal(x.grad.numpy(), slopes)
    assert y.dtype == x.grad.dtype == np.float16

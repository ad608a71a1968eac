"""LayerNorm and RMSNorm against PyTorch; the variance is the biased one and ε stands under the root."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 7), (7,)])
def test_layer_norm_agrees_with_torch(shape, agrees_with_torch, torch, rng):
    arrays = [3 + 2 * rng.standard_normal(shape), rng.standard_normal(7), rng.standard_normal(7)]
    agrees_with_torch(ops.layer_norm, lambda x, w, b: torch.nn.functional.layer_norm(x, (7,), w, b), *arrays)


def test_rms_norm_agrees_with_torch(agrees_with_torch, torch, rng):
    arrays = [rng.standard_normal((2, 3, 7)), rng.standard_normal(7)]
    agrees_with_torch(
        lambda x, w: ops.rms_norm(x, w, eps=1e-5), lambda x, w: torch.nn.functional.rms_norm(x, (7,), w, 1e-5), *arrays
    )


def test_the_variance_divides_by_D_and_epsilon_is_under_the_root():
    x, one, zero = np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2)  # mean 2, variance 1 (2 with D − 1)
    y = ops.layer_norm(x, one, zero, eps=3.0)
    np.testing.assert_allclose(y, [[-0.5, 0.5]])  # 1/√(1 + 3); with ε outside, 1/(1 + 3)


def test_a_constant_row_has_a_finite_gradient():
    x = mt.tensor(np.full((2, 5), 7.0, "float32"), requires_grad=True)
    y = ops.layer_norm(x, mt.tensor(np.ones(5, "float32")), mt.tensor(np.zeros(5, "float32")))
    (y * y).sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and not y.numpy().any()


def test_layer_norm_keeps_three_arrays_for_its_backward():
    _, vjp = ops.layer_norm.body(np, np.ones((2, 3)), np.ones(3), np.zeros(3))
    assert set(vjp.__code__.co_freevars) == {"x_hat", "inv_std", "weight"}


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_squares_of_large_numbers_fit_into_half_precision(name, kernels, rng):
    """300² is beyond float16, and so are x² + ... of a row; the result is of size 1."""
    x, weight, bias = 3000 * rng.standard_normal((3, 40)), rng.standard_normal(40), rng.standard_normal(40)
    given = [a.astype("float16") for a in (x, weight, bias)[: 3 if name == "layer_norm" else 2]]
    g = rng.standard_normal((3, 40)).astype("float16")
    results = []
    for dtype in ("float16", "float64"):
        inputs = [mt.tensor(a.astype(dtype), requires_grad=True) for a in given]
        with mt.use_kernels(kernels):
            y = getattr(ops, name)(*inputs)
            y.backward(g.astype(dtype))
        results.append([y.numpy(), *[t.grad.numpy() for t in inputs]])
    for half, exact in zip(*results, strict=True):
        assert half.dtype == np.float16
        np.testing.assert_allclose(half, exact, rtol=0, atol=5e-3 * np.abs(exact).max())

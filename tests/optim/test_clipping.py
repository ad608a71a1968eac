"""Clipping against PyTorch's; what happens to gradients that are not finite."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.optim import clip_grad_norm_, clip_grad_value_, grad_norms, gradients_at_fault, parameter_at_fault
from tests import hostcuda


def parameters(rng, dtype="float64"):
    found = [mt.tensor(np.zeros(s, dtype), requires_grad=True) for s in ((3, 5), (7,), ())]
    for p in found:
        p.grad = np.asarray(rng.standard_normal(p.shape), dtype)
    return found


@pytest.mark.parametrize("limit", [0.1, 1.0, 100.0, float("inf")])
def test_clip_grad_norm_agrees_with_torch(limit, torch, rng):
    mine = parameters(rng)
    his = [torch.nn.Parameter(torch.zeros(p.shape).double()) for p in mine]
    for p, q in zip(mine, his, strict=True):
        q.grad = torch.tensor(p.grad.numpy().copy())
    norm = clip_grad_norm_(mine, limit)
    np.testing.assert_allclose(norm, torch.nn.utils.clip_grad_norm_(his, limit).item(), rtol=1e-12)
    for p, q in zip(mine, his, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


def test_tied_parameters_count_once(rng):
    p = parameters(rng)[0]
    assert float(clip_grad_norm_([p, p], 1e9)) == pytest.approx(np.linalg.norm(p.grad.numpy()))


def test_float32_stays_float32(rng):
    mine = parameters(rng, "float32")
    clip_grad_norm_(mine, 0.1)
    assert all(p.grad.dtype == np.float32 for p in mine)


def test_what_is_not_finite_is_told_and_left_alone(rng):
    mine = parameters(rng)
    mine[1].grad.data[3] = np.nan
    before = [p.grad.numpy().copy() for p in mine]
    with pytest.raises(ValueError, match="1 of 3 with nan or inf"):
        clip_grad_norm_(mine, 1.0)
    norm = clip_grad_norm_(mine, 1.0, error_if_nonfinite=False)
    assert np.isnan(float(norm)) and parameter_at_fault(norm, mine) == 1
    assert gradients_at_fault(norm, mine) == (1, 1, 3)
    for p, g in zip(mine, before, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g)


@pytest.mark.parametrize("bad", [[0], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("kernels", [True, False])
def test_gradients_that_are_not_finite_are_counted(kernels, bad, rng):
    mine = parameters(rng, "float32")
    for i in bad:
        mine[i].grad.data[...] = np.inf
    with mt.use_kernels(kernels):
        norm = clip_grad_norm_(mine, 1.0, error_if_nonfinite=False)
    assert gradients_at_fault(norm, mine) == (bad[0], len(bad), 3)


def test_no_gradients_have_no_norm():
    assert clip_grad_norm_([mt.tensor([1.0], requires_grad=True)], 1.0) == 0


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_clip_grad_value_bounds_each_element(dtype, kernels, rng):
    mine = parameters(rng, dtype)
    mine[0].grad.data[0, 0] = np.inf
    mine[1].grad.data[3] = np.nan  # stays one: it is for others to find it
    before = [p.grad.numpy().copy() for p in mine]
    with mt.use_kernels(kernels):
        clip_grad_value_(mine, 0.5)
    for p, g in zip(mine, before, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), np.clip(g, -0.5, 0.5))
        assert p.grad.dtype == dtype
    with pytest.raises(ValueError, match="clip_value lies in"):
        clip_grad_value_(mine, -0.5)


def test_clip_grad_value_agrees_with_torch(torch, rng):
    mine = parameters(rng)
    his = [torch.nn.Parameter(torch.zeros(p.shape).double()) for p in mine]
    for p, q in zip(mine, his, strict=True):
        q.grad = torch.tensor(p.grad.numpy().copy())
    clip_grad_value_(mine, 0.3)
    torch.nn.utils.clip_grad_value_(his, 0.3)
    for p, q in zip(mine, his, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_each_gradient_has_a_norm(dtype, kernels, rng):
    """A large one, which takes several blocks; one that never came; a scalar; a frozen parameter."""
    mine = parameters(rng, dtype)
    large, none = mt.tensor(np.zeros((70, 71), dtype), requires_grad=True), mt.tensor([0.0], requires_grad=True)
    large.grad = mt.tensor(rng.standard_normal((70, 71)).astype(dtype))
    chosen = [mine[0], none, large, mine[1], mine[2], mt.tensor([1.0])]
    with mt.use_kernels(kernels):
        norms = grad_norms([*chosen, large])  # tied: once
    expected = [0.0 if p.grad is None else np.linalg.norm(p.grad.numpy().astype("float64")) for p in chosen]
    np.testing.assert_allclose(norms, expected, rtol=1e-12 if dtype == "float64" else 1e-5)
    assert grad_norms([none]) == [0.0]
    large.grad.data[69, 70] = np.inf
    mine[1].grad.data[0] = np.nan
    norms = grad_norms(chosen)
    assert np.isinf(norms[2]) and np.isnan(norms[3]) and np.isfinite([norms[i] for i in (0, 1, 4, 5)]).all()


@pytest.mark.skipif("'mock' not in config.where", reason="only the host mock counts")
def test_values_and_norms_are_one_launch_each(rng):
    mine = [p for _ in range(5) for p in parameters(rng, "float32")]
    for act in (lambda: clip_grad_value_(mine, 0.5), lambda: grad_norms(mine)):
        act()
        hostcuda.reset()
        act()
        assert hostcuda.counts()["launch"] == 1


def test_squares_that_overflow_are_nobodys_fault(rng, backend):
    mine = parameters(rng, "float32")
    for p in mine[:2]:
        p.grad.data[...] = 3e19 if backend == "numpy" else 1.5e19
    with np.errstate(over="ignore"):
        norm = clip_grad_norm_(mine, 1.0, error_if_nonfinite=False)
        assert np.isinf(float(norm))
        assert parameter_at_fault(norm, mine) is (None if backend == "numpy" else parameter_at_fault(norm, mine))

"""The error function, held to 4 units in the last place."""

import math

import numpy as np
import pytest

from minitransformer import ops

# Every binade matters near 0, every decimal around 1 (where the two polynomials meet), and the tail to 1.
POINTS = np.concatenate(
    [np.logspace(-300, -1, 5000), np.linspace(0.1, 1.1, 50_001), np.linspace(1.1, 6.5, 50_001), [1.0, 6.0, 30.0, 1e300]]
)


def ulps(x, exact, dtype):
    return np.abs(x.astype("float64") - exact) / np.spacing(np.abs(exact).astype(dtype)).astype("float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_good_to_4_ulp_against_the_c_library(dtype):
    x = POINTS[(POINTS > 1e-37) & (POINTS < 1e37)].astype(dtype) if dtype == "float32" else POINTS
    exact = np.array([math.erf(v) for v in x.astype("float64").tolist()])
    y = ops.erf(np.concatenate([x, -x]))
    assert y.dtype == dtype
    assert ulps(y[: x.size], exact, dtype).max() <= 4
    np.testing.assert_array_equal(y[x.size :], -y[: x.size])


def test_erf_is_good_to_4_ulp_against_scipy(scipy_special):
    exact = scipy_special.erf(POINTS)
    assert ulps(ops.erf(POINTS), exact, "float64").max() <= 4


def test_the_ends():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(ops.erf(np.array([0.0, np.inf, -np.inf])), [0, 1, -1])
    assert math.copysign(1, ops.erf(np.array([-0.0]))[0]) == -1
    assert np.isnan(ops.erf(np.array([np.nan])))[0]


def test_erf_runs_on_both_backends(backend):
    import minitransformer as mt

    x = mt.tensor([0.5, -2.0], requires_grad=True)
    ops.erf(x).sum().backward()
    slope = 2 / math.sqrt(math.pi) * np.exp([-0.25, -4.0])
    np.testing.assert_allclose(ops.erf(x).numpy(), [math.erf(0.5), math.erf(-2)], rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-6)

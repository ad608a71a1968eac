"""Schedules at the points where a formula can be read off."""

import math

import numpy as np
import pytest

from minitransformer.optim import Constant, Noam, WarmupCosine


def test_noam_is_the_formula_of_the_paper():
    schedule = Noam(512, 4000)
    for t in (1, 100, 4000, 100_000):
        assert schedule(t) == pytest.approx(512**-0.5 * min(t**-0.5, t * 4000**-1.5))
    assert max(range(1, 9000, 7), key=schedule) in range(3990, 4010)
    assert Noam(64, 10, factor=2)(10) == pytest.approx(2 / math.sqrt(640))


def test_warmup_is_a_line_and_the_rest_half_a_cosine():
    schedule = WarmupCosine(3e-3, 100, 1500, floor=1e-4)
    np.testing.assert_allclose([schedule(t) for t in (1, 50, 100)], [3e-5, 1.5e-3, 3e-3])
    assert schedule(800) == pytest.approx((3e-3 + 1e-4) / 2) and schedule(1500) == schedule(9999) == 1e-4
    values = [schedule(t) for t in range(100, 1501)]
    assert values == sorted(values, reverse=True)


def test_no_warmup_starts_near_the_peak():
    assert WarmupCosine(1.0, 0, 1000)(1) == pytest.approx(1.0, abs=1e-4)


def test_constant_is_constant():
    assert Constant(0.1)(1) == Constant(0.1)(10**6) == 0.1


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda: Noam(64, 0), "warmup is a whole number from 1"),
        (lambda: WarmupCosine(1.0, 10, 10), "warmup ends before total"),
        (lambda: WarmupCosine(1.0, 0, 10, floor=2.0), "floor is at most peak"),
        (lambda: Constant(-1.0), "lr lies in"),
        (lambda: Constant(0.1)(0), "steps count from 1; got 0"),
    ],
)
def test_misuse_is_named(act, text):
    with pytest.raises(ValueError, match=text):
        act()

"""Schedules at the points where a formula can be read off."""

import math

import numpy as np
import pytest

from minitransformer.optim import (
    Constant,
    Exponential,
    InverseSquareRoot,
    Noam,
    Schedule,
    StepDecay,
    WarmupCosine,
    WarmupLinear,
)

PEAK, WARMUP = 0.3, 20
FALLING = {
    "linear": WarmupLinear(PEAK, WARMUP, 200),
    "cosine": WarmupCosine(PEAK, WARMUP, 200),
    "inverse square root": InverseSquareRoot(PEAK, WARMUP),
    "exponential": Exponential(PEAK, WARMUP, gamma=0.5, every=30),
    "step": StepDecay(PEAK, WARMUP, gamma=0.5, every=30),
}


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
    np.testing.assert_allclose([Constant(0.1, 4)(t) for t in range(1, 7)], [0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_known_values():
    linear = WarmupLinear(1.0, 10, 110, floor=0.2)
    np.testing.assert_allclose([linear(t) for t in (5, 10, 60, 110, 999)], [0.5, 1.0, 0.6, 0.2, 0.2])
    root = InverseSquareRoot(1.0, 25, floor=0.1)
    np.testing.assert_allclose([root(t) for t in (25, 100, 400, 10**6)], [1.0, 0.5, 0.25, 0.1])
    smooth, stairs = (kind(1.0, 10, gamma=0.25, every=100, floor=0.01) for kind in (Exponential, StepDecay))
    np.testing.assert_allclose([smooth(t) for t in (10, 60, 110, 210, 10**4)], [1.0, 0.5, 0.25, 0.0625, 0.01])
    np.testing.assert_allclose([stairs(t) for t in (10, 109, 110, 209, 210)], [1.0, 1.0, 0.25, 0.25, 0.0625])


@pytest.mark.parametrize("name", FALLING)
def test_the_warm_up_ends_where_the_fall_begins(name):
    """One line up to the peak, no jump after it, and never up again."""
    schedule = FALLING[name]
    values = np.array([schedule(t) for t in range(1, 200)])
    np.testing.assert_allclose(values[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP)
    assert schedule.after(WARMUP) == pytest.approx(PEAK)
    assert (np.diff(values[WARMUP - 1 :]) <= 0).all() and values[-1] < 0.4 * PEAK
    if name != "step":
        assert np.diff(values[WARMUP - 1 :]).min() > -PEAK / 20


@pytest.mark.parametrize("make", [InverseSquareRoot, Exponential, StepDecay, Constant, lambda p: WarmupLinear(p, 0, 9)])
def test_without_a_warm_up_the_peak_is_at_the_first_step(make):
    values = [make(PEAK)(t) for t in (1, 2, 3)]
    assert values[0] == pytest.approx(PEAK, rel=0.12) and values == sorted(values, reverse=True)


def test_noam_is_an_inverse_square_root():
    noam, root = Noam(64, 100, factor=2), InverseSquareRoot(2 / math.sqrt(64 * 100), 100)
    np.testing.assert_allclose([noam(t) for t in range(1, 500)], [root(t) for t in range(1, 500)])


@pytest.mark.parametrize(
    "name, warmup",
    [("linear", 0), ("linear", 7), ("cosine", 0), ("cosine", 7), ("inverse_sqrt", 1), ("inverse_sqrt", 7)],
)
def test_the_schedules_of_transformers_are_ours(name, warmup, transformers, torch):
    """Theirs begins at 0 and so takes a step with no rate first; from then on both are at the same place.

    (Up to `total`: after it their cosine rises again.)
    """
    optimizer, total = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK), 40
    if name == "inverse_sqrt":
        ours, theirs = InverseSquareRoot(PEAK, warmup), transformers.get_inverse_sqrt_schedule(optimizer, warmup)
    else:
        ours = (WarmupLinear if name == "linear" else WarmupCosine)(PEAK, warmup, total)
        theirs = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, warmup, total)
    for t in range(1, total + 1):
        optimizer.step()
        theirs.step()
        assert ours(t) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15), t


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", ["StepLR", "ExponentialLR"])
def test_the_schedules_of_pytorch_are_ours(name, warmup, torch):
    """PyTorch chains a LinearLR and the fall; its steps count from 0, ours from 1."""
    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    if name == "StepLR":
        ours, theirs = StepDecay(PEAK, warmup, 0.5, 6), schedulers.StepLR(optimizer, 6, gamma=0.5)
    else:
        ours, theirs = Exponential(PEAK, warmup, 0.9), schedulers.ExponentialLR(optimizer, gamma=0.9)
    if warmup:
        rise = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        theirs = schedulers.SequentialLR(optimizer, [rise, theirs], [warmup - 1])
    for t in range(1, 40):
        assert ours(t) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12), t
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda: Noam(64, 0), "warmup is a whole number from 1"),
        (lambda: WarmupCosine(1.0, 10, 10), "warmup ends before total"),
        (lambda: WarmupCosine(1.0, 0, 10, floor=2.0), "floor is at most peak"),
        (lambda: WarmupLinear(1.0, 10, 10), "warmup ends before total; got warmup=10, total=10; write total=11"),
        (lambda: Exponential(1.0, gamma=0.0), r"gamma lies in \(0, 1\]; got 0.0"),
        (lambda: StepDecay(1.0, gamma=1.5), "got 1.5"),
        (lambda: StepDecay(1.0, every=0), "every is a whole number from 1 up; got 0"),
        (lambda: InverseSquareRoot(1.0, -1), "warmup is a whole number from 0 up"),
        (lambda: InverseSquareRoot(1.0, 0, floor=-1.0), "floor lies in"),
        (lambda: InverseSquareRoot(float("nan")), "peak lies in"),
        (lambda: Constant(-1.0), "lr lies in"),
        (lambda: Constant(0.1)(0), "steps count from 1; got 0"),
    ],
)
def test_misuse_is_named(act, text):
    with pytest.raises(ValueError, match=text):
        act()


def test_a_schedule_of_ones_own_says_how_it_falls():
    class Square(Schedule):
        def after(self, step):
            return self.peak * (self.top / step) ** 2

    assert Square(1.0, 10)(5) == 0.5 and Square(1.0, 10)(20) == 0.25 and Square(1.0, 10, floor=0.5)(20) == 0.5
    with pytest.raises(NotImplementedError, match="Schedule does not; write def after"):
        Schedule(1.0)(1)

"""The guard on made-up losses and norms: what it lets through, what it names, what it remembers."""

import json
import math

import numpy as np
import pytest

from minitransformer.optim import SpikeGuard
from minitransformer.optim.guard import IN_A_ROW, LEAST, WINDOW

NAMES = ["a", "b", "noise"]


def losses(count, seed=0):
    return (2 + 0.1 * np.random.default_rng(seed).standard_normal(count).clip(-2, 2)).tolist()


def ready(limit=4.0, count=50):
    """Return a guard that has seen ordinary steps."""
    guard = SpikeGuard(limit, NAMES)
    for step, loss in enumerate(losses(count), start=1):
        assert guard.look(step, loss, [1.0, 10.0, 1e-9]) is None
    return guard


@pytest.mark.parametrize("count", [50, WINDOW + 70])
def test_the_bound_is_so_many_deviations_above_the_last_losses(count):
    last = losses(count)[-WINDOW:]
    mean, deviation = np.mean(last), np.std(last)
    assert ready(3.0, count).look(999, mean + 2.99 * deviation, [1.0, 10.0, 0.0]) is None
    spike = ready(3.0, count).look(999, mean + 3.01 * deviation, [1.0, 10.0, 0.0])
    assert spike.step == 999 and spike.leap == pytest.approx(3.01) and spike.loss == mean + 3.01 * deviation
    assert ready(3.0, count).look(999, 0.0, [1.0, 10.0, 0.0]) is None  # falling is no leap


def test_the_parameter_that_grew_most_over_its_own_past_is_named():
    """Not the one with the largest norm, nor one whose gradient is rounding alone."""
    spike = ready().look(51, 9.0, [7.0, 20.0, 1e-5])
    assert spike.left_out == "a" and spike.growth == pytest.approx(7.0)
    spike = ready().look(51, 9.0, [7.0, 80.0, 1e-5])
    assert spike.left_out == "b" and spike.growth == pytest.approx(8.0)
    json.dumps(spike._asdict(), allow_nan=False)


def test_running_norms_follow():
    guard = SpikeGuard(4.0, NAMES)
    expected = [1.0, 2.0, 3.0]
    guard.look(1, 2.0, expected)
    for step in range(2, 40):
        norms = [step % 3 + 1.0, 5.0, 0.5]
        guard.look(step, losses(40)[step], norms)
        expected = [0.9 * e + 0.1 * n for e, n in zip(expected, norms, strict=True)]
    np.testing.assert_allclose(guard.norms, expected, rtol=1e-12)


def test_what_was_left_out_does_not_raise_the_bar():
    guard = ready()
    before = guard.state_dict()
    assert guard.look(51, 9.0, [70.0, 20.0, 0.0]) is not None
    after = guard.state_dict()
    assert after["losses"] == before["losses"] and after["norms"] == before["norms"]
    assert (after["in_a_row"], after["left_out"]) == (1, 1)


def test_several_in_a_row_raise_and_one_good_step_forgives():
    guard = ready()
    for step in range(51, 50 + IN_A_ROW):
        assert guard.look(step, 9.0, [70.0, 20.0, 0.0]).step == step
    assert guard.look(55, 2.0, [1.0, 10.0, 0.0]) is None
    for step in range(56, 55 + IN_A_ROW):
        guard.look(step, 9.0, [70.0, 20.0, 0.0])
    text = rf"5 times in a row, at step {55 + IN_A_ROW} to 9 .*the gradient of a grew most \(70 times\); lower"
    with pytest.raises(FloatingPointError, match=text):
        guard.look(55 + IN_A_ROW, 9.0, [70.0, 20.0, 0.0])


def test_the_first_losses_are_not_judged():
    guard = SpikeGuard(4.0, NAMES)
    for step in range(1, LEAST + 1):
        assert guard.look(step, 2.0 if step < LEAST else 100.0, [1.0, 1.0, 1.0]) is None
    assert ready(count=LEAST).look(LEAST + 1, 100.0, [1.0, 1.0, 1.0]) is not None


def test_the_rounding_of_a_loss_at_rest_is_no_leap():
    guard = SpikeGuard(4.0, NAMES)
    for step in range(1, 60):
        assert guard.look(step, 2.0 + 1e-7 * (step % 2), [1.0, 1.0, 1.0]) is None
    assert guard.look(60, 2.007, [1.0, 1.0, 1.0]) is None and guard.look(61, 2.1, [1.0, 1.0, 1.0]) is not None
    at_zero = SpikeGuard(4.0, NAMES)
    for step in range(1, 60):
        at_zero.look(step, 0.0, [0.0, 0.0, 0.0])
    assert math.isfinite(at_zero.look(60, 1.0, [1.0, 2.0, 0.0]).leap)


def test_a_state_goes_through_json_to_the_bit():
    one, other = ready(), SpikeGuard(4.0, NAMES)
    one.look(51, 9.0, [70.0, 20.0, 0.0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step, loss in enumerate([*losses(90, seed=1), 2.7], start=52):
        norms = [1.0 + loss, 10.0 / loss, 1e-9]
        assert one.look(step, loss, norms) == other.look(step, loss, norms)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_with_its_step(loss):
    with pytest.raises(FloatingPointError, match="got (nan|inf) at step 51; lower learning_rate"):
        ready().look(51, loss, [1.0, 10.0, 0.0])


@pytest.mark.parametrize("limit", [0, -1.0, math.nan])
def test_misuse_is_named(limit):
    with pytest.raises(ValueError, match="limit lies in"):
        SpikeGuard(limit, NAMES)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_told_and_not_remembered(bad):
    guard = ready()
    before = guard.state_dict()
    with pytest.raises(FloatingPointError, match=f"norms are finite numbers; got {bad} for b at step 51; lower"):
        guard.look(51, 2.0, [1.0, bad, 0.0])
    assert guard.state_dict() == before


@pytest.mark.parametrize("norms", [[], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_norms_come_one_for_each_name(norms):
    for guard in (ready(), SpikeGuard(4.0, NAMES)):
        with pytest.raises(ValueError, match=f"one for each name; got {len(norms)} for 3 names; write optim.grad"):
            guard.look(51, 2.0, norms)

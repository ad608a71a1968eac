"""The loss scale: it goes down where gradients overflow and up where they do not, and is gone from the gradients."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.optim import GradScaler


def parameter(gradient):
    p = mt.tensor(np.zeros(3, "float32"), requires_grad=True)
    p.grad = np.asarray(gradient, "float32")
    return p


def test_gradients_come_back_as_they_were():
    p = parameter(1024.0 * np.array([1.0, -2.0, 3e-6]))
    assert GradScaler(1024.0).unscale_([p])
    np.testing.assert_array_equal(p.grad.numpy(), np.array([1.0, -2.0, 3e-6], "float32"))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_halves_the_scale_and_asks_for_no_step(bad):
    scaler = GradScaler(1024.0, growth_interval=2)
    assert not scaler.unscale_([parameter([1.0, bad, 0.0])]) and scaler.scale == 512
    assert scaler.unscale_([parameter([1.0, 1.0, 0.0])]) and scaler.scale == 512
    assert scaler.unscale_([parameter([1.0, 1.0, 0.0])]) and scaler.scale == 1024  # two good steps in a row
    again = GradScaler()
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict()


def test_what_overflows_unscaled_is_no_matter_of_scale():
    with pytest.raises(FloatingPointError, match="precision=float32"):
        GradScaler(1.0).unscale_([parameter([1.0, np.inf, 0.0])])


def test_a_scale_saves_gradients_that_half_precision_loses():
    """1e-9 is zero in half precision; times 65,536 it is not."""
    x = mt.tensor(np.ones((1, 1), "float32"))
    grads = []
    for scale in (1.0, 65536.0):
        w = mt.tensor(np.ones((1, 1), "float32"), requires_grad=True)
        with mt.autocast():
            y = ops.linear(x, w)
        loss = y.to("float32").sum() * 1e-9
        loss.backward(loss.data * 0 + scale)
        scaler = GradScaler(scale)
        assert scaler.unscale_([w])
        grads.append(float(w.grad.numpy()[0, 0]))
    assert grads[0] == 0 and grads[1] == pytest.approx(1e-9, rel=1e-3)


@pytest.mark.parametrize("interval", [0, -1, 1.5, True])
def test_steps_between_two_growths_are_counted(interval):
    with pytest.raises(ValueError, match=f"growth_interval is a whole number from 1 up; got {interval}"):
        GradScaler(growth_interval=interval)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="init_scale lies in"):
        GradScaler(0.5)

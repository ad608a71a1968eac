"""What all optimizers share: groups, ties, frozen parameters, dtype, state that goes out and in."""

import json
import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn, optim

ALL = [
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: optim.Adam(p, lr=0.1),
    lambda p: optim.AdamW(p, lr=0.1),
    lambda p: optim.Lion(p, lr=0.01),
    lambda p: optim.Adafactor(p, lr=0.1),
    lambda p: optim.Adafactor(p, convention="transformers", beta1=0.9),
]


def problem():
    mt.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))


def one_step(model, optimizer, step):
    x = np.random.default_rng(step).standard_normal((16, 4)).astype("float32")
    optimizer.zero_grad()
    loss = ((model(x) - np.stack([x.sum(-1), x[:, 0]], -1)) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("make", ALL)
def test_each_learns_and_stays_float32(make):
    model = problem()
    optimizer = make(model.parameters())
    losses = [one_step(model, optimizer, step) for step in range(150)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert all(p.dtype == np.float32 for p in model.parameters())
    arrays = [v for entry in optimizer.state for v in entry.values() if hasattr(v, "dtype")]
    assert arrays and all(v.dtype == np.float32 for v in arrays)


@pytest.mark.parametrize("make", ALL)
def test_state_goes_through_json_and_arrays_and_training_goes_on_to_the_bit(make):
    model = problem()
    optimizer = make(model.parameters())
    for step in range(5):
        one_step(model, optimizer, step)
    saved, state = {n: v.copy() for n, v in model.state_dict().items()}, optimizer.state_dict()
    groups = json.loads(json.dumps(state["groups"]))
    for step in range(5, 9):
        one_step(model, optimizer, step)
    other = problem()
    fresh = make(other.parameters())
    other.load_state_dict(saved)
    fresh.load_state_dict({**state, "groups": groups})
    for step in range(5, 9):
        one_step(other, fresh, step)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_groups_have_settings_of_their_own():
    a, b = mt.tensor([1.0], requires_grad=True), mt.tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b]}], lr=0.5)
    a.grad = b.grad = np.ones(1, "float32")
    optimizer.step()
    np.testing.assert_allclose([a.item(), b.item()], [0.9, 0.5], rtol=1e-6)
    optimizer.lr = 0.2
    assert [group["lr"] for group in optimizer.groups] == [0.2, 0.2]


def test_tied_parameters_are_stepped_once_and_frozen_ones_never():
    a, frozen = mt.tensor([1.0], requires_grad=True), mt.tensor([1.0])
    optimizer = optim.SGD([a, a, frozen], lr=0.5)
    a.grad = np.ones(1, "float32")
    optimizer.step()
    assert a.item() == 0.5 and frozen.item() == 1.0 and len(optimizer.parameters) == 2


def test_decoupled_decay_shrinks_all_weights_alike_and_an_l2_penalty_does_not():
    def after(name):
        p = mt.tensor(np.ones(2), requires_grad=True)
        optimizer = getattr(optim, name)([p], lr=0.01, weight_decay=0.5)
        for _ in range(50):
            p.grad = np.array([100.0, 0.01]) * np.array([1, -1])
            optimizer.step()
            p.grad = -p.grad.numpy()
            optimizer.step()
        return p.numpy()

    adamw, adam = after("AdamW"), after("Adam")
    assert abs(adamw[0] - adamw[1]) < 0.05 and abs(adam[0] - adam[1]) > 0.2


@pytest.mark.parametrize("kernels", [True, False])
def test_state_bytes_are_those_of_the_moments(kernels):
    """Exactly: a matrix that is stepped alone, a small one and a vector that are joined, all in single precision."""
    shapes = [(300, 250), (5, 3), (7,)]
    n = 4 * (300 * 250 + 5 * 3 + 7)
    expected = {
        optim.Adam: 2 * n, optim.AdamW: 2 * n, optim.Lion: n, optim.SGD: 0,
        lambda p: optim.SGD(p, momentum=0.9): n, optim.Adafactor: 4 * (300 + 250 + 5 + 3 + 7),
        lambda p: optim.Adafactor(p, convention="transformers", beta1=0.9): 4 * (300 + 250 + 5 + 3 + 7) + n,
    }  # fmt: skip
    for make, count in expected.items():
        parameters = [mt.tensor(np.ones(s, "float32"), requires_grad=True) for s in shapes]
        optimizer = make([*parameters, parameters[0], mt.tensor(np.ones(9, "float32"))])  # one tied, one frozen
        assert optimizer.state_bytes() == 0
        for _ in range(2):
            for p in parameters:
                p.grad = mt.tensor(np.ones(p.shape, "float32"))
            with mt.use_kernels(kernels):
                optimizer.step()
        assert optimizer.state_bytes() == count, type(optimizer).__name__
        again = make([*parameters, mt.tensor(np.ones(9, "float32"))])
        again.load_state_dict(optimizer.state_dict())
        assert again.state_bytes() == count


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda p: optim.Adam([]), ValueError, "empty list"),
        (lambda p: optim.Adam(p), TypeError, "one Tensor"),
        (lambda p: optim.Adam([1.0]), TypeError, "Tensors; got float"),
        (lambda p: optim.Adam([p * 2]), ValueError, "leaves"),
        (lambda p: optim.Adam([p], lr=-1), ValueError, "lr lies in .*got -1"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, r"betas\[1\]"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "momentum > 0"),
        (lambda p: optim.SGD([p], dampening=math.nan), ValueError, r"dampening lies in \[0, 1\); got nan"),
        (lambda p: optim.SGD([p], dampening=-3), ValueError, r"dampening lies in \[0, 1\); got -3"),
        (lambda p: optim.SGD([p], dampening="a"), TypeError, "dampening is a number; got 'a'"),
        (lambda p: optim.SGD([p], momentum=0.9, nesterov="no"), TypeError, "nesterov is True or False; got 'no'"),
        (lambda p: optim.Adafactor([p], convention="transformers", scale_parameter="no"), TypeError, "got 'no'; write"),
        (lambda p: optim.Adafactor([p], warmup_init=0), TypeError, "warmup_init is True or False; got 0"),
        (lambda p: optim.Adafactor([p], beta2_decay="a"), ValueError, "beta2_decay is at most 0; got 'a'"),
        (lambda p: optim.Adafactor([p], beta2_decay=math.nan), ValueError, "beta2_decay is at most 0; got nan"),
        (lambda p: optim.Adafactor([p], convention="keras"), ValueError, "got 'keras'"),
        (lambda p: optim.Adafactor([p], beta1=0.9), ValueError, "convention='transformers'"),
        (lambda p: optim.Adafactor([p], convention="transformers", lr=0.1), ValueError, "relative_step=False"),
        (lambda p: optim.Adam([{"params": [p], "lrr": 1}]), ValueError, "got 'lrr'"),
        (lambda p: optim.Adam([p]).load_state_dict({"step": 1}), ValueError, "step, groups and state"),
    ],
)
def test_misuse_is_named_in_one_line(act, error, text):
    with pytest.raises(error, match=text) as caught:
        act(mt.tensor([1.0, 2.0], requires_grad=True))
    assert "\n" not in str(caught.value)


def test_a_state_of_another_model_changes_nothing():
    model, other = problem(), nn.Linear(3, 3)
    a, b = optim.Adam(model.parameters()), optim.Adam([*other.parameters(), *nn.Linear(3, 3).parameters()])
    one_step(model, a, 0)
    before = [dict(entry) for entry in a.state]
    other(np.ones((1, 3), "float32")).sum().backward()
    b.step()
    with pytest.raises(ValueError, match="state of parameter 0"):
        a.load_state_dict(b.state_dict())
    assert all(x["exp_avg"] is y["exp_avg"] for x, y in zip(a.state, before, strict=True))

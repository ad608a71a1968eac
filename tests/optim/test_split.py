"""A step cut up: to the bit what the optimizer does by itself, wherever the cuts are, and not where it cannot be."""

import json

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import optim
from minitransformer.optim.split import MOMENTS, SplitStep
from minitransformer.tensor import Parameter

pytestmark = pytest.mark.skipif("config.where != 'numpy'", reason="workers share a step on the host alone")
SHAPES = [(31, 7), (5,), (300, 250), (), (13, 1)]


def made(rng, make):
    """Return (optimizer, SplitStep, parameters) where all lie in flat arrays, and the gradients for one step."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    starts = np.cumsum([0, *sizes]).tolist()
    values, gradients, *moments = (np.zeros(starts[-1], "float32") for _ in range(2 + MOMENTS))
    parameters = []
    for shape, start, size in zip(SHAPES, starts[:-1], sizes, strict=True):
        home = values[start : start + size].reshape(shape)
        home[...] = rng.standard_normal(shape)
        parameters.append(Parameter(home))
    split = SplitStep(parameters, starts[:-1], values, gradients, moments)
    return make(parameters), split, parameters


def grouped(kind, **settings):
    """Return what makes an optimizer with two groups, as train.py does."""

    def make(parameters):
        matrices = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1}
        return kind([matrices, {"params": [p for p in parameters if p.ndim <= 1]}], lr=3e-3, **settings)

    return make


def fill(split, parameters, seed):
    split.gradients[:] = np.random.default_rng(seed).standard_normal(split.gradients.size)
    split.hand_out(parameters)


def take(optimizer, split, cuts=(0, 16, 77, 50_001)):
    order = json.loads(json.dumps(split.begin(optimizer)))
    ends = [*cuts[1:], split.values.size]
    for start, end in reversed(list(zip(cuts, ends, strict=True))):
        split.run(order, slice(start, end))


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.Lion])
def test_any_cut_gives_the_same_bits(kind):
    """Two steps whole, one cut, one whole again, the state saved and loaded, one cut."""
    whole, _, expected = made(np.random.default_rng(0), grouped(kind))
    optimizer, split, parameters = made(np.random.default_rng(0), grouped(kind))
    for seed, cut in enumerate([False, True, False, True, True]):
        fill(split, parameters, seed)
        for p, q in zip(expected, parameters, strict=True):
            p.grad = q.grad.numpy().copy()
        if cut:
            take(optimizer, split)
        else:
            optimizer.step()
        whole.step()
        for p, q in zip(expected, parameters, strict=True):
            np.testing.assert_array_equal(p.data, q.data)
        if seed == 3:
            optimizer.load_state_dict(optimizer.state_dict())
    left, right = whole.state_dict(), optimizer.state_dict()
    assert left["step"] == right["step"] == 5 and optimizer.state_bytes() == whole.state_bytes()
    for a, b in zip(left["state"], right["state"], strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_neighbours_of_one_group_are_one_run(rng):
    optimizer, split, parameters = made(rng, optim.Adam)
    fill(split, parameters, 0)
    assert split.begin(optimizer)["runs"] == [[0, split.values.size, 0, 1]]


class Own(optim.Adam):
    """Another rule: no kernel stands for it."""

    def _update(self, xp, x, g, state, group):
        x -= g


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adafactor, Own])
def test_others_are_left_to_themselves(kind, rng):
    optimizer, split, parameters = made(rng, lambda p: kind(p, lr=1e-3))
    fill(split, parameters, 0)
    assert split.begin(optimizer) is None and optimizer.step_count == 0


def test_what_lies_elsewhere_is_left_to_the_optimizer(rng):
    optimizer, split, parameters = made(rng, optim.Adam)
    fill(split, parameters, 0)
    parameters[1].grad = np.ones(5, "float32")
    assert split.begin(optimizer) is None
    fill(split, parameters, 0)
    with mt.use_kernels(False):
        assert split.begin(optimizer) is None
    stranger = optim.Adam([*parameters, Parameter(np.ones(3, "float32"))])
    assert split.begin(stranger) is None
    parameters[2].data = parameters[2].data.copy()
    assert split.begin(optimizer) is None and optimizer.step_count == 0 and optimizer.state_bytes() == 0

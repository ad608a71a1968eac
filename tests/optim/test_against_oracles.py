"""Twenty steps beside torch.optim and transformers, to 1e-9, on matrices, vectors, a 3-D table and a scalar."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import optim

SHAPES = [(5, 3), (7,), (2, 3, 5), ()]
STEPS = 20


@pytest.fixture
def race(torch, rng):
    """Step our optimizer and theirs with the same gradients; compare the parameters after each step."""

    def run(ours, theirs, shapes=SHAPES, frozen=(), schedule=None, tolerance=1e-9):
        starts = [rng.standard_normal(s) for s in shapes]
        mine = [mt.tensor(a, requires_grad=True) for a in starts]
        his = [torch.nn.Parameter(torch.tensor(a)) for a in starts]
        a, b = ours(mine), theirs(his)
        for step in range(1, STEPS + 1):
            if schedule:
                a.lr = b.param_groups[0]["lr"] = schedule(step)
            for i, (p, q) in enumerate(zip(mine, his, strict=True)):
                if i in frozen or step % 7 == 3 and i == 0:  # a parameter may go without a gradient for a step
                    p.grad = q.grad = None
                    continue
                g = rng.standard_normal(p.shape) * 10 ** rng.uniform(-4, 1)
                p.grad, q.grad = np.asarray(g), torch.tensor(g)
            a.step()
            b.step()
            for p, q in zip(mine, his, strict=True):
                np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance)
        return a

    return run


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"weight_decay": 0.1},
    ],
    ids=str,
)
def test_sgd(settings, race, torch):
    race(lambda p: optim.SGD(p, lr=0.05, **settings), lambda p: torch.optim.SGD(p, lr=0.05, **settings))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"betas": (0.8, 0.98), "eps": 1e-3}], ids=str)
def test_adam(name, settings, race, torch):
    settings = {"lr": 0.05, **settings}
    race(lambda p: getattr(optim, name)(p, **settings), lambda p: getattr(torch.optim, name)(p, **settings))


def test_adamw_with_frozen_parameters_and_a_schedule(race, torch):
    race(
        lambda p: optim.AdamW(p, lr=0.05),
        lambda p: torch.optim.AdamW(p, lr=0.05),
        frozen=(1,),
        schedule=optim.Noam(16, 5),
    )


@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.1}, {"lr": 0.3}, {"beta2_decay": -0.6}, {"eps": (1e-4, 1e-2)}], ids=str
)
def test_adafactor_in_pytorchs_convention(settings, race, torch):
    a = race(lambda p: optim.Adafactor(p, **settings), lambda p: torch.optim.Adafactor(p, **settings))
    assert a.state[0]["row_var"].shape == (5, 1) and a.state[0]["col_var"].shape == (1, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warmup_init": True},
        {"scale_parameter": False},
        {"relative_step": False, "lr": 0.05},
        {"relative_step": False, "lr": 0.05, "scale_parameter": False, "weight_decay": 0.1},
        {"beta1": 0.9},
        {"weight_decay": 0.1, "beta1": 0.9, "clip_threshold": 0.5},
    ],
    ids=str,
)
def test_adafactor_in_transformers_convention(settings, race, transformers, torch):
    theirs = transformers.optimization.Adafactor
    race(
        lambda p: optim.Adafactor(p, convention="transformers", **settings),
        lambda p: theirs(p, **settings),
    )


def test_the_two_conventions_differ(rng):
    results = []
    for convention in ("torch", "transformers"):
        p = mt.tensor(np.linspace(-1, 1, 15).reshape(5, 3), requires_grad=True)
        optimizer = optim.Adafactor([p], convention=convention, weight_decay=0.1)
        for _ in range(3):
            p.grad = np.full((5, 3), 0.1)
            optimizer.step()
        results.append(p.numpy().copy())
    assert np.abs(results[0] - results[1]).max() > 1e-3

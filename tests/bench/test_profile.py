"""The profile on a model that takes no time: every term is there, and nothing of the clock stays behind."""

import dataclasses
import importlib.util

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import cli, ops
from minitransformer.bench import configs, profile
from minitransformer.kernels import KERNELS


class Clockwork:
    """A peer that always takes as long."""

    def __init__(self, *words):
        assert words[:2] in [("torch", name) for name in configs.CONFIGS]

    def run(self, steps):
        return {"seconds": [0.25] * steps}

    def close(self):
        pass


@pytest.fixture
def tiny(monkeypatch):
    small = {
        name: dataclasses.replace(c, d_model=8, heads=2, layers=1, length=4, batch=4)
        for name, c in configs.CONFIGS.items()
    }
    monkeypatch.setattr(configs, "CONFIGS", small)
    monkeypatch.setattr(profile, "gemm_rate", lambda size: 1e11)
    monkeypatch.setattr(profile, "Peer", Clockwork)  # another process would not know of these models
    return small


def test_every_term_is_timed_and_the_clock_is_gone_afterwards(tiny):
    result = profile.profiles(None, 4, lambda text: None)
    for p in result["profiles"]:
        assert {"linear layers", "attention", "LayerNorm", "activation", "optimizer", "engine"} <= set(p["terms"])
        assert 0 < p["replayed"] < 3 * p["seconds"]
        for t in p["terms"].values():
            assert t["in_step"] >= 0 and t["alone"] >= 0 and t["calls"] > 0
        c = tiny[p["config"]]
        shared = dataclasses.replace(c, batch=p["rows"])
        products = sum(t["products"] for t in p["terms"].values()) * 1e11
        assert products == pytest.approx(configs.product_flops(shared), rel=0.2)  # of T = 4, the diagonal is much
    assert all(mt.PRIMITIVES[op].kernels[where] is body for (op, where), body in KERNELS.items())
    text = "\n".join(profile.table(result))
    assert "gpt-small: one worker's" in text and "linear layers" in text and "GFLOP/s" in text
    assert ("PyTorch's step takes" in text) == bool(importlib.util.find_spec("torch"))


def test_a_step_of_pytorch_stands_beside_it():
    with profile.pytorch_beside("reversal", 2) as beside:
        assert beside == {"torch": None}
    assert (beside["torch"] is not None) == bool(importlib.util.find_spec("torch"))
    terms = {"linear layers": {"calls": 1, "in_step": 3e-3, "alone": 2e-3, "products": 1e-3}}
    row = {"config": "reversal", "rows": 2, "seconds": 3e-3, "terms": terms, "flops_per_second": 1e9, "torch": 4e-3}
    row["replayed"] = 3e-3
    text = "\n".join(profile.table({"profiles": [row]}))
    assert "PyTorch's step takes 4.0 ms: NumPy's calls alone 0.50 of it, products 0.25, a replay 0.75" in text


def test_the_clock_counts_calls_and_operations():
    clock = profile.Clock()
    with clock.on_every_op():
        x = mt.tensor(np.ones((3, 5)), requires_grad=True)
        y = ops.linear(x, mt.tensor(np.ones((7, 5))))
        y.sum().backward()
    assert clock.calls["_linear"] == 1 and clock.flops["_linear"] == 3 * 2 * 3 * 5 * 7
    assert clock.seconds["_linear"] > 0
    np.testing.assert_array_equal(x.grad.numpy(), np.full((3, 5), 7.0))


def test_the_command_draws_the_terms(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "profile", "--quick", "--config", "reversal", "--out", "p"]) == 0
    assert "run: p (result.json, figures/)" in capsys.readouterr().out
    for name in ("result.json", "figures/profile.png", "figures/profile.json"):
        assert (tmp_path / "p" / name).stat().st_size > 100


@pytest.mark.parametrize(
    "words, text", [(["--peers", "ours"], "got --peers or --rounds"), (["--config", "big"], "got 'big'")]
)
def test_misuse_is_named(words, text, capsys):
    assert cli.main(["bench", "profile", *words]) == 2
    assert text in capsys.readouterr().err

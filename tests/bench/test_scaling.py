"""Slopes and crossings on made-up curves, and the sweep on sizes that take no time."""

import dataclasses

import numpy as np
import pytest

from minitransformer import cli
from minitransformer.bench import scaling


def test_slope_is_the_exponent_at_the_upper_end():
    x = np.array([1.0, 2, 4, 8])
    assert scaling.slope(x, 3 * x**2) == pytest.approx(2)
    assert scaling.slope(x, [1, 1, 1, 2]) == pytest.approx(1)


def test_crossing_is_where_one_curve_overtakes_the_other():
    x = np.array([1.0, 2, 4, 8])
    assert scaling.crossing(x, x**2, 3 * x) == pytest.approx(3)
    assert scaling.crossing(x, x, 100 * x) is None and scaling.crossing(x, 100 * x, x) is None


@pytest.fixture
def tiny(monkeypatch):
    small = dataclasses.replace(scaling.BASE, d_model=8, heads=2, layers=1, length=4, batch=2)
    monkeypatch.setattr(scaling, "BASE", small)
    sweeps = {"length": (4, 8), "d_model": (8, 16), "layers": (1, 2), "batch": (2, 4)}
    monkeypatch.setattr(scaling, "SWEEPS", sweeps)
    return sweeps


def test_every_sweep_and_term_is_measured(tiny):
    result = scaling.scaling(1, lambda text: None)
    assert {name: tuple(s["values"]) for name, s in result["sweeps"].items()} == tiny
    assert all(min(s["seconds"]) > 0 and np.isfinite(s["slope"]) for s in result["sweeps"].values())
    assert set(result["terms"]["seconds"]) == {"linear", "attention", "elementwise"}
    text = "\n".join(scaling.table(result))
    assert "length      slope" in text and "over the length" in text and "attention " in text


def test_the_command_draws_the_curves(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "scaling", "--quick", "--out", "s"]) == 0
    assert "run: s (result.json, figures/)" in capsys.readouterr().out
    for name in ("result.json", "figures/scaling.png", "figures/scaling.svg", "figures/scaling.json"):
        assert (tmp_path / "s" / name).stat().st_size > 100

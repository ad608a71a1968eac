"""The bench: peers that compute the same thing, ratios that are counted right, and what it says of bad input."""

import json

import numpy as np
import pytest

from minitransformer.bench import configs, peer, run, scaling
from minitransformer.cli import main

TINY = configs.BenchConfig("tiny", "gpt", 8, 2, 1, 6, 4, 7)


def steps_of(name, config, count=3):
    made = peer.PEERS[name][0](configs.CONFIGS[config], configs.weights(configs.CONFIGS[config]))
    try:
        return [made.step(*arrays) for arrays in configs.batches(configs.CONFIGS[config])[:count]]
    finally:
        if hasattr(made, "workers"):
            made.workers.close()


def test_a_peer_answers_in_json(tmp_path):
    c = configs.CONFIGS["reversal"]
    np.savez(tmp_path / "weights.npz", **configs.weights(c))
    asked = run.Peer("ours", "reversal", str(tmp_path / "weights.npz"))
    try:
        first, second = asked.run(2), asked.run(1)
    finally:
        asked.close()
    assert len(first["seconds"]) == len(first["losses"]) == 2 and len(second["losses"]) == 1
    assert all(s > 0 for s in first["seconds"]) and 10 << 20 < first["memory"] < 1 << 30
    np.testing.assert_allclose(first["losses"] + second["losses"], steps_of("ours", "reversal"), rtol=1e-6)


def test_a_peer_that_fails_says_why(tmp_path):
    asked = run.Peer("ours", "reversal", str(tmp_path / "missing.npz"))
    with pytest.raises(RuntimeError, match="peer ours ended without an answer.*missing.npz"):
        asked.run(1)
    asked.close()


def test_ratios_are_taken_within_a_round():
    rounds = {"a": [1.0, 10.0, 3.0], "b": [2.0, 40.0, 3.0]}
    result = run.summarise(rounds, "a")
    assert result["b"] == {"seconds": 3.0, "ratio": 2.0, "least": 1.0, "greatest": 4.0}
    assert result["a"]["ratio"] == result["a"]["greatest"] == 1.0


def test_the_products_of_a_step_are_counted(monkeypatch):
    """By hand, and against the products that the book really asks NumPy for."""
    n, d, f, t, v = 24, 8, 32, 6, 7
    layer = 4 * 2 * n * d * d + 2 * 2 * n * d * f + 2 * 2 * n * t * d / 2
    assert configs.product_flops(TINY) == 3 * (layer + 2 * n * d * v)
    counted, real = [], np.matmul

    def counting(a, b, *args, **kwargs):
        y = real(a, b, *args, **kwargs)
        counted.append(2 * y.size * a.shape[-1])
        return y

    monkeypatch.setattr(np, "matmul", counting)
    model = configs.model(TINY)
    from minitransformer import use_kernels

    with use_kernels(False):
        value, _ = configs.loss(model)(*configs.batches(TINY)[0])
        value.backward()
    half_of_scores = 3 * 2 * 2 * n * t * d / 2  # the book computes the scores that causality hides, too
    assert sum(counted) == configs.product_flops(TINY) + half_of_scores


def test_slopes_and_crossings():
    x = [1, 2, 4, 8]
    assert scaling.slope(x, [1, 2, 4, 32]) == pytest.approx(3)
    assert scaling.crossing(x, [1, 4, 16, 64], [4, 8, 16, 32]) == pytest.approx(4)
    assert scaling.crossing(x, [1, 2, 4, 8], [2, 4, 8, 16]) is None


def test_every_term_takes_time():
    terms = scaling.term_seconds(TINY, tries=1)
    assert set(terms) == {"linear", "attention", "elementwise"} and all(s > 0 for s in terms.values())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--peers", "tensorflow"], "a peer is one of ours.*got 'tensorflow'; write ours"),
        (["--config", "huge"], "a configuration is one of reversal.*got 'huge'; write reversal"),
        (["--rounds", "0"], "at least one round; got 0; write --rounds 9"),
        (["scaling", "--peers", "ours"], "scaling times our own step"),
    ],
)
def test_bad_input_gets_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *argv]) == 2
    error = capsys.readouterr().err.strip()
    import re

    assert "\n" not in error and re.search(message, error)
    assert not (tmp_path / "runs").exists()


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(run, "installed", lambda name, known: name in ("ours", "book"))
    with pytest.raises(ValueError, match="jax is not; write pip install jax, or leave it out"):
        run.choose("ours,jax", None)
    assert run.choose(None, "reversal") == (["reversal"], ["ours", "book"])


def test_the_command_writes_figures_and_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "PAUSE", 0.0)
    monkeypatch.setattr(run, "gemm_rate", lambda: 1e11)
    assert main(["bench", "--peers", "ours,book", "--config", "reversal", "--rounds", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (reversal,) = result["configs"]
    assert reversal["losses_agree"] and reversal["reference"] == "ours" and set(reversal["peers"]) == {"ours", "book"}
    assert reversal["peers"]["ours"]["ratio"] == 1.0 and reversal["peers"]["book"]["loss_apart"] <= run.AGREE
    folder = tmp_path / "runs" / "bench-001"
    assert json.loads((folder / "result.json").read_text())["configs"] == result["configs"]
    assert {p.name for p in (folder / "figures").iterdir()} == {"step.png", "step.svg", "step.json"}

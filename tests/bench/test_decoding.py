"""The bench of decoding: peers that write the same tokens, bytes counted right, and what it says of bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minitransformer.bench import configs, decoding, run
from minitransformer.cli import main
from minitransformer.tensor import kernels_enabled, use_kernels

TINY = decoding.Case(configs.BenchConfig("tiny", "gpt", 16, 2, 2, 40, 1, 23), 12)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(decoding, "CASES", {"tiny": TINY})
    monkeypatch.setattr(decoding, "TURN", 0.0)
    monkeypatch.setattr(run, "PAUSE", 0.0)
    return TINY


def test_our_two_writers_write_the_same_and_say_when():
    weights, prompt = decoding.weights(TINY.model), decoding.prompt(TINY.model)
    ids, times = decoding.Ours(TINY.model, weights).write(prompt, 12)
    assert len(ids) == len(times) == 12 and times == sorted(times) and times[0] > 0
    assert len(set(ids)) > 2, "a text of one token would hide a mistake"
    try:
        assert decoding.Ours(TINY.model, weights, book=True).write(prompt, 12)[0] == ids and not kernels_enabled()
    finally:
        use_kernels(True)


@pytest.mark.parametrize("case", [*decoding.CASES.values(), TINY])
def test_all_weights_but_the_positions_are_counted(case):
    if case.model.d_model > 500:
        c = case.model
        assert decoding.weight_bytes(c) == 4 * (124_439_808 - c.length * c.d_model), "GPT-2 has 124,439,808 parameters"
        return
    read = {name: w for name, w in configs.weights(case.model).items() if name != "positions.weight"}
    assert decoding.weight_bytes(case.model) == sum(w.nbytes for w in read.values())


def test_reading_is_measured():
    assert 1e8 < decoding.read_rate(1 << 20, tries=3) < 1e12


def test_a_peer_answers_in_json(tmp_path):
    """In a process of its own, as the command runs it; the small model, a few tokens."""
    c = decoding.CASES["small"].model
    np.savez(tmp_path / "w.npz", **decoding.weights(c))
    command = [sys.executable, "-m", "minitransformer.bench.decoding", "ours", "small", tmp_path / "w.npz"]
    done = subprocess.run(command, input='{"steps": 5}\n{"steps": 3}\n', capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [len(a["ids"]) for a in answers] == [5, 3], done.stderr
    assert answers[0]["ids"][:3] == answers[1]["ids"] and min(a["first"] for a in answers) > 0 < answers[0]["later"]


class InThisProcess:
    """Stands in for a peer's process: two peers whose times and tokens are made up."""

    made = {"ours": (0.5, [1, 2, 3]), "torch": (1.0, [1, 2, 3]), "book": (2.0, [1, 2, 4])}

    def __init__(self, name, case, path, module):
        assert module == "minitransformer.bench.decoding" and set(np.load(path)) == set(configs.weights(TINY.model))
        self.name = name

    def run(self, tokens):
        later, ids = self.made[self.name]
        return {"first": 3.0, "later": later, "ids": ids, "setting": "", "memory": 1}

    def close(self):
        pass


def test_ratios_floor_and_disagreement_are_told(tiny, monkeypatch):
    monkeypatch.setattr(decoding, "Peer", InThisProcess)
    monkeypatch.setattr(decoding, "read_rate", lambda nbytes: nbytes / 0.1)
    monkeypatch.setattr(run, "installed", lambda name, known: name != "torch-joined")
    result = decoding.decoding(None, None, 2, lambda text: None)
    (c,) = result["configs"]
    assert {name: row["ratio"] for name, row in c["peers"].items()} == {"ours": 0.5, "torch": 1.0, "book": 2.0}
    assert c["floor"] == pytest.approx(0.1) and c["peers"]["ours"]["of_floor"] == pytest.approx(0.2)
    assert [row["tokens_agree"] for row in c["peers"].values()] == [True, False, True]
    text = "\n".join(decoding.table(result))
    assert "TOKENS DIFFER" in text and "0.50" in text and "20 %" in text


def test_the_command_writes_figures_and_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(decoding.CASES, "small", decoding.Case(decoding.CASES["small"].model, 6))
    assert main(["bench", "decoding", "--peers", "ours,book", "--config", "small", "--rounds", "1", "--json"]) == 0
    (c,) = json.loads(capsys.readouterr().out)["configs"]
    assert set(c["peers"]) == {"ours", "book"} and all(row["tokens_agree"] for row in c["peers"].values())
    folder = tmp_path / "runs" / "bench-001"
    assert json.loads((folder / "result.json").read_text())["configs"] == [c]
    assert {p.name for p in (folder / "figures").iterdir()} == {"decoding.png", "decoding.svg", "decoding.json"}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--peers", "jax"], "a peer is one of ours, book, torch, torch-joined; got 'jax'"),
        (["--config", "reversal"], "a configuration is one of small, gpt2-small; got 'reversal'"),
        (["--rounds", "0"], "at least one round; got 0"),
    ],
)
def test_bad_input_gets_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "decoding", *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and message in error and not (tmp_path / "runs").exists()

"""Greedy decoding with a cache, one sequence, beside PyTorch eager: milliseconds a token, and what memory allows.

Every token reads all weights once. So the time of a token has a floor that no program passes: the bytes of the weights
over the rate at which this machine reads as many bytes, from its caches where they fit, else from memory.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import generate
from ..draw import bars
from ..kernels.blas import limit_blas_threads
from ..parallel import cores
from ..tensor import use_kernels
from . import configs
from .peer import answer_orders, memory
from .run import Peer, choose, summarise, turns

PROMPT = 8  # tokens
TURN = 0.35  # seconds that a peer writes at least, before the next one does
SPREAD = 8.0  # what the layers' matrices are multiplied by, so that greedy decoding does not repeat one token for ever


class Case(NamedTuple):
    """A model, and how many tokens it writes."""

    model: configs.BenchConfig
    tokens: int


CASES = {
    "small": Case(configs.BenchConfig("small", "gpt", 128, 4, 4, 256, 1, 1000), 200),
    "gpt2-small": Case(configs.BenchConfig("gpt2-small", "gpt", 768, 12, 12, 1024, 1, 50_257), 32),
}
REFERENCE = "torch"


class Ours:
    """Our own writer. book: without kernels."""

    def __init__(self, c: configs.BenchConfig, weights: dict[str, Any], book: bool = False):
        if book:
            use_kernels(False)
        self.model = configs.model(c).eval()
        for name, parameter in self.model.named_parameters():
            parameter.data = weights[name]

    def tune(self, prompt: list[int], count: int) -> str:
        """Write a short text, to be warm."""
        self.write(prompt, count)
        return ""

    def write(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Write the likeliest tokens; return them, and the seconds at which each was there."""
        began, times = time.perf_counter(), []

        def chosen(scores: np.ndarray) -> np.ndarray:
            token = generate.greedy(scores)
            times.append(time.perf_counter() - began)
            return token

        return generate.continue_text(self.model, prompt, count, chosen), times


def _pytorch(c: Any, w: Any, **options: bool) -> Any:
    from .pytorch_decoding import PyTorchDecoder

    return PyTorchDecoder(c, w, **options)


# name → (how to make it, the module it needs, what to install, what it is)
PEERS: dict[str, tuple[Callable, str, str, str]] = {
    "ours": (Ours, "numpy", "numpy", "minitransformer"),
    "book": (lambda c, w: Ours(c, w, book=True), "numpy", "numpy", "minitransformer, kernels off"),
    "torch": (_pytorch, "torch", "torch", "PyTorch eager"),
    "torch-joined": (lambda c, w: _pytorch(c, w, joined=True), "torch", "torch", "PyTorch eager, q k v joined"),
}


def weights(c: configs.BenchConfig) -> dict[str, np.ndarray]:
    """Return the weights that every peer has."""
    return {name: SPREAD * w if "layers" in name and w.ndim == 2 else w for name, w in configs.weights(c).items()}


def weight_bytes(c: configs.BenchConfig) -> int:
    """Count the bytes of all weights that each token reads: all but the table of positions."""
    layer = 4 * c.d_model**2 + 2 * c.d_model * c.d_ff + 9 * c.d_model + c.d_ff
    return 4 * (c.layers * layer + (c.vocab + 2) * c.d_model)


def read_rate(nbytes: int, tries: int = 9) -> float:
    """Measure the best rate at which that many bytes are read again and again, in bytes per second.

    By a product of a vector with itself, and of a matrix with a vector, on one thread and on all.
    """
    x, matrix = np.ones(nbytes // 4, dtype="float32"), np.ones((nbytes // 4096, 1024), dtype="float32")
    again, best, row = max(1, (64 << 20) // nbytes), 0.0, matrix[0].copy()
    for threads, (a, b), _ in itertools.product(sorted({1, cores()}), ((x, x), (matrix, row)), range(tries)):
        with limit_blas_threads(threads):
            began = time.perf_counter()
            for _ in range(again):
                a.dot(b)
            best = max(best, again * a.nbytes / (time.perf_counter() - began))
    return best


def prompt(c: configs.BenchConfig) -> list[int]:
    """Return the tokens that all peers go on with."""
    return np.random.default_rng(1).integers(1, c.vocab, PROMPT).tolist()


def serve(name: str, case: str, path: str) -> None:
    """Build the peer, then for each line of standard input, {"steps": tokens}, write the text for a third of a second.

    It answers with the medians over the texts: seconds until the first token is there, and a token after it.
    """
    c = CASES[case].model
    with np.load(path, allow_pickle=False) as file:
        peer = PEERS[name][0](c, dict(file))
    setting = peer.tune(prompt(c), max(4, CASES[case].tokens // 4))

    def answer(steps: int) -> dict[str, Any]:
        texts: list[tuple[list[int], list[float]]] = []
        began = time.perf_counter()
        while not texts or time.perf_counter() - began < TURN:
            texts.append(peer.write(prompt(c), steps))
        first = statistics.median(times[0] for _, times in texts)
        later = statistics.median((times[-1] - times[0]) / max(1, len(times) - 1) for _, times in texts)
        return {
            "first": first, "later": later, "ids": texts[-1][0], "setting": setting, "memory": memory([os.getpid()]),
        }  # fmt: skip

    answer_orders(answer)


def compare(case: str, names: list[str], rounds: int, progress: Any) -> dict[str, Any]:
    """Let the peers write the same text in turns. Raises RuntimeError where one fails."""
    c, tokens = CASES[case]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path, peers = Path(folder) / "weights.npz", []
        np.savez(path, **weights(c))  # type: ignore[arg-type]
        rate = read_rate(weight_bytes(c))
        try:
            for name in names:
                peers.append(Peer(name, case, str(path), module="minitransformer.bench.decoding"))
                peers[-1].run(tokens)  # each finds out alone how it is quickest
            for i, peer in turns(peers, case, rounds, progress):
                answer = peer.run(tokens)
                if i:  # the round before warms up
                    answers[peer.name].append(answer)
        finally:
            for peer in peers:
                peer.close()
    reference = REFERENCE if REFERENCE in names else names[0]
    figures: dict[str, Any] = summarise({n: [a["later"] for a in rows] for n, rows in answers.items()}, reference)
    floor = weight_bytes(c) / max(rate, read_rate(weight_bytes(c)))  # a busy moment only lowers the rate
    for name, row in figures.items():
        row["first"] = statistics.median(a["first"] for a in answers[name])
        row["setting"], row["memory"] = answers[name][-1]["setting"], answers[name][-1]["memory"]
        row["of_floor"] = floor / row["seconds"]
        row["tokens_agree"] = answers[name][-1]["ids"] == answers[reference][-1]["ids"]
    return {
        "config": case, "reference": reference, "rounds": rounds, "tokens": tokens, "prompt": PROMPT, "floor": floor,
        "different_tokens": len(set(answers[reference][-1]["ids"])), "weight_bytes": weight_bytes(c),
        "read_rate": weight_bytes(c) / floor, "peers": figures,
    }  # fmt: skip


def decoding(peers: str | None, names: str | None, rounds: int, progress: Any) -> dict[str, Any]:
    """Time all that is asked for. Raises ValueError for unknown names or too few rounds."""
    if rounds < 1:
        raise ValueError(f"a bench takes at least one round; got {rounds}; write --rounds 9")
    wanted, chosen = choose(peers, names, PEERS, CASES)
    return {
        "cores": cores(),
        "numpy": np.__version__,
        "configs": [compare(c, chosen, rounds, progress) for c in wanted],
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    lines = []
    for c in result["configs"]:
        m, agree = CASES[c["config"]].model, all(row["tokens_agree"] for row in c["peers"].values())
        lines += [
            f"{c['config']}: width {m.d_model}, {m.layers} layers, {m.heads} heads, V {m.vocab:,}; "
            f"{c['tokens']} tokens after {c['prompt']}; {'tokens agree' if agree else 'TOKENS DIFFER'}",
            f"  reading {c['weight_bytes'] / 1e6:,.1f} MB of weights at {c['read_rate'] / 1e9:.1f} GB/s takes at least "
            f"{1e3 * c['floor']:.3f} ms",
            f"  {'':<30}{'ms/token':>10}{'ratio':>8}{'spread':>14}{'of the limit':>14}{'first token':>14}",
        ]
        for name, row in sorted(c["peers"].items(), key=lambda item: item[1]["ratio"]):
            lines.append(
                f"  {PEERS[name][3]:<30}{1e3 * row['seconds']:>10.3f}{row['ratio']:>8.2f}{row['least']:>9.2f}–"
                f"{row['greatest']:.2f}{100 * row['of_floor']:>12.0f} %{1e3 * row['first']:>11.1f} ms  {row['setting']}"
            )
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the ratios of a result, and the limit that memory sets, a panel for each model."""
    groups: dict[str, Any] = {}
    for c in result["configs"]:
        rows = {PEERS[n][3]: (r["ratio"], r["least"], r["greatest"]) for n, r in c["peers"].items()}
        limit = c["floor"] / c["peers"][c["reference"]]["seconds"]
        size = f"{c['config']}, {c['weight_bytes'] / 4e6:.1f} M weights"
        groups[size] = {**rows, "the weights, read once": (limit,) * 3}
    beside = PEERS[result["configs"][0]["reference"]][3]
    bars(groups, path, f"Time of a token, as a fraction of {beside}", "less is faster")


if __name__ == "__main__":
    serve(*sys.argv[1:])

"""Peers in turns: who takes part, what they print, and the ratios of what they took."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..draw import bars
from ..parallel import cores
from . import configs
from .peer import PEERS

PAUSE = 0.3  # seconds between peers
COMPARED = 5  # steps whose losses have to agree
AGREE = 1e-4  # nats per token
REFERENCE = ("torch", "torch-adam", "ours")  # what ratios are to: the first of these that takes part


class Place(NamedTuple):
    """Where peers run: which there are, the module of their processes, and how the rate of products is measured."""

    peers: dict[str, Any]
    module: str
    rate: Callable[[], float]


class Peer:
    """A peer's process, and what it has answered."""

    def __init__(self, name: str, *arguments: str, module: str = "minitransformer.bench.peer"):
        self.name = name
        command = [sys.executable, "-W", "ignore", "-m", module, name, *arguments]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def run(self, steps: int) -> dict[str, Any]:
        """Take some steps. Raises RuntimeError with the peer's last line where it fails."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"peer {self.name} ended without an answer: {last}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.errors.close()


def installed(name: str, known: dict[str, Any] = PEERS) -> bool:
    """Tell whether what a peer needs is installed."""
    return importlib.util.find_spec(known[name][1]) is not None


def choose(
    peers: str | None, names: str | None, known_peers: dict[str, Any] = PEERS, known_configs: Any = configs.CONFIGS
) -> tuple[list[str], list[str]]:
    """Return the configurations and peers asked for. Raises ValueError for a name that is none."""
    chosen = peers.split(",") if peers else list(known_peers)
    wanted = names.split(",") if names else list(known_configs)
    for what, given, known in (("a peer", chosen, known_peers), ("a configuration", wanted, known_configs)):
        for name in given:
            if name not in known:
                raise ValueError(f"{what} is one of {', '.join(known)}; got {name!r}; write {next(iter(known))}")
    missing = [name for name in chosen if not installed(name, known_peers)]
    if peers and missing:
        raise ValueError(
            f"a peer has to be installed; {missing[0]} is not; "
            f"write pip install {known_peers[missing[0]][2]}, or leave it out of --peers"
        )
    return wanted, [name for name in chosen if name not in missing]


def gemm_rate(size: int = 2048, tries: int = 9) -> float:
    """Measure the best rate of a float32 matrix product on all cores, in operations per second."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def summarise(rounds: dict[str, list[float]], reference: str, share: float = 1.0) -> dict[str, dict[str, float]]:
    """Return for each peer its median seconds a step, and median, least and greatest of its ratios within a round.

    rounds: peer → the median step of each round, in the same order for all; share: how many of the ratios, those in
    the middle, least and greatest are taken from, as of many rounds some are disturbed.
    """
    result = {}
    for name, times in rounds.items():
        ratios = [t / r for t, r in zip(times, rounds[reference], strict=True)]
        low, high = np.quantile(ratios, [(1 - share) / 2, (1 + share) / 2]).tolist()
        result[name] = {
            "seconds": statistics.median(times), "ratio": statistics.median(ratios), "least": low,
            "greatest": high,
        }  # fmt: skip
    return result


CPU = Place(PEERS, "minitransformer.bench.peer", gemm_rate)


def start(
    names: list[str], config: str, weights: Path, progress: Any, place: Place = CPU
) -> tuple[list[Peer], dict, dict]:
    """Start the peers and take their first steps; return those that run, their losses, and why others failed.

    Raises RuntimeError where all fail.
    """
    peers, losses, failed = [], {}, {}
    for name in names:
        progress(f"{config}: first steps of {place.peers[name][3]}")
        peer = Peer(name, config, str(weights), module=place.module)
        try:
            losses[name] = peer.run(COMPARED)["losses"]
            peers.append(peer)
        except RuntimeError as error:  # torch.compile without a C++ compiler, say
            peer.close()
            failed[name] = str(error)
            progress(f"{config}: {error}")
        except BaseException:  # Ctrl-C
            for each in (*peers, peer):
                each.close()
            raise
    if not peers:
        raise RuntimeError(next(iter(failed.values())))
    return peers, losses, failed


def turns(peers: list[Peer], what: str, rounds: int, progress: Any) -> Iterator[tuple[int, Peer]]:
    """Yield (round, peer) after a pause, every other round backwards; round 0 warms up."""
    for i in range(rounds + 1):
        progress(f"{what}: round {i} of {rounds}")
        for peer in peers if i % 2 else reversed(peers):
            time.sleep(PAUSE)
            yield i, peer


def take_turns(peers: list[Peer], config: str, rounds: int, progress: Any) -> tuple[dict, dict[str, int]]:
    """Let the peers step in turns; return the median step of each round, and memory."""
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    memory, steps = {}, 1
    for i, peer in turns(peers, config, rounds, progress):
        answer = peer.run(steps)
        memory[peer.name] = answer["memory"]
        if i:
            times[peer.name].append(statistics.median(answer["seconds"]))
        else:  # the round that warms up says how many steps make a third of a second
            steps = max(steps, min(30, int(0.35 / answer["seconds"][-1])))
    return times, memory


def compare(names: list[str], config: str, rounds: int, progress: Any, place: Place = CPU) -> dict[str, Any]:
    """Time one configuration and return its figures: losses first, then rounds in turns.

    A peer whose first steps fail is reported and left out. Raises RuntimeError where all fail, or one fails later.
    """
    c, before = configs.CONFIGS[config], place.rate()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, **configs.weights(c))  # type: ignore[arg-type]
        peers, losses, failed = start(names, config, weights, progress, place)
        try:
            times, memory = take_turns(peers, config, rounds, progress)
        finally:
            for peer in peers:
                peer.close()
    reference = next(name for name in (*REFERENCE, *losses) if name in losses)
    apart = {n: float(np.abs(np.subtract(values, losses[reference])).max()) for n, values in losses.items()}
    flops, rate = configs.product_flops(c), max(before, place.rate())  # a busy moment only lowers it
    figures = summarise(times, reference)
    for name, row in figures.items():
        row["tokens_per_second"] = c.tokens / row["seconds"]
        row["memory"] = memory[name]
        row["memory_ratio"] = memory[name] / memory[reference]
        row["of_gemm_rate"] = flops / rate / row["seconds"]
        row["loss_apart"] = apart[name]
    return {
        "config": config, "reference": reference, "rounds": rounds, "flops": flops, "gemm_rate": rate,
        "losses_agree": max(apart.values()) <= AGREE, "peers": figures, "failed": failed,
    }  # fmt: skip


def bench(peers: str | None, names: str | None, rounds: int, progress: Any) -> dict[str, Any]:
    """Time all that is asked for. Raises ValueError for unknown names or too few rounds."""
    if rounds < 1:
        raise ValueError(f"a bench takes at least one round; got {rounds}; write --rounds 9")
    wanted, chosen = choose(peers, names)
    if not chosen:
        raise ValueError("a bench needs a peer; none is installed; write --peers ours")
    missing = {} if peers else {name: f"pip install {row[2]}" for name, row in PEERS.items() if not installed(name)}
    results = [compare(chosen, config, rounds, progress) for config in wanted]
    return {"cores": cores(), "numpy": np.__version__, "not_installed": missing, "configs": results}


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    lines = step_lines(result["configs"], PEERS)
    lines += [f"not installed: {PEERS[name][3]} ({how})" for name, how in result["not_installed"].items()]
    return lines


def step_lines(compared: list[dict[str, Any]], known: dict[str, Any], digits: int = 1) -> list[str]:
    """Return what was compared as lines to print."""
    lines = []
    for c in compared:
        agree = "losses agree" if c["losses_agree"] else f"LOSSES DIFFER by more than {AGREE} nats/token"
        lines += [
            f"{c['config']}: {c['flops'] / 1e9:.2f} GFLOP of products a step; {agree} over {COMPARED} steps",
            f"  {'':<42}{'ms/step':>9}{'ratio':>8}{'spread':>14}{'tokens/s':>11}{'memory':>9}{'of GEMM':>9}",
        ]
        for name, row in sorted(c["peers"].items(), key=lambda item: item[1]["ratio"]):
            lines.append(
                f"  {known[name][3]:<42}{1e3 * row['seconds']:>9.{digits}f}{row['ratio']:>8.2f}"
                f"{row['least']:>8.2f}–{row['greatest']:.2f}{row['tokens_per_second']:>11,.0f}"
                f"{row['memory'] / 2**20:>5.0f} MiB{100 * row['of_gemm_rate']:>7.0f} %"
            )
        lines += [f"  failed: {known[name][3]}: {why}" for name, why in c["failed"].items()]
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the ratios of a result, a panel for each configuration."""
    draw_steps(result["configs"], PEERS, path, "Time of a training step")


def draw_steps(compared: list[dict[str, Any]], known: dict[str, Any], path: Path, what: str) -> None:
    """Draw what was compared, a panel for each configuration."""
    groups = {
        c["config"]: {known[n][3]: (r["ratio"], r["least"], r["greatest"]) for n, r in c["peers"].items()}
        for c in compared
    }
    bars(groups, path, f"{what}, as a fraction of {known[compared[0]['reference']][3]}", "less is faster")

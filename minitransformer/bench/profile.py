"""Where a training step goes, term by term, beside what NumPy's own calls and the products take at least.

A worker's share of the batch on one thread, as in training. Three times for each term:

    in a step   as it runs in training, its arrays wherever the step has left them
    alone       the same calls again, at once, their arrays now in the nearest cache: NumPy's calls and no waiting
    products    their floating-point operations at the rate of one large product: no program for this core is faster

The whole step is timed once more as workers take it, replayed: its calls, recorded once, one after another.

Where PyTorch is installed, its step is timed before and after: what NumPy's own calls take of that is as far as a
program can come that makes these calls.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import optim
from ..draw import bars
from ..kernels.blas import limit_blas_threads
from ..kernels.memory import keep_freed_memory
from ..parallel import collector_paused, default_workers
from ..replay import Part, is_compared
from ..tensor import PRIMITIVES
from . import configs
from .run import PAUSE, Peer, choose, gemm_rate

TERMS = {
    "_linear": "linear layers", "_attention": "attention", "split_heads": "attention", "join_heads": "attention",
    "layer_norm": "LayerNorm", "relu": "activation", "_gelu_tanh": "activation",
}  # fmt: skip
OTHERS = "other ops"
AGAIN = 3  # times a call is repeated to be timed alone


def _flops(name: str, arrays: tuple[Any, ...], settings: dict[str, Any]) -> int:
    """Count the operations of an op's products, forward and backward."""
    if name == "_linear":
        return 6 * arrays[0].size * len(arrays[1])
    if name == "_attention":  # scores and mix; where a mask leaves half, half
        q, k, v, mask = arrays[:4]
        share = 0.5 if settings["causal"] else 1.0 if mask is None else float(np.mean(mask))
        return int(share * 6 * q.size // q.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1]))
    return 0


class Clock:
    """Times the ops of a step by their names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.alone: dict[str, float] = {}
        self.flops: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.repeats = 0

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        if self.repeats:
            times = []
            for _ in range(self.repeats):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            self.alone[name] = self.alone.get(name, 0.0) + min(times)
        return result

    def wrap(self, name: str, body: Callable) -> Callable:
        """Return a body that does what `body` does and notes how long it took."""

        def run(xp: Any, *arrays: Any, **settings: Any) -> tuple[Any, Callable]:
            y, vjp = self._timed(name, lambda: body(xp, *arrays, **settings))
            self.calls[name] = self.calls.get(name, 0) + 1
            self.flops[name] = self.flops.get(name, 0) + _flops(name, arrays, settings)
            return y, lambda g: self._timed(name, lambda: vjp(g))

        return run

    @contextlib.contextmanager
    def on_every_op(self) -> Iterator[None]:
        """Put the clock around the bodies of all ops inside a `with` block."""
        before = {op: dict(op.kernels) for op in PRIMITIVES.values() if hasattr(op, "kernels")}
        try:
            for op, kernels in before.items():
                op.kernels["numpy"] = self.wrap(op.__name__, kernels.get("numpy", op.body))  # type: ignore[attr-defined,arg-type]
            yield
        finally:
            for op, kernels in before.items():
                op.kernels.clear()  # type: ignore[attr-defined,arg-type]
                op.kernels.update(kernels)  # type: ignore[attr-defined,arg-type]


def profile(name: str, steps: int) -> dict[str, Any]:
    """Take `steps` steps of a configuration and return the terms, in seconds a step."""
    c = configs.CONFIGS[name]
    keep_freed_memory()
    model = configs.model(c)
    loss, optimizer = configs.loss(model), optim.Adam(model.parameters(), lr=configs.LEARNING_RATE)
    share = max(1, c.batch // default_workers())
    batches = [[a[:share] for a in batch] for batch in configs.batches(c)]
    whole, adam, clock, warm = [], [], Clock(), Clock()

    def step(i: int) -> tuple[float, float]:
        began = time.perf_counter()
        model.zero_grad()
        with collector_paused():
            value, _ = loss(*batches[i % len(batches)])
            value.backward()
        middle = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - began, time.perf_counter() - middle

    with limit_blas_threads(1):
        for i in range(3):
            step(i)
        for i in range(steps):
            seconds, of_adam = step(i)
            whole.append(seconds)
            adam.append(of_adam)
        with clock.on_every_op():
            for i in range(steps):
                step(i)
        warm.repeats = AGAIN
        with warm.on_every_op():
            for i in range(max(1, steps // 4)):
                step(i)
    with limit_blas_threads(1):
        replayed = _replayed(model, loss, batches, steps)
        rate = gemm_rate(1024)
    terms = _terms(clock, warm, steps, rate)
    total, of_adam = statistics.median(whole), statistics.median(adam)
    rest = max(total - of_adam - sum(t["in_step"] for t in terms.values()), 0.0)
    nodes = sum(t["calls"] for t in terms.values())
    terms["optimizer"] = {"calls": 1, "in_step": of_adam, "alone": min(adam), "products": 0.0}
    terms["engine"] = {"calls": nodes, "in_step": rest, "alone": rest, "products": 0.0}
    ordered = dict(sorted(terms.items(), key=lambda item: -item[1]["in_step"]))
    return {
        "config": name, "rows": share, "seconds": total, "replayed": replayed + of_adam, "flops_per_second": rate,
        "terms": ordered,
    }  # fmt: skip


def _terms(clock: Clock, warm: Clock, steps: int, rate: float) -> dict[str, dict[str, float]]:
    """Return what the clocks have counted in `steps` steps, and in a quarter of them, for each term of a step."""
    terms: dict[str, dict[str, float]] = {}
    for op, seconds in clock.seconds.items():
        term = terms.setdefault(TERMS.get(op, OTHERS), {"calls": 0, "in_step": 0.0, "alone": 0.0, "products": 0.0})
        term["calls"] += clock.calls[op] / steps
        term["in_step"] += seconds / steps
        term["alone"] += warm.alone[op] / max(1, steps // 4)
        term["products"] += clock.flops[op] / steps / rate
    return terms


def _replayed(model: Any, loss: Any, batches: list[list[Any]], steps: int) -> float:
    """Return the median seconds of a worker's part, replayed, that is not compared."""
    parameters, seconds = model.parameters(), []
    part = Part(loss, model, [np.empty_like(p.data) for p in parameters])
    for i in range(steps + 4):
        began, before = time.perf_counter(), part.replayed
        with collector_paused():
            part(batches[i % len(batches)], 1.0)
        if part.replayed > before and not is_compared(part.replayed):
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@contextlib.contextmanager
def pytorch_beside(name: str, steps: int) -> Iterator[dict[str, Any]]:
    """Time PyTorch's step, on all cores, before the block and after it; the answer's "torch" is there at the end.

    It is the median in seconds, or None where PyTorch is not installed.
    """
    found: dict[str, Any] = {"torch": None}
    if not importlib.util.find_spec("torch"):
        yield found
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        np.savez(weights, **configs.weights(configs.CONFIGS[name]))  # type: ignore[arg-type]
        peer = Peer("torch", name, str(weights))
        try:
            peer.run(3)
            before = peer.run(steps)["seconds"]
            time.sleep(PAUSE)
            yield found
            time.sleep(PAUSE)
            found["torch"] = statistics.median(before + peer.run(steps)["seconds"])
        finally:
            peer.close()


def profiles(names: str | None, steps: int, progress: Any) -> dict[str, Any]:
    """Profile each of the configurations named, or all. Raises ValueError for a name that is none."""
    wanted, _ = choose("ours", names)
    results = []
    for name in wanted:
        progress(f"profile: {name}")
        count = steps if name != "gpt-large" else max(1, steps // 10)
        with pytorch_beside(name, count) as beside:
            result = profile(name, count)
        results.append({**result, **beside})
    return {"profiles": results}


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print, in milliseconds a step."""
    lines = []
    for p in result["profiles"]:
        lines.append(f"{p['config']}: one worker's {p['rows']} rows on one thread, {1e3 * p['seconds']:.1f} ms a step")
        lines.append(f"  {'term':<14}{'calls':>6}{'in a step':>11}{'alone':>9}{'products':>10}{'of the step':>13}")
        for name, t in p["terms"].items():
            lines.append(
                f"  {name:<14}{t['calls']:>6.0f}{1e3 * t['in_step']:>11.2f}{1e3 * t['alone']:>9.2f}"
                f"{1e3 * t['products']:>10.2f}{t['in_step'] / p['seconds']:>12.0%}"
            )
        sums = [sum(t[kind] for t in p["terms"].values()) for kind in ("in_step", "alone", "products")]
        lines.append(f"  {'sum':<20}{1e3 * sums[0]:>11.2f}{1e3 * sums[1]:>9.2f}{1e3 * sums[2]:>10.2f}")
        lines.append(f"  replayed {1e3 * p['replayed']:.1f} ms a step")
        if p["torch"]:
            alone, products, again = (s / p["torch"] for s in (*sums[1:], p["replayed"]))
            lines.append(
                f"  PyTorch's step takes {1e3 * p['torch']:.1f} ms: NumPy's calls alone {alone:.2f} of it, products "
                f"{products:.2f}, a replay {again:.2f}"
            )
        lines.append(f"  a large product runs at {p['flops_per_second'] / 1e9:.0f} GFLOP/s on this core")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw each term's share of the step, a panel for each configuration."""
    names = {name: 0.0 for p in result["profiles"] for name in p["terms"]}
    for p in result["profiles"]:
        for name, t in p["terms"].items():
            names[name] += t["in_step"] / p["seconds"]
    groups = {}
    for p in result["profiles"]:
        shares = {n: p["terms"][n]["in_step"] / p["seconds"] for n in sorted(names, key=lambda n: -names[n])}
        groups[p["config"]] = {n: (share, share, share) for n, share in shares.items()}
    bars(groups, path, "Where a training step goes", "share of the step", mark=None)

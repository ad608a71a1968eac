"""One library in a process of its own: it answers, a line of JSON each, how long so many steps took.

$ python -m minitransformer.bench.peer ours gpt-small weights.npz
{"steps": 3}  →  {"seconds": [0.1, 0.1, 0.1], "losses": [4.2, 4.1, 4.0]}
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import configs


def _pytorch(c: Any, w: Any, **options: bool) -> Any:
    from .pytorch import PyTorch

    return PyTorch(c, w, **options)


def _ours(c: Any, w: Any, **options: bool) -> Any:
    from .ours import Ours

    return Ours(c, w, **options)


def _jax(c: Any, w: Any) -> Any:
    from .functional import Jax

    return Jax(c, w)


def _hips(c: Any, w: Any) -> Any:
    from .functional import Hips

    return Hips(c, w)


# name → (how to make it, the module it needs, what to install, what it is)
PEERS: dict[str, tuple[Callable, str, str, str]] = {
    "ours": (_ours, "numpy", "numpy", "minitransformer"),
    "book": (lambda c, w: _ours(c, w, book=True), "numpy", "numpy", "minitransformer, kernels off, one process"),
    "torch": (_pytorch, "torch", "torch", "PyTorch eager, fused Adam"),
    "torch-adam": (lambda c, w: _pytorch(c, w, fused=False), "torch", "torch", "PyTorch eager, default Adam"),
    "torch-compile": (lambda c, w: _pytorch(c, w, compiled=True), "torch", "torch", "PyTorch compiled, fused Adam"),
    "jax": (_jax, "jax", "jax", "JAX jit"),
    "hips": (_hips, "autograd", "autograd", "HIPS autograd"),
}


def memory(pids: list[int]) -> int:
    """Return the peak of the bytes resident in these processes, each shared page counted once among its sharers.

    Of each process: what is resident now in its share (Pss in /proc/PID/smaps_rollup), and by how much its peak lay
    above that (VmHWM − VmRSS in /proc/PID/status). Where there is no /proc: the peak of this process alone.
    """
    total = 0
    for pid in pids:
        try:
            rows = [Path(f"/proc/{pid}/{name}").read_text().splitlines() for name in ("smaps_rollup", "status")]
        except OSError:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        kib = {line.split()[0]: int(line.split()[1]) for line in sum(rows, []) if line.endswith(" kB")}
        total += 1024 * (kib["Pss:"] + kib["VmHWM:"] - kib["VmRSS:"])
    return total


def answer_orders(answer: Callable[[int], dict[str, Any]]) -> None:
    """Answer each order on standard input, a line {"steps": n}, with answer(n) as a line of JSON, until it ends."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line)["steps"])) + "\n")
        sys.stdout.flush()


def build(known: dict[str, Any], name: str, config: str, weights: str) -> tuple[Any, Iterator[tuple[Any, ...]]]:
    """Return one of the known peers with the weights of a file, and the batches it will get."""
    c = configs.CONFIGS[config]
    with np.load(weights, allow_pickle=False) as file:
        peer = known[name][0](c, file)  # read one by one: what is forked has them once
    return peer, itertools.cycle(configs.batches(c))


def serve(name: str, config: str, weights: str) -> None:
    """Build the peer, then take orders from standard input until it ends."""
    peer, batches = build(PEERS, name, config, weights)

    def answer(steps: int) -> dict[str, Any]:
        seconds, losses = [], []
        for batch in itertools.islice(batches, steps):
            began = time.perf_counter()
            losses.append(peer.step(*batch))
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds, "losses": losses, "memory": memory([os.getpid(), *peer.children])}

    answer_orders(answer)


if __name__ == "__main__":
    serve(*sys.argv[1:])

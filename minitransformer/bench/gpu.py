"""The same on a GPU: `minitransformer bench gpu`.

A training step beside PyTorch's and JAX's, in turns; attention alone on long sequences beside PyTorch's fused kernel;
and each kernel of kernels/cuda beside the rate at which the GPU copies memory.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import backend
from . import gpu_peer, long, on_gpu
from .run import Place, choose, compare, draw_steps, step_lines

LENGTHS = (4096, 16384)
DIGITS = 2  # of milliseconds


def gemm_rate(size: int = 8192) -> float:
    """Measure the rate of a float32 matrix product on the GPU, in operations per second."""
    with backend.use_backend("cupy"):
        xp = backend.xp()
        a = xp.random.default_rng(0).standard_normal((size, size), dtype="float32")
        return 2 * size**3 / on_gpu.seconds_of(lambda: a @ a, xp.cuda.Device().synchronize)


GPU = Place(gpu_peer.PEERS, "minitransformer.bench.gpu_peer", gemm_rate)


def alone(*arguments: str) -> dict[str, Any]:
    """Return what a process of its own measures. Raises RuntimeError with its last line where it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "minitransformer.bench.on_gpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"bench gpu could not measure {' '.join(arguments)}: {last}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def long_sequences(lengths: tuple[int, ...], progress: Any) -> list[dict[str, Any]]:
    """Time attention alone, forward and backward, at each length; rows beside PyTorch's of the same kind."""
    rows = []
    for length in lengths:
        progress(f"gpu: attention at length {length}")
        found = alone("attention", "ours", str(length))
        if importlib.util.find_spec("torch"):
            found |= alone("attention", "torch", str(length))
        for kind, figures in found.items():
            half = on_gpu.HALF if kind.endswith(on_gpu.HALF) else ""
            plain = kind.removesuffix(half)
            beside = found.get(("torch-causal" if plain.endswith("causal") else "torch") + half)
            of_torch = None if beside is None else figures["seconds"] / beside["seconds"]
            rows.append({"kind": plain, "half": bool(half), "length": length, **figures, "of_torch": of_torch})
    return rows


def bench(peers: str | None, names: str | None, rounds: int, progress: Any) -> dict[str, Any]:
    """Measure all three. Raises ValueError for unknown names or too few rounds, RuntimeError without CuPy or a GPU."""
    if rounds < 1:
        raise ValueError(f"a bench takes at least one round; got {rounds}; write --rounds 9")
    wanted, chosen = choose(peers, names, gpu_peer.PEERS)
    with backend.use_backend("cupy"):
        pass  # says what is missing, before minutes of timing
    steps = [compare(chosen, name, rounds, progress, GPU) for name in wanted]
    rows = long_sequences(LENGTHS if names is None else (), progress)
    progress("gpu: kernels")
    return {"configs": steps, "long": rows, **alone("kernels")}


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    lines = [f"on one {result['device']}, which copies {result['copy'] / 1e9:,.0f} GB/s (read and written)"]
    lines += step_lines(result["configs"], gpu_peer.PEERS, DIGITS)
    if result["long"]:
        lines.append(f"attention alone, forward and backward, 1 × {long.HEADS} heads × {long.WIDTH}")
    for row in result["long"]:
        name = f"T = {row['length']:,}: {long.name_of(row['kind'])}{', float16' if row['half'] else ''}"
        of = "" if row["of_torch"] is None else f"{row['of_torch']:>8.2f} of PyTorch's fused kernel"
        lines.append(f"  {name:<46}{1e3 * row['seconds']:>9.2f} ms{row['memory'] / 2**20:>8,.0f} MiB{of}")
    lines.append("kernels: the fewest bytes over what they took, as a fraction of a copy's rate")
    for row in result["kernels"]:
        name = f"{row['name']}, {row['direction']}, {row['dtype']}"
        lines.append(f"  {name:<46}{1e3 * row['seconds']:>9.3f} ms{row['of_copy']:>8.2f}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the ratios of a training step, a panel for each configuration."""
    draw_steps(result["configs"], gpu_peer.PEERS, path, "Time of a training step on a GPU")

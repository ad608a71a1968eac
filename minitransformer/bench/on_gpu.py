"""What one process measures on a GPU by itself, and tells as JSON.

$ python -m minitransformer.bench.on_gpu attention ours 4096     attention alone, forward and backward
$ python -m minitransformer.bench.on_gpu attention torch 4096
$ python -m minitransformer.bench.on_gpu kernels                 each kernel beside the fewest bytes it has to move
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import long

BURSTS = 5
HALF = "-half"  # what the names of kinds in half precision end with
KINDS = (
    "dense", "dense-causal", "blockwise", "blockwise-causal", "window-causal", "linear-causal", "blockwise-half",
    "blockwise-causal-half",
)  # fmt: skip
TORCH = ("torch", "torch-causal", "torch-half", "torch-causal-half")
ROWS, WIDTH = 1 << 16, 1024  # of what the kernels work on: 256 MiB, so that no cache of a GPU holds it
VOCABULARY, CLASSES = 50_257, 1 << 12


def seconds_of(run: Callable[[], Any], wait: Callable[[], None], long_enough: float = 0.02) -> float:
    """Return the time of one run: the median over bursts, each as long as it takes not to see the waiting."""
    run()
    wait()
    began = time.perf_counter()
    run()
    wait()
    times, count = [], max(1, min(200, int(long_enough / (time.perf_counter() - began))))
    for _ in range(BURSTS):
        began = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        times.append((time.perf_counter() - began) / count)
    return statistics.median(times)


def _sequences(length: int, dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, long.HEADS, length, long.WIDTH)).astype(dtype) for _ in range(4)]


def attention_of_ours(length: int) -> dict[str, Any]:
    """Time each kind of our attention at a length.    → kind → {"seconds", "memory"}"""
    from .. import backend
    from ..tensor import Tensor

    backend.set_backend("cupy")
    xp, found = backend.xp(), {}
    pool = xp.get_default_memory_pool()
    for kind in KINDS:
        plain = kind.removesuffix(HALF)
        if not long.feasible(plain, length):
            continue
        *inputs, g = [xp.asarray(a) for a in _sequences(length, "float32" if kind == plain else "float16")]
        attend = long.KINDS[plain][1]

        def step(attend: Any = attend, inputs: Any = inputs, g: Any = g) -> None:
            attend(*[Tensor(a, requires_grad=True) for a in inputs]).backward(g)

        pool.free_all_blocks()
        seconds = seconds_of(step, xp.cuda.Device().synchronize)
        found[kind] = {"seconds": seconds, "memory": pool.total_bytes()}
    return found


def attention_of_torch(length: int) -> dict[str, Any]:
    """Time PyTorch's fused attention at a length."""
    import torch

    found = {}
    for kind in TORCH:
        plain = kind.removesuffix(HALF)
        arrays = _sequences(length, "float32" if kind == plain else "float16")
        *inputs, g = [torch.from_numpy(a).cuda() for a in arrays]

        def step(inputs: Any = inputs, g: Any = g, causal: bool = long.TORCH[plain][1]) -> None:
            q, k, v = (x.detach().requires_grad_() for x in inputs)
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).backward(g)

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = seconds_of(step, torch.cuda.synchronize)
        found[kind] = {"seconds": seconds, "memory": torch.cuda.max_memory_reserved()}
    return found


def _pairs(xp: Any, dtype: str) -> dict[str, tuple[Callable, Callable, float, float]]:
    """Return kernel → (forward, backward, the fewest elements that each has to move)."""
    from ..draws import next_draw
    from ..kernels import KERNELS

    def floats(*shape: int) -> Any:
        return xp.random.default_rng(0).standard_normal(shape, dtype="float32").astype(dtype)

    x, g, weight = floats(ROWS, WIDTH), floats(ROWS, WIDTH), floats(WIDTH)
    few, wanted = floats(ROWS * WIDTH // CLASSES, CLASSES), floats(ROWS * WIDTH // CLASSES, CLASSES)
    losses, draw, n = floats(len(few)), next_draw(ROWS), float(x.size)
    ids = xp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, 1 << 14))
    table, g_rows = floats(VOCABULARY, WIDTH), floats(len(ids), WIDTH)
    unlike = float(len(xp.unique(ids)) * WIDTH)
    given: dict[str, tuple[str, tuple, dict, Any, float, float]] = {
        "softmax": ("_softmax", (x, None), {"axis": -1}, g, 2 * n, 3 * n),
        "log_softmax": ("log_softmax", (x,), {}, g, 2 * n, 3 * n),
        "cross_entropy": ("_cross_entropy", (few, wanted), {}, losses, 2 * n, 3 * n),
        "layer_norm": ("layer_norm", (x, weight, weight), {}, g, 2 * n, 3 * n),
        "rms_norm": ("rms_norm", (x, weight), {}, g, 2 * n, 3 * n),
        "gelu, exact": ("_gelu_exact", (x,), {}, g, 2 * n, 3 * n),
        "gelu, tanh": ("_gelu_tanh", (x,), {}, g, 2 * n, 3 * n),
        "silu": ("silu", (x,), {}, g, 2 * n, 3 * n),
        "dropout": ("_dropout", (x,), {"p": 0.1, "draw": draw}, g, 2 * n, 2 * n),
        "dropout + residual": ("_dropout_add", (x, g), {"p": 0.1, "draw": draw}, g, 3 * n, 2 * n),
        "embedding": (
            "embedding", (ids, table), {}, g_rows, 2.0 * g_rows.size,
            g_rows.size + unlike + table.size,  # the rest of the table is filled with zeros
        ),
    }  # fmt: skip
    found = {}
    for name, (op, arrays, settings, cotangent, forward, backward) in given.items():
        kernel = KERNELS[op, "cupy"]
        _, vjp = kernel(xp, *arrays, **settings)

        def run_forward(kernel: Any = kernel, arrays: Any = arrays, settings: Any = settings) -> Any:
            return kernel(xp, *arrays, **settings)

        def run_backward(vjp: Any = vjp, cotangent: Any = cotangent) -> Any:
            return vjp(cotangent)

        found[name] = run_forward, run_backward, forward, backward
    return found


def _optimizer_steps(xp: Any) -> dict[str, tuple[Callable, float]]:
    """Return optimizer → (its step for one matrix, the fewest elements that it has to move)."""
    from .. import optim
    from ..tensor import Parameter

    found = {}
    for name, moved in (("AdamW", 7), ("SGD", 3), ("Lion", 5), ("Adafactor", 3)):
        p = Parameter(xp.ones((ROWS, WIDTH), dtype="float32"))
        p.grad = xp.full((ROWS, WIDTH), 0.5, dtype="float32")
        found[name] = getattr(optim, name)([p], lr=1e-3).step, float(moved * p.size)
    norm = Parameter(xp.ones((ROWS, WIDTH), dtype="float32"))
    norm.grad = xp.full((ROWS, WIDTH), 0.5, dtype="float32")
    # Read for the norm; read and written again to be made smaller.
    found["clipping by norm"] = (lambda: optim.clip_grad_norm_([norm], 1.0, error_if_nonfinite=False)), 3.0 * norm.size
    return found


def _copy_rate(xp: Any, wait: Callable[[], None]) -> float:
    """Measure the rate of a copy, in bytes read and written per second."""
    a, b = xp.ones(ROWS * WIDTH, dtype="float32"), xp.empty(ROWS * WIDTH, dtype="float32")
    return 2 * a.nbytes / seconds_of(lambda: xp.copyto(b, a), wait)  # type: ignore[no-any-return]


def kernels() -> dict[str, Any]:
    """Return the rate of a copy, in bytes/s, and rows of kernels: what they moved a second over that.

    A row: name, direction, dtype, seconds, bytes (the fewest), of_copy.
    """
    from .. import backend

    backend.set_backend("cupy")
    xp = backend.xp()
    wait, rows = xp.cuda.Device().synchronize, []
    rate = _copy_rate(xp, wait)

    def note(name: str, direction: str, dtype: str, run: Callable, elements: float) -> None:
        seconds, size = seconds_of(run, wait), elements * np.dtype(dtype).itemsize
        rows.append({
            "name": name, "direction": direction, "dtype": dtype, "seconds": seconds, "bytes": size,
            "of_copy": size / seconds / rate,
        })  # fmt: skip

    for dtype in ("float32", "float16"):
        for name, (forward, backward, read, written) in _pairs(xp, dtype).items():
            note(name, "forward", dtype, forward, read)
            note(name, "backward", dtype, backward, written)
        xp.get_default_memory_pool().free_all_blocks()
    for name, (step, elements) in _optimizer_steps(xp).items():
        note(name, "step", "float32", step, elements)
    name = xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return {"device": name, "copy": rate, "kernels": rows}


if __name__ == "__main__":
    if sys.argv[1] == "attention":
        answer = {"ours": attention_of_ours, "torch": attention_of_torch}[sys.argv[2]](int(sys.argv[3]))
    else:
        answer = kernels()
    sys.stdout.write(json.dumps(answer) + "\n")

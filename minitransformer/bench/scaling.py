"""How the cost of a training step grows with length, width, layers and batch, and which term leads where."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from ..draw import log_log
from ..kernels.blas import limit_blas_threads
from ..tensor import Tensor
from . import configs
from .ours import Ours

BASE = configs.BenchConfig("scaling", "gpt", 128, 4, 2, 128, 4, 65)
SWEEPS = {
    "length": (64, 128, 256, 512, 1024, 2048),
    "d_model": (64, 128, 256, 512, 1024),
    "layers": (1, 2, 4, 8, 16),
    "batch": (2, 4, 8, 16, 32),
}
# What theory expects of the slope at the upper end: attention is quadratic in T, products in D; the rest is linear.
EXPECTED = {"length": 2.0, "d_model": 2.0, "layers": 1.0, "batch": 1.0}


def slope(x: Any, y: Any) -> float:
    """Return the exponent p of y ~ xᵖ between the last two points."""
    return float(np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]))


def crossing(x: Any, rising: Any, other: Any) -> float | None:
    """Return where one curve overtakes the other, interpolated on log-log axes; None where it does not."""
    gap = np.log(np.asarray(rising) / np.asarray(other))
    for i in range(len(gap) - 1):
        if gap[i] < 0 <= gap[i + 1]:
            share = -gap[i] / (gap[i + 1] - gap[i])
            return float(np.exp(np.log(x[i]) + share * np.log(x[i + 1] / x[i])))
    return None


def step_seconds(c: configs.BenchConfig, tries: int) -> float:
    """Return the least time of a few training steps, in seconds."""
    ours, batches = Ours(c, configs.weights(c)), configs.batches(c)
    times = []
    for i in range(tries + 1):
        began = time.perf_counter()
        ours.step(*batches[i % len(batches)])
        times.append(time.perf_counter() - began)
    ours.workers.close()
    return min(times[1:])


def term_seconds(c: configs.BenchConfig, tries: int) -> dict[str, float]:
    """Time what the layers are made of, forward and backward: products with weights, attention, the rest.

    On one BLAS thread, as in a worker: otherwise the products alone would use all cores.
    """
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> Any:
        return Tensor(rng.standard_normal(shape).astype("float32"), requires_grad=True)

    n, d, f = c.tokens, c.d_model, c.d_ff
    x, wide, square, up, down = leaf(n, d), leaf(n, f), leaf(d, d), leaf(f, d), leaf(d, f)
    heads, ones, zeros = leaf(c.batch, c.heads, c.length, d // c.heads), leaf(d), leaf(d)
    terms = {
        "linear": [lambda: ops.linear(x, square)] * 4 + [lambda: ops.linear(x, up), lambda: ops.linear(wide, down)],
        "attention": [lambda: ops.scaled_dot_product_attention(heads, heads, heads, causal=True)],
        "elementwise": [lambda: ops.layer_norm(x, ones, zeros)] * 2 + [lambda: ops.gelu(wide, "tanh")],
    }
    result = {}
    for name, calls in terms.items():
        times = []
        with limit_blas_threads(1):
            for _ in range(tries + 1):
                began = time.perf_counter()
                for call in calls:
                    y = call()
                    y.backward(y.data)
                times.append(time.perf_counter() - began)
        result[name] = c.layers * min(times[1:])
    return result


def scaling(tries: int, progress: Any) -> dict[str, Any]:
    """Measure every sweep: seconds a step, the slope at its upper end, and the terms over the length."""
    sweeps = {}
    for field, values in SWEEPS.items():
        seconds = []
        for value in values:
            progress(f"scaling: {field} {value}")
            seconds.append(step_seconds(dataclasses.replace(BASE, **{field: value}), tries))  # type: ignore[arg-type]
        sweeps[field] = {
            "values": list(values), "seconds": seconds, "slope": slope(values, seconds), "expected": EXPECTED[field],
        }  # fmt: skip
    lengths, terms = SWEEPS["length"], []
    for value in lengths:
        progress(f"scaling: terms at length {value}")
        terms.append(term_seconds(dataclasses.replace(BASE, length=value), tries))
    curves = {name: [t[name] for t in terms] for name in terms[0]}
    slopes = {name: slope(lengths, y) for name, y in curves.items()}
    over = {name: crossing(lengths, curves["attention"], y) for name, y in curves.items() if name != "attention"}
    return {
        "base": dataclasses.asdict(BASE), "sweeps": sweeps,
        "terms": {"values": list(lengths), "seconds": curves, "slopes": slopes, "attention_overtakes": over},
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    base = result["base"]
    sizes = f"width {base['d_model']}, {base['layers']} layers, T {base['length']}, B {base['batch']}"
    lines = [f"one step of a GPT: {sizes}"]
    for field, sweep in result["sweeps"].items():
        pairs = zip(sweep["values"], sweep["seconds"], strict=True)
        points = "  ".join(f"{value}: {1e3 * s:.1f} ms" for value, s in pairs)
        lines.append(f"{field:<12}slope {sweep['slope']:.2f} (in the limit {sweep['expected']:.0f})   {points}")
    for name, p in result["terms"]["slopes"].items():
        lines.append(f"{name:<12}slope {p:.2f} over the length")
    for name, at in result["terms"]["attention_overtakes"].items():
        where = f"takes more than {name} from T = {at:.0f} on" if at else f"does not overtake {name} in this range"
        lines.append(f"attention {where}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the curves of a result, a panel for each sweep and one for the terms over the length."""
    terms = result["terms"]
    panels = {
        field: {f"whole step, slope {s['slope']:.2f}": (s["values"], s["seconds"])}
        for field, s in result["sweeps"].items()
    }
    panels["length (terms)"] = {
        f"{name}, slope {terms['slopes'][name]:.2f}": (terms["values"], y) for name, y in terms["seconds"].items()
    }
    log_log(panels, path, "Cost of a training step")

"""Attention alone on a long sequence, in a process of its own: it answers how long forward and backward took.

$ python -m minitransformer.bench.long blockwise 4096
{"steps": 1}  →  {"seconds": [0.4], "memory": 118000000}
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..kernels.memory import keep_freed_memory
from ..tensor import Tensor
from .peer import answer_orders, memory

HEADS, WIDTH, WINDOW = 4, 64, 256


def _attend(**settings: bool | int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, **settings)  # type: ignore[arg-type]


# name → (what it is, how our op is asked for it); PyTorch's are below
KINDS: dict[str, tuple[str, Callable]] = {
    "dense": ("dense", _attend(blockwise=False)),
    "dense-causal": ("dense, causal", _attend(blockwise=False, causal=True)),
    "blockwise": ("blockwise", _attend(blockwise=True)),
    "blockwise-causal": ("blockwise, causal", _attend(blockwise=True, causal=True)),
    "window-causal": (f"window of {WINDOW}, causal", _attend(window=WINDOW, causal=True)),
    "linear-causal": ("linear, causal", lambda q, k, v: ops.linear_attention(q, k, v, causal=True)),
}
TORCH = {"torch": ("PyTorch, fused", False), "torch-causal": ("PyTorch, fused, causal", True)}
MOST_SCORES = HEADS * 8192**2  # beyond, dense attention takes more memory than many machines have


def name_of(kind: str) -> str:
    """Return what a kind is called in a table."""
    return (KINDS | TORCH)[kind][0]


def feasible(kind: str, length: int) -> bool:
    """Tell whether a kind is tried at a length."""
    return not kind.startswith("dense") or HEADS * length**2 < MOST_SCORES


def _ours(kind: str, arrays: list[np.ndarray]) -> Callable[[], None]:
    attend, g = KINDS[kind][1], arrays[3]

    def step() -> None:
        q, k, v = (Tensor(a, requires_grad=True) for a in arrays[:3])
        attend(q, k, v).backward(g)

    return step


def _torch(kind: str, arrays: list[np.ndarray]) -> Callable[[], None]:
    import torch

    q, k, v, g = map(torch.from_numpy, arrays)

    def step() -> None:
        a, b, c = (x.detach().requires_grad_() for x in (q, k, v))
        torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=TORCH[kind][1]).backward(g)

    return step


def serve(kind: str, length: str) -> None:
    """Take orders from standard input until it ends."""
    keep_freed_memory()
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, HEADS, int(length), WIDTH)).astype("float32") for _ in range(4)]
    step = (_torch if kind in TORCH else _ours)(kind, arrays)

    def answer(steps: int) -> dict[str, Any]:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds, "memory": memory([os.getpid()])}

    answer_orders(answer)


if __name__ == "__main__":
    serve(*sys.argv[1:])

"""Hold gradients to a size, so that one bad batch cannot throw the weights away."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def clip_grad_norm_(parameters: Iterable[Any], max_norm: float, error_if_nonfinite: bool = True) -> float:
    """Scale all gradients together, in place, so that their joint norm is at most max_norm; return the norm before.

        ‖g‖ = √(Σ over all parameters Σ g²)        g ← g·min(1, max_norm/(‖g‖ + 10⁻⁶))

    Raises ValueError for max_norm ≤ 0, and for a norm that is not finite, which no factor can mend.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is above 0; got {max_norm}; write max_norm=1.0")
    nodes = [p.node for p in parameters if p.node is not None and p.node.grad is not None]
    total = math.sqrt(sum(float((node.grad * node.grad).sum()) for node in nodes))
    if error_if_nonfinite and not math.isfinite(total):
        raise ValueError(f"gradients are finite numbers; their norm is {total}; lower the learning rate")
    factor = max_norm / (total + 1e-6)
    if factor < 1:
        for node in nodes:
            node.grad *= factor
    return total


def clip_grad_value_(parameters: Iterable[Any], clip_value: float) -> None:
    """Hold each element of each gradient within ±clip_value, in place. Raises ValueError for clip_value ≤ 0."""
    if not clip_value > 0:
        raise ValueError(f"clip_value is above 0; got {clip_value}; write clip_value=1.0")
    for p in parameters:
        if p.node is not None and p.node.grad is not None:
            p.node.grad = p.node.grad.clip(-clip_value, clip_value)

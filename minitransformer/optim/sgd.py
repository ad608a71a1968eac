"""Stochastic gradient descent: downhill, with a memory of where downhill was."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from .optimizer import Optimizer


class SGD(Optimizer):
    """Step against the gradient.

        g ← g + λ·w              (L2: weight_decay λ)
        m ← μ·m + g              (momentum μ; the first m is g)
        w ← w − η·m              (nesterov: w − η·(g + μ·m))

    As PyTorch's, which keeps the learning rate η out of the momentum.
    """

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False):
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum; got momentum=0; write momentum=0.9")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, xp: Any, w: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            g = g + group["weight_decay"] * w
        if group["momentum"]:
            if "momentum" not in state:
                state["momentum"] = g.copy()
            else:
                state["momentum"] *= group["momentum"]
                state["momentum"] += g
            g = g + group["momentum"] * state["momentum"] if group["nesterov"] else state["momentum"]
        w -= group["lr"] * g

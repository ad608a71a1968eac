"""Adam: each weight takes steps of about the learning rate, whatever the size of its gradients."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from .optimizer import Optimizer


class Adam(Optimizer):
    """Step by the mean of recent gradients over the root of the mean of their squares.

        g ← g + λ·w                              (L2: weight_decay λ)
        m ← β₁·m + (1 − β₁)·g                    v ← β₂·v + (1 − β₂)·g²
        w ← w − η·m̂ / (√v̂ + ε)                   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    The hats undo that m and v start at zero. Kingma & Ba 2014, arXiv:1412.6980.
    """

    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, xp: Any, w: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        if decay and self.decoupled:
            w *= 1 - lr * decay
        elif decay:
            g = g + decay * w
        if "m" not in state:
            state["m"], state["v"] = xp.zeros_like(w), xp.zeros_like(w)
        m, v, t = state["m"], state["v"], state["step"]
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        root = xp.sqrt(v) / math.sqrt(1 - beta2**t) + group["eps"]
        w -= (lr / (1 - beta1**t)) * (m / root)


class AdamW(Adam):
    """Adam whose weight decay acts on the weights themselves: w ← (1 − η·λ)·w before the step.

    Through the gradient, as L2, the decay would be divided by √v̂ too, and so be weakest where gradients are large.
    Loshchilov & Hutter 2017, arXiv:1711.05101.
    """

    decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)

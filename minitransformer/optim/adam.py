"""Adam, and AdamW: the same with weight decay that does not pass through the moments."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from ..backend import Array
from ..kernels import optimizers as fast
from ..kernels.cuda import optimizers as cuda
from .doors import check_betas, check_range
from .optimizer import Optimizer


class Adam(Optimizer):
    """Divide a running mean of the gradient by the root of a running mean of its square.

        g ← g + λ·θ                                     weight decay λ, here an L2 penalty
        m ← β₁·m + (1 − β₁)·g
        v ← β₂·v + (1 − β₂)·g²
        θ ← θ − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

    θ, g, m, v: one shape, that of the parameter; t counts its updates from 1. m and v start at 0, and are too
    small at first by just the factors 1 − βᵗ. ε is added after the root and after the correction.
    Kingma & Ba 2014, arXiv:1412.6980. Raises ValueError for a value outside its range.
    """

    decoupled = False  # is the weight decay kept out of the moments?
    elementwise = True
    kernels = {"numpy": functools.partial(fast.adam, decoupled=False)}
    together = {"cupy": functools.partial(cuda.adam, decoupled=False)}

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0, float("inf"))
        check_betas(group["betas"])

    def _new_state(self, xp: Any, x: Array, group: dict[str, Any]) -> dict[str, Array]:
        return {"exp_avg": xp.zeros_like(x), "exp_avg_sq": xp.zeros_like(x)}

    def _update(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
        if decay and self.decoupled:
            x *= 1 - lr * decay
        elif decay:
            g = g + decay * x
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        root = xp.sqrt(v)
        root /= math.sqrt(1 - beta2**t)
        root += group["eps"]
        x -= lr / (1 - beta1**t) * m / root


class AdamW(Adam):
    """Step as Adam does, and shrink the weights beside it.

        θ ← (1 − η·λ)·θ        then Adam's step with λ = 0

    An L2 penalty would be divided by √v with the rest of the gradient, and so would spare the weights with
    large gradients; here all shrink alike. As in PyTorch, λ is multiplied by the learning rate η in use.
    Loshchilov & Hutter 2017, arXiv:1711.05101.
    """

    decoupled = True
    kernels = {"numpy": functools.partial(fast.adam, decoupled=True)}
    together = {"cupy": functools.partial(cuda.adam, decoupled=True)}

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.01,
    ):  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)

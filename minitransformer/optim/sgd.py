"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import Array
from ..kernels.cuda import optimizers as cuda
from .doors import check_flag, check_range
from .optimizer import Optimizer


class SGD(Optimizer):
    """Step against the gradient, or against a running sum of past ones.

        g ← g + λ·θ                                     weight decay λ, here an L2 penalty
        b ← μ·b + (1 − τ)·g        (b = g at first)     momentum μ, dampening τ
        θ ← θ − η·g         plain      (μ = 0)
        θ ← θ − η·b         momentum
        θ ← θ − η·(g + μ·b) Nesterov

    θ, g, b: one shape, that of the parameter. As in PyTorch the learning rate η stands outside the momentum,
    so that a change of η takes effect at once; Sutskever et al. (ICML 2013) put it inside.
    Raises ValueError for a value outside its range (dampening: 0 ≤ τ < 1), TypeError for what is no number or flag.
    """

    elementwise = True
    together = {"cupy": cuda.sgd}

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False,
    ):  # fmt: skip
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov,
        })  # fmt: skip

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_range(name, group[name], 0, float("inf"))
        check_range("dampening", group["dampening"], 0, 1)
        check_flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening = 0; got momentum={group['momentum']}, "
                f"dampening={group['dampening']}; write momentum=0.9, dampening=0"
            )

    def _new_state(self, xp: Any, x: Array, group: dict[str, Any]) -> dict[str, Array]:
        return {"momentum_buffer": xp.zeros_like(x)} if group["momentum"] else {}

    def _update(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * x
        if momentum:
            b = state["momentum_buffer"]
            if state["step"] == 1:
                b[...] = g
            else:
                b *= momentum
                b += (1 - group["dampening"]) * g
            g = g + momentum * b if group["nesterov"] else b
        x -= group["lr"] * g

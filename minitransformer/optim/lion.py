"""Lion: momentum of which only the sign is stepped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import Array
from ..kernels import optimizers as fast
from ..kernels.cuda import optimizers as cuda
from .doors import check_betas, check_range
from .optimizer import Optimizer


class Lion(Optimizer):
    """Step by the sign of a running mean of the gradient, the same length for every weight.

        c ← β₁·m + (1 − β₁)·g
        θ ← (1 − η·λ)·θ                     weight decay λ, decoupled as AdamW's
        θ ← θ − η·sign(c)
        m ← β₂·m + (1 − β₂)·g

    θ, g, m, c: one shape, that of the parameter; m starts at 0 and is all the state, half of Adam's. Two factors are
    used: the step looks more at the newest gradient (β₁) than what is remembered of it does (β₂).

    Every weight moves by η, where Adam moves most of them by less; so the paper takes an η 3 to 10 times smaller than
    AdamW's, and a λ as many times larger, so that η·λ stays. Where c is 0 nothing is stepped.
    Chen et al. 2023, arXiv:2302.06675. Raises ValueError for a value outside its range.
    """

    elementwise = True
    kernels = {"numpy": fast.lion}
    together = {"cupy": cuda.lion}

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            check_range(name, group[name], 0, float("inf"))
        check_betas(group["betas"])

    def _new_state(self, xp: Any, x: Array, group: dict[str, Any]) -> dict[str, Array]:
        return {"exp_avg": xp.zeros_like(x)}

    def _update(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr, (beta1, beta2), m = group["lr"], group["betas"], state["exp_avg"]
        c = beta1 * m + (1 - beta1) * g
        x *= 1 - lr * group["weight_decay"]
        x -= lr * xp.sign(c)
        m *= beta2
        m += (1 - beta2) * g

"""Adafactor: Adam's second moments from the sums of rows and columns, a step size that sets itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import Array
from ..kernels.cuda import adafactor as cuda
from ..kernels.cuda.adafactor import Numbers
from .doors import check_flag, check_range
from .optimizer import Optimizer

CONVENTIONS = ("torch", "transformers")


class Adafactor(Optimizer):
    """Step as Adam does, keeping for a matrix N×M only N + M numbers of its second moments.

        β₂ₜ = 1 − t^beta2_decay
        R ← β₂ₜ·R + (1 − β₂ₜ)·(mean of g² over the last axis)              R: (..., N, 1)
        C ← β₂ₜ·C + (1 − β₂ₜ)·(mean of g² over the last axis but one)      C: (..., 1, M)
        V = R·C / (mean of R)                       with fewer than two axes, V ← β₂ₜ·V + (1 − β₂ₜ)·g²
        u = g / √V;    u ← u / max(1, RMS(u)/clip_threshold);    θ ← θ − α·u

    θ, g, u, V: one shape, that of the parameter; t counts its updates from 1; RMS is the root mean square.
    Shazeer & Stern 2018, arXiv:1804.04235. Two libraries differ in the rest, and `convention` picks one:

        "torch" (torch.optim.Adafactor)             "transformers" (transformers.optimization.Adafactor)
    α   max(ε₂, RMS(θ)) · ρ                         the same; ρ alone where scale_parameter=False
    ρ   min(lr, 1/√t);  lr=None means 0.01          relative_step: min(10⁻², 1/√t), and with warmup_init
                                                    min(10⁻⁶·t, 1/√t); lr must be None. Otherwise ρ = lr
    ε₁  a floor: mean of R ≥ ε₁, V ≥ ε₁²;           added to g² (in the means, too);
        None means the dtype's machine epsilon      None means 1e-30
    λ   θ ← (1 − lr·λ)·θ                            θ ← (1 − α·λ)·θ
    β₁  none                                        m ← β₁·m + (1 − β₁)·α·u, and m is the step

    ρ, ε and α as in the paper are those of "transformers"; its momentum keeps the step size inside. beta1,
    scale_parameter=False, relative_step=False and warmup_init=True are refused with "torch", which has none.
    eps is (ε₁, ε₂). PyTorch calls clip_threshold d, transformers calls beta2_decay decay_rate.
    Raises ValueError for a value outside its range or settings that contradict one another, TypeError for what is no
    number or flag.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | None = None, convention: str = "torch",
        eps: tuple[float | None, float] = (None, 1e-3), clip_threshold: float = 1.0,
        beta2_decay: float = -0.8, beta1: float | None = None, weight_decay: float = 0.0,
        scale_parameter: bool = True, relative_step: bool = True, warmup_init: bool = False,
    ):  # fmt: skip
        if lr is None and convention == "torch":
            lr = 1e-2
        super().__init__(params, {
            "lr": lr, "convention": convention, "eps": eps, "clip_threshold": clip_threshold,
            "beta2_decay": beta2_decay, "beta1": beta1, "weight_decay": weight_decay,
            "scale_parameter": scale_parameter, "relative_step": relative_step, "warmup_init": warmup_init,
        })  # fmt: skip

    def _check(self, group: dict[str, Any]) -> None:
        convention = group["convention"]
        if convention not in CONVENTIONS:
            raise ValueError(f"convention is one of {', '.join(CONVENTIONS)}; got {convention!r}; write 'torch'")
        if not isinstance(group["eps"], tuple) or len(group["eps"]) != 2:
            raise ValueError(f"eps are two numbers; got {group['eps']!r}; write eps=(None, 1e-3)")
        for name, value in (("eps[0]", group["eps"][0]), ("lr", group["lr"])):
            if value is not None:
                check_range(name, value, 0, math.inf)
        check_range("eps[1]", group["eps"][1], 0, math.inf)
        check_range("weight_decay", group["weight_decay"], 0, math.inf)
        check_range("clip_threshold", group["clip_threshold"], 0, math.inf, low_is_allowed=False)
        if group["beta1"] is not None:
            check_range("beta1", group["beta1"], 0, 1)
        for name in ("scale_parameter", "relative_step", "warmup_init"):
            check_flag(name, group[name])
        decay = group["beta2_decay"]
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not -math.inf < decay <= 0:
            raise ValueError(f"beta2_decay is at most 0; got {decay!r}; write beta2_decay=-0.8")
        self._check_together(group)

    @staticmethod
    def _check_together(group: dict[str, Any]) -> None:
        """Raise ValueError where one setting rules another out."""
        lr, relative = group["lr"], group["relative_step"]
        if group["convention"] == "torch":
            plain = {"beta1": None, "scale_parameter": True, "relative_step": True, "warmup_init": False}
            for name, value in plain.items():
                if group[name] != value:
                    raise ValueError(
                        f"convention='torch' has no {name}; got {name}={group[name]}; write convention='transformers'"
                    )
            if lr is None:
                raise ValueError("convention='torch' needs lr; got None; write lr=0.01")
        elif relative and lr is not None:
            raise ValueError(f"relative_step=True makes its own lr; got lr={lr}; write relative_step=False")
        elif not relative and lr is None:
            raise ValueError("relative_step=False needs lr; got None; write lr=1e-3")
        elif group["warmup_init"] and not relative:
            raise ValueError("warmup_init needs relative_step=True; got False; write warmup_init=False")

    def _new_state(self, xp: Any, x: Array, group: dict[str, Any]) -> dict[str, Array]:
        if x.ndim < 2:
            state = {"variance": xp.zeros_like(x)}
        else:
            state = {"row_var": xp.zeros_like(x[..., :1]), "col_var": xp.zeros_like(x[..., :1, :])}
        if group["beta1"] is not None:
            state["exp_avg"] = xp.zeros_like(x)
        return state

    @staticmethod
    def _numbers(group: dict[str, Any], t: int, dtype: Any) -> Numbers:
        """Return the numbers of step t, in which the conventions differ."""
        torch, lr, (eps1, eps2) = group["convention"] == "torch", group["lr"], group["eps"]
        if eps1 is None:
            eps1 = float(np.finfo(dtype).eps) if torch else 1e-30
        if torch:
            rho = min(lr, 1 / math.sqrt(t))
        elif group["relative_step"]:
            rho = min(1e-6 * t if group["warmup_init"] else 1e-2, 1 / math.sqrt(t))
        else:
            rho = lr
        add, floor, least = (0.0, eps1, eps1 * eps1) if torch else (eps1, 0.0, 0.0)
        return Numbers(
            weight=t ** group["beta2_decay"], add=add, floor=floor, least=least, rho=rho, eps2=eps2,
            clip=group["clip_threshold"], beta1=group["beta1"] or 0.0, decay=group["weight_decay"], lr=lr or 0.0,
            scaled=group["scale_parameter"], by_alpha=not torch,
        )  # fmt: skip

    def _update(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        n = self._numbers(group, state["step"], x.dtype)
        alpha = xp.maximum(_rms(xp, x), n.eps2) * n.rho if n.scaled else n.rho
        v = self._second_moment(xp, g * g + n.add, state, n.weight, n.floor)
        u = g / xp.sqrt(xp.maximum(v, n.least))
        u /= xp.maximum(_rms(xp, u) / n.clip, 1.0)
        u *= alpha
        if group["beta1"] is not None:
            m = state["exp_avg"]
            m *= n.beta1
            m += (1 - n.beta1) * u
            u = m
        if n.decay:
            x *= 1 - (alpha if n.by_alpha else n.lr) * n.decay
        x -= u

    def _fits_together(self, x: Array, g: Array) -> bool:
        return x.ndim in (1, 2) and super()._fits_together(x, g)

    @staticmethod
    def _second_moment(xp: Any, square: Array, state: dict[str, Any], weight: float, floor: float) -> Array:
        """Move the running means by `weight` towards g² and return V.    square: (..., N, M) → (..., N, M)"""
        if square.ndim < 2:
            v = state["variance"]
            v += weight * (square - v)
            return v
        rows, columns = state["row_var"], state["col_var"]
        rows += weight * (square.mean(axis=-1, keepdims=True) - rows)
        columns += weight * (square.mean(axis=-2, keepdims=True) - columns)
        return rows / xp.maximum(rows.mean(axis=-2, keepdims=True), floor) * columns


def _all_at_once(xp: Any, xs: Any, gs: Any, states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    cuda.adafactor(xp, xs, gs, states, lambda: Adafactor._numbers(group, states[0]["step"], xs[0].dtype))


Adafactor.together = {"cupy": _all_at_once}


def _rms(xp: Any, x: Array) -> Any:
    """Return the root of the mean square, a scalar on x's device.    x: (...) → ()"""
    return xp.sqrt((x * x).mean())

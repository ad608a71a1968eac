"""Adafactor: Adam's second moments for the memory of a row and a column."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from .optimizer import Optimizer


class Adafactor(Optimizer):
    """Step by g/√V̂, where V̂ is rebuilt from the row and column means of g², clipped and scaled to the weights.

        r ← β₂·r + (1 − β₂)·mean_cols(g²)      c ← β₂·c + (1 − β₂)·mean_rows(g²)      β₂ = 1 − t^decay_rate
        V̂ = r·c / mean(r)                      u = g/√V̂,  u ← u / max(1, RMS(u)/clip_threshold)
        w ← w − α·u                            α = max(ε₂, RMS(w))·ρ

    An array with one axis or none keeps V itself. Shazeer & Stern 2018, arXiv:1804.04235. Two conventions:

    "transformers"  ρ = min(10⁻², 1/√t) (10⁻⁶·t with warmup_init) if relative_step, else lr; α = ρ without
                    scale_parameter; ε₁ = 10⁻³⁰ is added to g²; beta1 adds a mean of the updates; decay is w·(1 − λ·α),
                    with the scaled rate.
    "torch"         ρ = min(lr, 1/√t), lr = 10⁻² by default; always scaled by max(ε₂, RMS(w)); ε₁ (the dtype's epsilon)
                    bounds mean(r), and ε₁² bounds V̂, from below; no beta1; decay is w·(1 − λ·lr), with the plain rate.

    Raises ValueError for settings that exclude one another or that a convention does not have.
    """

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps: tuple[float | None, float] | None = None,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool | None = None,
        warmup_init: bool = False,
        convention: str = "transformers",
    ):
        if convention not in ("transformers", "torch"):
            raise ValueError(f"convention is transformers or torch; got {convention!r}; write convention='torch'")
        self.torch = convention == "torch"
        if self.torch and (beta1 is not None or not scale_parameter or relative_step is not None or warmup_init):
            raise ValueError(
                "torch's Adafactor has no beta1, scale_parameter, relative_step or warmup_init; got one; write convention='transformers'"
            )
        relative_step = (lr is None) if relative_step is None else relative_step
        if not self.torch and (relative_step == (lr is not None) or (warmup_init and not relative_step)):
            came = f"lr={lr}, relative_step={relative_step}, warmup_init={warmup_init}"
            raise ValueError(f"the step is relative or lr gives it, and warmup_init needs it relative; got {came}; drop one of them")
        lr = 1e-2 if self.torch and lr is None else lr
        eps = eps or ((None, 1e-3) if self.torch else (1e-30, 1e-3))
        settings = {
            "lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1,
            "weight_decay": weight_decay, "scale_parameter": scale_parameter, "relative_step": relative_step,
            "warmup_init": warmup_init,
        }  # fmt: skip
        super().__init__(params, settings)

    def update(self, xp: Any, w: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        t, (eps1, eps2) = state["step"], group["eps"]
        eps1 = float(xp.finfo(w.dtype).eps) if eps1 is None else eps1
        rho = self._relative_step(t, group)
        alpha = max(eps2, _rms(w)) * rho if group["scale_parameter"] else rho
        if self.torch and group["weight_decay"]:
            w *= 1 - group["lr"] * group["weight_decay"]

        u = g / xp.sqrt(self._second_moment(xp, g, state, 1 - t ** group["decay_rate"], eps1))
        u *= alpha / max(1.0, _rms(u) / group["clip_threshold"])

        if group["beta1"] is not None:
            if "m" not in state:
                state["m"] = xp.zeros_like(w)
            state["m"] *= group["beta1"]
            state["m"] += (1 - group["beta1"]) * u
            u = state["m"]
        if not self.torch and group["weight_decay"]:
            w *= 1 - group["weight_decay"] * alpha
        w -= u

    def _relative_step(self, t: int, group: dict[str, Any]) -> float:
        if self.torch:
            return min(group["lr"], 1 / math.sqrt(t))
        if group["relative_step"]:
            return min(1e-6 * t if group["warmup_init"] else 1e-2, 1 / math.sqrt(t))
        return group["lr"]

    def _second_moment(self, xp: Any, g: Array, state: dict[str, Any], beta2: float, eps1: float) -> Array:
        """Update the running means of g² and return V̂.    g: (..., R, C) → (..., R, C)"""
        square = g * g if self.torch else g * g + eps1
        if g.ndim < 2:
            v = state.setdefault("v", xp.zeros_like(g))
            v *= beta2
            v += (1 - beta2) * square
        else:
            r = state.setdefault("row", xp.zeros((*g.shape[:-1], 1), dtype=g.dtype))
            c = state.setdefault("column", xp.zeros((*g.shape[:-2], 1, g.shape[-1]), dtype=g.dtype))
            r *= beta2
            r += (1 - beta2) * square.mean(axis=-1, keepdims=True)
            c *= beta2
            c += (1 - beta2) * square.mean(axis=-2, keepdims=True)
            mean = r.mean(axis=-2, keepdims=True)
            v = r / (xp.maximum(mean, eps1) if self.torch else mean) * c
        return xp.maximum(v, eps1 * eps1) if self.torch else v


def _rms(x: Array) -> float:
    return math.sqrt(float((x * x).mean()))

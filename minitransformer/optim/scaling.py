"""A factor on the loss, so that gradients in half precision do not vanish."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..tensor import Tensor
from .clipping import clip_grad_norm_, scale_gradients_
from .doors import check_count, check_range


class GradScaler:
    """Multiply the loss by a scale, divide the gradients by it, and look for the largest scale that does not overflow.

        backward of scale·loss        g ← g/scale        where some g is not finite: no step, scale ← scale·backoff
        after `growth_interval` good steps in a row: scale ← scale·growth

        loss.backward(scaler.scale)
        if scaler.unscale_(model.parameters()):
            optimizer.step()

    Powers of two change no bit of a gradient but its exponent. Whether a gradient is finite has to be known before
    the step, so that a GPU is waited for once a step. Raises ValueError for a value outside its range,
    FloatingPointError where even a scale of 1 overflows. Micikevicius et al. 2017, arXiv:1710.03740, section 3.2.
    """

    def __init__(
        self, init_scale: float = 65536.0, growth_factor: float = 2.0, backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):  # fmt: skip
        check_range("init_scale", init_scale, 1, math.inf)
        check_range("growth_factor", growth_factor, 1, math.inf)
        check_range("backoff_factor", backoff_factor, 0, 1, low_is_allowed=False)
        check_count("growth_interval", growth_interval, 1)
        self.scale, self.good_steps = init_scale, 0
        self.growth, self.backoff, self.interval = growth_factor, backoff_factor, growth_interval

    def unscale_(self, parameters: Iterable[Tensor] | Tensor) -> bool:
        """Divide all gradients by the scale and tell whether they are finite; then move the scale.

        Where they are not, take no step.
        """
        chosen = list(parameters) if not isinstance(parameters, Tensor) else [parameters]
        with np.errstate(over="ignore", invalid="ignore"):
            finite = math.isfinite(float(clip_grad_norm_(chosen, math.inf, error_if_nonfinite=False)))
        if not finite:
            if self.scale <= 1:
                raise FloatingPointError("gradients overflow half precision even unscaled; write precision=float32")
            self.scale, self.good_steps = max(1.0, self.scale * self.backoff), 0
            return False
        scale_gradients_(chosen, 1 / self.scale)
        self.good_steps += 1
        if self.good_steps >= self.interval:
            self.scale, self.good_steps = self.scale * self.growth, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])

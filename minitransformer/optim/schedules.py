"""The learning rate as a function of the step, counted from 1: small at first, while the moments are still noise."""

from __future__ import annotations

import math


def _require(rule: bool, text: str) -> None:
    if not rule:
        raise ValueError(text)


class Constant:
    """The same rate at each step."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, step: int) -> float:
        return self.rate


class Noam:
    """Rise linearly for `warmup` steps, then fall with the root of the step.

        rate = factor·D^(−1/2)·min(step^(−1/2), step·warmup^(−3/2))

    Vaswani et al. 2017, arXiv:1706.03762, section 5.3 (warmup = 4000 there).
    """

    def __init__(self, d_model: int, warmup: int = 4000, factor: float = 1.0):
        _require(d_model >= 1 and warmup >= 1, f"Noam needs d_model and warmup of at least 1; got {d_model} and {warmup}; write warmup=4000")
        self.d_model, self.warmup, self.factor = d_model, warmup, factor

    def __call__(self, step: int) -> float:
        return self.factor * self.d_model**-0.5 * min(step**-0.5, step * self.warmup**-1.5)


class WarmupCosine:
    """Rise linearly to `peak` in `warmup` steps, then fall along half a cosine to `floor` at step `total`.

        rate = peak·step/warmup                                                       step ≤ warmup
        rate = floor + (peak − floor)·(1 + cos(π·(step − warmup)/(total − warmup)))/2  after it

    The cosine: Loshchilov & Hutter 2016, arXiv:1608.03983.
    """

    def __init__(self, peak: float, warmup: int, total: int, floor: float = 0.0):
        _require(0 <= warmup <= total and total >= 1, f"warm-up ends before the total; got warmup={warmup}, total={total}; write warmup=100")
        self.peak, self.warmup, self.total, self.floor = peak, warmup, total, floor

    def __call__(self, step: int) -> float:
        if step <= self.warmup:
            return self.peak * step / self.warmup
        done = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * done)) / 2

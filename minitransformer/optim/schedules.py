"""Learning rates as functions of the step, which counts from 1: `optimizer.lr = schedule(step)`."""

from __future__ import annotations

import math

from .optimizer import check_range


def _check_step(step: int) -> None:
    if step < 1:
        raise ValueError(f"steps count from 1; got {step}; write schedule(step + 1)")


def _check_count(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} is a whole number from {low} up; got {value!r}; write {name}=100")


class Constant:
    """Keep one learning rate.

    η(t) = lr
    """

    def __init__(self, lr: float):
        check_range("lr", lr, 0, math.inf)
        self.lr = lr

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        _check_step(step)
        return self.lr


class Noam:
    """Rise in a straight line for `warmup` steps, then fall with the root of the step.

        η(t) = factor · d_model^(−1/2) · min(t^(−1/2), t · warmup^(−3/2))

    The two meet at t = warmup, the peak: factor / √(d_model · warmup).
    Vaswani et al. 2017, arXiv:1706.03762, section 5.3, where factor is 1 and warmup is 4000.
    """

    def __init__(self, d_model: int, warmup: int, factor: float = 1.0):
        _check_count("d_model", d_model, 1)
        _check_count("warmup", warmup, 1)
        check_range("factor", factor, 0, math.inf)
        self.d_model, self.warmup, self.factor = d_model, warmup, factor

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        _check_step(step)
        return self.factor * self.d_model**-0.5 * min(step**-0.5, step * self.warmup**-1.5)


class WarmupCosine:
    """Rise in a straight line to `peak`, then fall along half a cosine to `floor`.

        η(t) = peak · t / warmup                                                      t ≤ warmup
        η(t) = floor + (peak − floor) · ½ · (1 + cos(π·(t − warmup)/(total − warmup)))   then, to t = total
        η(t) = floor                                                                  after total

    The cosine is that of Loshchilov & Hutter 2016, arXiv:1608.03983, without their restarts.
    """

    def __init__(self, peak: float, warmup: int, total: int, floor: float = 0.0):
        check_range("peak", peak, 0, math.inf)
        check_range("floor", floor, 0, math.inf)
        _check_count("warmup", warmup, 0)
        _check_count("total", total, 1)
        if floor > peak:
            raise ValueError(f"floor is at most peak; got floor={floor}, peak={peak}; write floor={peak}")
        if warmup >= total:
            raise ValueError(f"warmup ends before total; got warmup={warmup}, total={total}; write total={warmup + 1}")
        self.peak, self.warmup, self.total, self.floor = peak, warmup, total, floor

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        _check_step(step)
        if step <= self.warmup:
            return self.peak * step / self.warmup
        if step >= self.total:
            return self.floor
        done = (step - self.warmup) / (self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

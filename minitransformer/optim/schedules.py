"""Learning rates as functions of the step, which counts from 1: `optimizer.lr = schedule(step)`.

All but Noam, which has its own, rise in the same straight line first; then each falls in its way.
"""

from __future__ import annotations

import math

from .doors import check_count, check_range


def _check_step(step: int) -> None:
    if step < 1:
        raise ValueError(f"steps count from 1; got {step}; write schedule(step + 1)")


class Schedule:
    """Rise in a straight line to `peak`, then fall as a subclass says, and never below `floor`.

        η(t) = peak · t / warmup              t ≤ warmup
        η(t) = max(floor, after(t))           then

    The first steps are short since nothing is known yet: Adam's second moments come from few gradients, and in
    post-norm the gradients of the upper layers are large (Xiong et al. 2020, arXiv:2002.04745). Without a warm-up
    (warmup=0) the peak is at step 1. Raises ValueError for a peak or floor below 0, or a floor above the peak.
    """

    def __init__(self, peak: float, warmup: int = 0, floor: float = 0.0):
        check_range("peak", peak, 0, math.inf)
        check_range("floor", floor, 0, math.inf)
        check_count("warmup", warmup, 0)
        if floor > peak:
            raise ValueError(f"floor is at most peak; got floor={floor}, peak={peak}; write floor={peak}")
        self.peak, self.warmup, self.floor = peak, warmup, floor
        self.top = max(warmup, 1)  # the step of the peak

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        _check_step(step)
        if step <= self.warmup:
            return self.peak * step / self.warmup
        return max(self.floor, self.after(step))

    def after(self, step: int) -> float:
        """Return the learning rate of a step after the warm-up; each schedule has its own."""
        raise NotImplementedError(f"a Schedule says how it falls; {type(self).__name__} does not; write def after")


class Constant(Schedule):
    """Rise in a straight line to `lr`, then keep it.

    η(t) = lr           t > warmup
    """

    def __init__(self, lr: float, warmup: int = 0):
        check_range("lr", lr, 0, math.inf)
        super().__init__(lr, warmup)

    def after(self, step: int) -> float:
        return self.peak


class Noam:
    """Rise in a straight line for `warmup` steps, then fall with the root of the step.

        η(t) = factor · d_model^(−1/2) · min(t^(−1/2), t · warmup^(−3/2))

    The two meet at t = warmup, the peak: factor / √(d_model · warmup). With that for a peak, `InverseSquareRoot`
    is the same. Vaswani et al. 2017, arXiv:1706.03762, section 5.3, where factor is 1 and warmup is 4000.
    """

    def __init__(self, d_model: int, warmup: int, factor: float = 1.0):
        check_count("d_model", d_model, 1)
        check_count("warmup", warmup, 1)
        check_range("factor", factor, 0, math.inf)
        self.d_model, self.warmup, self.factor = d_model, warmup, factor

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        _check_step(step)
        return self.factor * self.d_model**-0.5 * min(step**-0.5, step * self.warmup**-1.5)


class InverseSquareRoot(Schedule):
    """Rise in a straight line to `peak`, then fall with the root of the step.

        η(t) = peak · √(max(warmup, 1) / t)           t > warmup

    It needs no end: a run may go on for as long as it learns.
    """

    def after(self, step: int) -> float:
        return self.peak * math.sqrt(self.top / step)


class Exponential(Schedule):
    """Rise in a straight line to `peak`, then fall by the same factor in every step.

        η(t) = peak · γ^((t − max(warmup, 1)) / every)           t > warmup

    gamma: the factor γ of `every` steps together. Raises ValueError unless 0 < γ ≤ 1 and every ≥ 1.
    """

    def __init__(self, peak: float, warmup: int = 0, gamma: float = 0.1, every: int = 1, floor: float = 0.0):
        super().__init__(peak, warmup, floor)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma lies in (0, 1]; got {gamma}; write gamma=0.1")
        check_count("every", every, 1)
        self.gamma, self.every = gamma, every

    def after(self, step: int) -> float:
        return self.peak * self.gamma ** ((step - self.top) / self.every)


class StepDecay(Exponential):
    """Rise in a straight line to `peak`, then go down a stair: by γ at once, after each `every` steps.

        η(t) = peak · γ^⌊(t − max(warmup, 1)) / every⌋           t > warmup

    PyTorch calls it StepLR, and `every` step_size. Raises as `Exponential` does.
    """

    def after(self, step: int) -> float:
        return self.peak * self.gamma ** ((step - self.top) // self.every)


class WarmupLinear(Schedule):
    """Rise in a straight line to `peak`, then fall in another to `floor`.

        η(t) = floor + (peak − floor) · (total − t)/(total − warmup)           t > warmup, to t = total
        η(t) = floor                                                           after total

    Raises ValueError where the warm-up does not end before total.
    """

    def __init__(self, peak: float, warmup: int, total: int, floor: float = 0.0):
        super().__init__(peak, warmup, floor)
        check_count("total", total, 1)
        if warmup >= total:
            raise ValueError(f"warmup ends before total; got warmup={warmup}, total={total}; write total={warmup + 1}")
        self.total = total

    def after(self, step: int) -> float:
        if step >= self.total:
            return self.floor
        done = (step - self.warmup) / (self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * self.left(done)

    @staticmethod
    def left(done: float) -> float:
        """Return which share of the way from peak to floor is left, where a share of the steps is done."""
        return 1 - done


class WarmupCosine(WarmupLinear):
    """Rise in a straight line to `peak`, then fall along half a cosine to `floor`.

        η(t) = floor + (peak − floor) · ½ · (1 + cos(π·(t − warmup)/(total − warmup)))   t > warmup, to t = total
        η(t) = floor                                                                     after total

    The cosine is that of Loshchilov & Hutter 2016, arXiv:1608.03983, without their restarts.
    Raises as `WarmupLinear` does.
    """

    @staticmethod
    def left(done: float) -> float:
        """Return which share of the way from peak to floor is left, where a share of the steps is done."""
        return 0.5 * (1 + math.cos(math.pi * done))

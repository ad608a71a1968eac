"""A look at each loss before its step is taken: one that leaps out of the row is left out, and what grew is named."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .doors import check_range

WINDOW = 100  # losses that mean and deviation are taken of
LEAST = 20  # losses that have to be known first
IN_A_ROW = 5  # steps left out, after which it is no matter of a batch any more
NEWEST = 0.1  # weight of the newest norm in a running norm
COUNTS = 1e-4  # of the norm of all gradients; a parameter with less may grow a thousandfold by rounding alone


class Spike(NamedTuple):
    """A step to be left out."""

    step: int
    loss: float
    leap: float  # by how many standard deviations the loss lies above the mean
    left_out: str  # the parameter whose gradient grew most
    growth: float  # and how many times over its own running norm


class SpikeGuard:
    """Tell steps whose loss leaps, so that they can be left out.

        leap = (loss − μ)/σ           μ, σ: mean and standard deviation of the last 100 losses, without those left out
        growth of p = ‖g_p‖/r_p       r_p ← r_p + (‖g_p‖ − r_p)/10, over the same steps

        spike = guard.look(step, loss.item(), optim.grad_norms(model.parameters()))
        if spike is None:
            optimizer.step()

    limit: the leap from which on a step is left out. Losses are judged once 20 are known; of a loss that has come to
    rest, σ counts as at least a thousandth of μ, so that its rounding is no leap. A loss has to be known for this: on a
    GPU each step is waited for. `names` are those of the parameters, in the order in which their norms come.

    Batches around a spike are left out for PaLM, too (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1), but after
    the fact: the run was set back to a checkpoint about 100 steps before it, and went on 200 to 500 batches later. Here
    one step is left out, before it is taken; nothing is computed again, but a spike that was long in the making is not
    undone. The bound and the growth are this library's.
    Raises ValueError for a limit that is not positive.
    """

    def __init__(self, limit: float, names: Sequence[str]):
        check_range("limit", limit, 0, math.inf, low_is_allowed=False)
        self.limit, self.names = limit, list(names)
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: list[float] = []  # running; none before the first step
        self.in_a_row = self.left_out = 0

    def look(self, step: int, loss: float, norms: Sequence[float]) -> Spike | None:
        """Return None for a step to be taken, which is then remembered; else the spike that it is.

        norms: one for each name. Raises FloatingPointError, with step and parameter, for the fifth spike in a row, or
        for a loss or a norm that is not finite; ValueError for another count of norms.
        """
        if len(norms) != len(self.names):
            raise ValueError(
                f"norms come one for each name; got {len(norms)} for {len(self.names)} names; "
                "write optim.grad_norms(model.parameters())"
            )
        if not math.isfinite(loss):
            raise FloatingPointError(f"a loss is a finite number; got {loss} at step {step}; lower learning_rate")
        for name, norm in zip(self.names, norms, strict=True):
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"norms are finite numbers; got {norm} for {name} at step {step}; lower learning_rate"
                )
        leap = self._leap(loss)
        if leap <= self.limit:
            self.losses.append(loss)
            kept = self.norms or norms
            self.norms = [r + NEWEST * (n - r) for r, n in zip(kept, norms, strict=True)]
            self.in_a_row = 0
            return None
        self.in_a_row, self.left_out = self.in_a_row + 1, self.left_out + 1
        at = self._grown_most(norms)
        spike = Spike(step, loss, leap, self.names[at], self._growth(at, norms))
        if self.in_a_row >= IN_A_ROW:
            raise FloatingPointError(
                f"a loss stays near those before it; it has leapt {IN_A_ROW} times in a row, at step {step} to "
                f"{loss:.4g} ({leap:.1f} standard deviations), and the gradient of {spike.left_out} grew most "
                f"({spike.growth:.3g} times); lower learning_rate, lengthen warmup_steps, or look at the batches"
            )
        return spike

    def _leap(self, loss: float) -> float:
        if len(self.losses) < LEAST:
            return -math.inf
        mean = float(np.mean(self.losses))
        return (loss - mean) / max(float(np.std(self.losses)), 1e-3 * abs(mean), 1e-12)

    def _growth(self, i: int, norms: Sequence[float]) -> float:
        return norms[i] / max(self.norms[i], 1e-12)

    def _grown_most(self, norms: Sequence[float]) -> int:
        """Return the index of the parameter that grew most among those whose gradient is more than rounding."""
        total = math.sqrt(sum(n * n for n in norms))
        counting = [i for i, n in enumerate(norms) if n >= COUNTS * total]
        return max(counting, key=lambda i: self._growth(i, norms))

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on to the bit, as plain numbers."""
        return {
            "losses": list(self.losses), "norms": self.norms, "in_a_row": self.in_a_row, "left_out": self.left_out,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.losses, self.norms = deque(state["losses"], maxlen=WINDOW), list(state["norms"])
        self.in_a_row, self.left_out = int(state["in_a_row"]), int(state["left_out"])

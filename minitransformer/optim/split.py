"""A step of an optimizer cut up over workers: what lies where in the memory they share, and a share of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..tensor import Tensor, kernels_enabled
from .adam import Adam, AdamW
from .lion import Lion
from .optimizer import Optimizer, gradient_of

# name → the optimizer and what it keeps for a parameter
KINDS: dict[str, tuple[type[Optimizer], tuple[str, ...]]] = {
    "Adam": (Adam, ("exp_avg", "exp_avg_sq")), "AdamW": (AdamW, ("exp_avg", "exp_avg_sq")),
    "Lion": (Lion, ("exp_avg",)),
}  # fmt: skip
MOMENTS = max(len(names) for _, names in KINDS.values())


class _Place(NamedTuple):
    """Where a parameter lies in the flat arrays, and the views of that."""

    start: int
    stop: int
    value: Array
    gradient: Array
    moments: list[Array]


class SplitStep:
    """Step parameters that lie side by side, any stretch of them by itself.

    starts: where each parameter begins in the flat arrays `values` and `gradients` (N,), which hold them already;
    moments: `MOMENTS` more such arrays, for what the optimizer remembers, not to be touched before. Each element is
    treated alone by the optimizers in `KINDS`; so a cut changes no bit.
    """

    def __init__(
        self, parameters: Sequence[Tensor], starts: list[int], values: Array, gradients: Array, moments: list[Array]
    ):
        self.values, self.gradients, self.moments = values, gradients, moments
        self._places: dict[int, _Place] = {}
        for p, start in zip(parameters, starts, strict=True):
            stop = start + p.size
            gradient, *rooms = (a[start:stop].reshape(p.shape) for a in (gradients, *moments))
            self._places[id(p)] = _Place(start, stop, p.data, gradient, rooms)
        self._sorted: tuple[Optimizer, list[int]] | None = None  # the last optimizer's parameters as they lie

    def hand_out(self, parameters: Sequence[Tensor]) -> None:
        """Let what lies in `gradients` be the parameters' `.grad`."""
        for p in parameters:
            p.node.grad = self._places[id(p)].gradient  # type: ignore[union-attr]

    def begin(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """Count a step and return what there is to do, in words that go through JSON; None where it cannot be cut.

        It can if the optimizer is one of `KINDS` and if its parameters and their gradients lie here; what it remembers
        moves here. With None nothing has been done.
        """
        name = type(optimizer).__name__
        kind, names = KINDS.get(name, (None, ()))
        if kind is not type(optimizer) or not kernels_enabled():
            return None
        places = []
        for p in optimizer.parameters:
            place = self._places.get(id(p))
            if place is None or p.data is not place.value or gradient_of(p) is not place.gradient:
                return None
            places.append(place)
        if self._sorted is None or self._sorted[0] is not optimizer:
            self._sorted = optimizer, sorted(range(len(places)), key=lambda i: places[i].start)
        optimizer.step_count += 1
        runs: list[list[int]] = []  # start, stop, group, count of steps: neighbours that have the same are one
        for i in self._sorted[1]:
            place, state, group = places[i], optimizer.state[i], optimizer.group_of[i]
            if not state:
                state.update(step=0, **optimizer._new_state(np, place.value, optimizer.groups[group]))
            for moment, room in zip(names, place.moments, strict=False):
                if state[moment] is not room:
                    room[...] = state[moment]
                    state[moment] = room
                    optimizer.forget_joined()
            count = state["step"] = state["step"] + 1
            if runs and runs[-1][1:] == [place.start, group, count]:
                runs[-1][1] = place.stop
            else:
                runs.append([place.start, place.stop, group, count])
        return {"kind": name, "runs": runs, "groups": optimizer.groups}

    def run(self, order: dict[str, Any], share: slice) -> None:
        """Do what lies within a share of the elements."""
        kind, names = KINDS[order["kind"]]
        update, moments = kind.kernels["numpy"], dict(zip(names, self.moments, strict=False))
        for start, stop, group, count in order["runs"]:
            part = slice(max(start, share.start), min(stop, share.stop))
            if part.start < part.stop:
                state = {"step": count, **{name: m[part] for name, m in moments.items()}}
                update(np, self.values[part], self.gradients[part], state, order["groups"][group])

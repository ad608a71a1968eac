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

KINDS: dict[str, type[Optimizer]] = {kind.__name__: kind for kind in (Adam, AdamW, Lion)}
MOMENTS = 2  # the most arrays that one of them keeps for a parameter


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

    def hand_out(self, parameters: Sequence[Tensor]) -> None:
        """Let what lies in `gradients` be the parameters' `.grad`."""
        for p in parameters:
            p.node.grad = self._places[id(p)].gradient  # type: ignore[union-attr]

    def begin(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """Count a step and return what there is to do, in words that go through JSON; None where it cannot be cut.

        It can if the optimizer is one of `KINDS` and if its parameters and their gradients lie here; what it remembers
        moves here. With None nothing has been done.
        """
        kind = type(optimizer)
        if KINDS.get(kind.__name__) is not kind or not kernels_enabled():
            return None
        here = []
        for i, p in enumerate(optimizer.parameters):
            place = self._places.get(id(p))
            if place is None or p.data is not place.value or gradient_of(p) is not place.gradient:
                return None
            here.append((place.start, i, place))
        optimizer.step_count += 1
        runs: list[list[int]] = []  # start, stop, group, count of steps: neighbours that have the same are one
        for start, i, place in sorted(here, key=lambda entry: entry[0]):
            group, state = optimizer.group_of[i], optimizer.state[i]
            names = self._move_in(optimizer, i, place)
            state["step"] += 1
            if runs and runs[-1][1:] == [start, group, state["step"]]:
                runs[-1][1] = place.stop
            else:
                runs.append([start, place.stop, group, state["step"]])
        return {"kind": kind.__name__, "moments": names, "runs": runs, "groups": optimizer.groups}

    def _move_in(self, optimizer: Optimizer, i: int, place: _Place) -> list[str]:
        """See to it that the state of a parameter lies here, and return the names of its arrays."""
        state = optimizer.state[i]
        if not state:
            state.update(step=0, **optimizer._new_state(np, place.value, optimizer.groups[optimizer.group_of[i]]))
        names = sorted(name for name in state if name != "step")
        for name, room in zip(names, place.moments, strict=False):
            if state[name] is not room:
                room[...] = state[name]
                state[name] = room
                optimizer.forget_joined()
        return names

    def run(self, order: dict[str, Any], share: slice) -> None:
        """Do what lies within a share of the elements."""
        update = KINDS[order["kind"]].kernels["numpy"]
        moments = dict(zip(order["moments"], self.moments, strict=False))
        for start, stop, group, count in order["runs"]:
            part = slice(max(start, share.start), min(stop, share.stop))
            if part.start < part.stop:
                state = {"step": count, **{name: m[part] for name, m in moments.items()}}
                update(np, self.values[part], self.gradients[part], state, order["groups"][group])

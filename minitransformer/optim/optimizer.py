"""What all optimizers share: parameter groups, the walk over the parameters, state that can be saved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend import Array, namespace, to_numpy
from ..kernels.optimizers import JOINED, Joined
from ..tensor import Tensor, kernels_enabled


def check_range(name: str, value: Any, low: float, high: float, low_is_allowed: bool = True) -> None:
    """Raise ValueError unless low ≤ value < high (low < value where low itself is not allowed)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number; got {value!r}; write {name}=0.1")
    if not (low <= value if low_is_allowed else low < value) or not value < high:  # written so that nan fails
        bracket, end = "[" if low_is_allowed else "(", "∞" if math.isinf(high) else high
        raise ValueError(f"{name} lies in {bracket}{low}, {end}); got {value}; write {name}=0.1")


def check_count(name: str, value: Any, low: int) -> None:
    """Raise ValueError unless this is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} is a whole number from {low} up; got {value!r}; write {name}=100")


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless this is True or False: any text would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False; got {value!r}; write {name}=True")


def check_betas(betas: Any) -> None:
    """Raise ValueError unless these are two numbers in [0, 1)."""
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise ValueError(f"betas are two numbers; got {betas!r}; write betas=(0.9, 0.999)")
    for i, beta in enumerate(betas):
        check_range(f"betas[{i}]", beta, 0, 1)


def unique_parameters(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """Return the parameters in order, each once however often it is named (tied weights)."""
    if isinstance(parameters, Tensor):
        return [parameters]
    found: dict[int, Tensor] = {}  # `in` on a list would ask ==, which compares values
    for p in parameters:
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters are Tensors; got {type(p).__name__}; write model.parameters()")
        found.setdefault(id(p), p)
    return list(found.values())


def gradient_of(parameter: Tensor) -> Array | None:
    """Return the gradient's array, not a copy; None where none arrived or the parameter is frozen."""
    return None if parameter.node is None else parameter.node.grad


def _plain(value: Any) -> Any:
    """Turn NumPy scalars into Python's (np.float64 would widen float32 parameters), lists into tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value.item() if hasattr(value, "item") else value


class Optimizer:
    """Change parameters in place, a step at a time, by the gradients that `backward` left in them.

    params: parameters, or groups {"params": [...], "lr": ..., "weight_decay": ...} with settings of their own.
    A parameter named twice (tied weights) is stepped once, with the group that names it first; one without a
    gradient (a frozen one, too) is skipped. `groups` holds the settings in use; `state` is a list in the order
    of `parameters`, of dicts that are empty until a first gradient comes.

    A subclass gives `_check(group)`, `_new_state(xp, x, group)` and `_update(xp, x, g, state, group)`, where x
    is the parameter's array (to be changed in place), g its gradient (never changed), and state["step"] counts
    the updates of this parameter from 1. Where `_update` treats each element alone it says so by `elementwise`, and
    small parameters are then joined; `kernels` may name a faster function of the same arguments for a backend, and
    `together` one that takes the arrays of many parameters at once.
    """

    elementwise = False
    kernels: dict[str, Any] = {}
    together: dict[str, Any] = {}

    def __init_subclass__(cls) -> None:
        if "_update" in vars(cls):  # a kernel stands for the update it was written for, not for one that replaces it
            cls.kernels, cls.together = vars(cls).get("kernels", {}), vars(cls).get("together", {})

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        if isinstance(params, Tensor):
            raise TypeError("an optimizer takes a list of parameters; got one Tensor; write [parameter]")
        given = list(params)
        if given and not any(isinstance(entry, dict) for entry in given):
            given = [{"params": given}]
        self.groups: list[dict[str, Any]] = []
        self.parameters: list[Tensor] = []
        self.state: list[dict[str, Any]] = []
        self._group_of: list[int] = []  # beside parameters
        self.step_count = 0
        self._joined: dict[tuple[int, ...], Joined] = {}
        for group in given:
            self._add_group(group, defaults)
        if not self.parameters:
            raise ValueError("an optimizer needs a parameter; got an empty list; write model.parameters()")

    def _add_group(self, group: Any, defaults: dict[str, Any]) -> None:
        if not isinstance(group, dict) or "params" not in group:
            raise ValueError(
                f"params are all parameters or all groups; got a {type(group).__name__} without 'params'; "
                "write {'params': [...], 'lr': ...}"
            )
        unknown = sorted(set(group) - set(defaults) - {"params"})
        if unknown:
            raise ValueError(f"a group may set {', '.join(defaults)}; got {unknown[0]!r}; leave it out")
        settings = {name: _plain(group.get(name, value)) for name, value in defaults.items()}
        self._check(settings)
        known = {id(p) for p in self.parameters}
        for p in unique_parameters(group["params"]):
            if p.node is not None and not p.is_leaf:
                raise ValueError(
                    f"an optimizer steps leaves; got a tensor {p.shape} that {p.node.op} made; write t.detach()"
                )
            if id(p) not in known:
                self.parameters.append(p)
                self.state.append({})
                self._group_of.append(len(self.groups))
        self.groups.append(settings)

    # -- what a subclass gives ------------------------------------------------------------------------------
    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _new_state(self, xp: Any, x: Array, group: dict[str, Any]) -> dict[str, Array]:
        raise NotImplementedError

    def _update(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError

    # -- what a training loop calls -------------------------------------------------------------------------
    @property
    def lr(self) -> Any:
        """The learning rate of the first group; setting it sets that of every group.

        Groups that shall keep rates of their own are set one by one: optimizer.groups[1]["lr"] = ...
        """
        return self.groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        changed = [{**group, "lr": _plain(value)} for group in self.groups]
        for group in changed:
            self._check(group)
        for mine, group in zip(self.groups, changed, strict=True):
            mine.update(group)  # the same dicts: a recorded step looks into them

    def count(self) -> None:
        """Note a step that was taken for it: a recorded one (graph.py) updates the parameters by itself."""
        self.step_count += 1
        for state in filter(None, self.state):
            state["step"] += 1

    def counts(self) -> tuple[int, list[int]]:
        """Return how many steps were taken, in all and for each parameter."""
        return self.step_count, [state.get("step", 0) for state in self.state]

    def recount(self, counts: tuple[int, list[int]]) -> None:
        """Go back to earlier `counts`, after a step whose work was asked for and never done."""
        self.step_count = counts[0]
        for state, step in zip(self.state, counts[1], strict=True):
            state.update(step=step) if step else state.clear()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.step_count += 1
        small: dict[Any, list[int]] = {}  # what may be joined, by what it has to have in common
        many: dict[Any, list[int]] = {}
        for i, (p, state, group) in enumerate(zip(self.parameters, self.state, self._group_of, strict=True)):
            g = gradient_of(p)
            if g is None:
                continue
            xp = namespace((p.data, g, *state.values()))
            if not state:
                state.update(step=0, **self._new_state(xp, p.data, self.groups[group]))
            state["step"] += 1
            if xp.__name__ in self.together and kernels_enabled() and self._fits_together(p.data, g):
                many.setdefault((xp, group, p.dtype, state["step"]), []).append(i)
            elif self.elementwise and p.size <= JOINED and xp.__name__ == "numpy" and kernels_enabled():
                small.setdefault((group, p.dtype, state["step"]), []).append(i)
            else:
                self._run(xp, p.data, g, state, self.groups[group])
        for (xp, group, _, _), members in many.items():
            arrays = tuple([self.parameters[i].data for i in members])
            gradients = tuple([gradient_of(self.parameters[i]) for i in members])
            states = [self.state[i] for i in members]
            self.together[xp.__name__](xp, arrays, gradients, states, self.groups[group])
        for (group, _, count), members in small.items():
            self._step_joined(tuple(members), count, self.groups[group])

    def _fits_together(self, x: Array, g: Array) -> bool:
        """Tell whether a parameter and its gradient lie alike, as kernels want it."""
        return bool(x.flags.c_contiguous and g.flags.c_contiguous and g.dtype == x.dtype and x.size)

    def _run(self, xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Update one array by the book, or by the kernel that stands for it."""
        kernel = self.kernels.get(xp.__name__) if kernels_enabled() else None
        if kernel is not None and x.ndim and x.flags.c_contiguous and g.dtype == x.dtype:
            kernel(xp, x, g, state, group)
        else:
            self._update(xp, x, g, state, group)

    def _step_joined(self, members: tuple[int, ...], count: int, group: dict[str, Any]) -> None:
        """Update small parameters as one array."""
        joined = self._joined.get(members)
        if joined is None or joined.dtype != self.parameters[members[0]].dtype:
            for other in [m for m in self._joined if set(m) & set(members)]:
                del self._joined[other]  # its flat moments are no longer those of the parameters
            joined = self._joined[members] = Joined(
                [self.parameters[i] for i in members], [self.state[i] for i in members]
            )
        joined.update(
            [gradient_of(p) for p in joined.parameters],
            lambda x, g, moments: self._run(np, x, g, {"step": count, **moments}, group),
        )

    def zero_grad(self) -> None:
        """Forget all gradients: they become None, so that the next backward starts afresh."""
        for p in self.parameters:
            p.grad = None

    def state_bytes(self) -> int:
        """Return how many bytes the state takes beside the parameters: 0 before the first step.

        Of a parameter of n bytes: Adam keeps 2·n; Lion, and SGD with momentum, n; plain SGD nothing; Adafactor, of a
        matrix of N×M numbers, N + M.
        """
        return sum(v.nbytes for entry in self.state for v in entry.values() if hasattr(v, "nbytes"))

    # -- what a checkpoint needs ----------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that `load_state_dict` needs to go on as if never stopped.

        {"step": calls of step(), "groups": the settings of each group, "state": for each parameter a dict of
        NumPy arrays and its own count "step" (an int); empty where no gradient has come yet}
        """
        return {
            "step": self.step_count,
            "groups": [dict(group) for group in self.groups],
            "state": [
                {name: to_numpy(v).copy() if hasattr(v, "dtype") else v for name, v in entry.items()}
                for entry in self.state
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over settings and state; arrays go to the backend and dtype of their parameter.

        Raises ValueError, changing nothing, where counts, names or shapes are not those of this optimizer.
        """
        if not isinstance(state, dict) or set(state) != {"step", "groups", "state"}:
            came = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"a state has step, groups and state; got {came}; write optimizer.state_dict()")
        for what, count in (("groups", len(self.groups)), ("state", len(self.state))):
            if len(state[what]) != count:
                raise ValueError(
                    f"this optimizer has {count} entries in {what!r}; got {len(state[what])}; "
                    "build it from the same parameters in the same groups"
                )
        groups = [{name: _plain(value) for name, value in group.items()} for group in state["groups"]]
        for mine, group in zip(self.groups, groups, strict=True):
            if set(mine) != set(group):
                raise ValueError(
                    f"{type(self).__name__} has the settings {', '.join(mine)}; got {', '.join(group)}; "
                    "load it with the optimizer that saved it"
                )
            self._check(group)
        settings = [groups[i] for i in self._group_of]
        entries = [self._loaded(i, e, s) for i, (e, s) in enumerate(zip(state["state"], settings, strict=True))]
        self.step_count, self.groups, self.state = int(state["step"]), groups, entries
        self._joined.clear()

    def _loaded(self, i: int, entry: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """Return the state of parameter i as it shall be kept, or raise ValueError."""
        if not entry:
            return {}
        x = self.parameters[i].data
        xp = namespace((x,))
        expected = self._new_state(xp, x, group)
        want = {name: array.shape for name, array in expected.items()}
        came = {name: getattr(value, "shape", None) for name, value in entry.items() if name != "step"}
        if want != came or "step" not in entry:
            missing = "" if "step" in entry else " and no step"
            raise ValueError(
                f"the state of parameter {i} is step and {want}; got {came}{missing}; "
                "build the optimizer and the model as they were when it was saved"
            )
        arrays = {name: xp.array(to_numpy(entry[name]), dtype=x.dtype) for name in want}
        return {"step": int(entry["step"]), **arrays}

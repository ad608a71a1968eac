"""What every optimizer shares: parameters in groups, a list of state beside them, saving and loading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..backend import Array, backend_of, namespace, to_backend
from ..tensor import Tensor


class Optimizer:
    """Step parameters by their gradients.

    params: Tensors, or dicts {"params": [...], setting: value} for groups with settings of their own. A parameter
    that appears twice (a tied one) is stepped once; one without a gradient is passed over.
    Raises ValueError for no parameters, TypeError for what is not a leaf Tensor.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        seen: set[int] = set()
        self.groups: list[dict[str, Any]] = []
        for group in groups:
            if unknown := set(group) - {"params", *defaults}:
                raise ValueError(f"a group has params and {', '.join(defaults)}; got {', '.join(sorted(unknown))}; remove it")
            own = []
            for parameter in group["params"]:
                if not isinstance(parameter, Tensor) or not parameter.requires_grad or not parameter.is_leaf:
                    raise TypeError(f"an optimizer steps leaf tensors with requires_grad; got {parameter!r:.60}; pass model.parameters()")
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    own.append(parameter)
            self.groups.append({**defaults, **group, "params": own})
        if not seen:
            raise ValueError("an optimizer needs at least one parameter; got none; pass model.parameters()")
        for group in self.groups:
            self.check(group)
        self.state: list[dict[str, Any]] = [{} for _ in seen]

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a setting out of its range."""
        for name in ("lr", "weight_decay", "eps"):
            value = group.get(name)
            if isinstance(value, int | float) and not 0 <= value:
                raise ValueError(f"{name} is at least 0; got {value}; write {name}=0.001")
        for name in ("betas", "momentum", "beta1"):
            values = group.get(name)
            for value in values if isinstance(values, tuple | list) else () if values is None else (values,):
                if not 0 <= value < 1:
                    raise ValueError(f"{name} lies in 0 <= value < 1; got {values}; write 0.9")

    @property
    def lr(self) -> Any:
        """The learning rate of the first group; setting it sets that of all."""
        return self.groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.groups:
            group["lr"] = value

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        states = iter(self.state)
        for group in self.groups:
            for parameter in group["params"]:
                state = next(states)
                if parameter.node.grad is not None:
                    state["step"] = state.get("step", 0) + 1
                    self.update(namespace((parameter.data,)), parameter.data, parameter.node.grad, state, group)

    def update(self, xp: Any, w: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one parameter w by its gradient g, in place; state is this parameter's own."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the settings of each group, and for each parameter in order its arrays and its count of steps."""
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.groups]
        return {"groups": groups, "state": [dict(entry) for entry in self.state]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError when the parameters do not match it."""
        parameters = [parameter for group in self.groups for parameter in group["params"]]
        if len(saved["state"]) != len(parameters) or len(saved["groups"]) != len(self.groups):
            came = f"{len(saved['state'])} parameters in {len(saved['groups'])} groups"
            raise ValueError(
                f"an optimizer's state fits its parameters; got {came} for {len(parameters)} in {len(self.groups)}; use the same model and optimizer"
            )
        self.state = [
            {name: to_backend(value, backend_of(p.data)).copy() if hasattr(value, "dtype") else value for name, value in entry.items()}
            for entry, p in zip(saved["state"], parameters, strict=True)
        ]
        for group, settings in zip(self.groups, saved["groups"], strict=True):
            group.update({name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})

"""A Module owns parameters and other modules, in the order in which they were assigned, in every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend
from ..tensor import Parameter, Tensor


class Module:
    """The base of everything that owns parameters.

    Assign Parameters and Modules as attributes in __init__ and write `forward`; calling the module calls it.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; each module writes its own."""
        raise NotImplementedError(
            f"a Module computes in forward; {type(self).__name__} has none; write def forward(self, x)"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules right below, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def _entries(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield every (dotted name, parameter), a shared one under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value._entries(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter); a shared parameter comes once, under its first name."""
        seen: set[int] = set()
        for name, parameter in self._entries():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> list[Parameter]:
        """Return the parameters in order, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return {name: NumPy array (shared memory where possible)}; a shared parameter is stored once."""
        return {name: backend.to_numpy(parameter.data) for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy values in by name. Raises ValueError, changing nothing, for a missing or unknown name or shape."""
        own = dict(self.named_parameters())
        missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or unknown:
            came = "; ".join(
                f"{kind} {names[:3]} ({len(names)})"
                for kind, names in (("missing", missing), ("unknown", unknown))
                if names
            )
            raise ValueError(
                f"a state dict names this model's parameters exactly; got {came}; "
                "build the model from the config it was saved with"
            )
        for name, parameter in own.items():
            if tuple(state[name].shape) != parameter.shape:
                raise ValueError(
                    f"a parameter keeps its shape; got {tuple(state[name].shape)} for {name} {parameter.shape}; "
                    "build the model from the config it was saved with"
                )
        for name, parameter in own.items():
            parameter.data[...] = backend.to_backend(np.asarray(state[name]), backend.backend_of(parameter.data))

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all below it to training (dropout on)."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch this module and all below it to evaluation (dropout off)."""
        return self.train(False)

    def to(self, where: Any) -> Module:
        """Move every parameter to a backend, or convert it to a dtype, in place. What is frozen stays frozen."""
        for parameter in self.parameters():
            parameter.data = Tensor(parameter.data).to(where).data
            parameter.node = None if parameter.node is None else Parameter(parameter.data).node
        return self

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def __repr__(self) -> str:
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()]
        own = ", ".join(f"{n} {list(v.shape)}" for n, v in vars(self).items() if isinstance(v, Parameter))
        return f"{type(self).__name__}({own})" if not lines else f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"


class ModuleList(Module):
    """Modules in a row, named "0", "1", ...; index it, or loop over it."""

    def __init__(self, modules: list[Any]):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Any]:
        return (module for _, module in self.children())

    def __getitem__(self, i: int) -> Any:
        return list(self)[i]


class Sequential(ModuleList):
    """Modules of which each takes what the one before gives.    x → last(... second(first(x)))"""

    def __init__(self, *modules: Module):
        super().__init__(list(modules))

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x

"""Trade time for memory: keep what goes into a layer, and compute the layer again when its gradient is due."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..ops.precision import autocast, is_autocast
from ..recompute import recompute
from ..tensor import Parameter, Tensor, is_grad_enabled
from .module import Module

Places = list[tuple[Module, str]]


def _tensors(module: Module) -> tuple[Places, list[Tensor]]:
    """Return where a module and all below it hold Tensors, and which."""
    places = [(owner, name) for owner in module.modules() for name, v in vars(owner).items() if isinstance(v, Tensor)]
    return places, [vars(owner)[name] for owner, name in places]


@contextlib.contextmanager
def _held(places: Places, tensors: list[Tensor]) -> Iterator[None]:
    """Let modules hold these Tensors inside the block. Where they do already, nothing is written."""
    before = [vars(owner)[name] for owner, name in places]
    changed = [i for i, (old, new) in enumerate(zip(before, tensors, strict=True)) if old is not new]
    try:
        for i in changed:
            setattr(*places[i], tensors[i])
        yield
    finally:
        for i in changed:
            setattr(*places[i], before[i])


class Recompute(Module):
    """Wrap a module so that, in training, nothing it computes on the way is kept.

    It takes and gives what the module does, x: (...) → (...); a stack of N wrapped layers keeps N inputs and, during
    the backward pass, the inside of one layer, for about one more forward pass of time. Names of parameters are those
    of the module, so that weights fit with or without it. The second time finds the Parameters of the first, or the
    Tensors that stood in their place, whatever stands there by then. Chen et al. 2016, arXiv:1604.06174.
    """

    def __init__(self, module: Module):
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not is_grad_enabled() or any(isinstance(a, list) for a in (*args, *kwargs.values())):
            return self.module(*args, **kwargs)  # nothing is recorded, or somebody looks on
        half, names, given = is_autocast(), list(kwargs), len(args) + len(kwargs)
        places, tensors = _tensors(self.module)
        parameters = [t for t in tensors if isinstance(t, Parameter)]
        others = [t for t in tensors if not isinstance(t, Parameter)]
        owned = [t if isinstance(t, Parameter) else None for t in tensors]

        def run(*values: Any) -> Any:
            more = iter(values[given:])
            now = [next(more) if t is None else t for t in owned]
            with autocast(half), _held(places, now):
                return self.module(*values[: len(args)], **dict(zip(names, values[len(args) : given], strict=True)))

        return recompute(run, *args, *kwargs.values(), *others, parameters=dict.fromkeys(parameters))

    def _entries(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        yield from self.module._entries(prefix)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not there yet
            raise AttributeError(name)
        return getattr(self.module, name)

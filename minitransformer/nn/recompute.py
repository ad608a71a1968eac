"""Trade time for memory: keep what goes into a layer, and compute the layer again when its gradient is due."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ops.precision import autocast, is_autocast
from ..recompute import recompute
from ..tensor import Parameter, is_grad_enabled
from .module import Module


class Recompute(Module):
    """Wrap a module so that, in training, nothing it computes on the way is kept.

    It takes and gives what the module does, x: (...) → (...); a stack of N wrapped layers keeps N inputs and, during
    the backward pass, the inside of one layer, for about one more forward pass of time. Names of parameters are those
    of the module, so that weights fit with or without it. Chen et al. 2016, arXiv:1604.06174.
    """

    def __init__(self, module: Module):
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not is_grad_enabled() or any(isinstance(a, list) for a in (*args, *kwargs.values())):
            return self.module(*args, **kwargs)  # nothing is recorded, or somebody looks on
        half, names = is_autocast(), list(kwargs)

        def run(*values: Any) -> Any:
            with autocast(half):
                return self.module(*values[: len(args)], **dict(zip(names, values[len(args) :], strict=True)))

        return recompute(run, *args, *kwargs.values(), parameters=self.module.parameters())

    def _entries(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        yield from self.module._entries(prefix)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not there yet
            raise AttributeError(name)
        return getattr(self.module, name)

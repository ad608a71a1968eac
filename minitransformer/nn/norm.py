"""Normalisation layers: the ops of the same names, with their parameters."""

from __future__ import annotations

from typing import Any

from .. import ops
from . import init
from .module import Module


def _check_width(x: Any, module: Module, width: int) -> None:
    if not x.ndim or x.shape[-1] != width:
        raise ValueError(
            f"{type(module).__name__} was made for rows of {width}; got {x.shape}; the last axis is normalised"
        )


class LayerNorm(Module):
    """Give every row mean 0 and variance 1, then scale and shift it; see `ops.layer_norm`.    (..., D) → (..., D)"""

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.weight = init.constant((width,), 1.0)
        self.bias = init.constant((width,), 0.0)

    def forward(self, x: Any) -> Any:
        _check_width(x, self, self.weight.shape[0])
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """Give every row a root mean square of 1, then scale it; see `ops.rms_norm`.    (..., D) → (..., D)"""

    def __init__(self, width: int, eps: float = 1e-6):
        self.eps = eps
        self.weight = init.constant((width,), 1.0)

    def forward(self, x: Any) -> Any:
        _check_width(x, self, self.weight.shape[0])
        return ops.rms_norm(x, self.weight, eps=self.eps)

"""Activations and dropout as modules, for Sequential and for configs."""

from __future__ import annotations

from typing import Any

from .. import ops
from .module import Module


class ReLU(Module):
    """Apply max(x, 0).    (...) → (...)    Nair & Hinton 2010, ICML."""

    def forward(self, x: Any) -> Any:
        return ops.relu(x)


class SiLU(Module):
    """Apply x·σ(x).    (...) → (...)"""

    def forward(self, x: Any) -> Any:
        return ops.silu(x)


class GELU(Module):
    """Apply gelu in the form named: approximate="none" (erf) or "tanh".    (...) → (...)"""

    def __init__(self, approximate: str = "none"):
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return ops.gelu(x, approximate=self.approximate)


ACTIVATIONS = {"relu": ReLU, "silu": SiLU, "gelu": GELU, "gelu_tanh": lambda: GELU("tanh")}
GATED = {"swiglu": SiLU, "geglu": GELU}  # what bends the gate; see nn.FeedForward


def is_known(name: Any, *tables: dict[str, Any]) -> bool:
    """Tell whether a name stands in one of some tables; what is no name does not."""
    return isinstance(name, str) and any(name in table for table in tables)


def activation(name: str) -> Module:
    """Make the activation of that name: relu, silu, gelu (erf) or gelu_tanh. Raises ValueError for another."""
    if not is_known(name, ACTIVATIONS):
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}; got {name!r}; write activation=relu")
    return ACTIVATIONS[name]()


class Dropout(Module):
    """In training, drop each element with chance p and multiply the rest by 1/(1 − p); else do nothing.

    (...) → (...).    Raises ValueError unless 0 ≤ p < 1.
    """

    def __init__(self, p: float = 0.1):
        if not 0 <= p < 1:
            raise ValueError(f"dropout drops a share 0 <= p < 1; got p={p}; write dropout=0.1")
        self.p = p

    def forward(self, x: Any) -> Any:
        return ops.dropout(x, self.p, self.training)

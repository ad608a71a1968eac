"""Bounds on gradients, applied between `backward` and `step`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..backend import backend_of, namespace
from ..kernels.cuda import optimizers as cuda
from ..tensor import Node, Tensor, kernels_enabled
from .doors import check_range
from .optimizer import unique_parameters


def _nodes_with_gradient(parameters: Iterable[Tensor] | Tensor) -> list[Node]:
    nodes = [p.node for p in unique_parameters(parameters)]
    return [node for node in nodes if node is not None and node.grad is not None]


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, error_if_nonfinite: bool = True) -> Any:
    """Scale all gradients by one factor, in place, so that their common norm is at most max_norm.

        ‖g‖ = √(Σ over all parameters of Σ g²)        g ← g · min(1, max_norm / (‖g‖ + 1e-6))

    Returns ‖g‖ as it was before, a scalar () of the gradients' library (float(norm) makes it a Python number);
    with max_norm = ∞ nothing is scaled. Tied parameters count once; the 1e-6 is PyTorch's.
    Raises ValueError where the norm is not finite. With error_if_nonfinite=False it is returned instead and the
    gradients are left alone, so that one can look which of them is at fault (PyTorch multiplies them by 0 or
    nan); nor does a GPU then have to wait for the answer.
    Pascanu, Mikolov & Bengio 2012, arXiv:1211.5063.
    """
    if max_norm != math.inf:
        check_range("max_norm", max_norm, 0, math.inf)
    nodes = _nodes_with_gradient(parameters)
    if not nodes:
        return 0.0
    gradients = [node.grad for node in nodes if node.grad is not None]
    xp = namespace(tuple(gradients))
    if at_once(xp, gradients):
        norm = cuda.clip_norm(xp, tuple(gradients), max_norm)
        max_norm = math.inf  # done
    else:
        norm = xp.sqrt(sum(xp.vdot(g, g) for g in gradients))
    if error_if_nonfinite and not math.isfinite(norm):
        count = sum(not xp.isfinite(g).all() for g in gradients)
        came = f"{count} of {len(gradients)} with nan or inf" if count else "squares that overflow"
        raise ValueError(f"gradients have a finite norm; got {came} (norm {float(norm)}); write a lower lr")
    if max_norm != math.inf:
        factor = xp.where(xp.isfinite(norm), xp.minimum(max_norm / (norm + 1e-6), 1.0), 1.0)
        for node in nodes:
            node.grad *= factor  # in place, but for a scalar, which is replaced
    return norm


def at_once(xp: Any, gradients: list[Any]) -> bool:
    """Tell whether one launch can take all gradients."""
    alike = xp.__name__ == "cupy" and kernels_enabled() and len({g.dtype for g in gradients}) == 1
    return alike and all(g.flags.c_contiguous for g in gradients)


def scale_gradients_(parameters: Iterable[Tensor] | Tensor, factor: float) -> None:
    """Multiply every gradient by a number, in place: g ← factor·g."""
    nodes = _nodes_with_gradient(parameters)
    gradients = [node.grad for node in nodes if node.grad is not None]
    if gradients and at_once(namespace(tuple(gradients)), gradients):
        cuda.multiply(namespace(tuple(gradients)), tuple(gradients), factor)
        return
    for node, g in zip(nodes, gradients, strict=True):
        g *= factor
        node.grad = g  # the same array, but for a scalar, which is another


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Bound every element of every gradient.

        g ← min(max(g, −clip_value), clip_value)

    This changes the direction of the step; `clip_grad_norm_`, which is the rule of Pascanu, Mikolov & Bengio 2012,
    arXiv:1211.5063, does not. Raises ValueError for a bound below 0.
    """
    check_range("clip_value", clip_value, 0, math.inf)
    nodes = _nodes_with_gradient(parameters)
    gradients = [node.grad for node in nodes if node.grad is not None]
    if gradients and at_once(namespace(tuple(gradients)), gradients):
        cuda.clip_value(namespace(tuple(gradients)), tuple(gradients), clip_value)
        return
    for node, g in zip(nodes, gradients, strict=True):
        node.grad = namespace((g,)).clip(g, -clip_value, clip_value, out=g if g.ndim else None)


def grad_norms(parameters: Iterable[Tensor] | Tensor) -> list[float]:
    """Return the norm of each parameter's gradient, √(Σ g²), in their order; 0 where there is none.

    On a GPU all of them are found in one launch, and the host waits for the answer.
    """
    chosen = unique_parameters(parameters)
    held = [(i, p.node.grad) for i, p in enumerate(chosen) if p.node is not None]
    found = [(i, g) for i, g in held if g is not None]
    norms = [0.0] * len(chosen)
    if not found:
        return norms
    gradients = tuple([g for _, g in found])
    xp = namespace(gradients)
    squares = cuda.squares(xp, gradients) if at_once(xp, list(gradients)) else [xp.vdot(g, g) for g in gradients]
    for (i, _), square in zip(found, squares, strict=True):
        norms[i] = math.sqrt(float(square))
    return norms


class Fault(NamedTuple):
    """Which gradients are not finite."""

    first: int  # the index, among the parameters, of the first of them
    bad: int  # how many there are
    of: int  # of so many gradients


def gradients_at_fault(norm: Any, parameters: Iterable[Tensor] | Tensor) -> Fault | None:
    """Return which of the parameters' gradients made a norm infinite or nan.

    norm: what `clip_grad_norm_` returned. On a GPU, which notes it down then, this holds steps later, too. None where
    each gradient is finite and only the sum of their squares is not.
    """
    chosen = unique_parameters(parameters)
    nodes = _nodes_with_gradient(chosen)
    if getattr(norm, "base", None) is not None and backend_of(norm) == "cupy":
        at, count = cuda.at_fault(norm)
    else:
        bad = [i for i, n in enumerate(nodes) if not namespace((n.grad,)).isfinite(n.grad).all()]
        at, count = bad[0] if bad else -1, len(bad)
    if not count:
        return None
    return Fault(next(i for i, p in enumerate(chosen) if p.node is nodes[at]), count, len(nodes))


def parameter_at_fault(norm: Any, parameters: Iterable[Tensor] | Tensor) -> int | None:
    """Return the index, among the parameters, of the first gradient that made a norm infinite or nan.

    norm and None as in `gradients_at_fault`, which also tells how many there are.
    """
    fault = gradients_at_fault(norm, parameters)
    return None if fault is None else fault.first

"""A function whose inside is forgotten, and computed again when the backward pass gets there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from . import draws
from .backend import Array
from .tensor import Node, Tensor, _mode, _propagate, as_array, enable_grad, no_grad


def recompute(f: Callable[..., Tensor], *inputs: Any, parameters: Iterable[Tensor] = ()) -> Tensor:
    """Return f(*inputs), and keep for the backward pass only the inputs.

    inputs: Tensors and other values (...) → what f gives, one Tensor

    parameters: what f reads beside its inputs and is to have gradients. The second time f draws the same random
    numbers as the first, so that dropout drops the same. Where derivatives of higher order are recorded, f simply runs.
    """
    parameters = list(parameters)
    if not _mode.enabled or _mode.replayable:
        return f(*inputs)
    drawn = draws.draw_state()
    with no_grad():
        y = f(*inputs)
    arrays = [as_array(x) for x in inputs]
    wanted = [isinstance(x, Tensor) and x.node is not None for x in inputs]
    owners = [p.node for p in parameters if p.node is not None]
    if not any(wanted) and not owners:
        return y

    def vjp(g: Array) -> list[Array | None]:
        again = [Tensor(a, requires_grad=w) if hasattr(a, "dtype") else a for a, w in zip(arrays, wanted, strict=True)]
        with draws.drawing_from(drawn), enable_grad():
            out = f(*again)
        found: dict[Node, Array] = {}
        if out.node is not None:
            found = {node: g_leaf for node, g_leaf, _ in _propagate(out.node, g, keep_graph=False)}
        leaves = [x.node if w else None for x, w in zip(again, wanted, strict=True)] + owners
        return [None if leaf is None else found.get(leaf) for leaf in leaves]

    nodes = [x.node if w else None for x, w in zip(inputs, wanted, strict=True)] + owners
    out = Tensor(y.data)
    out.node = Node("recompute", y.data, vjp, tuple(nodes), None)
    if _mode.observer is not None:
        owned = [p for p in parameters if p.node is not None]
        _mode.observer.saw("recompute", (*inputs, *owned), {}, out)
    return out

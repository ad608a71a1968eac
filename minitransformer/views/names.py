"""How arrays are called where a function was written: by its arguments, its module's parameters, what it refers to."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from ..tensor import Tensor
from .lines import kind_of

MOST_ITEMS = 1000  # of a list that are looked at


def weak(value: Any) -> Callable[[], Any]:
    """Return a weak reference; of what has none (a NumPy scalar) one that is already dead."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: None


def _named(value: Any, name: str, depth: int = 2) -> Iterator[tuple[Any, str]]:
    """Yield (array, name) of every Tensor, array and parameter that a value holds."""
    if isinstance(value, Tensor):
        yield value.data, name
    elif hasattr(value, "named_parameters"):
        yield from ((p.data, f"{name}.{n}".lstrip(".")) for n, p in value.named_parameters())
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        yield value, name
    elif isinstance(value, list | tuple | dict) and depth:
        items = value.items() if isinstance(value, dict) else enumerate(value[:MOST_ITEMS])
        for key, item in items:
            yield from _named(item, f"{name}[{key!r}]", depth - 1)
    elif depth == 2 and hasattr(value, "__dict__") and not isinstance(value, type):
        for key, item in vars(value).items():
            if isinstance(item, Tensor) or hasattr(item, "named_parameters"):
                yield from _named(item, f"{name}.{key}".lstrip("."), 0)


def name_within(frame: FrameType | None, tensor: Any, last: CodeType) -> str:
    """Return how a tensor, or array, is called by the functions that run: a variable, or a parameter of the outermost
    module.

    For what was made inside the function; looks no further out than the code `last`. An empty text if nobody has it.
    """
    owner: Any = tensor
    path = best = ""
    while frame is not None and frame.f_code is not last:
        inside = frame.f_locals
        module: Any = inside.get("self")
        if isinstance(tensor, Tensor) and hasattr(module, "named_parameters"):
            for name, parameter in module.named_parameters():
                if parameter is tensor:
                    owner, path, best = module, name, ""
        elif kind_of(frame.f_code) not in ("engine", "book"):
            best = next((f"{name}.{path}".rstrip(".") for name, value in inside.items() if value is owner), best)
        frame = frame.f_back
    return best or path


def names_around(fn: Callable, given: dict[str, Any]) -> dict[int, tuple[Any, str]]:
    """Return how arrays are called where fn was written: its arguments, what it belongs to, what it refers to."""
    found: dict[int, tuple[Any, str]] = {}
    places: list[tuple[Any, str]] = [(value, name) for name, value in given.items()]
    owner = fn if hasattr(fn, "named_parameters") else getattr(fn, "__self__", None)
    places += [(owner, "")] if owner is not None else []
    if inspect.isfunction(inspect.unwrap(fn)) or inspect.ismethod(fn):
        around = inspect.getclosurevars(inspect.unwrap(fn))
        outside = {**around.globals, **around.nonlocals}
        places += [(value, name) for name, value in outside.items() if not inspect.ismodule(value)]
    for value, name in places:
        for array, own in _named(value, name):
            found.setdefault(id(array), (weak(array), own))
    return found

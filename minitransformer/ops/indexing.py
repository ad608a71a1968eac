"""Picking elements out, and its transpose: adding elements in. A repeated index adds each time; it never assigns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array, backend_of, namespace
from ..tensor import as_array, primitive

Made = tuple[Array, Callable]


@primitive
def getitem(xp: Any, x: Array, *, index: Any) -> Made:
    """Pick x[index]: slices, integers, integer arrays, boolean masks.    x: (...) → (...)"""
    shape = x.shape

    def vjp(g: Array) -> tuple[Array]:
        return (scatter_add(g, index=index, shape=shape),)

    return x[index], vjp


@primitive
def scatter_add(xp: Any, values: Array, *, index: Any, shape: tuple[int, ...]) -> Made:
    """Add values into zeros of a shape: y[index] += values, where an index that comes twice adds twice.

    values: shape of y[index] → y: shape
    """

    def vjp(g: Array) -> tuple[Array]:
        return (g[index],)

    if hasattr(values, "node"):
        return scatter_add(values, index=index, shape=shape), vjp
    y = xp.zeros(shape, dtype=values.dtype)
    if _never_repeats(index):
        y[index] = values
    else:
        xp.add.at(y, index, values)
    return y, vjp


def _is_boolean(index: Any) -> bool:
    return hasattr(index, "dtype") and index.dtype.kind == "b"


def _never_repeats(index: Any) -> bool:
    """Tell whether an index can name no element twice: slices, numbers and one boolean mask."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, slice | int) or _is_boolean(p) for p in parts)


def take_along_axis(x: Any, index: Any, axis: int = -1) -> Any:
    """Pick, in each row along an axis, the elements that `index` names there (PyTorch's gather).

    x: (..., N, ...), index: integers (..., M, ...) → (..., M, ...)
    """
    index = as_array(index)
    grids = list(namespace((index,)).ogrid[tuple(slice(n) for n in index.shape)])
    grids[axis] = index
    return getitem(x, index=tuple(grids))


def unknown_id(found: int, rows: int) -> IndexError:
    """Return what is raised for an id that a table of some rows does not have."""
    return IndexError(f"token ids lie in 0 … {rows - 1}; got {found}; check the tokenizer and the vocabulary size")


@primitive
def embedding(xp: Any, ids: Array, weight: Array) -> Made:
    """Look up one row of the table for each id: y = weight[ids].

    ids: integers (...), weight: (V, D) → (..., D)

    Backwards each use of a row adds to that row's gradient. Raises IndexError for an id outside 0 … V − 1.
    """
    rows, shape = ids, weight.shape
    if backend_of(ids) == "numpy" and ids.size and (ids.min() < 0 or ids.max() >= shape[0]):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise unknown_id(bad, shape[0])

    def vjp(g: Array) -> tuple[None, Array]:
        return None, scatter_add(g, index=rows, shape=shape)

    return weight[rows], vjp

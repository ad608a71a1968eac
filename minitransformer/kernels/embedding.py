"""The gradient of a table: adding rows up by a product with one-hot rows, or by sorting the ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array
from ..ops.indexing import embedding as embedding_op
from .recorder import whole
from .registry import book, kernel

Made = tuple[Array, Callable]
SMALL_TABLE = 256  # rows; up to here the product is the faster one


@kernel(embedding_op)
def embedding(xp: Any, ids: Array, weight: Array) -> Made:
    """Look rows up as the book does; the gradient of row v is the sum of the g whose id is v.

    A small table: onehotᵀ·g. A large one: sort the ids, so that equal ones are neighbours, and add up each run.
    """
    y, plain = book(embedding_op)(xp, ids, weight)
    if weight.dtype.char not in "fd" or not ids.size:
        return y, plain
    rows, width = weight.shape

    def vjp(g: Array) -> tuple[None, Array]:
        flat, g_rows = ids.reshape(-1), g.reshape(-1, width)
        if rows <= SMALL_TABLE:
            one_hot = xp.equal(xp.arange(rows)[:, None], flat).astype(g.dtype)
            return None, xp.matmul(one_hot, g_rows)
        g_weight = xp.zeros((rows, width), dtype=g.dtype)
        _add_runs(g_weight, flat, g_rows)
        return None, g_weight

    return y, vjp


@whole
def _add_runs(g_weight: Array, ids: Array, g: Array) -> None:
    """Add the rows of g up by their ids.    g_weight: zeros (V, D), ids: (N,), g: (N, D)"""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    g_weight[ordered[starts]] = np.add.reduceat(g[order], starts, axis=0)

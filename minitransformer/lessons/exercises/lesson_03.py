"""Lesson 03, broadcasting and gather: what was used several times gets the sum."""

import numpy as np

from ... import ops
from ..exercise import exercise, gradients


def _broadcast(rng):
    return rng.standard_normal((5, 2, 3)), [(2, 1), (1, 3)][int(rng.integers(2))]


def _repeated(g, shape):
    """Return the axes in front, and those of length 1 that were stretched."""
    extra = g.ndim - len(shape)
    return tuple(range(extra)), tuple(extra + i for i, n in enumerate(shape) if n == 1)


@exercise(
    "03.1",
    "The transpose of broadcasting",
    task="""An array of the given shape was broadcast to the shape of g. Return its gradient: g, summed over the axes
    along which elements were repeated. There are two kinds of them: axes in front that it did not have, and axes of
    length 1.""",
    inputs=_broadcast,
    returns=("g_x",),
)
def sum_to(g, shape):
    return gradients(lambda x: ops.broadcast_to(x, g.shape), np.zeros(shape, g.dtype), g=g)[0]


@sum_to.mistake(
    "only the axes in front", "an axis of length 1 was repeated, too: sum over it and keep it (keepdims=True)."
)
def _(g, shape):
    return g.sum(axis=_repeated(g, shape)[0])


@sum_to.mistake("only the axes of length 1", "the array had no axis in front at all: sum over it, and let it go.")
def _(g, shape):
    return g.sum(axis=_repeated(g, shape)[1], keepdims=True)


@sum_to.mistake(
    "lost axis", "the numbers are right, but the axis of length 1 belongs to the shape: keepdims=True, or reshape."
)
def _(g, shape):
    front, ones = _repeated(g, shape)
    return g.sum(axis=front + ones)


@sum_to.mistake("mean", "each use adds its gradient to the others: a sum, not a mean.")
def _(g, shape):
    front, ones = _repeated(g, shape)
    return g.mean(axis=front + ones).reshape(shape)


@sum_to.mistake("one of the uses", "that is the gradient of one use; all of them count.")
def _(g, shape):
    return g[0][: shape[0], : shape[1]]


@exercise(
    "03.2",
    "The vjp of a product with broadcasting",
    task="For y = a * b return g_a and g_b; a is (4, 3), b is (3,) and is used in every row.",
    inputs=lambda rng: (rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal((4, 3))),
    returns=("g_a", "g_b"),
)
def multiply_vjp(a, b, g):
    return gradients(ops.multiply, a, b, g=g)


@multiply_vjp.mistake(
    "lost broadcast sum", "b was used in every row: its gradient is the sum over the rows, and has its shape."
)
def _(a, b, g):
    return g * b, g * a


@multiply_vjp.mistake("mean over rows", "each row adds its share to the gradient of b: sum over them, do not average.")
def _(a, b, g):
    return g * b, (g * a).mean(axis=0)


@multiply_vjp.mistake("a left out", "the slope of a·b along b is a: multiply before you sum.")
def _(a, b, g):
    return g * b, g.sum(axis=0)


@multiply_vjp.mistake("sums apart", "the sum of products is not the product of sums: multiply g by a first, then sum.")
def _(a, b, g):
    return g * b, g.sum(axis=0) * a.sum(axis=0)


@multiply_vjp.mistake(
    "own factor", "the slope of a·b along a is b, and along b it is a: these are the wrong way round."
)
def _(a, b, g):
    return g * a, (g * b).sum(axis=0)


def _lookup(rng):
    return np.array([3, 0, 3, 1, 3, 0]), rng.standard_normal((6, 2)), 5


@exercise(
    "03.3",
    "The vjp of a lookup",
    task="""y = weight[ids] looks up a row of a table for each id. Return the gradient of the table, which has as
    many rows as the argument says. Some ids come several times, and some never.""",
    inputs=_lookup,
    returns=("g_weight",),
)
def lookup_vjp(ids, g, rows):
    return gradients(lambda w: ops.embedding(ids, w), np.zeros((rows, g.shape[1]), g.dtype), g=g)[0]


def _zeros(g, rows):
    return np.zeros((rows, g.shape[1]), g.dtype)


@lookup_vjp.mistake(
    "assignment",
    "for an id that comes twice only its last use arrived: add them up. Beware, NumPy's table[ids] += g adds "
    "once for each id, too; np.add.at(table, ids, g) adds every time.",
)
def _(ids, g, rows):
    table = _zeros(g, rows)
    table[ids] = g
    return table


@lookup_vjp.mistake("mean of the uses", "the uses of a row add up; nothing divides by how many there are.")
def _(ids, g, rows):
    table = _zeros(g, rows)
    np.add.at(table, ids, g)
    return table / np.maximum(np.bincount(ids, minlength=rows), 1)[:, None].astype(g.dtype)


@lookup_vjp.mistake(
    "as many rows as ids", "the gradient has the shape of the table: a row for each token, not for each use."
)
def _(ids, g, rows):
    return g.copy()


@lookup_vjp.mistake("only the rows in use", "rows that were never used have a gradient, too: zero.")
def _(ids, g, rows):
    table = _zeros(g, rows)
    np.add.at(table, ids, g)
    return table[: ids.max() + 1]


@lookup_vjp.mistake("first use only", "only the first use of each id arrived: later ones add to it.")
def _(ids, g, rows):
    table = _zeros(g, rows)
    table[ids[::-1]] = g[::-1]
    return table


@exercise(
    "03.4",
    "The vjp of a mean",
    task="For y = x.mean(axis=1) of a matrix x return g_x; g has one number for each row.",
    inputs=lambda rng: (rng.standard_normal((3, 3)), rng.standard_normal(3)),
    returns=("g_x",),
)
def mean_vjp(x, g):
    return gradients(lambda t: ops.mean(t, axis=1), x, g=g)[0]


@mean_vjp.mistake(
    "no 1/n", "each element is one of n in its row: its share is g/n. Without 1/n that is the vjp of a sum."
)
def _(x, g):
    return np.broadcast_to(g[:, None], x.shape).copy()


@mean_vjp.mistake("1/n of all", "the mean runs over one row: n is the length of a row, not the size of x.")
def _(x, g):
    return np.broadcast_to(g[:, None] / x.size, x.shape).copy()


@mean_vjp.mistake("wrong axis", "g has a number for each row: make a column of it, g[:, None], before it is broadcast.")
def _(x, g):
    return np.broadcast_to(g / x.shape[1], x.shape).copy()


@mean_vjp.mistake("not handed out", "the gradient has the shape of x: each element of a row gets g/n.")
def _(x, g):
    return g / x.shape[1]

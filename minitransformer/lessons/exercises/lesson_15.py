"""Lesson 15, on a GPU: ops for any array, places of threads, exchanges in a warp, one copy for many arrays."""

import numpy as np

from ... import ops
from ...kernels.cuda import source
from ...tensor import TENSORS, Tensor, as_array
from ..exercise import exercise, gradients


def _elsewhere(function, x, g):
    """Run an op's body where NumPy's functions do not work: on Tensors. NaN stands for what NumPy was asked for."""
    try:
        made = function(TENSORS, Tensor(x))
        if made is None:
            return None
        y, vjp = made
        g_x = vjp(Tensor(g))
    except TypeError as error:
        if "does not support ufuncs" not in str(error):
            raise
        return np.full_like(x, np.nan), np.full_like(x, np.nan)
    return as_array(y), as_array(g_x[0] if isinstance(g_x, tuple) else g_x)


@exercise(
    "15.1",
    "An op for any array",
    task="""Return y = x·x/(1 + e⁻ˣ) and a function vjp, where vjp(g) returns g_x. Use operators and functions of xp
    alone: x may live on a GPU.""",
    inputs=lambda rng: (rng.standard_normal((2, 5)), rng.standard_normal((2, 5))),
    returns=("y", "vjp(g)"),
    run=_elsewhere,
)
def square_gate(xp, x):
    def gate(t):
        return t * t * ops.sigmoid(t)

    return gate(x), lambda g: Tensor(gradients(gate, as_array(x), g=as_array(g))[0])


@square_gate.mistake("np for xp", "np's functions know arrays in host memory alone: call them through xp.")
def _(xp, x):
    s = 1 / (1 + np.exp(-x))
    return x * x * s, lambda g: g * (2 * x * s + x * x * s * (1 - s))


@square_gate.mistake("only one factor", "a product has two slopes: that of x·x, 2·x, and that of the sigmoid.")
def _(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * x * s, lambda g: g * x * x * s * (1 - s)


@square_gate.mistake("gate held fixed", "the sigmoid depends on x, too: add x·x times its slope s·(1 − s).")
def _(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * x * s, lambda g: g * 2 * x * s


@square_gate.mistake("g left out", "a vjp multiplies the slope by what arrives: where is g?")
def _(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * x * s, lambda g: 2 * x * s + x * x * s * (1 - s)


@square_gate.mistake("x and not its square", "that is silu, x/(1 + e⁻ˣ); here the square of x is gated.")
def _(xp, x):
    s = 1 / (1 + xp.exp(-x))
    return x * s, lambda g: g * s * (1 + x * (1 - s))


@exercise(
    "15.2",
    "The place of a thread",
    task="""Return an integer array (blocks, threads): i = block·threads + thread where that is below n, and −1
    elsewhere, with as few blocks as hold n threads.""",
    inputs=lambda rng: [(1000, 256), (96, source.WARP), (33, source.WARP)][int(rng.integers(3))],
    returns=("places",),
    float32=False,
)
def places(n, threads):
    """Let a kernel's padding be found by the reshape of a padded range."""
    padding = -n % threads
    return np.pad(np.arange(n), (0, padding), constant_values=-1).reshape(-1, threads)


def _grid(blocks, threads, n):
    i = np.arange(blocks * threads).reshape(blocks, threads)
    return np.where(i < n, i, -1)


@places.mistake(
    "always one more", "where n is a multiple of threads, a block more has nothing to do: round up, no more."
)
def _(n, threads):
    return _grid(n // threads + 1, threads, n)


@places.mistake("rounded down", "the last elements need a block, too: round up.")
def _(n, threads):
    return _grid(max(n // threads, 1), threads, n)


@places.mistake("no guard", "threads beyond n must do nothing: they would write past the end of the array.")
def _(n, threads):
    blocks = -(-n // threads)
    return np.arange(blocks * threads).reshape(blocks, threads)


@places.mistake(
    "block and thread exchanged", "neighbouring threads take neighbouring elements: block·threads + thread."
)
def _(n, threads):
    blocks = -(-n // threads)
    i = np.arange(blocks * threads).reshape(threads, blocks).T
    return np.where(i < n, i, -1)


@places.mistake("last one idle", "element n − 1 exists: a thread is idle where i >= n, not where i >= n − 1.")
def _(n, threads):
    return _grid(-(-n // threads), threads, n - 1)


@exercise(
    "15.3",
    "The greatest of a warp",
    task="""With N threads, exchange at distances N/2, N/4, ..., 1: each thread takes the greater of its value and that
    of thread i ^ distance. Return what all hold after each exchange, (log₂ N, N).""",
    inputs=lambda rng: (rng.permutation(np.linspace(-2, 2, 16)),),
    returns=("stages",),
)
def warp_max(values):
    """Reduce over one bit of the thread's number after the other, by the library's max."""
    bits = len(values).bit_length() - 1
    held = values.reshape((2,) * bits)
    stages = []
    for axis in range(bits):
        held = np.broadcast_to(ops.max(held, axis=axis, keepdims=True), held.shape)
        stages.append(held.ravel())
    return np.stack(stages)


def _exchange(values, partner, distances=None, choose=np.maximum):
    lane, held, stages = np.arange(len(values)), values, []
    if distances is None:
        distances = [len(values) >> k for k in range(1, len(values).bit_length())]
    for distance in distances:
        held = choose(held, held[partner(lane, distance)])
        stages.append(held)
    return np.stack(stages)


@warp_max.mistake("a sum", "the sum is found in the same way; here each thread takes the greater of the two.")
def _(values):
    return _exchange(values, np.bitwise_xor, choose=np.add)


@warp_max.mistake("nearest first", "begin at half the warp: the distances go down, 8, 4, 2, 1.")
def _(values):
    return _exchange(values, np.bitwise_xor, [1 << k for k in range(len(values).bit_length() - 1)])


@warp_max.mistake(
    "downwards only", "threads at the end get values, too: with i ^ distance both partners learn the greater."
)
def _(values):
    return _exchange(values, lambda lane, d: np.minimum(lane + d, len(lane) - 1))


@warp_max.mistake("from the first values", "each exchange starts from what the one before has left, not from values.")
def _(values):
    lane, n = np.arange(len(values)), len(values)
    return np.stack([np.maximum(values, values[lane ^ (n >> k)]) for k in range(1, n.bit_length())])


@warp_max.mistake("the least", "that is the least of them; softmax subtracts the greatest.")
def _(values):
    return _exchange(values, np.bitwise_xor, choose=np.minimum)


def _packed(rng):
    shapes = [[(2, 3), (5,), (3, 2)], [(3, 5), (2, 2), (7,)], [(2, 5), (3, 3), (2, 2)]][int(rng.integers(3))]
    return np.arange(100, 100 + sum(int(np.prod(s)) for s in shapes)), shapes  # type: ignore[misc, attr-defined]


def _laid_out(function, flat, shapes):
    """Call the function; return what its arrays hold, whether they are views, and their shapes, as plain numbers."""
    arrays = function(flat, shapes)
    if arrays is None:
        return None
    views = [np.shares_memory(a, flat) for a in arrays]
    held = np.concatenate([np.ravel(a) for a in arrays])
    return held, np.array([s for a in arrays for s in np.shape(a)]), np.array(views)


@exercise(
    "15.4",
    "One copy for a batch",
    task="""Return the list of arrays that lie in flat behind one another, each row by row and of its shape; views, not
    copies.""",
    inputs=_packed,
    returns=("the numbers", "the shapes", "is it a view?"),
    run=_laid_out,
    float32=False,
)
def unpack(flat, shapes):
    """Let NumPy itself cut the array at the ends of its parts."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def _cut(flat, shapes, order="C"):
    begins = np.concatenate([[0], np.cumsum([int(np.prod(s)) for s in shapes])])
    return [flat[b:e].reshape(s, order=order) for b, e, s in zip(begins, begins[1:], shapes, strict=False)]


@unpack.mistake("all from the beginning", "each array begins where the one before ends, not at 0.")
def _(flat, shapes):
    return [flat[: int(np.prod(shape))].reshape(shape) for shape in shapes]


@unpack.mistake("copied", "the numbers are right; a slice with a reshape is a view and costs nothing: do not copy.")
def _(flat, shapes):
    return [part.copy() for part in _cut(flat, shapes)]


@unpack.mistake("column by column", "arrays lie row by row; leave the order of reshape as it is.")
def _(flat, shapes):
    return _cut(flat, shapes, order="F")


@unpack.mistake("the wrong way round", "the first array lies at the beginning of flat: take them from the front.")
def _(flat, shapes):
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    n = len(flat)
    return [flat[n - e : n - e + int(np.prod(s))].reshape(s) for e, s in zip(ends, shapes, strict=True)]


@unpack.mistake("not shaped", "the parts are right; each still needs its shape.")
def _(flat, shapes):
    return [part.ravel() for part in _cut(flat, shapes)]

"""What is done to a Recorded is done, written down, and done again to other numbers."""

import threading

import numpy as np
import pytest

from minitransformer import backend
from minitransformer.backend import NotRecordable
from minitransformer.kernels.namespace import Namespace
from minitransformer.kernels.program import Arena, Program
from minitransformer.kernels.recorded import Recorded, new_recorder
from minitransformer.kernels.recorder import Changed, whole
from minitransformer.kernels.registry import on_lines, row_by_row

pytestmark = pytest.mark.skipif("config.where != 'numpy'", reason="NumPy's own")


def recorded(f, *arrays):
    """Record f(xp, *arrays); return its result then, and a function that replays it on other arrays."""
    recorder = new_recorder()
    inputs = [np.array(a) for a in arrays]
    with recorder.recording():
        result = f(Namespace(recorder), *[recorder.outside(a) for a in inputs])
    program = Program(recorder, [len(recorder.calls)], [result], [], Arena())

    def replay(*others):
        for room, other in zip(inputs, others, strict=True):
            room[...] = other
        (calls,) = program.ready()
        program._arena.memory[...] = 255  # nothing may be left from before
        for call in calls:
            call()
        return program.kept[0]

    return result.array.copy(), replay


def filled(xp, a, b):
    y = xp.empty(a.shape, dtype=a.dtype)
    for rows in (slice(0, 2), slice(2, 4)):
        xp.multiply(a[rows], b[rows], out=y[rows])
        y[rows] += 1
    return y


def written(xp, a, b):
    y = xp.zeros_like(a)
    y[1:, ::2] = b[1:, ::2]
    y[0] = 7
    y[y > 6] = -1.0
    return y


@whole
def cumulated(out, x):
    for i in range(len(x)):  # plain Python
        out[i] = x[: i + 1].sum()


def in_one_call(xp, a, b):
    y = xp.empty(a.shape[:1], dtype=a.dtype)
    cumulated(y, a)
    return y


def scattered(xp, a, b):
    y = xp.zeros((6, 6), dtype=a.dtype)
    xp.add.at(y, xp.asarray([0, 1, 0, 5]), a)
    return y


def rows_of_a_band(xp, a, b):
    with row_by_row(512):
        y = xp.subtract(a, a.max(axis=1, keepdims=True))
    return y


def chained(xp, a, b):
    x = a + b
    y = x * 2
    z = y - x  # x is in use until here
    z /= 3
    return z + y


def changed(xp, x, n):
    """Both names see what is done in place."""
    also, bits = x, n
    x **= 2
    x //= 0.25
    x %= 3
    x /= 2
    x @= xp.ones((6, 6), dtype=x.dtype)
    n ^= 5
    n <<= 2
    n >>= 1
    n |= 1
    n &= 255
    return also + bits


CASES = {
    "arithmetic": lambda xp, a, b: (a + b * 2 - 1 / a) ** 2 / (3 - b),
    "from the right": lambda xp, a, b: 2 - (1.5 * (4 / (a + 3))),
    "products": lambda xp, a, b: a @ b.T,
    "a product by rows": lambda xp, a, b: xp.matmul(a.reshape(2, 2, 6), b[:, :3].reshape(6, 2)),
    "comparisons": lambda xp, a, b: ((a < b) | (a >= 1)) & ~(b == 0) & (a != b) & (a <= 9) & (b > -9),
    "functions": lambda xp, a, b: xp.exp(a) + xp.sqrt(xp.abs(b)) + xp.tanh(a) + xp.log(xp.abs(b) + 1) - abs(-a),
    "sums": lambda xp, a, b: a.sum(axis=0) + b.mean(axis=0) - a.max(axis=0) * b.min(axis=0, keepdims=True),
    "one number": lambda xp, a, b: a.sum() / b.max(),
    "which": lambda xp, a, b: a.argmax(axis=1) + b.argmin(axis=1) + xp.argsort(a, kind="stable")[:, 0],
    "truth": lambda xp, a, b: (a > 0).any(axis=1) & (b < 9).all(axis=1),
    "along": lambda xp, a, b: a.cumsum(axis=1) + xp.cumsum(b, axis=1),
    "types": lambda xp, a, b: (a > 0).astype(float) + xp.asarray(b, dtype=float) + a.astype(a.dtype, copy=False),
    "bits": lambda xp, a, b: (a.view(np.uint32) >> 3 ^ b.view(np.uint32)) << 1 & 0xFFFF,
    "views": lambda xp, a, b: a.transpose(1, 0)[2:, ::-1].swapaxes(0, 1) * b[:, 2:] + a.T.T[..., None, 0] + b[0, 0],
    "views by name": lambda xp, a, b: xp.swapaxes(xp.broadcast_to(a[:, None], (4, 3, 6)), 0, 1) + xp.expand_dims(b, 0),
    "squeezed": lambda xp, a, b: a[:, :1].squeeze(1) + b[0, 0],
    "a copy where there is no view": lambda xp, a, b: a.T.reshape(8, 3) + b.T.reshape(8, 3),
    "copies": lambda xp, a, b: a.copy() + xp.ascontiguousarray(b.T).T + xp.ascontiguousarray(a),
    "made of one number": lambda xp, a, b: xp.ones_like(a) + xp.full_like(b, 3) + xp.zeros((4, 6), dtype=a.dtype) + a,
    "a choice": lambda xp, a, b: xp.where(a > b, a, 0.0) + xp.where(b > 0, 1.0, b),
    "cut off": lambda xp, a, b: xp.clip(a, 0, 1) + xp.maximum(b, 0) + xp.minimum(a, b),
    "joined": lambda xp, a, b: xp.concatenate((a, b[:1])) + xp.stack([a[0], b[0]])[0] + xp.concatenate([b, a[:1]]),
    "picked": lambda xp, a, b: a[xp.asarray([0, 3, 3])] + b[(a[:3, 0] > 0).astype(int)],
    "picked along": lambda xp, a, b: xp.take_along_axis(a, xp.argsort(b, axis=1), axis=1),
    "taken": lambda xp, a, b: xp.take(a, (b[:, 0] > 0).astype(int), axis=0) + xp.take(np.ones(9), (a > 0).astype(int)),
    "runs": lambda xp, a, b: xp.add.reduceat(a, [0, 2], axis=0) + xp.repeat(b[:1], 2, axis=0),
    "sums by ufunc": lambda xp, a, b: xp.add.reduce(a, axis=1) + xp.vecdot(a, b),
    "constants": lambda xp, a, b: a * xp.arange(6) + xp.ones(6, dtype=a.dtype) * xp.arange(4)[:, None] + b,
    "aligned": lambda xp, a, b: xp.add(a, b, out=on_lines(xp, (4, 6), a.dtype)),
    "in place": filled,
    "in a part": written,
    "in one call": in_one_call,
    "scattered": scattered,
    "row by row": rows_of_a_band,
    "one over another": chained,
    "in place by any operator": lambda xp, a, b: changed(xp, a.copy(), (b * 4).astype(int)),
    "truth as an index": lambda xp, a, b: a[0][None] + b[None][0],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_replay_does_what_numpy_does(name, rng):
    f = CASES[name]
    first, *others = [rng.standard_normal((2, 4, 6)).astype(np.float32) for _ in range(3)]
    then, replay = recorded(f, *first)
    np.testing.assert_array_equal(then, f(np, *[a.copy() for a in first]))
    for arrays in others:
        expected = f(np, *[a.copy() for a in arrays])
        found = replay(*arrays)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "f",
    [
        lambda xp, a: a[a > 0],
        lambda xp, a: np.asarray(a),
        lambda xp, a: xp.unique(a),
        lambda xp, a: xp.flatnonzero(a > 0),
        lambda xp, a: xp.add(a, 1, out=np.empty_like(a.array)),
        lambda xp, a: np.zeros(4).__setitem__(0, a[0]),
        lambda xp, a: a.__setitem__(a > 0, a[0]),
        lambda xp, a: xp.modf(a),
        lambda xp, a: a.tofile("x"),
    ],
    ids=["a mask picks", "plain", "unique", "nonzero", "into plain", "set in plain", "a mask takes", "two", "none"],
)  # fmt: skip
def test_what_cannot_be_written_down_is_refused(f, rng):
    with pytest.raises((NotRecordable, AttributeError)):
        recorded(f, rng.standard_normal(4).astype(np.float32))


@pytest.mark.parametrize("ask", [bool, int, float, lambda x: x.item(), lambda x: list(range(9))[x]])
def test_what_was_decided_is_decided_again(ask):
    def decided(xp, a):
        return a + float(ask(a.sum()))

    _, replay = recorded(decided, np.array([1, 2]))
    np.testing.assert_array_equal(replay(np.array([2, 1])), [5, 4] if ask is not bool else [3, 2])
    with pytest.raises(Changed):
        replay(np.array([0, 0]))


def test_another_thread_gets_what_it_asks_for_and_spoils_the_recording():
    seen = []

    def elsewhere(a):
        seen.extend([backend.namespace(()), a + 1, np.exp(a), a[:2].sum(), np.asarray(a), float(a.max())])

    recorder = new_recorder()
    with recorder.recording():
        a = recorder.outside(np.ones(3))
        assert not recorder.spoiled
        thread = threading.Thread(target=elsewhere, args=(a,))
        thread.start()
        thread.join()
        assert backend.namespace(()).recorder is recorder and backend.xp() is backend.namespace(())
    assert recorder.spoiled and not recorder.calls and backend.namespace(()) is np is backend.xp()
    assert seen[0] is np and (seen[1] == 2).all() and seen[3] == 2 and type(seen[4]) is np.ndarray and seen[5] == 1


def test_what_was_kept_of_an_earlier_recording_is_refused():
    first, second = new_recorder(), new_recorder()
    with first.recording():
        kept = first.outside(np.ones(3)) + 1
    with second.recording(), pytest.raises(NotRecordable, match="earlier recording"):
        second.outside(np.ones(3)) + kept


@pytest.mark.parametrize(
    "write",
    [
        lambda total, x: np.add.at(total, np.arange(3), x), lambda total, x: np.copyto(total, x),
        lambda total, x: np.add(total, x, out=total), lambda total, x: total.__iadd__(x),
    ],
    ids=["at", "copyto", "out", "in place"],
)  # fmt: skip
def test_nothing_is_written_into_a_plain_array_before_it_is_refused(write):
    recorder, total = new_recorder(), np.zeros(3)
    with recorder.recording(), pytest.raises(NotRecordable, match="plain array"):
        write(total, recorder.outside(np.ones(3)))
    assert not total.any()


def test_results_lie_as_numpys_do(rng):
    """Sums of them run in another order else."""
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    recorder = new_recorder()
    with recorder.recording():
        xp, a = Namespace(recorder), recorder.outside(x)
        for view in (lambda z: z, lambda z: z.T, lambda z: z.transpose(1, 0, 2), lambda z: z[:, ::2]):
            for f in (
                lambda n, z: z.astype(np.float64), lambda n, z: z.copy(), lambda n, z: n.zeros_like(z),
                lambda n, z: n.ascontiguousarray(z), lambda n, z: n.empty_like(z), lambda n, z: n.where(z > 0, z, 0),
                lambda n, z: z * 2,
            ):  # fmt: skip
                assert f(xp, view(a)).strides == f(np, view(x)).strides


def test_afterwards_it_is_an_array_like_others(rng):
    recorder = new_recorder()
    with recorder.recording():
        kept = recorder.outside(np.ones((2, 3)))
        sums = kept.sum(axis=0)
    calls = len(recorder.calls)
    assert isinstance(sums, Recorded) and sums.base is None and len(sums) == 3
    found = [np.asarray(kept), kept + 1 - 1, np.exp(kept) * 0 + 1, kept[:], np.where(kept > 0, kept, 0), kept.copy()]
    for array in found:
        np.testing.assert_array_equal(np.asarray(array), np.ones((2, 3)))
    kept[0] = 5
    assert float(kept.max()) == 5 and bool(kept.any()) and len(recorder.calls) == calls

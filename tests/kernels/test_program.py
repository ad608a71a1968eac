"""Where the results of a program lie: apart while they are in use, over one another afterwards."""

import numpy as np
import pytest

from minitransformer.kernels.namespace import Namespace
from minitransformer.kernels.program import Arena, Program, place
from minitransformer.kernels.recorded import new_recorder
from minitransformer.kernels.recorder import Buffer

pytestmark = pytest.mark.skipif("config.where != 'numpy'", reason="NumPy's own")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_in_use_at_once_lies_apart(seed):
    rng = np.random.default_rng(seed)
    buffers = []
    for _ in range(120):
        buffer = Buffer(np.empty(rng.integers(0, 5000), np.uint8), False, int(rng.integers(0, 200)))
        buffer.last = buffer.first + int(rng.integers(0, 30))
        buffers.append(buffer)
    size = place(buffers)
    for i, a in enumerate(buffers):
        assert a.home % 64 == 0 and a.home >= 0 and a.home + a.nbytes <= size
        for b in buffers[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.home + a.nbytes <= b.home or b.home + b.nbytes <= a.home
    most = max(sum(b.nbytes for b in buffers if b.first <= t <= b.last) for t in range(230))
    assert size <= 2 * most + 64 * len(buffers)


def program_of(f, *arrays, outside=(), arena=None):
    recorder = new_recorder()
    slots = [recorder.outside(a) for a in outside]
    with recorder.recording():
        result = f(Namespace(recorder), *[recorder.outside(a) for a in arrays], *slots)
    result = result[:1] if isinstance(result, tuple) else [result]
    return recorder, Program(recorder, [len(recorder.calls)], result, outside, arena or Arena())


def test_a_result_takes_the_place_of_what_nobody_needs():
    def f(xp, a):
        x = a + 1
        y = x * 2
        z = y - x
        return z / 3

    a = np.arange(1000.0)
    _, program = program_of(f, a)
    assert program.size == 2 * 8000  # x, and y with z and the result over it
    for call in program.ready()[0]:
        call()
    np.testing.assert_array_equal(program.kept[0], (a + 1) / 3)


@pytest.mark.parametrize("late", [False, True])
def test_a_result_made_in_blocks_follows_what_is_read_in_blocks(late):
    """Where the operand's block is read once more after the result's is begun, it may not."""

    def f(xp, a):
        x, y = a + 1, xp.empty(a.shape, dtype=a.dtype)
        for i in range(0, len(x), 1000):
            part, to = x[i : i + 1000], y[i : i + 1000]
            xp.multiply(part, part, out=to)
            if late:
                to += part
        return y.sum(), y

    a = np.arange(50_000.0) / 100
    _, program = program_of(f, a)
    assert program.size == (800_000 if late else 400_000 + 64)  # the sum lies over x, or behind
    for call in program.ready()[0]:
        call()
    np.testing.assert_array_equal(program.kept[0], f(np, a)[0])


@pytest.mark.parametrize("seed", range(10))
def test_what_follows_block_by_block_is_right_in_any_order(seed):
    """Blocks that overlap, in a random order, read before and after."""

    def f(xp, a):
        rng, x = np.random.default_rng(seed), a * 2
        y = xp.zeros_like(a) if seed % 2 else x + 1
        for _ in range(12):
            i, j = np.sort(rng.integers(0, len(a), 2))
            xp.add(x[i:j], 3 * seed, out=y[i:j])
            if seed % 3:
                y[i:j] *= x[-(j - i) or None :][: j - i]
        return y + 1

    a = np.random.default_rng(seed).standard_normal(40_000)
    _, program = program_of(f, a)
    for call in program.ready()[0]:
        call()
    np.testing.assert_array_equal(program.kept[0], f(np, a))


def test_a_result_is_made_where_it_is_copied_to():
    def f(xp, a, g, h, twice):
        g[...] = a * 2
        made = a * 3
        h[...] = made
        twice[...] = made.T  # used once more, and laid out otherwise
        return made.sum()

    a, slots = np.arange(6.0).reshape(2, 3), [np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((3, 2))]
    recorder, program = program_of(f, a, outside=slots)
    assert len(program._calls) == len(recorder.calls) - 1
    for slot in slots:
        slot[...] = -1
    for call in program.ready()[0]:
        call()
    for slot, expected in zip(slots, (a * 2, a * 3, (a * 3).T), strict=True):
        np.testing.assert_array_equal(slot, expected)


def test_programs_share_memory_that_grows():
    arena, a = Arena(), np.ones(1000)
    small = program_of(lambda xp, a: xp.exp(a), a, arena=arena)[1]
    large = program_of(lambda xp, a: (xp.exp(a)[:, None] * a[None, :4]).copy(), a, arena=arena)[1]
    for program in (small, large, small, large):
        for call in program.ready()[0]:
            call()
        assert np.shares_memory(program.kept[0], arena.memory)
        np.testing.assert_allclose(program.kept[0], np.e)
    assert len(arena.memory) >= large.size > small.size
    before = arena.memory
    arena.give_back()
    for call in small.ready()[0]:
        call()
    np.testing.assert_allclose(small.kept[0], np.e)
    assert arena.memory is before

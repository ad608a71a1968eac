"""Random numbers: a seed, and which draw of its stream comes next.

What decides over places (dropout) is found from the seed's key, the number of the draw and the place, so that it is
the same on every backend and however a batch is split; what is drawn in order (weights, samples) comes from NumPy's
generator, on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import NotRecordable, calls_namespace


class Draw(NamedTuple):
    """Where the random numbers of one call come from; see ops/philox.py."""

    key: tuple[int, int]  # of the seed
    call: int  # since the seed was set
    first_row: int  # of the batch, where only a part of it is computed here

    def now(self) -> Draw:
        """Return this draw."""
        return self


class LiveDraw:
    """A draw of a recorded step, of which each replay has its own. It has no numbers before it is asked for them."""

    def __init__(self, ahead: int, rows: int):
        self.ahead, self.rows = ahead, rows

    def now(self) -> Draw:
        """Return the draw in the step that is being taken."""
        return _random.draw(_random.began + self.ahead, self.rows)

    def __getattr__(self, name: str) -> Any:
        raise NotRecordable("a recorded step draws its random numbers by kernels that look them up at each replay")


class _RandomState:
    """The library's random numbers. A seed means the same numbers on every backend."""

    def __init__(self) -> None:
        self.part: tuple[int, int] | None = None  # first row, rows: the part of a batch that is computed here
        self.began = 0  # the draws when the step began that is being recorded, or taken again
        self.seed(0)

    def seed(self, seed: int | tuple[int, ...]) -> None:
        """Start from a seed: a generator for what is drawn on the host, a key for what is found by its place."""
        self.generator = np.random.default_rng(seed)
        key = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(2, np.uint64)
        self.key, self.calls = (int(key[0]), int(key[1])), 0

    def draw(self, call: int, rows: int) -> Draw:
        """Return the draw of a number, for an array whose first axis has that many rows."""
        first, own = self.part or (0, rows)
        return Draw(self.key, call, first if own == rows else 0)  # else: no array of the batch


_random = _RandomState()


def check_seed(seed: Any) -> None:
    """Raise ValueError unless this is a whole number from 0 up, or a tuple of such."""
    for part in seed if isinstance(seed, tuple) and seed else (seed,):
        if isinstance(part, bool) or not isinstance(part, int | np.integer) or part < 0:
            raise ValueError(f"a seed is a whole number from 0 up, or a tuple of such; got {seed!r}; write seed=0")


def manual_seed(seed: int | tuple[int, ...]) -> None:
    """Restart the library's random numbers (initial weights, dropout, sampling) from a seed.

    A tuple such as (seed, step) names a stream of its own: training uses one per step, so that a run resumed at
    step n draws what the run never stopped would have drawn, without any generator state to save.
    Raises ValueError for a seed below 0 or no whole number.
    """
    check_seed(seed)
    _random.seed(seed)


def generator() -> np.random.Generator:
    """Return the generator of what is drawn in order (NumPy's PCG64, on the host): weights, samples.

    Raises NotRecordable while NumPy's calls are recorded: what is drawn would be the same in all replays.
    """
    if calls_namespace() is not None:
        raise NotRecordable("a recorded step draws nothing in order; draw it with the batch")
    return _random.generator


@contextlib.contextmanager
def drawing_for_rows(first: int, rows: int) -> Iterator[None]:
    """Inside the block, draws for a batch of `rows` are those that a whole batch gives to its rows from `first` on.

    So a batch that is split among workers meets the same dropout masks as a whole one.
    """
    _random.part = (first, rows)
    try:
        yield
    finally:
        _random.part = None


def next_draw(rows: int) -> Any:
    """Take the next draw of the stream, for an array whose first axis has that many rows."""
    call = _random.calls
    _random.calls += 1
    return _random.draw(call, rows) if calls_namespace() is None else LiveDraw(call - _random.began, rows)


@contextlib.contextmanager
def drawing_ahead(taken: int = 0) -> Iterator[None]:
    """Inside the block, draws of a recorded step count from here on; after it, `taken` more draws have been taken."""
    _random.began = _random.calls
    yield
    _random.calls += taken


def random_state() -> tuple[tuple[int, int], int]:
    """Return the key and the count of draws, for another process to go on from."""
    return _random.key, _random.calls


def set_random_state(key: Sequence[int], calls: int) -> None:
    """Go on from another process's state."""
    _random.key, _random.calls = (int(key[0]), int(key[1])), calls


def draw_state() -> tuple[tuple[tuple[int, int], int], tuple[int, int] | None]:
    """Return all that the next draw in this process depends on: the random state, and the part of a batch."""
    return random_state(), _random.part


@contextlib.contextmanager
def drawing_from(state: tuple[tuple[tuple[int, int], int], tuple[int, int] | None]) -> Iterator[None]:
    """Inside the block, draw as from an earlier `draw_state` on; after it, go on as if nothing had been drawn."""
    before = draw_state()
    try:
        for_now, _random.part = state
        set_random_state(*for_now)
        yield
    finally:
        set_random_state(*before[0])
        _random.part = before[1]

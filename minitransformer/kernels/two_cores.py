"""One new token of one text on two cores: each has half of the heads, of the inner width and of the vocabulary.

Small models fit into a core's second cache by half, where weights are read twice as fast as from the third. So a second
process makes the same calls for the other half, and both add up what either has made, twice a layer. They meet in
memory that they share: each writes its part, then the number of the token beside it, and looks for the other's number.
That takes half a microsecond where a pipe takes twenty.

This is a plan by which nobody waits for long. Who finds the other one missing (it has died, or something else has its
core) leaves, and the text goes on in one process. The caches lie in shared memory, so that they are whole all the time.
Both ways come to the same scores up to the last bits, as sums of two parts do.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array
from . import decoding
from .blas import limit_blas_threads
from .halves import (
    ASLEEP,
    DONE,
    NUMBERS,
    PLACE,
    TOKEN,
    Desk,
    Half,
    Missing,
    arrays_in,
    can_be_cut,
    cut,
    mapped,
    wait_for,
)
from .one_row import OneRow
from .registry import LINE, SECOND_CACHE

LATER = 8  # tokens: a text that is longer is worth the copies
AWAKE = 0.002  # seconds that the helper waits for a token before it goes to sleep
TRIED = 16  # tokens that are timed together; but for a helper's first
STALLED, SLOW = 2.0, 3  # they took so often as long as by one core; or longer at all, so many times in a row
FORGIVEN = 0.1  # of a misfortune, where two cores were faster
MISFORTUNES = 3  # texts that were left, after which no more are begun
LEAST = SECOND_CACHE  # bytes of weights: fewer lie in one core's second cache, and are read there as fast as by two


def possible() -> bool:
    """Tell whether a second process may help here.

    It is forked, which systems other than Linux do not survive, nor does a GPU's driver; and it relies on stores that
    are seen in the order in which they are made, as x86 processors promise.
    """
    here = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "AMD64") and "cupy" not in sys.modules
    return here and len(os.sched_getaffinity(0)) > 1


class _Shared:
    """Memory that a fork shares, handed out in arrays."""

    def __init__(self, nbytes: int):
        self.memory, self.taken = mmap.mmap(-1, nbytes), 0

    def room(self, shape: tuple[int, ...]) -> Array:
        """Return an empty array of float32 that begins on a line of cache."""
        count, at = int(np.prod(shape)), self.taken
        self.taken += -(-4 * count // LINE) * LINE
        return np.frombuffer(self.memory, np.float32, count, at).reshape(shape)

    def copied(self, a: Array) -> Array:
        """Return a copy of an array."""
        room = self.room(a.shape)
        room[...] = a
        return room


class Pair:
    """This process and its helper, for stacks of one shape."""

    def __init__(self, halves: Any, shape: Any, longest: int):
        self.shape, self.longest, self.parent, self.count = shape, longest, os.getpid(), 0
        self.thread, self.living = threading.get_ident(), weakref.WeakSet[Any]()
        stack, output = halves[0]
        attentions = [f for layer in stack.layers for _, f in layer if isinstance(f, decoding.SelfAttention)]
        sublayers, width = sum(map(len, stack.layers)), output.weight.shape[1]
        cached = [(1, 2 * f.kv_heads, longest, len(f.taken.weight) // f.width) for f in attentions]
        sizes = (
            [a.shape for a in arrays_in(halves)]
            + 2 * cached
            + (2 * sublayers + 1) * [(width,)]
            + [(2 * len(output.weight),)]
        )
        shared = _Shared(16 * NUMBERS + sum(4 * int(np.prod(size)) + LINE for size in sizes))
        numbers, shared.taken = memoryview(shared.memory)[: 16 * NUMBERS].cast("q"), 16 * NUMBERS
        halves = mapped(halves, shared.copied)
        self.weights = arrays_in(halves)
        rooms = [(shared.room(size), shared.room(size)) for size in cached]
        parts = [(shared.room((width,)), shared.room((width,))) for _ in range(sublayers)]
        self.desk = Desk(numbers, rooms, parts, shared.room((width,)), shared.room((2 * len(output.weight),)))
        self.own, other = (Half(self.desk, who, *half) for who, half in enumerate(halves))
        self._fork(other)

    def _fork(self, half: Half) -> None:
        ours, self.bell = os.pipe()
        with warnings.catch_warnings():  # Python 3.12 warns of threads; the helper uses none but its own
            warnings.simplefilter("ignore", DeprecationWarning)
            self.child = os.fork()
        if not self.child:
            try:
                os.close(self.bell)
                self._serve(half, ours)
            finally:
                os._exit(0)  # without what the parent has registered for its own end
        os.close(ours)
        self.end = weakref.finalize(self, _end, self.child, self.bell, self.parent)

    def _serve(self, half: Half, bell: int) -> None:
        """Make the calls of each token, until the parent ends or closes the pipe."""
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, signal.SIG_IGN)
        numbers, asleep, token = self.desk.numbers, NUMBERS + ASLEEP, 0
        with limit_blas_threads(1), np.errstate(over="ignore"):
            while True:
                until = time.perf_counter() + AWAKE
                while numbers[TOKEN] == token and time.perf_counter() < until:
                    pass
                while numbers[TOKEN] == token:
                    numbers[asleep] = 1
                    ready = select.select([bell], [], [], 0.05)[0]
                    numbers[asleep] = 0
                    if os.getppid() != self.parent or (ready and not os.read(bell, 64)):
                        return
                token = numbers[TOKEN]
                with contextlib.suppress(Missing):  # the parent has left this token
                    half.run(token, numbers[PLACE])

    def step(self, place: int) -> Array:
        """Take the token that lies in `embedded` through all layers; return its scores (V,). Raises Missing."""
        numbers = self.desk.numbers
        self.count = token = self.count + 1
        numbers[PLACE] = place
        numbers[TOKEN] = token
        if numbers[NUMBERS + ASLEEP]:
            try:
                os.write(self.bell, b".")
            except BrokenPipeError:
                raise Missing from None
        self.own.run(token, place)
        if numbers[NUMBERS + DONE] != token:
            wait_for(numbers, NUMBERS + DONE, token)
        return self.desk.scores

    def free(self) -> None:
        """Give the caches that still live here arrays of their own."""
        for cache in list(self.living):
            if any(cache.lives_in(k) for k, _ in self.desk.rooms):
                cache.live_in(None)
        self.living.clear()


def _end(child: int, bell: int, parent: int) -> None:
    if os.getpid() == parent:
        os.close(bell)
        with contextlib.suppress(ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class _Here:
    """What this process has: a helper, perhaps, and how many texts it has failed."""

    pair: Pair | None = None
    misfortunes = 0.0


class TwoCores:
    """A text that is written alone, on two cores as long as that goes well, else as `alone` does it."""

    def __init__(self, pair: Pair, pasts: Sequence[Any], alone: OneRow, usual: float):
        self.pair: Pair | None = pair
        self.pasts, self.alone, self.usual = pasts, alone, usual
        self.seconds, self.tokens, self.slow = 0.0, 0, 0

    def step(self, token: int, place: int) -> Array:
        """Take one token through all layers and the last product, and give its scores, new ones.    → (1, V)"""
        pair = self.pair
        if pair is None or not self._at(place):
            return self._leave().step(token, place)
        began = time.perf_counter()
        self.alone.embedded.write(token, place, pair.desk.embedded)
        try:
            with np.errstate(over="ignore"):
                scores = pair.step(place)[None].copy()
        except BaseException as error:  # with a helper that is in the middle of a token nobody goes on
            _Here.misfortunes += 1
            alone = self._leave()
            pair.end()
            _Here.pair = None
            if isinstance(error, Missing):
                return alone.step(token, place)
            raise
        for past in self.pasts:
            past.grown(1)
        self.seconds, self.tokens = self.seconds + time.perf_counter() - began, self.tokens + 1
        if self.tokens >= TRIED:
            self._judge(self.seconds / self.tokens, pair.count > TRIED)
        return scores

    def _judge(self, seconds: float, warm: bool) -> None:
        """Leave if two cores take too long for a token."""
        self.slow = self.slow + 1 if warm and seconds > self.usual else 0
        self.seconds, self.tokens = 0.0, 0
        if self.slow >= SLOW or (self.slow and seconds > STALLED * self.usual):
            _Here.misfortunes += 1
            self._leave()
        elif not self.slow:
            _Here.misfortunes = max(0.0, _Here.misfortunes - FORGIVEN)

    def _at(self, place: int) -> bool:
        """Tell whether the caches are where they were put, and end where this token begins."""
        pair = self.pair
        assert pair is not None
        here = pair.parent == os.getpid() and place < pair.longest
        known = zip(self.pasts, pair.desk.rooms, strict=True)
        return here and all([past.lives_in(k) and past.length == place for past, (k, _) in known])

    def _leave(self) -> OneRow:
        """Go on in one process."""
        if self.pair is not None:
            for past, (k, _) in zip(self.pasts, self.pair.desk.rooms, strict=True):
                if past.lives_in(k):
                    past.live_in(None)
            self.pair = None
        return self.alone


def taken_over(
    alone: OneRow, stack: decoding.Stack, output: decoding.Linear, caches: Sequence[Any], longest: int, usual: float
) -> OneRow | TwoCores:
    """Return what writes on with two cores, or what has written so far where they are not to be had.

    longest: tokens of a text; usual: seconds that a token has taken so far.
    """
    pasts = [cache.past for cache in caches]
    fits = all(past.window is None and 0 < past.length < longest for past in pasts)
    if not (fits and possible() and can_be_cut(stack, output)) or _Here.misfortunes >= MISFORTUNES:
        return alone
    if sum(a.nbytes for a in arrays_in((stack, output))) <= LEAST:
        return alone
    if _Here.pair is not None and _Here.pair.parent != os.getpid():
        _Here.pair = None  # this process is a fork of the one that has it
    if _Here.pair is not None and _Here.pair.thread != threading.get_ident():
        return alone
    pair = _with(stack, output, longest)
    for past, room in zip(pasts, pair.desk.rooms, strict=True):
        past.live_in(room)
        pair.living.add(past)
    return TwoCores(pair, pasts, alone, usual)


def _with(stack: decoding.Stack, output: decoding.Linear, longest: int) -> Pair:
    """Return the pair for a stack, with its weights as they are now."""
    halves, pair = [cut(stack, output, who) for who in (0, 1)], _Here.pair
    shape = mapped(halves, np.shape)
    if pair is not None:
        pair.free()
        if pair.shape == shape and pair.longest == longest:
            for to, of in zip(pair.weights, arrays_in(halves), strict=True):
                to[...] = of
            return pair
        pair.end()
    _Here.pair = Pair(halves, shape, longest)
    return _Here.pair

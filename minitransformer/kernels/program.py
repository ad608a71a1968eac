"""A recorded step as a list of calls with their arguments in place, all results in one piece of memory.

A result's place is free again after its last use, and goes to a later one. What is made from an operand that nobody
needs any more, element by element or block by block, is made in its place; and what is copied to a parameter's gradient
is made there.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import heapq
import math
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .recorder import Buffer, Place, Recorder, StandIn
from .registry import LINE

LARGE_PAGE = 2 << 20  # bytes
FOLLOWED = 256 * 1024  # bytes; of less there is no block
BY_NAME = (np.maximum, np.minimum)  # whose third operand is not to be the result, some day


class Arena:
    """The memory of all programs of a process, of which one runs at a time."""

    def __init__(self) -> None:
        self.memory = np.empty(0, dtype=np.uint8)
        self._map: mmap.mmap | None = None
        self._programs: weakref.WeakSet[Program] = weakref.WeakSet()

    def reserve(self, size: int, program: Program) -> None:
        """Have room for `size` bytes; programs that were built in less are built anew when they run next."""
        self._programs.add(program)
        if size > len(self.memory):
            for other in self._programs:
                other.forget()
            size = max(size, 2 * len(self.memory))  # what is not written to costs nothing
            private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
            self._map = mmap.mmap(-1, size + LARGE_PAGE, **private)
            with contextlib.suppress(AttributeError, OSError):  # where there are larger pages, fewer are looked up
                self._map.madvise(mmap.MADV_HUGEPAGE)
            memory = np.frombuffer(self._map, dtype=np.uint8)
            first = -memory.ctypes.data % LARGE_PAGE
            self.memory = memory[first : first + size]

    def give_back(self) -> None:
        """Give the pages back until they are written to again; what they hold is lost."""
        with contextlib.suppress(AttributeError, OSError):
            if self._map is not None:
                self._map.madvise(mmap.MADV_DONTNEED)


def place(buffers: Sequence[Buffer]) -> int:
    """Give each buffer an offset as its home, and return how many bytes they need together.

    In the order in which they are needed, each where memory was given up last that is large enough: it is in a cache.
    """
    ends: list[tuple[int, int, int]] = []  # of those in use: (last call, offset, size), a heap
    free: list[tuple[int, int, int]] = []  # (offset, size, when it was given up), in order and never side by side
    total = 0
    for buffer in sorted(buffers, key=lambda b: b.first):
        while ends and ends[0][0] < buffer.first:
            last, at, size = heapq.heappop(ends)
            _give_up(free, at, size, last)
        size = max(-(-buffer.nbytes // LINE), 1) * LINE
        fitting = [(when, i) for i, (_, n, when) in enumerate(free) if n >= size]
        if fitting:
            at, n, when = free.pop(max(fitting)[1])
            if n > size:
                bisect.insort(free, (at + size, n - size, when))
        else:
            at = total
            if free and free[-1][0] + free[-1][1] == total:  # what is free at the end only has to grow
                at = free.pop()[0]
            total = at + size
        buffer.home = at
        heapq.heappush(ends, (buffer.last, at, size))
    return total


def _give_up(free: list[tuple[int, int, int]], at: int, size: int, when: int) -> None:
    """Add a stretch of memory to the free ones, joined with its neighbours."""
    i = bisect.bisect(free, (at, 0, 0))
    if i < len(free) and free[i][0] == at + size:
        _, n, earlier = free.pop(i)
        size, when = size + n, max(when, earlier)
    if i and free[i - 1][0] + free[i - 1][1] == at:
        at, n, earlier = free.pop(i - 1)
        size, when = size + n, max(when, earlier)
    bisect.insort(free, (at, size, when))


def _whole(a: Place, like: Any) -> bool:
    """Tell whether this is all that lies in its buffer, and lies there as another array does."""
    size = math.prod(a.shape) * a.dtype.itemsize
    alike = a.shape == like.shape and a.strides == like.strides and a.dtype == like.dtype
    return alike and not a.offset and size == a.buffer.root().nbytes


def _write_over(calls: Sequence[tuple]) -> None:
    """Let the result of an elementwise call take the place of an operand of which that is the last use."""
    for i, (f, args, settings) in enumerate(calls):
        out = settings.get("out")
        elementwise = isinstance(f, np.ufunc) and f.signature is None and list(settings) == ["out"]
        if not elementwise or not isinstance(out, Place) or out.buffer.first != i:
            continue
        places = [a for a in args if isinstance(a, Place)]
        for a in places:
            root = a.buffer.root()
            once = sum(other.buffer.root() is root for other in places) == 1
            if once and root.last == i and root.nbytes == out.buffer.nbytes and _whole(a, out):
                out.buffer.part_of, root.last = root, out.buffer.last
                break


def _span(place: Place) -> tuple[int, int]:
    """Return the bytes of its buffer between which a place lies."""
    reach = [(n - 1) * stride for n, stride in zip(place.shape, place.strides, strict=True)]
    first = place.offset + sum(r for r in reach if r < 0)
    return first, place.offset + sum(r for r in reach if r > 0) + place.dtype.itemsize


def _places(value: Any) -> Iterator[Place]:
    """Yield the places in the arguments of a call."""
    if isinstance(value, Place):
        yield value
    elif type(value) in (tuple, list):
        for v in value:
            yield from _places(v)


def _follow(calls: Sequence[tuple], buffers: Sequence[Buffer]) -> None:
    """Let a large result that is made block by block follow an operand of its size, each block in that one's place.

    That is right where no part of the operand is used any more once that part of the result has been touched; by one
    call both may be, if it goes element by element through the same place.
    """
    large = [b for b in buffers if b.nbytes >= FOLLOWED and b.part_of is None and b.home is None]
    pairs = [
        (a, b) for b in large for a in large
        if a is not b and a.nbytes == b.nbytes and a.first < b.first <= a.last < b.last
    ]  # fmt: skip
    wanted = {id(buffer) for pair in pairs for buffer in pair}
    uses: dict[int, list[tuple[int, int, int, bool]]] = {key: [] for key in wanted}
    for i, (f, args, settings) in enumerate(calls):
        elementwise = isinstance(f, np.ufunc) and f.signature is None and list(settings) == ["out"]
        for place in _places((*args, *settings.values())):
            root = place.buffer.root()
            if id(root) in wanted:
                uses[id(root)].append((i, *_span(place), elementwise))
    for a, b in pairs:
        if a.part_of is None and b.part_of is None and a.last < b.last and _after(uses[id(a)], uses[id(b)]):
            b.part_of, a.last = a, b.last
            uses[id(a)] += uses[id(b)]


def _after(earlier: Sequence[tuple[int, int, int, bool]], later: Sequence[tuple[int, int, int, bool]]) -> bool:
    """Tell whether each part of a buffer is used for the last time before that part of a second one is touched."""
    for i, low, high, _ in later:
        for j, first, end, elementwise in earlier:
            overlap = low < end and first < high
            if overlap and (j > i or (j == i and not (elementwise and (low, high) == (first, end)))):
                return False
    return True


def _hand_over(calls: Sequence[tuple], outside: Sequence[np.ndarray]) -> set[int]:
    """Let results be made where they are copied to, for `outside` arrays; return which calls are not needed then.

    That is right for what is copied whole, as its last use, to where nothing else is written.
    """
    wanted, left_out = {id(a) for a in outside}, set()
    for i, (f, args, _) in enumerate(calls):
        if f is not np.copyto or id(args[0]) not in wanted or not isinstance(args[1], Place):
            continue
        to, root = args[0], args[1].buffer.root()
        if _whole(args[1], to) and root.last == i and root.home is None:
            root.home = to
            left_out.add(i)
    return left_out


class Program:
    """The calls of a recorded step, ready to be made again.

    ends: how many calls each of its parts has come to; kept: results that are read after the last call; outside:
    arrays to which results are copied.
    """

    def __init__(
        self, recorder: Recorder, ends: Sequence[int], kept: Sequence[Any], outside: Sequence[np.ndarray], arena: Arena
    ):
        for result in kept:
            if isinstance(result, StandIn):
                result.buffer.last = len(recorder.calls)
        self._kept = [result.place() if isinstance(result, StandIn) else result for result in kept]
        _write_over(recorder.calls)
        _follow(recorder.calls, recorder.buffers)
        left_out = _hand_over(recorder.calls, outside)
        self._calls = [call for i, call in enumerate(recorder.calls) if i not in left_out]
        before = np.cumsum([0] + [i in left_out for i in range(len(recorder.calls))]).tolist()
        self._ends = [end - before[end] for end in ends]
        self.size = place([b for b in recorder.buffers if b.part_of is None and b.home is None])
        self._arena = arena
        self.forget()

    def forget(self) -> None:
        """Let go of the arena's memory."""
        self._built_in: np.ndarray | None = None
        self._arrays: dict[Place, np.ndarray] = {}
        self.kept: list[Any] = []
        self.parts: list[list[Callable[[], Any]]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def ready(self) -> list[list[Callable[[], Any]]]:
        """Return the calls of each part, with the arena's memory in them."""
        self._arena.reserve(self.size, self)
        if self._built_in is not self._arena.memory:
            self._built_in = self._arena.memory
            built = [self._bound(*call) for call in self._calls]
            starts = [0, *self._ends[:-1]]
            self.parts = [built[start:end] for start, end in zip(starts, self._ends, strict=True)]
            self.kept = [self._at(place) for place in self._kept]
            self._arrays = {}
        return self.parts

    def _bound(self, f: Callable, args: tuple, settings: dict[str, Any]) -> Callable[[], Any]:
        found, named = self._at(args), {name: self._at(value) for name, value in settings.items()}
        if isinstance(f, np.ufunc) and f not in BY_NAME and list(named) == ["out"] and f.nin == len(found):
            found, named = (*found, named["out"]), {}  # by its position it is found sooner
        return functools.partial(f, *found, **named)

    def _at(self, value: Any) -> Any:
        if isinstance(value, Place):
            if value not in self._arrays:
                home, at = value.buffer.root().home, value.offset
                memory, at = (home.data, at) if isinstance(home, np.ndarray) else (self._built_in, home + at)
                self._arrays[value] = np.ndarray(value.shape, value.dtype, memory, at, value.strides)
            return self._arrays[value]
        return type(value)([self._at(v) for v in value]) if type(value) in (tuple, list) else value

"""The calls that a step makes of NumPy, as a list: what was called, with which arguments, lying where.

`recorded.py` has the arrays that write themselves down here, `program.py` makes the calls again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from ..backend import NotRecordable


class Buffer:
    """Memory of one result, and the calls between which it is in use."""

    __slots__ = ("address", "nbytes", "outside", "first", "last", "home", "part_of")

    def __init__(self, array: np.ndarray, outside: bool, now: int):
        self.address, self.nbytes, self.outside = array.__array_interface__["data"][0], array.nbytes, outside
        self.first = self.last = now
        self.home: Any = None  # an array of somebody else's in whose place it is made, or where in the arena it lies
        self.part_of: Buffer | None = None  # in whose place it is made

    def root(self) -> Buffer:
        """Return the buffer in whose place this is made in the end, or this one."""
        found = self
        while found.part_of is not None:
            found = found.part_of
        return found


class Place(NamedTuple):
    """Where a recorded array lies: in a buffer, from an offset in bytes on."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class Changed(Exception):
    """A number on which the recorded step had decided something is another one now."""


def check(ask: Callable[[Any], Any], array: np.ndarray, answer: Any) -> None:
    """Raise Changed unless the answer is still the same."""
    if ask(array) != answer:
        raise Changed


def assign(out: np.ndarray, f: Callable, *args: Any, **settings: Any) -> None:
    """Copy the result of what cannot be told where to put it."""
    out[...] = f(*args, **settings)


class StandIn:
    """Stands in for an array of a step that is being recorded."""

    __slots__ = ("array", "buffer", "recorder", "whole")

    def __init__(self, array: np.ndarray, buffer: Buffer, recorder: Recorder, whole: bool):
        self.array, self.buffer, self.recorder, self.whole = array, buffer, recorder, whole

    def place(self) -> Any:
        """Return where this lies; what was there before the step lies in its own array."""
        a = self.array
        if self.buffer.outside:
            return a
        offset = a.__array_interface__["data"][0] - self.buffer.address
        return Place(self.buffer, offset if a.size else 0, a.shape, a.strides, a.dtype)


class Recorder:
    """The calls of a step, in order. Each is (function, arguments, settings), with a Place for each stand-in."""

    def __init__(self, kind: type[StandIn], namespace: Callable[[Recorder], Any]):
        self._kind, self._namespace = kind, namespace
        self.calls: list[tuple[Callable, tuple, dict[str, Any]]] = []
        self.buffers: list[Buffer] = []
        self._places: dict[Place, Place] = {}  # what lies in one place is one object
        self.open, self.spoiled = True, False
        self._thread = threading.get_ident()

    def outside(self, array: np.ndarray) -> Any:
        """Return the stand-in for an array that is there before the step and after it."""
        return self._kind(array, Buffer(array, True, 0), self, whole=False)

    def made(self, array: np.ndarray) -> Any:
        """Return the stand-in for a new array of the step."""
        buffer = Buffer(array, False, len(self.calls))
        self.buffers.append(buffer)
        return self._kind(array, buffer, self, whole=True)

    def listens(self) -> bool:
        """Tell whether a call is to be written down: while the step is recorded, and in its thread.

        Another thread that uses its arrays gets what it asks for, and the recording is of no use any more.
        """
        if self.open and threading.get_ident() != self._thread:
            self.spoiled = True
            return False
        return self.open

    def note(self, f: Callable, args: tuple, settings: dict[str, Any] | None = None) -> None:
        """Write a call down."""
        settings = {name: self._placed(value) for name, value in (settings or {}).items()}
        self.calls.append((f, self._placed(args), settings))

    def _placed(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            if value.recorder is not self:
                raise NotRecordable("something of an earlier recording has been kept, and used")
            value.buffer.last = len(self.calls)
            place = value.place()
            return self._places.setdefault(place, place) if isinstance(place, Place) else place
        return type(value)([self._placed(v) for v in value]) if type(value) in (tuple, list) else value

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside the block, ops get functions that make recorded arrays."""
        try:
            with backend.recording_calls(self._namespace(self)):
                yield
        finally:
            self.open = False


def plain(value: Any) -> Any:
    """Return what stands behind a stand-in, also inside tuples and lists."""
    if isinstance(value, StandIn):
        return value.array
    return type(value)([plain(v) for v in value]) if type(value) in (tuple, list) else value


def recorder_of(values: Sequence[Any]) -> Recorder | None:
    """Return who writes down what is done to one of these, inside tuples and lists, too; None for nobody."""
    for value in values:
        if isinstance(value, StandIn) and value.recorder.listens():
            return value.recorder
        if type(value) in (tuple, list) and (found := recorder_of(value)):
            return found
    return None


def require_recorded(out: Any) -> None:
    """Raise NotRecordable for a plain array, in which a result of a recorded step would be lost to sight."""
    if not isinstance(out, StandIn):
        raise NotRecordable("a result of a recorded step was to be written over a plain array")


def called(f: Callable, args: tuple, settings: dict[str, Any], takes_out: bool = True) -> Any:
    """Call a function, write it down, and return its result: the `out` that was given, or a new one."""
    recorder = recorder_of((*args, *settings.values()))
    out = settings.pop("out", None)
    out = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    known = {name: plain(value) for name, value in settings.items()}
    if out is not None:
        if recorder is not None:
            require_recorded(out)
        f(*plain(args), **known, out=plain(out))
        if recorder is None:
            return out
    else:
        result = f(*plain(args), **known)
        if recorder is None:
            return result
        if isinstance(result, tuple):
            raise NotRecordable(f"{getattr(f, '__name__', f)} gives several arrays")
        out = recorder.made(np.asarray(result))
    if takes_out:
        recorder.note(f, args, {**settings, "out": out})
    else:
        recorder.note(assign, (out, f, *args), settings)
    return out


def whole(f: Callable[..., None]) -> Callable[..., None]:
    """Return a function that is written down as one call; it fills arrays that it is given and returns nothing.

    For what NumPy is asked for in plain Python: loops and decisions that depend on values, draws of random numbers.
    """

    def call(*args: Any) -> None:
        f(*plain(args))
        if (recorder := recorder_of(args)) is not None:
            recorder.note(f, args)

    return call

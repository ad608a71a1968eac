"""What stands in for `numpy` while a step is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from .recorder import Recorder, StandIn, called, plain
from .registry import LINE


class Namespace:
    """Stands in for `numpy` in the ops of a step that is being recorded: what makes arrays makes recorded ones."""

    __name__ = "numpy"

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)  # what is given a Recorded asks it

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        """Make room, from the beginning of a line of cache on, as a replay has it."""
        shape, dtype = (shape if isinstance(shape, tuple) else (shape,)), np.dtype(dtype)
        return self.empty_like(np.broadcast_to(np.empty((), dtype), shape), order="C")

    def zeros(self, shape: Any, dtype: Any = float) -> Any:
        """Make room and fill it with zeros."""
        new = self.empty(shape, dtype)
        new.fill(0)
        return new

    def empty_like(self, x: Any, dtype: Any = None, order: Any = "K") -> Any:
        """Make room for as much, laid out as NumPy does it."""
        like = np.empty_like(plain(x), dtype, order)
        if not self.recorder.listens():
            return like
        longer = np.empty(like.nbytes + LINE, dtype=np.uint8)
        first = -longer.ctypes.data % LINE
        return self.recorder.made(np.ndarray(like.shape, like.dtype, longer, first, like.strides))

    def full_like(self, x: Any, value: Any, dtype: Any = None) -> Any:
        """Make as many equal numbers."""
        new = self.empty_like(x, dtype)
        new.fill(value)
        return new

    def zeros_like(self, x: Any, dtype: Any = None) -> Any:
        """Make as many zeros."""
        return self.full_like(x, 0, dtype)

    def ones_like(self, x: Any, dtype: Any = None) -> Any:
        """Make as many ones."""
        return self.full_like(x, 1, dtype)

    def take(self, x: Any, index: Any, axis: int | None = None) -> Any:
        """Pick elements; NumPy's own does not ask the index what it is."""
        return called(np.take, (x, index), {"axis": axis})

    def ascontiguousarray(self, x: Any, dtype: Any = None) -> Any:
        """Return an array that lies row by row."""
        if not _recorded(x):
            return np.ascontiguousarray(x, dtype)
        if x.flags.c_contiguous and dtype in (None, x.dtype):
            return x
        return x.copied_to(self.empty(x.shape, dtype or x.dtype), casting="unsafe")

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """Return an array, of a type."""
        return x.astype(dtype or x.dtype, copy=False) if _recorded(x) else np.asarray(x, dtype)


def _recorded(x: Any) -> bool:
    return isinstance(x, StandIn)

"""A training step recorded once, and then launched as a whole: a CUDA graph.

Python takes longer to ask for a small kernel than a GPU to run it. A graph is asked for once a step. What is recorded
are launches with their arguments as they were; so what changes from step to step (the batch, the learning rate, the
key of the dropout) lies in one array on the device that is written before each launch, in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backend

Step = Callable[..., tuple[Any, int, Any]]


class Live:
    """What changes from step to step, as 64-bit words on the device, and how each of them is found out."""

    def __init__(self, batch: Sequence[np.ndarray], words: int):
        self.batch = list(batch)
        self.host = np.zeros(words, dtype=np.int64)
        self.device = backend.xp().zeros(words, dtype=np.int64)
        self.used = 0
        self.writers: list[tuple[np.ndarray, Callable[[], Any]]] = []

    def _room(self, count: int) -> tuple[int, np.ndarray]:
        start, self.used = self.used, self.used + count
        if self.used > len(self.host):
            raise RuntimeError(f"a graph keeps {len(self.host)} numbers that change; this step needs more")
        return start, self.host[start : self.used]

    def numbers(self, dtype: str, count: int, values: Callable[[], Any]) -> int:
        """Keep room for numbers of 64 bits that `values` gives before each launch; return their address."""
        start, room = self._room(count)
        self.writers.append((room.view(dtype), values))
        return int(self.device[start:].data.ptr)

    def arrays(self, *sent: np.ndarray) -> list[Any]:
        """Keep room for arrays of the batch, and return them as they will lie on the device."""
        views = []
        for array in sent:
            index = next((i for i, a in enumerate(self.batch) if a is array), None)
            if index is None or array.dtype.itemsize != 8:
                raise RuntimeError(
                    "a graph is given the arrays of a batch, int64, as they are; write --set graph=false"
                )
            start, room = self._room(array.size)
            self.writers.append((room.view(array.dtype), lambda i=index: self.batch[i].ravel()))  # type: ignore[misc]
            views.append(self.device[start : self.used].view(array.dtype).reshape(array.shape))
        return views

    def write(self) -> None:
        """Find out all values, and send them in one copy."""
        for room, values in self.writers:
            room[...] = values()
        self.device[: self.used] = backend.xp().asarray(self.host[: self.used])  # by pinned memory: nobody waits


class GraphedStep:
    """Take training steps, by a graph where one was recorded for batches of that shape.

    step(*arrays) → (loss, tokens, norm) takes a step on a GPU without waiting for it; count(): notes on the host that
    the optimizer took one; tokens(*arrays) counts the tokens of a batch. The first step of a shape is taken as usual,
    the second is recorded. Arrays of the batch are int64.
    """

    def __init__(self, step: Step, count: Callable[[], None], tokens: Callable[..., int]):
        self.step, self.count, self.tokens = step, count, tokens
        xp = backend.xp()
        self.stream, self.pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
        self.seen: set[tuple] = set()  # shapes of batches
        self.graphs: dict[tuple, tuple[Any, Live, Any, Any]] = {}

    def __call__(self, *arrays: np.ndarray) -> tuple[Any, int, Any]:
        """Take a step; the loss (0-d) and the norm are arrays of their own."""
        shape = tuple([a.shape for a in arrays])
        if shape not in self.seen:
            self.seen.add(shape)
            return self.step(*arrays)
        outer = backend.xp().cuda.get_current_stream()
        self.stream.wait_event(outer.record())
        with self.stream:
            if shape in self.graphs:
                self.count()
            else:
                self.graphs[shape] = self._record(arrays)
            graph, live, loss, norm = self.graphs[shape]
            live.batch = list(arrays)
            live.write()
            graph.launch(self.stream)
            loss, report = loss.copy(), norm.base.copy()  # the next launch writes over them
        outer.wait_event(self.stream.record())
        return loss, self.tokens(*arrays), report[0]

    def _record(self, arrays: Sequence[np.ndarray]) -> tuple[Any, Live, Any, Any]:
        """Record a step. Its arrays live in a pool of their own, which nobody else may write into between launches."""
        live = Live(arrays, sum(a.size for a in arrays) + 256)
        with backend.xp().cuda.using_allocator(self.pool.malloc), backend.recording(live):
            self.stream.begin_capture()
            try:
                loss, _, norm = self.step(*arrays)
            finally:
                graph = self.stream.end_capture()
        return graph, live, loss, norm

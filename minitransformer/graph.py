"""A training step recorded once, and then launched as a whole: a CUDA graph.

Python takes longer to ask for a small kernel than a GPU to run it. A graph is asked for once a step. What is recorded
are launches with their arguments as they were; so what changes from step to step (the batch, the learning rate, the
key of the dropout) lies in one array on the device that is written before each launch, in one copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backend, draws

Step = Callable[..., tuple[Any, int, Any]]


class Live:
    """What changes from step to step, as 64-bit words on the device, and how each of them is found out."""

    def __init__(self, batch: Sequence[np.ndarray], words: int):
        self.batch = list(batch)
        self.host = np.zeros(words, dtype=np.int64)
        self.device = backend.xp().zeros(words, dtype=np.int64)
        self.used = 0
        self.sent: set[int] = set()  # which arrays of the batch
        self.kept: list[Any] = []  # of caches, which may forget it: the graph knows addresses alone
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
            self.sent.add(index)
            start, room = self._room(array.size)
            self.writers.append((room.view(array.dtype), lambda i=index: self.batch[i].ravel()))  # type: ignore[misc]
            views.append(self.device[start : self.used].view(array.dtype).reshape(array.shape))
        return views

    def write(self) -> None:
        """Find out all values, and send them in one copy."""
        for room, values in self.writers:
            room[...] = values()
        self.device[: self.used] = backend.xp().asarray(self.host[: self.used])  # by pinned memory: nobody waits


SHAPES = 64  # of batches, of which a graph is kept; steps of others are taken as usual


class GraphedStep:
    """Take training steps, by a graph where one was recorded for batches of that shape.

    step(*arrays) → (loss, tokens, norm) takes a step of `optimizer` on a GPU without waiting for it; tokens(*arrays)
    counts the tokens of a batch. The first step of a shape is taken as usual, the second is recorded. Arrays of the
    batch are int64.

    With `may_fail`, a step that cannot be recorded (its loss waits for the GPU, say) is taken as usual, and so are all
    after it; without it, it raises what CuPy says.
    """

    def __init__(self, step: Step, optimizer: Any, tokens: Callable[..., int], may_fail: bool = False):
        self.step, self.optimizer, self.tokens, self.may_fail = step, optimizer, tokens, may_fail
        xp = backend.xp()
        self.stream, self.pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
        self.seen: set[tuple] = set()  # shapes of batches
        self.most = SHAPES
        self.graphs: dict[tuple, tuple[Any, Live, Any, Any]] = {}

    def __call__(self, *arrays: np.ndarray) -> tuple[Any, int, Any]:
        """Take a step; the loss (0-d) and the norm are arrays of their own."""
        shape = tuple([a.shape for a in arrays])
        known = shape in self.graphs
        if not known and (shape not in self.seen or len(self.graphs) >= self.most):
            self.seen.add(shape)
            return self.step(*arrays)
        outer = backend.xp().cuda.get_current_stream()
        self.stream.wait_event(outer.record())
        with self.stream:
            if known:
                self.optimizer.count()  # the graph does the rest
            elif not self._recorded(shape, arrays):
                with outer:
                    return self.step(*arrays)
            graph, live, loss, norm = self.graphs[shape]
            live.batch = list(arrays)
            live.write()
            graph.launch(self.stream)
            loss, report = loss.copy(), norm.base.copy()  # the next launch writes over them
        outer.wait_event(self.stream.record())
        return loss, self.tokens(*arrays), report[0]

    def _recorded(self, shape: tuple, arrays: Sequence[np.ndarray]) -> bool:
        """Record a step for batches of a shape; tell whether that could be done."""
        before = draws.random_state(), self.optimizer.counts()
        try:
            self.graphs[shape] = self._record(arrays)
        except Exception:
            if not self.may_fail:
                raise
            self.most = 0
            self.pool.free_all_blocks()
            draws.set_random_state(*before[0])
            self.optimizer.recount(before[1])
        return shape in self.graphs

    def _record(self, arrays: Sequence[np.ndarray]) -> tuple[Any, Live, Any, Any]:
        """Record a step. Its arrays live in a pool of their own, which nobody else may write into between launches."""
        live = Live(arrays, sum(a.size for a in arrays) + 256)
        backend.xp().get_default_memory_pool().free_all_blocks()  # what the step before took is needed here now
        with backend.xp().cuda.using_allocator(self.pool.malloc), backend.recording(live):
            self.stream.begin_capture()
            try:
                loss, _, norm = self.step(*arrays)
            except BaseException:
                with contextlib.suppress(RuntimeError):  # what broke the capture is what is to be told
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()
        if len(live.sent) < len(arrays):
            raise RuntimeError(
                f"a graph is given all arrays of a batch by backend.send; it got {len(live.sent)} of {len(arrays)}; "
                "write --set graph=false"
            )
        return graph, live, loss, norm

"""A training step split over the cores: each worker takes a part of the batch, and the gradients are added up.

    g = Σᵢ (nᵢ/N)·gᵢ        gᵢ: the gradient of the mean over the nᵢ tokens of part i;    N = Σᵢ nᵢ

The step is split, not the op: an op of a small model takes a few microseconds, less than it costs to hand a part of
it to another core. The workers are processes, forked from this one, since Python runs one thread at a time between
NumPy's calls. Parameters and gradients lie in memory that all of them see; what travels each step is the part of the
batch, the state of the random numbers, and back a loss.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import multiprocessing
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import backend, draws
from .kernels.blas import limit_blas_threads
from .kernels.memory import keep_freed_memory
from .kernels.optimizers import add_up
from .nn import Module
from .optim.optimizer import Optimizer
from .optim.split import MOMENTS, SplitStep
from .replay import NOTHING, Part, Result, number
from .tensor import Tensor

Loss = Callable[..., tuple[Tensor, int]]
END = b"end"
AWAKE = 0.0003  # seconds that a worker waits for a message before it gives its core away
SHARED_SUM = 1 << 19  # gradients; fewer are added up before another worker has heard of it
MOST = 8  # a batch cut finer than this leaves each worker little to do


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many workers a training step gets by default: one a core on Linux, else one.

    Elsewhere the system's own libraries do not survive a fork (macOS), or there is none (Windows); there, products
    of matrices still use all cores.
    """
    return min(cores(), MOST) if sys.platform.startswith("linux") else 1


class Workers:
    """Compute the gradients of a batch with several processes.

    model: the Module whose parameters get gradients; loss(*arrays) → (mean loss, its count of tokens), as a Tensor
    and a number, or an array of one; count: how many workers, this process included. With count=1, or on a GPU,
    everything happens here.

        with Workers(model, loss, count=2) as workers:
            value, tokens = workers.backward(source, target)     # .grad of every parameter
            workers.step(optimizer)                              # as optimizer.step() does, by all of them

    From the start to `close` the parameters live in shared memory and matrix products use one thread a worker. The
    workers are copies of this process as it was: what changes later in the model, other than parameters and
    `train()`/`eval()`, they do not see. For a given seed and count the result is the same to the bit; between
    counts it differs by rounding. replay: whether workers record their part for each shape of a batch, and then make
    the same calls again, to the same bits (see replay.py).

    Raises ValueError for a count below 1 or more than one where it cannot fork, RuntimeError when a worker fails or
    dies.
    """

    def __init__(self, model: Module, loss: Loss, count: int | None = None, replay: bool = True):
        count = default_workers() if count is None else count
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"workers are counted from 1; got {count!r}; write workers=2")
        self.model, self.loss, self.parameters, self.replay = model, loss, model.parameters(), replay
        on_host = all(backend.backend_of(p.data) == "numpy" for p in self.parameters)
        if count > 1 and not hasattr(os, "fork"):
            raise ValueError(f"several workers need a system that forks; got workers={count}; write workers=1")
        self.count = count if on_host else 1
        self._stack = contextlib.ExitStack()
        self._pipes: list[Any] = []
        self._split: SplitStep | None = None
        self._own: Part | None = None  # of this process
        self.children: list[int] = []
        self.scale = 1.0  # of the loss; gradients come multiplied by it
        if on_host:
            keep_freed_memory()
        if self.count > 1:
            self._stack.enter_context(limit_blas_threads(1))
            self._share()
            self._fork()

    # -- setting up -----------------------------------------------------------------------------------------
    def _share(self) -> None:
        """Move the parameters into memory that a fork shares, and make room there for each worker's gradients."""
        offsets, size = [0] * len(self.parameters), 0
        for i in sorted(range(len(offsets)), key=lambda i: self.parameters[i].ndim <= 1):
            offsets[i] = size  # side by side, matrices first: so what is decayed alike is stepped as one
            size += self.parameters[i].data.nbytes
        values = mmap.mmap(-1, max(size, 1))
        gradients = [mmap.mmap(-1, max(size, 1)) for _ in range(self.count)]
        self._slots = []
        for offset, p in zip(offsets, self.parameters, strict=True):
            home = np.frombuffer(values, p.dtype, p.size, offset).reshape(p.shape)
            home[...] = p.data
            p.data = home
            self._slots.append([np.frombuffer(m, p.dtype, p.size, offset).reshape(p.shape) for m in gradients])
        if len({p.dtype for p in self.parameters}) == 1:
            dtype = self.parameters[0].dtype
            self._flat = [np.frombuffer(m, dtype) for m in gradients]
            moments = [np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype) for _ in range(MOMENTS)]
            starts = [offset // dtype.itemsize for offset in offsets]
            self._split = SplitStep(self.parameters, starts, np.frombuffer(values, dtype), self._flat[0], moments)

    def _fork(self) -> None:
        for i in range(1, self.count):
            ours, theirs = multiprocessing.Pipe()
            with warnings.catch_warnings():  # Python 3.12 warns of threads; a worker uses none but its own
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if not pid:
                try:
                    ours.close()
                    self._serve(i, theirs)
                finally:
                    os._exit(0)  # without what the parent has registered for its own end
            theirs.close()
            self._pipes.append(ours)
            self.children.append(pid)

    # -- a step ---------------------------------------------------------------------------------------------
    def backward(self, *arrays: Any) -> tuple[Any, int]:
        """Return the mean loss of a batch and its count of tokens, and leave the gradient in `.grad`.

        arrays: the batch, each with one row for each example on its first axis (B, ...). Earlier gradients are
        replaced. The loss is a 0-d array, on the device where the model lives.
        """
        if self.count == 1:
            self.model.zero_grad()
            with collector_paused(), may_overflow(self.scale):
                value, tokens = self.loss(*arrays)
                value.backward(self.scale)
            return value.data, number(tokens)
        arrays = tuple(np.ascontiguousarray(a) for a in arrays)
        rows = len(arrays[0])
        ends = [rows * i // self.count for i in range(self.count + 1)]
        state = draws.random_state()
        for i, pipe in enumerate(self._pipes, start=1):
            self._send(pipe, arrays, ends[i], ends[i + 1], state)
        results = [self._part(0, [a[: ends[1]] for a in arrays], 0)]
        for i, pipe in enumerate(self._pipes, start=1):
            answer = self._receive(i, pipe)
            results.append(Result(answer["loss"], answer["tokens"], answer["reached"]))
        with may_overflow(self.scale):
            return self._combine(results)

    def _part(self, worker: int, arrays: list[np.ndarray], first: int) -> Result:
        """Compute one part's loss; leave nᵢ·gᵢ in the worker's slots and name the parameters that were reached."""
        own = len(arrays[0])
        if not own:
            return NOTHING
        if self._own is None:
            slots = [slots[worker] for slots in self._slots]
            self._own = Part(self.loss, self.model, slots, self.replay)
        with collector_paused(), may_overflow(self.scale), draws.drawing_for_rows(first, own):
            return self._own(arrays, self.scale)

    def _combine(self, results: list[Result]) -> tuple[np.ndarray, int]:
        """Add the workers' gradients up and divide by the number of all tokens."""
        total = sum(tokens for _, tokens, _ in results)
        loss = np.asarray(sum(value * n for value, n, _ in results) / max(total, 1), dtype=self.parameters[0].dtype)
        scale = 1 / max(total, 1)
        if self._split is not None and all(len(indices) == len(self.parameters) for _, _, indices in results):
            if len(self._flat[0]) < SHARED_SUM:
                add_up(self._flat, scale)
            else:
                self._all_do({"factor": scale})
            self._split.hand_out(self.parameters)
            return loss, total
        for i, p in enumerate(self.parameters):
            parts = [self._slots[i][w] for w, (_, _, indices) in enumerate(results) if i in indices]
            if parts:
                p.grad = sum(parts[1:], start=parts[0]) * np.asarray(scale, dtype=p.dtype)
            else:
                p.grad = None
        return loss, total

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step: what `optimizer.step()` does, to the bit, shared by all workers if it can be.

        That is where the gradients are those that `backward` has left (scaled and clipped in place, perhaps), and the
        optimizer treats each element alone. What it remembers then lies in shared memory, too.
        """
        order = self._split.begin(optimizer) if self._split is not None and self.children else None
        if order is None:
            optimizer.step()
        else:
            self._all_do(order)

    def _all_do(self, order: dict[str, Any]) -> None:
        """Have every worker do its share of something that is done to flat arrays."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it has died; `_receive` says so
                pipe.send_bytes(json.dumps({"order": order}).encode())
        self._do(order, 0)
        for i, pipe in enumerate(self._pipes, start=1):
            self._receive(i, pipe)

    def _do(self, order: dict[str, Any], worker: int) -> None:
        """Do a worker's share: add the gradients of all up and multiply them by a factor, or step the parameters."""
        assert self._split is not None
        size = len(self._flat[0])
        first, end = (size * i // self.count // 16 * 16 for i in (worker, worker + 1))  # where a line of cache begins
        share = slice(first, end if worker + 1 < self.count else size)
        if "factor" in order:
            with may_overflow(self.scale):
                add_up([flat[share] for flat in self._flat], order["factor"])
        else:
            self._split.run(order, share)

    # -- between processes ----------------------------------------------------------------------------------
    def _send(self, pipe: Any, arrays: tuple, first: int, end: int, state: Any) -> None:
        """Send a part of the batch: a line of JSON that says what comes, then the bytes of each array."""
        parts = [a[first:end] for a in arrays]
        header = {
            "first": first, "scale": self.scale, "training": self.model.training, "random": state,
            "arrays": [[a.dtype.str, list(a.shape)] for a in parts],
        }  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # it has died; `_receive` says so
            pipe.send_bytes(json.dumps(header).encode())
            for a in parts:
                pipe.send_bytes(a.tobytes())

    def _awaited(self, pipe: Any) -> bytes:
        """Return the next message; a core that has gone to sleep takes longer to wake up than most of them take."""
        if self.count <= cores():
            coming, until = select.poll(), time.perf_counter() + AWAKE
            coming.register(pipe, select.POLLIN)
            while not coming.poll(0) and time.perf_counter() < until:
                pass
        return pipe.recv_bytes()  # type: ignore[no-any-return]

    def _receive(self, worker: int, pipe: Any) -> dict[str, Any]:
        try:
            answer = json.loads(self._awaited(pipe))
        except (EOFError, ConnectionResetError):
            self.close()
            raise RuntimeError(
                f"every worker answers each step; worker {worker} of {self.count} has died (killed, or out of memory); "
                "resume the run, or write workers=1"
            ) from None
        if "error" in answer:
            self.close()
            raise RuntimeError(f"worker {worker} of {self.count} failed: {answer['error']}")
        return answer  # type: ignore[no-any-return]

    def _serve(self, worker: int, pipe: Any) -> None:
        """Answer steps until the other end of the pipe is closed, as it is when the parent ends in whatever way."""
        for other in self._pipes:  # of workers that were forked before
            other.close()
        for s in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop, and closes the pipe
            signal.signal(s, signal.SIG_IGN)
        while True:
            try:
                message = self._awaited(pipe)
                if message == END:
                    return
                header = json.loads(message)
                raw = [pipe.recv_bytes() for _ in header.get("arrays", ())]
            except (EOFError, OSError):
                return
            try:
                answer = self._answer(worker, header, raw)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(BrokenPipeError):
                pipe.send_bytes(json.dumps(answer).encode())

    def _answer(self, worker: int, header: dict[str, Any], raw: list[bytes]) -> dict[str, Any]:
        if "order" in header:
            self._do(header["order"], worker)
            return {}
        if self.model.training != header["training"]:
            self.model.train(header["training"])
        draws.set_random_state(*header["random"])
        self.scale = header["scale"]
        described = zip(raw, header["arrays"], strict=True)
        arrays = [np.frombuffer(data, dtype).reshape(shape) for data, (dtype, shape) in described]
        return self._part(worker, arrays, header["first"])._asdict()

    def agree(self, flag: bool) -> bool:
        """Return the flag: there is but one process that decides (see `distributed.DataParallel.agree`)."""
        return flag

    # -- the end --------------------------------------------------------------------------------------------
    def close(self) -> None:
        """End the workers and give matrix products their threads back; the parameters stay where they are."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                pipe.send_bytes(END)  # another fork may hold this pipe open, so that closing it says nothing
            pipe.close()
        for pid in self.children:
            _wait(pid, seconds=5.0)
        self._pipes, self.children = [], []
        self._stack.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's cycle collector from walking a graph that is being built: it holds no cycle to find."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def may_overflow(scale: float) -> Any:
    """Return the context of a backward pass: a scaled loss may overflow, and its owner looks for that."""
    return np.errstate(over="ignore", invalid="ignore") if scale != 1 else contextlib.nullcontext()


def _wait(pid: int, seconds: float) -> None:
    """Wait for a child to end; after some seconds, make it."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.001)

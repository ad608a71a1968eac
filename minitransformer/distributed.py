"""Training on several processes, each with a copy of the model and a part of every batch.

    g = Σᵣ nᵣ·gᵣ / Σᵣ nᵣ        gᵣ: the gradient of the mean over the nᵣ tokens of rank r

`mpiexec -n 4 minitransformer train ...` starts four ranks. After each backward pass all have the same sum of gradients
and take the same step, so that their weights stay the same to the bit and never travel. The sum is made while the
backward pass still runs: parameters are gathered in buckets from the output backwards, and a bucket sets off as soon
as its last gradient is there. MPI carries arrays on the host, NCCL those on GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import numpy as np

from . import backend, draws
from .kernels.blas import limit_blas_threads
from .kernels.cuda.nccl import NcclCommunicator, own_gpu, require_nccl
from .kernels.memory import keep_freed_memory
from .nn import Module
from .optim.optimizer import Optimizer
from .parallel import Loss, collector_paused, cores, may_overflow
from .replay import number
from .tensor import _propagate, _seed_gradient

BUCKET_BYTES = 1 << 20  # of gradients that travel together: enough to pay for the trip, few enough to set off early
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")  # set by mpiexec of MPICH, Intel MPI and Open MPI


class Communicator(Protocol):
    """What data-parallel training needs of an engine."""

    rank: int
    size: int

    def start_sum(self, array: Any) -> Callable[[], bool]:
        """Begin to replace an array by its sum over all ranks; the function returned tells whether that is done."""

    def finish(self) -> None:
        """Wait until every sum begun is done."""

    def broadcast(self, array: Any) -> None:
        """Replace an array by that of rank 0."""


class MpiCommunicator:
    """Sums on the host by MPI (mpi4py; Message Passing Interface 3.1, non-blocking collectives)."""

    def __init__(self, mpi: Any):
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.pending: list[Any] = []

    def start_sum(self, array: Any) -> Callable[[], bool]:
        """Begin a sum in place. The engine works on it whenever the function returned is asked."""
        request = self.comm.Iallreduce(self.mpi.IN_PLACE, array, op=self.mpi.SUM)
        self.pending.append(request)
        return lambda: bool(request.Test())

    def finish(self) -> None:
        """Wait for all sums."""
        self.mpi.Request.Waitall(self.pending)
        self.pending = []

    def broadcast(self, array: Any) -> None:
        """Send rank 0's array to all."""
        self.comm.Bcast(array, root=0)

    def on_this_machine(self) -> tuple[int, int]:
        """Return which of this machine's ranks this is, and how many there are."""
        here = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        return int(here.Get_rank()), int(here.Get_size())


class Elsewhere(Exception):
    """Another rank has failed, and says why."""


class Ranks:
    """The processes that mpiexec has started: which of them this is, and what they agree on."""

    def __init__(self, communicator: MpiCommunicator):
        self.mpi, self.rank, self.size = communicator, communicator.rank, communicator.size

    def agree(self, flag: bool) -> bool:
        """Tell whether any rank says so."""
        total = np.array([float(flag)])
        self.mpi.start_sum(total)
        self.mpi.finish()
        return bool(total[0])

    def told(self, value: Any) -> Any:
        """Return rank 0's value on every rank; it goes as JSON."""
        text = json.dumps(value if self.rank == 0 else None).encode()
        size = np.array([len(text)])
        self.mpi.broadcast(size)
        line = np.frombuffer(text, np.uint8).copy() if self.rank == 0 else np.empty(int(size[0]), np.uint8)
        self.mpi.broadcast(line)
        return json.loads(line.tobytes())

    def together(self, what: Callable[[], Any]) -> Any:
        """Return what() on every rank; where it fails on any, raise on every, and let one speak.

        Raises the error itself on the first rank that has one, and Elsewhere on the others.
        """
        error: Exception | None = None
        result = None
        try:
            result = what()
        except Exception as problem:
            error = problem
        failed = np.zeros(self.size)
        failed[self.rank] = error is not None
        self.mpi.start_sum(failed)
        self.mpi.finish()
        if not failed.any():
            return result
        if error is not None and self.rank == int(failed.argmax()):
            raise error
        raise Elsewhere(f"rank {int(failed.argmax())} has failed")

    def abort(self, status: int) -> NoReturn:
        """End all ranks at once, where one cannot go on and the others would wait for it."""
        self.mpi.comm.Abort(status)
        raise SystemExit(status)

    def require_gpus(self, on: str) -> None:
        """Raise RuntimeError, on all ranks, where they compute on GPUs and any two on the same."""
        if on == "numpy":
            return
        gpus = len(set(self.mpi.comm.allgather(own_gpu())))
        if gpus < self.size:
            raise RuntimeError(
                f"each rank needs a GPU of its own; got {self.size} ranks and {gpus} GPU{'s' * (gpus > 1)}; "
                f"write mpiexec -n {gpus}, or --backend numpy"
            )

    def communicator(self, like: Any) -> Communicator:
        """Return what sums arrays that live where this one does. Raises RuntimeError where ranks cannot do that."""
        on = backend.backend_of(like)
        if on == "numpy":
            return self.mpi
        self.require_gpus(on)
        self.together(lambda: require_nccl(like))
        return NcclCommunicator(self.rank, self.size)


def ranks() -> Ranks | None:
    """Return the ranks that mpiexec has started, or None where this process runs alone.

    It comes before the model is made: from here on, each rank makes its arrays on a GPU of its own.
    Raises RuntimeError, with what to install, where mpiexec has started several and mpi4py is missing.
    """
    if not any(int(os.environ.get(name) or 1) > 1 for name in SIZES):
        return None
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RuntimeError(
            "several ranks need mpi4py; it is not installed here; write pip install 'minitransformer[mpi]'"
        ) from error
    found = Ranks(MpiCommunicator(MPI))
    if found.size == 1:
        return None
    backend.choose_gpu(found.mpi.on_this_machine()[0])
    return found


class DataParallel:
    """Compute the gradients of a batch on several ranks; it is used as `parallel.Workers` is.

    model: the same on every rank (rank 0's parameters are sent around at the start); loss(*arrays) → (mean loss, its
    count of tokens). Every rank calls `backward` with the whole batch and takes its own rows. The loss returned, and
    every gradient, are those of the whole batch, the same to the bit on every rank.
    """

    children: tuple[int, ...] = ()

    def __init__(self, model: Module, loss: Loss, ranks: Ranks, bucket_bytes: int = BUCKET_BYTES):
        self.model, self.loss, self.ranks = model, loss, ranks
        self.parameters = [p for p in model.parameters() if p.node is not None]  # those that are not frozen
        self._where = backend.backend_of(self.parameters[0].data)
        self.communicator = ranks.communicator(self.parameters[0].data)
        self._stack = contextlib.ExitStack()
        keep_freed_memory()
        self._stack.enter_context(limit_blas_threads(max(1, cores() // ranks.mpi.on_this_machine()[1])))
        for p in model.parameters():
            self.communicator.broadcast(p.data)
        self._expected = {p.node for p in self.parameters}  # what the last step has reached; at first, all
        self.scale = 1.0  # of the loss; gradients come multiplied by it
        self.early = 0  # buckets that set off before the last backward pass had ended
        self._make_buckets(bucket_bytes)

    def _make_buckets(self, bucket_bytes: int) -> None:
        """Lay parameters side by side, the last first, as their gradients become ready; and cut that into buckets."""
        xp = backend.namespace((self.parameters[0].data,))
        self._place: dict[Any, tuple[int, slice]] = {}  # node → bucket, where in it
        rooms: list[list[Any]] = []
        taken, dtype = 0, None
        for p in reversed(self.parameters):
            if not rooms or taken >= bucket_bytes or p.dtype != dtype:
                rooms.append([])
                taken, dtype, at = 0, p.dtype, 0
            self._place[p.node] = (len(rooms) - 1, slice(at, at + p.size))
            rooms[-1].append(p)
            at += p.size
            taken += p.data.nbytes
        self.buckets = [xp.empty(sum(p.size for p in room), dtype=room[0].dtype) for room in rooms]
        self._members = [[p.node for p in room] for room in rooms]

    def backward(self, *arrays: Any) -> tuple[Any, int]:
        """Return the mean loss of a batch and its count of tokens, and leave the gradient in `.grad`.

        arrays: the batch, each with one row for each example on its first axis (B, ...), whole on every rank.
        """
        rows, rank, size = len(arrays[0]), self.ranks.rank, self.ranks.size
        first, end = rows * rank // size, rows * (rank + 1) // size
        for bucket in self.buckets:
            bucket.fill(0)
        progress = _Progress(self, [sum(n in self._expected for n in nodes) for nodes in self._members])
        value: Any = 0.0
        tokens = 0
        if end > first:
            with collector_paused(), may_overflow(self.scale), draws.drawing_for_rows(first, end - first):
                loss, count = self.loss(*[a[first:end] for a in arrays])
                tokens = number(count)  # one of NumPy's would make float64 of a loss on a GPU
                if loss.node is not None and tokens:
                    value = loss.data * tokens
                    seed = _seed_gradient(loss, tokens * self.scale)
                    for node, g, _ in _propagate(loss.node, seed, keep_graph=False, leaves_when_ready=True):
                        if node in self._place:
                            progress.take(node, g)
        self.early = progress.next
        progress.flush()
        late, reached = ([p.node in found for p in self.parameters] for found in (progress.late, progress.taken))
        sums = np.array([float(value) if self._where == "numpy" else 0.0, tokens, *late, *reached], np.float64)
        self.ranks.mpi.start_sum(sums)  # on the host, which knows all of this without asking a GPU
        self.ranks.mpi.finish()
        self.communicator.finish()
        counts_late, counts = sums[2:].reshape(2, -1)  # of ranks, for each parameter
        for p, count in zip(self.parameters, counts_late, strict=True):
            if count:
                self._add_late(p, progress.late.get(p.node))
        total = max(float(sums[1]), 1.0)
        for bucket in self.buckets:
            bucket *= 1 / total
        self._expected = {p.node for p, count in zip(self.parameters, counts, strict=True) if count}
        for p in self.parameters:
            index, part = self._place[p.node]
            p.grad = self.buckets[index][part].reshape(p.shape) if p.node in self._expected else None
        return self._mean_loss(value, sums[0], total), int(sums[1])

    def _add_late(self, p: Any, g: Any) -> None:
        """Sum up, on its own, a gradient that has come on some rank after its bucket had gone."""
        index, part = self._place[p.node]
        room = backend.namespace((self.buckets[index],)).zeros_like(self.buckets[index][part])
        if g is not None:
            room[...] = g.reshape(-1)
        self.communicator.start_sum(room)
        self.communicator.finish()
        self.buckets[index][part] += room

    def _mean_loss(self, value: Any, on_host: float, total: float) -> Any:
        """Return the mean loss, a 0-d array where the model lives; on a GPU it is summed there, without waiting."""
        dtype = self.parameters[0].dtype
        if self._where == "numpy":
            return np.asarray(on_host / total, dtype=dtype)
        xp = backend.namespace((self.parameters[0].data,))
        summed = xp.zeros(1, dtype=dtype)
        summed += value  # of one type on all ranks, also on one without any rows
        self.communicator.start_sum(summed)
        self.communicator.finish()
        return summed[0] / total

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step: every rank takes the whole of it."""
        optimizer.step()

    def agree(self, flag: bool) -> bool:
        """Tell whether any rank says so: they stop at the same step."""
        return self.ranks.agree(flag)

    def close(self) -> None:
        """Give matrix products their threads back."""
        self._stack.close()

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class _Progress:
    """Sends buckets in one order on every rank, and keeps those under way moving while the backward pass goes on.

    A bucket goes when all gradients are there that the step before has had; one that comes later is summed by itself.
    """

    def __init__(self, parallel: DataParallel, waiting: list[int]):
        self.parallel, self.waiting, self.next = parallel, waiting, 0
        self.under_way: list[Callable[[], bool]] = []
        self.late: dict[Any, Any] = {}
        self.taken: set[Any] = set()  # leaves that have a gradient on this rank

    def take(self, node: Any, g: Any) -> None:
        """Put a leaf's gradient into its bucket, and start what can be started."""
        index, part = self.parallel._place[node]
        self.taken.add(node)
        if index < self.next:
            self.late[node] = g.copy()
            return
        self.parallel.buckets[index][part] = g.reshape(-1)
        self.waiting[index] -= node in self.parallel._expected
        while self.next < len(self.waiting) and not self.waiting[self.next]:
            self._start()
        self.under_way = [done for done in self.under_way if not done()]

    def flush(self) -> None:
        """Start the rest: buckets of which some gradients have not come."""
        while self.next < len(self.waiting):
            self._start()

    def _start(self) -> None:
        self.under_way.append(self.parallel.communicator.start_sum(self.parallel.buckets[self.next]))
        self.next += 1

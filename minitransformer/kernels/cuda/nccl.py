"""Sums over several GPUs; see `distributed.Communicator`. It needs GPUs: the host mock has no NCCL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class NcclCommunicator:
    """Sums between GPUs by NCCL (cupyx.distributed), on a stream beside that of the backward pass."""

    def __init__(self, rank: int, size: int):
        import cupy
        from cupyx.distributed import init_process_group

        self.cupy, self.rank, self.size = cupy, rank, size
        cupy.cuda.Device(rank % cupy.cuda.runtime.getDeviceCount()).use()
        self.group = init_process_group(size, rank, use_mpi=True)
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def start_sum(self, array: Any) -> Callable[[], bool]:
        """Begin a sum in place once what was asked for before is done; nobody waits here."""
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())
        self.group.all_reduce(array, array, stream=self.stream)
        return lambda: bool(self.stream.done)

    def finish(self) -> None:
        """Let the stream of the model wait for the sums; the host goes on."""
        self.cupy.cuda.get_current_stream().wait_event(self.stream.record())

    def broadcast(self, array: Any) -> None:
        """Send rank 0's array to all."""
        self.group.broadcast(array, root=0)

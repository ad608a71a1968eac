"""Sums over several GPUs, one for each rank; see `distributed.Communicator`.

Tested on CuPy's own distributed backend over the host mock, which has an NCCL of its own. Not yet on GPUs: there, the
sums run beside the backward pass, while on the mock every call waits for all ranks.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from typing import Any


def own_gpu() -> str:
    """Return a name of the GPU that this process works on, which no other GPU has."""
    import cupy

    return f"{platform.node()} {cupy.cuda.Device().pci_bus_id}"


class NcclCommunicator:
    """Sums between GPUs by NCCL (cupyx.distributed), on a stream beside that of the backward pass.

    Raises RuntimeError where NCCL is not installed.
    """

    def __init__(self, rank: int, size: int):
        import cupy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy says in five lines that NCCL is missing; ours is below
            from cupy.cuda import nccl
            from cupyx.distributed import init_process_group
        if not nccl.available:
            raise RuntimeError(
                "ranks on GPUs need NCCL; CuPy does not find it; "
                f"write pip install nvidia-nccl-cu{cupy.cuda.runtime.runtimeGetVersion() // 1000}"
            )
        self.cupy, self.rank, self.size, self.device = cupy, rank, size, cupy.cuda.Device()
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
        """Send rank 0's array to all. Raises RuntimeError for one that was made before the rank had its GPU."""
        if array.device != self.device:
            raise RuntimeError(
                f"rank {self.rank} works on GPU {self.device.id}; got an array on GPU {array.device.id}; "
                "call distributed.ranks() before the model is made"
            )
        self.group.broadcast(array, root=0)

"""Sums over several GPUs, one for each rank; see `distributed.Communicator`.

Tested with CuPy's own distributed backend over an NCCL that the host mock stands in for, and not yet on several GPUs.
There the sums run beside the backward pass; on the mock each call waits until all ranks have made it.
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


def require_nccl(array: Any) -> None:
    """Raise RuntimeError where NCCL is missing, or where an array is not on the GPU that this process works on."""
    import cupy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy says in five lines what is said here in one
        from cupy.cuda import nccl
    if not nccl.available:
        raise RuntimeError(
            "ranks on GPUs need NCCL; CuPy does not find it; "
            f"write pip install nvidia-nccl-cu{cupy.cuda.runtime.runtimeGetVersion() // 1000}, or --backend numpy"
        )
    here, there = cupy.cuda.Device().id, array.device.id
    if here != there:
        raise RuntimeError(
            f"a rank's model lives on the GPU it works on; got one on GPU {there}, and the rank works on {here}; "
            "call distributed.ranks() before the model is made"
        )


class NcclCommunicator:
    """Sums between GPUs by NCCL (cupyx.distributed), on a stream beside that of the backward pass."""

    def __init__(self, rank: int, size: int):
        import cupy
        from cupyx.distributed import init_process_group

        self.cupy, self.rank, self.size = cupy, rank, size
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

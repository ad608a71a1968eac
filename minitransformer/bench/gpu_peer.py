"""One library on a GPU in a process of its own; it answers as `peer.py` does, but is waited for once a burst.

$ python -m minitransformer.bench.gpu_peer ours gpt-small weights.npz
{"steps": 30}  →  {"seconds": [0.002], "losses": [4.2, ...]}: the time of one of these steps

A training loop does not wait for the GPU after every step, and so is not timed as if it did.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

from . import configs
from .peer import answer_orders, build


class Ours:
    """A step of minitransformer through CuPy. recorded: as a CUDA graph; book: without kernels."""

    def __init__(self, c: configs.BenchConfig, weights: dict[str, Any], recorded: bool = True, book: bool = False):
        from .. import backend, optim
        from ..graph import GraphedStep
        from ..parallel import Workers
        from ..tensor import use_kernels

        if book:
            use_kernels(False)
        backend.set_backend("cupy")
        self.xp = backend.xp()
        model = configs.model(c)
        model.load_state_dict(weights)
        workers = Workers(model, _loss_of_arrays(model), 1)
        optimizer = optim.Adam(model.parameters(), lr=configs.LEARNING_RATE)

        def step(*arrays: Any) -> tuple[Any, int, Any]:
            loss, tokens = workers.backward(*arrays)
            norm = optim.clip_grad_norm_(model.parameters(), float("inf"), error_if_nonfinite=False)
            optimizer.step()
            return loss, tokens, norm

        self.graph = GraphedStep(step, optimizer, lambda *arrays: arrays[-1].size) if recorded else None
        self.run = self.graph or step

    def step(self, *arrays: Any) -> Any:
        """Train on one batch; return its loss, which nobody has waited for."""
        return self.run(*arrays)[0]

    def wait(self) -> None:
        """Wait until the GPU has done all that was asked of it."""
        self.xp.cuda.Device().synchronize()

    def memory(self) -> int:
        """Return the bytes that are kept on the device."""
        return self.xp.get_default_memory_pool().total_bytes() + (self.graph.pool.total_bytes() if self.graph else 0)


def _loss_of_arrays(model: Any) -> Any:
    from .. import backend

    loss = configs.loss(model)
    return lambda *arrays: loss(*backend.send(*arrays))


def _pytorch(c: Any, w: Any, **options: bool) -> Any:
    from .pytorch import PyTorchOnGpu

    return PyTorchOnGpu(c, w, **options)


def _jax(c: Any, w: Any) -> Any:
    from .functional import JaxOnGpu

    return JaxOnGpu(c, w)


# name → (how to make it, the module it needs, what to install, what it is)
PEERS: dict[str, tuple[Callable, str, str, str]] = {
    "ours": (Ours, "cupy", "minitransformer[gpu13]", "minitransformer, step recorded"),
    "ours-eager": (
        lambda c, w: Ours(c, w, recorded=False), "cupy", "minitransformer[gpu13]", "minitransformer, launch by launch",
    ),
    "book": (
        lambda c, w: Ours(c, w, recorded=False, book=True), "cupy", "minitransformer[gpu13]",
        "minitransformer, kernels off",
    ),
    "torch": (_pytorch, "torch", "torch", "PyTorch eager, fused Adam"),
    "torch-graph": (lambda c, w: _pytorch(c, w, recorded=True), "torch", "torch", "PyTorch, step recorded"),
    "torch-compile": (lambda c, w: _pytorch(c, w, compiled=True), "torch", "torch", "PyTorch compiled, fused Adam"),
    "jax": (_jax, "jax", "jax[cuda13]", "JAX jit"),
}  # fmt: skip


def serve(name: str, config: str, weights: str) -> None:
    """Build the peer, then take orders from standard input until it ends."""
    peer, batches = build(PEERS, name, config, weights)

    def answer(steps: int) -> dict[str, Any]:
        peer.wait()
        began = time.perf_counter()
        losses = [peer.step(*batch) for batch in itertools.islice(batches, steps)]
        peer.wait()
        seconds = (time.perf_counter() - began) / steps
        return {"seconds": [seconds], "losses": [float(loss) for loss in losses], "memory": peer.memory()}

    answer_orders(answer)


if __name__ == "__main__":
    serve(*sys.argv[1:])

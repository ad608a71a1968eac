"""Our own training step, as `train` takes it: workers over the parts of a batch, then Adam."""

from __future__ import annotations

from typing import Any

from .. import optim
from ..parallel import Workers
from ..tensor import use_kernels
from . import configs


class Ours:
    """A step of minitransformer. book: without kernels and in one process."""

    def __init__(self, config: configs.BenchConfig, weights: dict[str, Any], book: bool = False):
        if book:
            use_kernels(False)
        self.model = configs.model(config)
        self.model.load_state_dict(weights)
        self.workers = Workers(self.model, configs.loss(self.model), 1 if book else None)
        self.optimizer = optim.Adam(self.model.parameters(), lr=configs.LEARNING_RATE)
        self.children = self.workers.children

    def step(self, *arrays: Any) -> float:
        """Train on one batch and return its loss."""
        value, _ = self.workers.backward(*arrays)
        self.workers.step(self.optimizer)
        return float(value)

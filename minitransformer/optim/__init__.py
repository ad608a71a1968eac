"""Optimizers, learning-rate schedules and gradient clipping, by the names that PyTorch gives them."""

from .adafactor import Adafactor
from .adam import Adam, AdamW
from .clipping import clip_grad_norm_, clip_grad_value_, parameter_at_fault
from .optimizer import Optimizer
from .schedules import Constant, Noam, WarmupCosine
from .sgd import SGD

__all__ = [
    "SGD", "Adafactor", "Adam", "AdamW", "Constant", "Noam", "Optimizer", "WarmupCosine", "clip_grad_norm_",
    "clip_grad_value_", "parameter_at_fault",
]  # fmt: skip

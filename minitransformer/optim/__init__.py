"""Optimizers, learning-rate schedules, and what is done to gradients before a step, by PyTorch's names."""

from .accumulation import GradAccumulator
from .adafactor import Adafactor
from .adam import Adam, AdamW
from .clipping import (
    Fault,
    clip_grad_norm_,
    clip_grad_value_,
    grad_norms,
    gradients_at_fault,
    parameter_at_fault,
    scale_gradients_,
)
from .guard import Spike, SpikeGuard
from .lion import Lion
from .optimizer import Optimizer
from .scaling import GradScaler
from .schedules import Constant, Exponential, InverseSquareRoot, Noam, Schedule, StepDecay, WarmupCosine, WarmupLinear
from .sgd import SGD

__all__ = [
    "Adafactor", "Adam", "AdamW", "Constant", "Exponential", "Fault", "GradAccumulator", "GradScaler",
    "InverseSquareRoot", "Lion", "Noam", "Optimizer", "SGD", "Schedule", "Spike", "SpikeGuard", "StepDecay",
    "WarmupCosine", "WarmupLinear", "clip_grad_norm_", "clip_grad_value_", "grad_norms", "gradients_at_fault",
    "parameter_at_fault", "scale_gradients_",
]  # fmt: skip

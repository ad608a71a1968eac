"""Initial weights. Their spread decides whether signals and gradients keep their size on the way through a stack.

Numbers are drawn on the host from the library's generator: one seed gives the same weights on every backend.
"""

from __future__ import annotations

import math

from .. import backend, draws
from ..tensor import Parameter

DTYPE = "float32"


def normal(shape: tuple[int, ...], std: float = 1.0) -> Parameter:
    """Draw from a normal distribution of mean 0.    → shape"""
    values = draws.generator().standard_normal(shape) * std
    return Parameter(backend.to_backend(values.astype(DTYPE), backend.get_backend()))


def uniform(shape: tuple[int, ...], bound: float) -> Parameter:
    """Draw evenly from −bound … bound.    → shape"""
    values = draws.generator().uniform(-bound, bound, shape)
    return Parameter(backend.to_backend(values.astype(DTYPE), backend.get_backend()))


def constant(shape: tuple[int, ...], value: float) -> Parameter:
    """Fill with one value.    → shape"""
    return Parameter(backend.xp().full(shape, value, dtype=DTYPE))


def xavier_uniform(shape: tuple[int, int], gain: float = 1.0) -> Parameter:
    """Draw evenly within ±gain·√(6/(in + out)), which keeps the spread both forwards and backwards.    → (out, in)

    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    return uniform(shape, gain * math.sqrt(6 / (shape[0] + shape[1])))


def kaiming_uniform(shape: tuple[int, int], gain: float = math.sqrt(2)) -> Parameter:
    """Draw evenly within ±gain·√(3/in), which keeps the spread through ReLU forwards.    → (out, in)

    He et al. 2015, arXiv:1502.01852.
    """
    return uniform(shape, gain * math.sqrt(3 / shape[1]))

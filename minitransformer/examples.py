"""Small computations to step through, from one neuron to a layer of a Transformer: `minitransformer step NAME`.

Each takes its numbers as defaults, so that they can be replaced, and gives one number, whose gradient goes all the way
back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import nn, ops
from .backend import get_backend, to_backend
from .draws import manual_seed


def _numbers(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype="float32")


POINT, WEIGHT, BIAS = _numbers(0.5, -1.0), _numbers(0.8, 0.3), _numbers(0.1)
TABLE, SHIFTS = _numbers([1, 2, 3], [4, 5, 6]), _numbers(0.1, 0.2, 0.3)
LOGITS = _numbers([2.0, 1.0, 0.1])
UNEVEN, SCALES, OFFSETS = _numbers([1, 2, 4, 9], [-3, 0, 0, 3]), _numbers(1, 1, 2, 1), _numbers(0, 0, 1, 0)
QUERIES = _numbers([1, 0], [0, 2], [1, 1])
KEYS = _numbers([1, 0], [0, 1], [2, -1])
VALUES = _numbers([1, 0], [0, 1], [0.5, 0.5])
TOKENS = _numbers([[0.1, -0.4, 0.3, 0.8], [1.0, 0.2, -0.5, 0.0], [-0.3, 0.6, 0.9, -1.2]])


def neuron(x: Any = POINT, weight: Any = WEIGHT, bias: Any = BIAS) -> Any:
    """Let one neuron miss its target by a square.    x, weight: (2,), bias: (1,) → a number"""
    total = (weight * x).sum() + bias
    y = total.tanh()
    error = y - 0.5
    return (error * error).sum()


def broadcast(x: Any = TABLE, bias: Any = SHIFTS) -> Any:
    """Add one bias to every row; on the way back its gradients are added up.    x: (2, 3), bias: (3,) → a number"""
    shifted = x + bias
    return (shifted * shifted).mean()


def softmax(x: Any = LOGITS) -> Any:
    """Be surprised by the second of three classes: softmax, then −ln p.    x: (1, 3) → a number"""
    p = ops.softmax(x)
    surprise = -ops.log(p[:, 1])
    return surprise.sum()


def layer_norm(x: Any = UNEVEN, weight: Any = SCALES, bias: Any = OFFSETS) -> Any:
    """Normalise two rows, and ask for their cubes.    x: (2, 4), weight, bias: (4,) → a number"""
    y = ops.layer_norm(x, weight, bias)
    return (y**3).mean()


def attention(q: Any = QUERIES, k: Any = KEYS, v: Any = VALUES) -> Any:
    """Let three tokens look at themselves and at what came before.    q, k, v: (3, 2) → a number"""
    scores = q @ k.T / math.sqrt(2)
    past = to_backend(np.tri(3, dtype=bool), get_backend())
    weights = ops.softmax(scores, mask=past)
    mixed = weights @ v
    error = mixed - v
    return (error * error).mean()


def layer(x: Any = TOKENS) -> Any:
    """Pass three tokens through an encoder layer with two heads, part by part.    x: (1, 3, 4) → a number"""
    manual_seed(0)
    encoder = nn.EncoderLayer(4, 2, 8, 0.0, "pre", "gelu")
    y = encoder(x)
    return (y * y).mean()


EXAMPLES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (attention, neuron, broadcast, softmax, layer_norm, layer)
}

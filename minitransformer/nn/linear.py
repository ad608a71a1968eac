"""Linear layers and lookup tables."""

from __future__ import annotations

from typing import Any

from .. import ops
from . import init
from .module import Module


class Linear(Module):
    """Apply y = x·weightᵀ + bias to every row.

    x: (..., in_features) → y: (..., out_features).    weight: (out, in), Xavier-uniform; bias: (out,), zeros.

    Raises ValueError for sizes below 1 or an x of another width.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        if in_features < 1 or out_features < 1:
            raise ValueError(
                f"Linear needs sizes of at least 1; got {in_features} and {out_features}; write Linear(64, 256)"
            )
        self.weight = init.xavier_uniform((out_features, in_features))
        self.bias = init.constant((out_features,), 0.0) if bias else None

    def forward(self, x: Any) -> Any:
        return ops.linear(x, self.weight, self.bias)


class Transposed(Module):
    """Apply the transpose of another Linear's weight: y = x·weight + bias, with a bias of its own.

    x: (..., out_features of the other) → y: (..., in_features of the other)

    The weight is the other's, one array for both: it is stored once, stepped once, and gets both gradients.
    """

    def __init__(self, other: Linear, bias: bool = True):
        self.weight = other.weight
        self.bias = init.constant((other.weight.shape[1],), 0.0) if bias else None

    def forward(self, x: Any) -> Any:
        return ops.linear(x, self.weight.swapaxes(0, 1), self.bias)


class Embedding(Module):
    """Look up a row of a table for each token id.

    ids: integers (...) → (..., D).    weight: (V, D), normal with spread `std` (1, as in PyTorch, by default).

    Raises IndexError for an id outside 0 … V − 1, TypeError for ids that are not integers, ValueError for sizes < 1.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float = 1.0):
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                f"Embedding needs sizes of at least 1; got {num_embeddings} and {embedding_dim}; "
                "write Embedding(100, 64)"
            )
        self.weight = init.normal((num_embeddings, embedding_dim), std)

    def forward(self, ids: Any) -> Any:
        if ids.dtype.kind not in "iu":
            raise TypeError(f"token ids are integers; got {ids.dtype}; write ids.astype('int64')")
        return ops.embedding(ids, self.weight)

"""Products: one large GEMM each, with the bias added in place, and its gradient a product with ones."""

from __future__ import annotations

from ...ops.linear import _linear, _matmul
from .. import linear as of_numpy
from ..registry import kernel

kernel(_linear, "cupy")(of_numpy.linear)  # the same calls are the right ones: rows·weightᵀ takes a flag, no copy
kernel(_matmul, "cupy")(of_numpy.matmul)

"""Fused kernels for CuPy: one launch where the book takes five or eight.

On a GPU an elementwise op costs what it moves: a value read from memory takes as long as a hundred additions. So each
kernel here reads its arrays once and writes its results once, and does all arithmetic in between, in float32 for half
precision. Its docstring says how many bytes it moves, beside the fewest that could do.

A block takes a row (of a softmax, of a LayerNorm), or a warp of it a narrow one; its threads hold what they have read,
16 bytes at a time, and add up by shuffles within warps of 32 and by shared memory between them, always in the same
order, so that a run gives the same bits each time. Nothing here makes the host wait, and nothing is compiled before it
is first called.
"""

from __future__ import annotations

from . import activation, attention, blockwise, dropout, embedding, linear, loss, norm, optimizers, softmax  # noqa: F401  (registers)

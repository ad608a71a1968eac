"""One step for several batches: their gradients added up, as if they had been one batch that memory has no room for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..backend import Array, namespace
from ..kernels.cuda import optimizers as cuda
from ..tensor import Tensor
from .clipping import at_once, scale_gradients_
from .optimizer import unique_parameters


class GradAccumulator:
    """Add up the gradients of several batches, each weighted by its tokens.

        g = Σᵢ (nᵢ/N)·gᵢ        gᵢ: the gradient of the mean over the nᵢ tokens of batch i;    N = Σᵢ nᵢ

        for batch in batches:
            loss(batch).backward()
            accumulator.add(tokens)
        accumulator.finish()
        optimizer.step()

    A mean of the means, Σᵢ gᵢ/k, would give the tokens of a short batch more weight than those of a long one. The sums
    are kept in the parameters' dtype and take as many bytes as the parameters. This is common practice and no paper's
    own.
    """

    def __init__(self, parameters: Iterable[Tensor] | Tensor):
        self.parameters = unique_parameters(parameters)
        self.sums: list[Array | None] = [None] * len(self.parameters)
        self.tokens = 0

    def add(self, tokens: int) -> None:
        """Take the gradients out of the parameters, and remember `tokens` times them.

        A batch of no tokens adds nothing. Raises ValueError for what is no count.
        """
        if isinstance(tokens, bool) or not isinstance(tokens, int | np.integer) or tokens < 0:
            raise ValueError(
                f"tokens are counted from 0; got {tokens!r}; write the number that the mean was taken over"
            )
        found = [(i, p.node.grad) for i, p in enumerate(self.parameters) if p.node is not None]
        new = [(i, g) for i, g in found if g is not None and tokens and self.sums[i] is None]
        known = [(i, g) for i, g in found if g is not None and tokens and self.sums[i] is not None]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by its norm
            self._add(new, tokens, first=True)
            self._add(known, tokens, first=False)
        for p in self.parameters:
            p.grad = None  # Workers lay the next gradients into the same memory
        self.tokens += tokens

    def _add(self, gradients: list[tuple[int, Array]], tokens: int, first: bool) -> None:
        if not gradients:
            return
        arrays = tuple([g for _, g in gradients])
        xp = namespace(arrays)
        if first:
            for i, g in gradients:
                self.sums[i] = xp.empty(g.shape, dtype=g.dtype)
        sums = tuple([self.sums[i] for i, _ in gradients])
        if at_once(xp, [*arrays, *sums]):
            cuda.accumulate(xp, sums, arrays, tokens, first)
            return
        for total, g in zip(sums, arrays, strict=True):
            if first:
                xp.multiply(g, tokens, out=total)
            else:
                total += g * tokens

    def finish(self) -> int:
        """Leave the gradient of the mean over all tokens in `.grad`, begin anew, and return how many tokens it was."""
        for p, total in zip(self.parameters, self.sums, strict=True):
            p.grad = total
        count, self.sums, self.tokens = self.tokens, [None] * len(self.parameters), 0
        scale_gradients_(self.parameters, 1 / max(count, 1))
        return count

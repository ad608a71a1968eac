"""The engine room: faster bodies for some ops, under the same names and with the same contract.

A kernel takes what its op's body takes, `(xp, *arrays, **settings)`, and returns what it returns, `(y, vjp)`; the
book in `ops/` says what is computed, the kernel only computes it sooner. Where a kernel meets a kind of input that it
was not made for (half precision, arrays that are not laid out in rows), it calls the book. `use_kernels(False)` turns
all of them off; then results differ by rounding alone, and a test holds each kernel to that.

`decoding` and `one_row` are no op's body but a whole stack's: one new token through it, for generate/fast.py.
`recorder`, `recorded`, `namespace` and `program` keep the calls of a whole step, for replay.py.

What pays in NumPy, and is done here:

    a product with a vector of ones          adds up rows or columns 3 to 10 times faster than x.sum
    out= and in place                        saves the page faults of a fresh array
    blocks that fit into the second cache    several passes over them cost little more than one
    a derivative kept from the forward       one array instead of the three or four that it is made of
    many small products instead of one       up to 1.4 times faster where BLAS does not pack them (AVX-512)
"""

from __future__ import annotations

from . import activation, attention, blockwise, chunked_loss, cuda, dropout, embedding, linear, norm, softmax  # noqa: F401  (importing registers them)
from .registry import KERNELS

__all__ = ["KERNELS"]

"""Our own step: the plain book loses what kernels and workers lose."""

import minitransformer as mt
from minitransformer.bench.ours import Ours


def test_the_book_agrees(agrees):
    try:
        agrees(lambda c, w: Ours(c, w, book=True))
    finally:
        mt.use_kernels(True)

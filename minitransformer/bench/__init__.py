"""Timing a training step beside other libraries' on the same machine: `minitransformer bench`.

Each library runs the same model from the same weights on the same batches, in a process of its own (`peer.py`), and
takes turns with the others (`run.py`), with a pause between: an idle BLAS thread spins for a tenth of a second and
would slow down whoever comes next. What is reported is the median of the ratios within each turn.
"""

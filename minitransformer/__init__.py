"""minitransformer: the Transformer you can step through."""

from . import data, kernels, lessons, models, nn, ops, optim, views
from . import ops as functional
from .backend import get_backend, set_backend, use_backend
from .checkpoint import load, save
from .draws import manual_seed
from .gradcheck import gradcheck
from .ops.precision import autocast
from .parallel import Workers
from .recompute import recompute
from .tensor import (
    PRIMITIVES,
    Parameter,
    Tensor,
    enable_grad,
    grad,
    gradients,
    no_grad,
    primitive,
    tensor,
    use_kernels,
    value_and_grad,
)
from .trace import Trace, trace

__version__ = "0.1.0"
__all__ = [
    "PRIMITIVES", "Parameter", "Tensor", "Trace", "Workers", "autocast", "data", "enable_grad", "functional",
    "get_backend", "grad", "gradcheck", "gradients", "kernels", "lessons", "load", "manual_seed", "models", "nn",
    "no_grad", "ops", "optim", "primitive", "recompute", "save", "set_backend", "tensor", "trace", "use_backend",
    "use_kernels", "value_and_grad", "views",
]  # fmt: skip

"""minitransformer: the Transformer you can step through."""

from . import ops
from .tensor import Tensor, tensor

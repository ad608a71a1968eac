"""The book: each op is a plain function, its forward on top and its vjp below. Also as `minitransformer.functional`.

This file only gathers them, and teaches Tensors their operators and methods.
"""

from __future__ import annotations

from typing import Any

from ..backend import namespace
from ..tensor import PRIMITIVES, Tensor, as_array
from .activation import gelu, relu, sigmoid, silu, tanh
from .attention import (
    attention_weights,
    join_heads,
    repeat_heads,
    scaled_dot_product_attention,
    split_heads,
)
from .blockwise import blockwise_attention
from .chunked_loss import linear_cross_entropy
from .dropout import dropout, dropout_add
from .elementwise import (
    abs,
    add,
    clip,
    cos,
    divide,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    power,
    reciprocal,
    scale,
    shift,
    sign,
    sin,
    sqrt,
    subtract,
    sum_to,
    where,
)
from .erf import erf
from .indexing import embedding, getitem, scatter_add, take_along_axis
from .linear import einsum, linear, matmul
from .linear_attention import linear_attention, linear_attention_weights, positive_features
from .mask import causal_mask
from .norm import layer_norm, rms_norm
from .position import by_distance, rotary, sum_by_distance
from .reduction import max, mean, min, sum
from .shape import broadcast_to, concatenate, reshape, stack, swapaxes, transpose
from .softmax import cross_entropy, log_softmax, softmax

__all__ = [
    "abs", "add", "attention_weights", "blockwise_attention", "broadcast_to", "by_distance", "causal_mask", "clip",
    "concatenate", "cos", "cross_entropy", "divide", "dropout", "dropout_add", "einsum", "embedding", "erf", "exp",
    "gelu", "getitem", "join_heads", "layer_norm", "linear", "linear_attention", "linear_attention_weights",
    "linear_cross_entropy", "log", "log_softmax", "matmul", "max", "maximum", "mean", "min", "minimum", "multiply",
    "negative", "positive_features", "power", "reciprocal", "relu", "repeat_heads", "reshape", "rms_norm", "rotary",
    "scale", "scaled_dot_product_attention", "scatter_add", "shift", "sigmoid", "sign", "silu", "sin", "softmax",
    "split_heads", "sqrt", "stack", "subtract", "sum", "sum_by_distance", "sum_to", "swapaxes", "take_along_axis",
    "tanh", "transpose", "where",
]  # fmt: skip

# Functions that a body calls through `xp`, and that are more than one primitive.
PRIMITIVES.update(matmul=matmul, einsum=einsum, concatenate=concatenate, stack=stack)


def _operand(value: Any, like: Tensor) -> Tensor:
    """Wrap the other side of an operator; an array goes nowhere by itself, a list becomes one of the same dtype."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "dtype"):
        value = namespace((like.data,)).asarray(value, dtype=like.dtype)
    elif not value.ndim:  # a NumPy scalar, such as np.float64(2), is a number too: it must not widen float32
        value = value.astype(like.dtype) if value.dtype.kind == "f" else value
    return Tensor(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not hasattr(value, "dtype")


def _add(a: Tensor, b: Any) -> Tensor:
    return shift(a, offset=b) if _is_number(b) else add(a, _operand(b, a))


def _subtract(a: Tensor, b: Any) -> Tensor:
    return shift(a, offset=-b) if _is_number(b) else subtract(a, _operand(b, a))


def _subtract_from(a: Tensor, b: Any) -> Tensor:
    return shift(negative(a), offset=b) if _is_number(b) else subtract(_operand(b, a), a)


def _multiply(a: Tensor, b: Any) -> Tensor:
    return scale(a, factor=b) if _is_number(b) else multiply(a, _operand(b, a))


def _divide(a: Tensor, b: Any) -> Tensor:
    return scale(a, factor=1 / b) if _is_number(b) else divide(a, _operand(b, a))


def _divide_into(a: Tensor, b: Any) -> Tensor:
    return reciprocal(a, numerator=b) if _is_number(b) else divide(_operand(b, a), a)


def _power(a: Tensor, b: Any) -> Tensor:
    return power(a, exponent=b) if _is_number(b) else exp(log(a) * _operand(b, a))


def _getitem(a: Tensor, index: Any) -> Tensor:
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(as_array(p) for p in parts)
    return getitem(a, index=parts if isinstance(index, tuple) else parts[0])


def _sizes(shape: tuple) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape


def _compare(name: str) -> Any:
    def compare(a: Tensor, b: Any) -> Tensor:
        return Tensor(getattr(a.data, name)(as_array(b)))

    return compare


for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Tensor, _name, _compare(_name))
for _name, _method in {
    "__add__": _add, "__radd__": _add, "__sub__": _subtract, "__rsub__": _subtract_from,
    "__mul__": _multiply, "__rmul__": _multiply, "__truediv__": _divide, "__rtruediv__": _divide_into,
    "__pow__": _power, "__neg__": negative, "__abs__": abs, "__getitem__": _getitem,
    "__matmul__": lambda a, b: matmul(a, _operand(b, a)), "__rmatmul__": lambda a, b: matmul(_operand(b, a), a),
    "__and__": lambda a, b: Tensor(a.data & as_array(b)), "__or__": lambda a, b: Tensor(a.data | as_array(b)),
    "__invert__": lambda a: Tensor(~a.data),
    "exp": exp, "log": log, "sqrt": sqrt, "tanh": tanh, "sigmoid": sigmoid, "relu": relu, "abs": abs,
    "sum": lambda a, axis=None, keepdims=False: sum(a, axis=axis, keepdims=keepdims),
    "mean": lambda a, axis=None, keepdims=False: mean(a, axis=axis, keepdims=keepdims),
    "max": lambda a, axis=None, keepdims=False: max(a, axis=axis, keepdims=keepdims),
    "min": lambda a, axis=None, keepdims=False: min(a, axis=axis, keepdims=keepdims),
    "reshape": lambda a, *shape: reshape(a, shape=_sizes(shape)),
    "transpose": lambda a, *axes: transpose(a, axes=_sizes(axes) if axes else None),
    "swapaxes": lambda a, axis1, axis2: swapaxes(a, axis1=axis1, axis2=axis2),
    "astype": lambda a, dtype: a.to(dtype),
}.items():  # fmt: skip
    if not _name.startswith("_") and not _method.__doc__:
        _method.__doc__ = f"Do what `{'Tensor.to' if _name == 'astype' else 'ops.' + _name}` does; see there."
    setattr(Tensor, _name, _method)
Tensor.T = property(lambda a: transpose(a))  # type: ignore[assignment]

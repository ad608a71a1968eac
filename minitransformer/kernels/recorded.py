"""Write down what NumPy is asked for while a step runs, so that the same can be asked for again without the step.

A Recorded stands in for an array: it has its values, and whatever is done to it is done, and written down. NumPy asks
it first (`__array_ufunc__`, `__array_function__`), so an op's body runs on it as it is. What cannot be written down is
refused; nothing goes past it unseen, for a Recorded never turns into a plain array.

    views             are no calls: they say where a result lies
    bool(x), float(x) become checks: another answer than the one the step went on with ends a replay
    draws             are looked up at each replay (`draws.LiveDraw`)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import NotRecordable
from .namespace import Namespace
from .recorder import Recorder, StandIn, called, check, plain, recorder_of, require_recorded


def _parts(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _is_basic(index: Any) -> bool:
    known = slice | int | np.integer | None | type(Ellipsis)
    return all(isinstance(p, known) and not isinstance(p, bool) for p in _parts(index))


def _decides(index: Any) -> bool:
    """Tell whether an index is a recorded mask, which picks as many elements as its values say."""
    return any(isinstance(p, Recorded) and p.dtype == bool for p in _parts(index))


def _method(name: str) -> Callable:
    f = getattr(np.ndarray, name)
    return lambda self, *args, **settings: called(f, (self, *args), settings)


def _ufunc(f: Callable) -> Callable:
    def operator_of(self: Recorded, *others: Any) -> Any:
        if any(getattr(other, "__array_ufunc__", 0) is None for other in others):
            return NotImplemented  # a Tensor answers for itself
        return called(f, (self, *others), {})

    return operator_of


def _reflected(f: Callable) -> Callable:
    return lambda self, other: called(f, (other, self), {})


def _in_place(f: Callable) -> Callable:
    return lambda self, other: called(f, (self, other), {"out": self})


def _viewing(name: str) -> Callable:
    f = getattr(np.ndarray, name)
    return lambda self, *args: self._view(f(self.array, *args))


def _of_array(name: str) -> Any:
    return property(lambda self: getattr(self.array, name))


class Recorded(StandIn):
    """Stands in for an array of a step that is being recorded; afterwards it is a wrapper that nobody notices."""

    __slots__ = ()
    __hash__ = object.__hash__

    # -- what it is -----------------------------------------------------------------------------------------
    shape, dtype, ndim, size, itemsize, nbytes, strides, flags, ctypes = (
        _of_array(name)
        for name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "flags", "ctypes")
    )

    @property
    def base(self) -> Any:
        """None for an array of its own, as of NumPy's."""
        return None if self.whole else self.array

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, *args: Any, **settings: Any) -> np.ndarray:
        if self.recorder.listens():
            raise NotRecordable("a result of a recorded step was turned into a plain array")
        return np.array(self.array, *args, **settings)

    # -- what the step decides by ----------------------------------------------------------------------------
    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        answer = ask(self.array)
        if self.recorder.listens():
            self.recorder.note(check, (ask, self, answer))
        return answer

    def __bool__(self) -> bool:
        return self._asked(bool)  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return self._asked(int)  # type: ignore[no-any-return]

    def __index__(self) -> int:
        return self._asked(operator.index)  # type: ignore[no-any-return]

    def __float__(self) -> float:
        return self._asked(float)  # type: ignore[no-any-return]

    def item(self) -> Any:
        """Return the value of an array of one element."""
        return self._asked(np.ndarray.item)

    # -- views ----------------------------------------------------------------------------------------------
    def _view(self, array: np.ndarray) -> Recorded:
        return Recorded(array, self.buffer, self.recorder, whole=False)

    def reshape(self, *shape: Any) -> Any:
        """Return a view of another shape, or a copy where there is none."""
        array = self.array.reshape(*shape)
        if not array.size or np.may_share_memory(array, self.array):
            return self._view(array)
        new = self._new(array.shape)
        new.reshape(self.shape)[...] = self
        return new

    def _new(self, shape: tuple[int, ...]) -> Any:
        return Namespace(self.recorder).empty(shape, self.dtype)

    transpose, swapaxes, squeeze, view = (_viewing(name) for name in ("transpose", "swapaxes", "squeeze", "view"))

    T = property(lambda self: self._view(self.array.T))

    def __getitem__(self, index: Any) -> Any:
        if _is_basic(index):
            index = _parts(index)
            return self._view(self.array[index if Ellipsis in index else (*index, ...)])
        if _decides(index):
            raise NotRecordable("a mask of a recorded step picks as many elements as its values say")
        return called(operator.getitem, (self, index), {}, takes_out=False)

    def __setitem__(self, index: Any, value: Any) -> None:
        if _decides(index) and bool(getattr(value, "ndim", 0)):
            raise NotRecordable("a mask of a recorded step takes as many elements as its values say")
        self.array[plain(index)] = plain(value)
        if not self.recorder.listens():
            return
        if index is Ellipsis and hasattr(value, "dtype"):
            self.recorder.note(np.copyto, (self, value), {"casting": "unsafe"})
        else:
            self.recorder.note(operator.setitem, (self, index, value))

    # -- copies ---------------------------------------------------------------------------------------------
    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Return a copy of another type."""
        if not copy and self.dtype == dtype:
            return self
        return self.copied_to(Namespace(self.recorder).empty_like(self, dtype), casting="unsafe")

    def copy(self) -> Any:
        """Return a copy."""
        return self.copied_to(self._new(self.shape))

    def copied_to(self, new: Any, **settings: Any) -> Any:
        """Copy it to a new array, and return that."""
        np.copyto(plain(new), self.array, **settings)
        if self.recorder.listens():
            self.recorder.note(np.copyto, (new, self), settings)
        return new

    def fill(self, value: Any) -> None:
        """Set all elements to one number."""
        self.array.fill(value)
        if self.recorder.listens():
            self.recorder.note(np.ndarray.fill, (self, value))

    # -- arithmetic -----------------------------------------------------------------------------------------
    sum, max, min, mean, any, all, argmax, argmin, cumsum = (
        _method(name) for name in ("sum", "max", "min", "mean", "any", "all", "argmax", "argmin", "cumsum")
    )
    __add__, __sub__, __mul__, __truediv__, __matmul__, __pow__, __floordiv__, __mod__ = (
        _ufunc(f) for f in (np.add, np.subtract, np.multiply, np.divide, np.matmul, np.power, np.floor_divide,
                            np.remainder)
    )  # fmt: skip
    __radd__, __rsub__, __rmul__, __rtruediv__, __rmatmul__, __rpow__, __rfloordiv__, __rand__, __ror__ = (
        _reflected(f) for f in (np.add, np.subtract, np.multiply, np.divide, np.matmul, np.power, np.floor_divide,
                                np.bitwise_and, np.bitwise_or)
    )  # fmt: skip
    __iadd__, __isub__, __imul__, __itruediv__, __ifloordiv__, __imod__, __ipow__, __imatmul__ = (
        _in_place(f) for f in (np.add, np.subtract, np.multiply, np.divide, np.floor_divide, np.remainder, np.power,
                               np.matmul)
    )  # fmt: skip
    __iand__, __ior__, __ixor__, __ilshift__, __irshift__ = (
        _in_place(f) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)
    )
    __and__, __or__, __xor__, __lshift__, __rshift__ = (
        _ufunc(f) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)
    )
    __lt__, __le__, __gt__, __ge__ = (_ufunc(f) for f in (np.less, np.less_equal, np.greater, np.greater_equal))
    __eq__, __ne__ = _ufunc(np.equal), _ufunc(np.not_equal)  # type: ignore[assignment]
    __neg__, __invert__, __abs__ = (_ufunc(f) for f in (np.negative, np.invert, np.absolute))

    # -- what NumPy asks it for -----------------------------------------------------------------------------
    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **settings: Any) -> Any:
        if method != "at":
            return called(ufunc if method == "__call__" else getattr(ufunc, method), args, settings)
        if (recorder := recorder_of(args)) is not None:
            require_recorded(args[0])
            recorder.note(ufunc.at, args)
        ufunc.at(*plain(args))
        return None

    def __array_function__(self, f: Callable, types: Any, args: tuple, settings: dict[str, Any]) -> Any:
        recorder = recorder_of((*args, *settings.values()))
        if recorder is None:
            return f(*plain(args), **{name: plain(value) for name, value in settings.items()})
        if f in SHAPES:
            array = f(plain(args[0]), *args[1:], **settings)
            return args[0]._view(array)
        if f in (np.empty_like, np.zeros_like, np.ones_like, np.full_like):
            return getattr(Namespace(recorder), f.__name__)(*args, **settings)
        if f is np.copyto and args:
            require_recorded(args[0])
            f(*plain(args), **{name: plain(value) for name, value in settings.items()})
            recorder.note(f, args, settings)
            return None
        if f is np.where and len(args) == 3:
            return _where(recorder, *args)
        if f in WITH_OUT or f in WITHOUT_OUT:
            return called(f, args, settings, takes_out=f in WITH_OUT and "dtype" not in settings)
        raise NotRecordable(f"numpy.{f.__name__} is not written down")


# NumPy's functions that can be written down: views, results in a place that is told, other results.
SHAPES = {np.broadcast_to, np.swapaxes, np.moveaxis, np.expand_dims, np.squeeze, np.transpose}
WITH_OUT = {np.clip, np.concatenate, np.einsum, np.stack, np.take, np.sum, np.max, np.min, np.mean, np.cumsum}
WITHOUT_OUT = {np.take_along_axis, np.argsort, np.repeat, np.tril, np.triu, np.roll}


def _where(recorder: Recorder, condition: Any, x: Any, y: Any) -> Recorded:
    """Write down a choice as two copies, into one place at each replay."""
    out = recorder.made(np.where(*plain((condition, x, y))))
    recorder.note(np.copyto, (out, y), {"casting": "unsafe"})
    recorder.note(np.copyto, (out, x), {"where": condition, "casting": "unsafe"})
    return out


def new_recorder() -> Recorder:
    """Return a recorder of what is done to its stand-ins, which are Recorded."""
    return Recorder(Recorded, Namespace)

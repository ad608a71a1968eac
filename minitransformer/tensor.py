"""The engine: a Tensor remembers how it was made, and `backward` walks that memory from the end to the start.

    tensor  ──node──►  Node  ──parents──►  Node  ──parents──►  ...        one way only

A Node holds the vjp of one op (a function that turns the gradient of its output, g, into the gradients of its
inputs) and the Nodes of those inputs; never a Tensor of its own past, so there is no reference cycle and memory
goes as soon as nobody looks. Nodes are numbered at birth; an input is older than its output, hence walking the
numbers downwards is a topological order, with a heap for a memory and no recursion.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend
from .backend import Array

_births = itertools.count(1)


class _Mode(threading.local):
    """What is being recorded, for each thread on its own."""

    enabled = True  # are ops recorded at all?
    depth = 0  # how many `grad` calls are running inside one another
    replayable = 0  # > 0: nodes keep their input Tensors, so that the backward can itself be differentiated
    observer: Any = None  # who looks on (trace.py), told of each op that made a Tensor


_mode = _Mode()


class Node:
    """One step of a computation, as the backward pass sees it.

    A leaf (a tensor you made) has no vjp; its `grad` fills up. Any other node drops its vjp, and with it every
    array that the vjp kept, once `backward` has used it.
    """

    __slots__ = ("birth", "op", "vjp", "parents", "replay", "shape", "dtype", "grad", "retains", "__weakref__")

    def __init__(self, op: str, data: Array, vjp: Callable | None, parents: tuple[Node | None, ...], replay: Any):
        self.birth = next(_births)
        self.op = op
        self.vjp = vjp
        self.parents = parents
        self.replay = replay  # (body, args, kwargs) with the Tensors still in args, or None
        self.shape = data.shape
        self.dtype = data.dtype
        self.grad: Array | None = None
        self.retains = vjp is None  # leaves keep what arrives; other nodes only when asked to

    def __repr__(self) -> str:
        return f"Node({self.op}, birth={self.birth}, shape={self.shape})"


class Tensor:
    """An array that remembers how it was made.

    data: the NumPy or CuPy array. requires_grad: whether `backward` shall reach it. Arithmetic, indexing and the
    ops of `minitransformer.ops` take Tensors and give Tensors.
    """

    __slots__ = ("data", "node", "__weakref__")
    __array_ufunc__ = None  # so that `array + tensor` asks the Tensor, instead of making an array of Tensors
    __array_priority__ = 1000  # the same for CuPy

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("a Tensor is made from an array; got a Tensor; write t.detach() or t.data")
        self.data = data
        self.node: Node | None = None
        if requires_grad:
            self.requires_grad = True

    # -- what it is ---------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __len__(self) -> int:
        if not self.data.ndim:
            raise TypeError("len() needs at least one axis; got a 0-d tensor; write t.item()")
        return len(self.data)

    def __repr__(self) -> str:
        text = np.array2string(backend.to_numpy(self.data), precision=4, separator=", ", prefix="tensor(", threshold=50)
        extra = f", op={self.node.op}" if self.node and self.node.vjp else ", requires_grad=True" if self.node else ""
        return f"tensor({text}, dtype={self.dtype}{extra})"

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array (shared memory where they already are one)."""
        return backend.to_numpy(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> Any:
        """Return the value of a tensor of one element as a Python number."""
        return self.data.item()

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def detach(self) -> Tensor:
        """Return a Tensor of the same data (not copied) that remembers nothing."""
        return Tensor(self.data)

    def to(self, where: Any) -> Tensor:
        """Move to a backend ("numpy", "cupy") or convert to a dtype; differentiable either way."""
        return _move(self, where=where) if self.node else Tensor(_moved(self.data, where))

    # -- gradients ----------------------------------------------------------------------------------------------
    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and self.node.vjp is not None:
            raise RuntimeError(f"only a leaf can change requires_grad; this came from {self.node.op}; write t.detach()")
        if not wanted:
            self.node = None
        elif self.node is None:
            if self.data.dtype.kind != "f":
                raise TypeError(
                    f"only floating tensors have gradients; got {self.data.dtype}; write data.astype('float32')"
                )
            self.node = Node("leaf", self.data, None, (), None)

    @property
    def is_leaf(self) -> bool:
        return self.node is None or self.node.op == "leaf"

    @property
    def grad(self) -> Tensor | None:
        """The gradient that has arrived so far, as a Tensor that shares its memory; None before the first."""
        if self.node is None or self.node.grad is None:
            return None
        return Tensor(self.node.grad)

    @grad.setter
    def grad(self, value: Any) -> None:
        if self.node is None:
            if value is None:
                return
            raise RuntimeError("only a tensor with requires_grad=True has a gradient; set requires_grad first")
        data = value.data if isinstance(value, Tensor) else value
        if data is not None and data.shape != self.shape:
            raise ValueError(f"a gradient has the shape of its tensor; got {data.shape} for {self.shape}; reshape it")
        self.node.grad = data

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this intermediate result too, to look at; returns self."""
        if self.node is None:
            raise RuntimeError("retain_grad needs a tensor with a history; this one has none; set requires_grad=True")
        self.node.retains = True
        return self

    def backward(self, gradient: Any = None, keep_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it was made from.

            leaf.grad += (∂self/∂leaf)ᵀ · gradient

        gradient: same shape as self; may be left out for a tensor of one element, where it is 1.
        What the graph kept is dropped on the way, unless keep_graph=True.
        Raises RuntimeError if there is no graph, or if it was used before; ValueError for a wrong shape.
        """
        if self.node is None:
            raise RuntimeError("backward needs a tensor made from one with requires_grad=True; this one was not")
        for node, g, owned in _propagate(self.node, _seed_gradient(self, gradient), keep_graph):
            if node.grad is not None:
                node.grad += g  # g is ours or borrowed; node.grad is ours
            else:
                node.grad = g if owned else g.copy()

    def __reduce__(self) -> Any:
        raise TypeError(
            "tensors are never pickled (unpickling runs code); write mt.save(path, tensors) and mt.load(path)"
        )

    __hash__ = object.__hash__

    if TYPE_CHECKING:  # what ops/__init__.py attaches, for editors and type checkers
        T: Tensor

        def _binary(self, other: Any) -> Tensor: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _binary
        __truediv__ = __rtruediv__ = __pow__ = __matmul__ = __rmatmul__ = _binary
        __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = _binary

        def _unary(self) -> Tensor: ...

        __neg__ = __abs__ = __invert__ = _unary
        exp = log = sqrt = tanh = sigmoid = relu = abs = _unary

        def __getitem__(self, index: Any) -> Tensor: ...

        def _reduced(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor: ...

        sum = mean = max = min = _reduced

        def reshape(self, *shape: Any) -> Tensor: ...

        def transpose(self, *axes: Any) -> Tensor: ...

        def swapaxes(self, axis1: int, axis2: int) -> Tensor: ...

        def astype(self, dtype: Any) -> Tensor: ...


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimizer steps: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(data, requires_grad=True)


# -- making Tensors ---------------------------------------------------------------------------------------------
def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Make a Tensor from numbers, lists or an array, on the current backend.

    Python floats become float32; arrays keep their dtype. The data is copied, so that later changes to the
    source are not seen.
    """
    if isinstance(data, Tensor):
        data = data.data
    if dtype is None and not hasattr(data, "dtype"):
        try:
            array = np.asarray(data)
        except ValueError:  # NumPy's word for a ragged list
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise TypeError("a tensor holds real numbers of one shape; got a ragged or non-numeric list; pad it first")
        dtype = np.float32 if array.dtype.kind == "f" else array.dtype
        data = array
    data = backend.to_backend(data, backend.get_backend())
    return Tensor(backend.xp().array(data, dtype=dtype), requires_grad)


def as_array(value: Any) -> Any:
    """Return the array of a Tensor, and anything else as it is."""
    return value.data if isinstance(value, Tensor) else value


# -- recording --------------------------------------------------------------------------------------------------
PRIMITIVES: dict[str, Callable] = {}


class _TensorNamespace:
    """Stands in for `numpy` when an op's body runs on Tensors: each function is the op of that name."""

    def __getattr__(self, name: str) -> Callable:
        try:
            return PRIMITIVES[name]
        except KeyError:
            raise AttributeError(
                f"no op is named {name!r}: a body that is differentiated again may use only ops"
            ) from None


TENSORS = _TensorNamespace()


def primitive(body: Callable[..., tuple[Any, Callable]]) -> Callable[..., Any]:
    """Turn `body(xp, *arrays, **settings) -> (y, vjp)` into an op that takes arrays or Tensors, and register it.

    Positional arguments are the inputs; `vjp(g)` returns one gradient (or None) for each. Keyword arguments are
    settings. Arrays in give an array; with a Tensor among them a Tensor comes out, recorded if any of them
    requires a gradient.

    The body uses only operators, methods and functions of `xp`. So the same lines also run on Tensors, with `xp`
    made of ops: the backward pass of a node made inside nested `grad` calls does just that, and thereby records
    itself. No second derivative is written by hand.
    """
    name = body.__name__
    faster: dict[str, Callable] = {}  # the engine room's bodies for this op, by backend

    @functools.wraps(body)
    def op(*args: Any, **settings: Any) -> Any:
        arrays = tuple([a.data if isinstance(a, Tensor) else a for a in args])
        try:
            xp = backend.namespace(arrays)
            run = faster.get(xp.__name__, body) if _kernels.enabled and not _mode.replayable else body
            y, vjp = run(xp, *arrays, **settings)
        except Exception as error:
            error.add_note(f"in op {name}({', '.join(_described(a) for a in arrays)})")
            raise
        nodes = tuple([a.node if isinstance(a, Tensor) else None for a in args])
        if _mode.enabled and any(nodes):
            out = Tensor(y)
            replay = (body, args, settings) if _mode.replayable else None
            out.node = Node(name, y, vjp, nodes, replay)
        elif any(isinstance(a, Tensor) for a in args):
            out = Tensor(y)
        else:
            return y
        if _observers.count and _mode.observer is not None:
            _mode.observer.saw(name, args, settings, out)
        return out

    if name in PRIMITIVES:
        raise ValueError(f"an op has one body; {name} is registered twice; rename one")
    PRIMITIVES[name] = op
    del op.__wrapped__  # type: ignore[attr-defined]  # the signature users see has no xp
    op.__signature__ = _without_xp(body)  # type: ignore[attr-defined]
    op.body = body  # type: ignore[attr-defined]
    op.kernels = faster  # type: ignore[attr-defined]
    return op


class _Kernels:
    """Whether ops take their bodies from the engine room, in all threads."""

    enabled = True


_kernels = _Kernels()


class use_kernels:
    """Say whether ops may use the fast bodies of `kernels/`; use_kernels(False) runs the plain book.

    It holds from the call on; in a `with` block, until the end of the block. Derivatives of higher order run the
    book in any case, since only its lines run on Tensors.
    """

    def __init__(self, on: bool = True):
        self.before, _kernels.enabled = _kernels.enabled, bool(on)

    def __enter__(self) -> use_kernels:
        return self

    def __exit__(self, *exception: Any) -> None:
        _kernels.enabled = self.before


def kernels_enabled() -> bool:
    """Tell whether ops may use the fast bodies of `kernels/`."""
    return _kernels.enabled


def _without_xp(body: Callable) -> Any:
    import inspect

    signature = inspect.signature(body)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)


@contextlib.contextmanager
def _recording(enabled: bool) -> Iterator[None]:
    before, _mode.enabled = _mode.enabled, enabled
    try:
        yield
    finally:
        _mode.enabled = before


class _Observers:
    """How many observers there are, in all threads: what an op asks first, being quicker than the thread's own."""

    count = 0
    lock = threading.Lock()


_observers = _Observers()


@contextlib.contextmanager
def observing(observer: Any) -> Iterator[None]:
    """Inside the block, and in this thread, tell `observer.saw(op, args, settings, out)` of each op that made a Tensor.

    None: tell nobody.
    """
    before, _mode.observer = _mode.observer, observer
    with _observers.lock:
        _observers.count += 1
    try:
        yield
    finally:
        _mode.observer = before
        with _observers.lock:
            _observers.count -= 1


def is_observed() -> bool:
    """Tell whether an observer is told of this thread's ops."""
    return bool(_observers.count) and _mode.observer is not None


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Switch recording off inside a `with` block (or, as a decorator, inside a function), in this thread only."""
    return _recording(False)


def enable_grad() -> contextlib.AbstractContextManager[None]:
    """Switch recording back on inside a `no_grad` block."""
    return _recording(True)


def is_grad_enabled() -> bool:
    """Tell whether ops are recorded in this thread."""
    return _mode.enabled


# -- the backward pass ------------------------------------------------------------------------------------------
def _seed_gradient(output: Tensor, gradient: Any) -> Array:
    """Return the gradient to begin with: the one given, or a number (or 1) for each element."""
    xp = backend.namespace((output.data,))
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"backward without a gradient needs one element; got shape {output.shape}; "
                "write y.sum().backward() or y.backward(gradient)"
            )
        return xp.ones_like(output.data)
    if isinstance(gradient, Tensor):
        gradient = gradient.data
    if isinstance(gradient, int | float) and not output.shape:
        return xp.full_like(output.data, gradient)  # made where it is needed: nothing is sent to a GPU
    g = gradient if hasattr(gradient, "dtype") else xp.asarray(gradient, dtype=output.dtype)
    if g.shape != output.shape:
        raise ValueError(f"a gradient has the shape of its tensor; got {g.shape} for {output.shape}; reshape it")
    return g


def _propagate(
    root: Node, g: Any, keep_graph: bool, oldest: int = 0, replay: bool = False, leaves_when_ready: bool = False
) -> Iterator[tuple[Node, Any, bool]]:
    """Walk from `root` to its leaves, youngest node first; yield (node, gradient, is the gradient ours to keep?).

    Nodes older than `oldest` cannot have come from what is asked for, and are left alone. With `replay`, gradients
    are Tensors, and each op's body runs again on the Tensors it was given, so that the walk itself is recorded.
    Leaves are the oldest of all and come last, unless leaves_when_ready: then each comes as soon as nothing more is
    to be added to its gradient.
    """
    to_come = _uses_of_leaves(root) if leaves_when_ready else None
    pending = {root: g}
    owned: set[Node] = set()  # nodes whose pending gradient is an array that nobody else holds
    heap = [(-root.birth, root)]
    while heap:
        _, node = heapq.heappop(heap)
        if node not in pending:  # a leaf that was ready before its turn
            continue
        g = pending.pop(node)
        if node.retains:
            yield node, g, node in owned
        owned.discard(node)
        if node.op == "leaf" or (oldest and all(p is None or p.birth < oldest for p in node.parents)):
            continue
        made = _parent_gradients(node, g, replay)
        for parent, g_parent in zip(node.parents, made, strict=True):
            if to_come is not None and parent in to_come:
                to_come[parent] -= 1
            if parent is None or g_parent is None or parent.birth < oldest:
                continue
            if g_parent.shape != parent.shape:
                raise RuntimeError(f"the vjp of {node.op} gave a gradient {g_parent.shape} for an input {parent.shape}")
            if g_parent.dtype != parent.dtype:
                g_parent = g_parent.to(parent.dtype) if replay else g_parent.astype(parent.dtype)
            if parent not in pending:
                pending[parent] = g_parent
                heapq.heappush(heap, (-parent.birth, parent))
                if not replay and _is_new(g_parent, g, made):
                    owned.add(parent)
            elif parent in owned:
                pending[parent] += g_parent
            else:
                pending[parent] = pending[parent] + g_parent
                if not replay:
                    owned.add(parent)
        if to_come is not None:
            for parent in set(node.parents):
                if parent in to_come and not to_come[parent] and parent in pending:
                    yield parent, pending.pop(parent), parent in owned
                    to_come[parent] = -1  # it has been handed out
        if not keep_graph:
            node.vjp, node.parents, node.replay = _used, (), None


def _uses_of_leaves(root: Node) -> dict[Node, int]:
    """Return how many gradients each leaf below a node gets."""
    uses: dict[Node, int] = {}
    seen, todo = {root}, [root]
    while todo:
        for parent in todo.pop().parents:
            if parent is None:
                continue
            if parent.op == "leaf":
                uses[parent] = uses.get(parent, 0) + 1
            elif parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return uses


def _is_new(gradient: Array, g: Array, made: Sequence[Any]) -> bool:
    """Tell whether a vjp made this array for this one input: no view, not its own g, and handed out once."""
    return gradient.base is None and gradient is not g and sum(other is gradient for other in made) == 1


def _parent_gradients(node: Node, g: Any, replay: bool) -> Sequence[Any]:
    if not replay:
        assert node.vjp is not None
        return node.vjp(g)
    if node.replay is None:
        raise RuntimeError(
            f"a derivative of higher order needs a graph recorded for it; {node.op} was recorded outside; "
            "write mt.grad(mt.grad(f)), or mt.grad(f, create_graph=True)"
        )
    body, args, settings = node.replay
    _, vjp = body(TENSORS, *[_for_replay(a) for a in args], **settings)
    return vjp(g)


def _for_replay(value: Any) -> Any:
    """Wrap a floating array; leave ids, masks and settings as they are, since no gradient ever reaches them."""
    data = as_array(value)
    if not hasattr(data, "dtype"):
        return data
    floating = data.dtype.kind == "f"
    return (value if isinstance(value, Tensor) else Tensor(value)) if floating else data


def _used(g: Any) -> Sequence[Any]:
    raise RuntimeError("this graph was used by an earlier backward, which freed it; write backward(keep_graph=True)")


def gradients(output: Tensor, inputs: Sequence[Tensor], gradient: Any = None, keep_graph: bool = False) -> list[Array]:
    """Return the gradient arrays of `output` with respect to `inputs`; no `.grad` is touched.

    Threads that share parameters use this, each for its own part of a batch. Inputs may be leaves or lie in between;
    one that does not reach the output gets zeros. Raises as `backward` does.
    """
    if output.node is None:
        raise RuntimeError("gradients needs a tensor made from one with requires_grad=True; this one was not")
    found: dict[Node, Array] = {}
    asked = {t.node for t in inputs if t.node is not None}
    between = [node for node in asked if not node.retains]
    for node in between:
        node.retains = True
    try:
        oldest = min((node.birth for node in asked), default=output.node.birth)
        for node, g, owned in _propagate(output.node, _seed_gradient(output, gradient), keep_graph, oldest):
            if node in asked:
                found[node] = g if owned else g.copy()
    finally:
        for node in between:
            node.retains = False
    zeros = backend.namespace(tuple(t.data for t in inputs)).zeros_like
    return [found[t.node] if t.node in found else zeros(t.data) for t in inputs]


def value_and_grad(f: Callable, argnums: int | tuple[int, ...] = 0, create_graph: bool = False) -> Callable:
    """Return a function that gives (f(*args), the gradient of f with respect to the chosen arguments).

    f takes Tensors (arrays are wrapped) and returns a Tensor of one element. Nest it for any order:
    `mt.grad(lambda x: mt.grad(f)(x).sum())`. A `grad` inside another is recorded by itself; outside, create_graph=True
    records it, for a penalty on gradients that is then followed by `.backward()`. No `.grad` is touched.

    Raises TypeError if f returns no Tensor, ValueError if it returns more than one number.
    """
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        recorded = create_graph or _mode.depth > 0
        args_ = [a if isinstance(a, Tensor) else tensor(a) for a in args]
        for i in chosen:  # a new leaf, or an identity whose past belongs to the caller
            known = args_[i].node is not None and recorded
            args_[i] = _identity(args_[i]) if known else Tensor(args_[i].data, requires_grad=True)
            args_[i].retain_grad()
        starts = [args_[i].node for i in chosen]
        _mode.depth += 1
        _mode.replayable += recorded
        try:
            with enable_grad():
                y = f(*args_, **kwargs)
        finally:
            _mode.depth -= 1
            _mode.replayable -= recorded
        if not isinstance(y, Tensor):
            raise TypeError(
                f"grad needs a function that returns a Tensor; got {type(y).__name__}; use the ops of mt.ops"
            )
        found = _gradients_of(y, starts, recorded)
        grads = tuple(found[n] if n in found else _zeros_like(args_[i]) for n, i in zip(starts, chosen, strict=True))
        return (y if recorded else y.detach()), (grads[0] if isinstance(argnums, int) else grads)

    return run


def _gradients_of(y: Tensor, starts: Sequence[Node | None], recorded: bool) -> dict[Node, Tensor]:
    g = _seed_gradient(y, None)
    if y.node is None:
        return {}
    oldest = min(n.birth for n in starts if n is not None)
    if not recorded:
        return {n: Tensor(g) for n, g, _ in _propagate(y.node, g, keep_graph=False, oldest=oldest) if n in starts}
    with enable_grad():
        walk = _propagate(y.node, Tensor(g), keep_graph=True, oldest=oldest, replay=True)
        return {n: g for n, g, _ in walk if n in starts}


def grad(f: Callable, argnums: int | tuple[int, ...] = 0, create_graph: bool = False) -> Callable:
    """Return the function that computes the gradient of f; see `value_and_grad`.

    x: (...) → the gradient: (...)
    """
    both = value_and_grad(f, argnums, create_graph)
    return lambda *args, **kwargs: both(*args, **kwargs)[1]


def _zeros_like(t: Tensor) -> Tensor:
    return Tensor(backend.namespace((t.data,)).zeros_like(t.data))


# -- two ops the engine itself needs ----------------------------------------------------------------------------
def _moved(data: Array, where: Any) -> Array:
    return backend.to_backend(data, where) if where in backend.BACKENDS else data.astype(where)


@primitive
def _move(xp: Any, x: Array, *, where: Any) -> tuple[Array, Callable]:
    """Copy x to another backend or dtype; the gradient goes back to where x lives."""
    back = x.dtype if where not in backend.BACKENDS else "numpy" if where == "cupy" else "cupy"

    def vjp(g: Array) -> tuple[Array]:
        return (g.to(back) if isinstance(g, Tensor) else _moved(g, back),)

    return (x.to(where) if isinstance(x, Tensor) else _moved(x, where)), vjp


@primitive
def _identity(xp: Any, x: Array) -> tuple[Array, Callable]:
    """Give x a node of its own, at which a gradient can be stopped and read."""

    def vjp(g: Array) -> tuple[Array]:
        return (g,)

    return x, vjp

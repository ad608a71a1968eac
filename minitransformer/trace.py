"""Step through a computation: one record of what each op did, forwards, and then backwards.

    trace = mt.trace(f, x, w)          print(trace)          trace.html("trace.html")          trace.svg("trace.svg")

While f runs, `tensor.primitive` tells an observer of each op that made a Tensor; where nobody looks on, it looks up one
number and does no more. The observer puts itself between each node and its vjp, so that the backward pass, which
knows nothing of all this, passes by it with the gradient that arrives and those that leave.

But for the output, the record keeps pictures of arrays and never an array, a Tensor or a Node. So it has a size that
does not grow with theirs, and nothing in it points back at it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from . import ops
from .backend import get_backend, namespace, to_backend
from .ops.formulas import ELEMENTWISE, FORMULAS
from .tensor import PRIMITIVES, Tensor, _propagate, _seed_gradient, observing
from .views import graph, stepper, terminal
from .views.lines import Line, calling
from .views.names import name_within, names_around, weak
from .views.page import save
from .views.record import Input, Leaf, Pictures, Step, settings_text, size_of

BUDGET = 8 << 20  # bytes of the whole record, as JSON
DOCUMENTED = {"_attention": "scaled_dot_product_attention", "_gelu_exact": "gelu", "_gelu_tanh": "gelu"}


class Trace:
    """The record of a computation: its steps forwards, their turns backwards, its leaves. See `trace`.

    output: the value, without a history. print(t) shows it as text; in a notebook it is a page to step through.
    """

    def __init__(self, title: str, budget: int):
        self.title = title
        self.steps: list[Step] = []
        self.leaves: list[Leaf] = []
        self.lines: list[Line] = []
        self.order: list[int] = []  # steps, as the backward pass meets them
        self.begins = ""  # what the backward pass begins with, in words
        self.pictures = Pictures(budget)
        self.output: Tensor

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"Trace({self.title}: {len(self.steps)} steps forwards, {len(self.order)} backwards)"

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Return the whole record as what JSON can hold: what all views are made from."""
        steps = []
        for step in self.steps:
            fields = dataclasses.asdict(step) | {"label": step.label, "about": about(step.op)}
            fields["formula"], fields["derivative"] = formula_of(step.op)
            steps.append(fields)
        return {
            "title": self.title, "begins": self.begins, "order": self.order, "steps": steps,
            "leaves": [dataclasses.asdict(leaf) for leaf in self.leaves],
            "lines": [line.to_json() for line in self.lines],
            "arrays": [picture.to_json() for picture in self.pictures.kept],
        }  # fmt: skip

    def text(self, width: int = 100) -> str:
        """Return the record as plain text: a block for each step, forwards and then backwards."""
        return "\n\n".join(self.pages(width)) + "\n"

    def pages(self, width: int = 100) -> list[str]:
        """Return the blocks of `text`, one for each step."""
        return terminal.pages(self.to_json(), self.pictures.kept, width)

    def html(self, path: Any = None) -> str:
        """Return a page to step through by keys or buttons, whole in one file; written if a path is given."""
        return save(stepper.page(self.to_json()), path)

    def svg(self, path: Any = None) -> str:
        """Return the tape as a picture: an op below what it was made from; written to a file if a path is given."""
        return save(graph.svg(self.to_json()), path)

    def dot(self, path: Any = None) -> str:
        """Return the tape in the language of Graphviz; written to a file if a path is given."""
        return save(graph.dot(self.to_json()), path)

    def _repr_html_(self) -> str:
        return stepper.frame(self.html(), f"step through {self.title}")


def formula_of(op: str) -> tuple[str, list[str]]:
    """Return the formula of an op and those of its gradients; of an op that is not ours, what its docstring shows."""
    if op in FORMULAS:
        return FORMULAS[op][0], list(FORMULAS[op][1:])
    first, *rest = inspect.cleandoc(PRIMITIVES[op].__doc__ or "").splitlines() or [""]
    shown = [line.strip() for line in rest if line.startswith("    ")]
    return "; ".join(shown) or first.split("    ")[0], []


def about(op: str) -> str:
    """Return the first sentence of an op's docstring, or nothing."""
    public = getattr(ops, DOCUMENTED.get(op, op.lstrip("_")), None)
    doc = getattr(PRIMITIVES.get(op), "__doc__", None) or getattr(public, "__doc__", None) or ""
    return doc.strip().split("\n")[0].split("    ")[0].strip()


class _Observer:
    """Fills a Trace while the function runs, and then while the backward pass does."""

    def __init__(self, trace: Trace, names: dict[int, tuple[Any, str]], last: Any):
        self.trace, self.names, self.last = trace, names, last
        self.made: dict[int, int] = {}  # birth of a node → step
        self.leaf_of: dict[int, int] = {}  # birth of a node → leaf
        self.holders: dict[int, tuple[Any, int]] = {}  # id of an array → (a weak reference to it, step)
        self.line_numbers: dict[Line, int] = {}
        self.key: Any = None  # of the expression that is being worked out
        self.backward = False

    def saw(self, op: str, args: tuple, settings: dict[str, Any], out: Tensor) -> None:
        """Write down an op that has just made a Tensor, and step between its node and its vjp."""
        frame = sys._getframe(1)
        call = calling(frame, self.last)
        steps, number = self.trace.steps, len(self.trace.steps)
        if call.key == self.key and steps and steps[-1].op != op:  # (the same op again: a loop)
            steps[-1].name = None  # an earlier op of the same expression: the last one makes its value
        self.key = call.key
        inputs = [self._input(role, value, frame) for role, value in zip(_roles(op, len(args)), args, strict=True)]
        step = Step(
            number, op, call.name, settings_text(settings), [self._line(line) for line in call.lines],
            [i for i in inputs if i is not None], self.trace.pictures.add(out.data), out.node is not None,
        )  # fmt: skip
        steps.append(step)
        self.trace.pictures.spend(size_of(dataclasses.asdict(step)) + 300)  # and its formula
        self._remember(out.data, number)
        if out.node is not None:
            self.made[out.node.birth] = number
            places = [i for i, value in enumerate(inputs) if value is not None]
            out.node.vjp = functools.partial(self._passed, number, places, out.node.vjp)  # type: ignore[arg-type]

    def _passed(self, number: int, places: list[int], vjp: Callable, g: Any) -> Any:
        """Run the vjp of a step and write down what arrived and what left."""
        made = vjp(g)
        if not self.backward:  # a backward pass of the function's own, or one after the record was closed
            return made
        step, keep = self.trace.steps[number], self.trace.pictures.add
        step.turn, step.arriving = len(self.trace.order), keep(g)
        self.trace.order.append(number)
        slopes: Any = vjp(namespace((g,)).ones_like(g)) if step.op in ELEMENTWISE else [None] * len(made)
        for value, i in zip(step.inputs, places, strict=True):
            if made[i] is not None and value.differentiable:
                value.gradient = keep(made[i])
                if slopes[i] is not None and slopes[i].shape == g.shape:
                    value.slope = keep(slopes[i])
        return made

    def arrived(self, birth: int, g: Any) -> None:
        """Write down the gradient of a leaf."""
        if birth in self.leaf_of:
            self.trace.leaves[self.leaf_of[birth]].gradient = self.trace.pictures.add(g)

    def _input(self, role: str, value: Any, frame: Any) -> Input | None:
        data, node = (value.data, value.node) if isinstance(value, Tensor) else (value, None)
        if not hasattr(data, "dtype") or not hasattr(data, "ndim"):
            return None  # None, a number, a shape: told among the settings, or not there
        step = self.made.get(node.birth) if node is not None else None
        if step is None and node is None:
            holder, held = self.holders.get(id(data), (lambda: None, None))
            step = held if holder() is data else None
        if step is not None:
            return Input(role, self.trace.steps[step].label, step, self.trace.pictures.add(data), node is not None)
        known, name = self.names.get(id(data), (lambda: None, ""))
        name = name if known() is data else ""
        birth = node.birth if node is not None and node.op == "leaf" else None
        if not name and birth not in self.leaf_of:
            name = name_within(frame, value, self.last)
        if birth is not None:
            name = self._leaf(birth, name, data)
        fallback = "constant" if node is None else "made before"
        return Input(role, name or fallback, None, self.trace.pictures.add(data), node is not None)

    def _leaf(self, birth: int, name: str, data: Any) -> str:
        if birth not in self.leaf_of:
            leaves = self.trace.leaves
            name = name or f"leaf {len(leaves) + 1}"
            same = sum(leaf.name == name or leaf.name.startswith(f"{name} (") for leaf in leaves)
            self.leaf_of[birth] = len(leaves)
            leaves.append(Leaf(f"{name} ({same + 1})" if same else name, self.trace.pictures.add(data)))
        return self.trace.leaves[self.leaf_of[birth]].name

    def _remember(self, data: Any, number: int) -> None:
        self.holders[id(data)] = weak(data), number

    def _line(self, line: Line) -> int:
        if line not in self.line_numbers:
            self.line_numbers[line] = len(self.trace.lines)
            self.trace.lines.append(line)
            self.trace.pictures.spend(size_of(line.to_json()))
        return self.line_numbers[line]


def _roles(op: str, count: int) -> tuple[str, ...]:
    """Return the names of an op's inputs: those of its parameters, or of what it takes any number of, numbered."""
    if op == "recompute":
        return tuple(f"inputs[{i}]" for i in range(count))
    names: list[str] = []
    for parameter in inspect.signature(PRIMITIVES[op]).parameters.values():
        if parameter.kind == parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
        elif parameter.kind != parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return tuple(names[:count])


def _leaves(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[list, dict[str, Any], dict[str, Any]]:
    """Return the arguments with floating arrays as leaves, and by name (those left out with their defaults)."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            fresh = value.node is None and value.dtype.kind == "f"
            return Tensor(value.data, requires_grad=True) if fresh else value
        if getattr(getattr(value, "dtype", None), "kind", "") != "f" or not hasattr(value, "strides"):
            return value
        return Tensor(to_backend(value, get_backend()), requires_grad=True)

    try:
        bound = inspect.signature(getattr(fn, "forward", fn)).bind(*args, **kwargs)
    except (TypeError, ValueError):  # it takes other arguments, and says so itself; or it has no signature
        return [leaf(a) for a in args], {k: leaf(v) for k, v in kwargs.items()}, {}
    bound.apply_defaults()
    kinds = {p.name: p.kind for p in bound.signature.parameters.values()}
    for name, value in bound.arguments.items():
        if kinds[name] == inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(leaf(v) for v in value)
        elif kinds[name] == inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {k: leaf(v) for k, v in value.items()}
        else:
            bound.arguments[name] = leaf(value)
    return list(bound.args), bound.kwargs, dict(bound.arguments)


def trace(fn: Callable, *args: Any, cotangent: Any = None, budget: int = BUDGET, **kwargs: Any) -> Trace:
    """Run a function forwards and backwards and record, for every op, what it got, gave, and did to the gradient.

    fn(*args, **kwargs): Tensors and other values (...) → one Tensor (...)

    fn may be a Module, whose parameters then show by their names, as Tensors do that fn refers to. Floating arrays
    among the arguments become leaves. The backward pass begins with `cotangent`, of the shape of the output; left out,
    it is ones, that is, the sum of the output is differentiated. Values and gradients are those of an untraced run, to
    the bit; no `.grad` is touched. The record holds pictures (all numbers up to 12×12, shrunken ones beyond) in about
    `budget` bytes; where there are too many ops for that they shrink, until only their extent is left.

    Raises TypeError if fn returns no Tensor, ValueError for a cotangent of another shape.
    """
    title = getattr(fn, "__name__", type(fn).__name__)
    record = Trace("a function" if title == "<lambda>" else title, budget)
    positional, named, given = _leaves(fn, args, kwargs)
    observer = _Observer(record, names_around(fn, given), trace.__code__)
    with observing(observer):
        y = fn(*positional, **named)
    if not isinstance(y, Tensor):
        raise TypeError(f"trace needs a function that returns a Tensor; got {type(y).__name__}; use the ops of mt.ops")
    record.output = y.detach()
    if y.node is None:
        record.begins = "Nothing here requires a gradient: there is no way back."
        return record
    xp = namespace((y.data,))
    seed = _seed_gradient(y, xp.ones_like(y.data) if cotangent is None else cotangent)
    given_in_words = "the cotangent that was given" if cotangent is not None else "1" if y.size == 1 else "ones"
    record.begins = f"The backward pass begins with g = {given_in_words}" + (
        ": what is differentiated is the sum of the output." if given_in_words == "ones" else "."
    )
    observer.backward = True
    try:
        with observing(None):  # what a vjp computes is no step, whoever looks on
            for node, g, _ in _propagate(y.node, seed, keep_graph=True):  # a part of the graph may be the caller's
                observer.arrived(node.birth, g)
    finally:
        observer.backward = False
    return record

"""An exercise: what to write, on which inputs it is tried, the right answer, and the mistakes that people make.

    @exercise("03.1", "The vjp of a sum", task="Return g_x, ...", inputs=lambda rng: (rng.standard_normal((2, 3)),))
    def sum_vjp(x):
        return ...                      # the right answer, from the library

    @sum_vjp.mistake("no broadcast", "Each element of x went into the sum, so each gets the gradient.")
    def _(x):
        return ...                      # what a function with this mistake returns

The mistakes are functions too, so that they can be run: a student's wrong result is compared with each of them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..tensor import as_array, tensor

CASES = 3  # sets of inputs on which a function is tried


class Mistake(NamedTuple):
    """One way to be wrong, and what to tell the student who is."""

    name: str
    hint: str
    function: Callable


def _plainly(function: Callable, *inputs: Any) -> Any:
    return function(*inputs)


@dataclass
class Exercise:
    """A function for the student to write, declared by the decorator `exercise`."""

    number: str  # "06.2": lesson and place in it
    title: str
    task: str  # what to write, in one to three sentences
    answer: Callable  # the right answer, computed by the library; its signature is the one asked for
    inputs: Callable  # a NumPy generator → the arguments
    returns: tuple[str, ...]  # what the results are called in a complaint
    rtol: float  # how far an element may be off, as a part of the largest of its array
    run: Callable  # how the function is used: (function, *inputs) → results
    in_place: bool  # may the function change its inputs?
    float32: bool  # is it also tried in float32, and held to stay there?
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def signature(self) -> str:
        """Return the call that is asked for, such as "layer_norm(x, weight, bias)"."""
        return f"{self.answer.__name__}({', '.join(self.arguments)})"

    @property
    def arguments(self) -> list[str]:
        """Return the names of the arguments."""
        return list(inspect.signature(self.answer).parameters)

    def mistake(self, name: str, hint: str) -> Callable[[Callable], Callable]:
        """Declare a usual mistake: the decorated function computes what a student who makes it would return."""

        def add(function: Callable) -> Callable:
            self.mistakes.append(Mistake(name, hint, function))
            return function

        return add


EXERCISES: dict[str, Exercise] = {}


def exercise(
    number: str,
    title: str,
    *,
    task: str,
    inputs: Callable,
    returns: Sequence[str] = ("the result",),
    rtol: float = 1e-8,
    run: Callable = _plainly,
    in_place: bool = False,
    float32: bool = True,
) -> Callable[[Callable], Exercise]:
    """Declare an exercise: the decorated function gives the right answer, and its name and arguments are asked for.

    inputs: a NumPy generator → the arguments, float64 where they are arrays; different primes for sizes.
    returns: the names of the results. run: (function, *inputs) → results, where one call is not all. Raises
    ValueError for a number that is taken.
    """

    def declare(answer: Callable) -> Exercise:
        if number in EXERCISES:
            raise ValueError(f"an exercise has a number of its own; {number} is taken; count on")
        made = Exercise(
            number, title, " ".join(task.split()), answer, inputs, tuple(returns), rtol, run, in_place, float32
        )
        EXERCISES[number] = made
        return made

    return declare


def declared(lesson: str | None = None) -> list[Exercise]:
    """Return the exercises that are declared, in order: all, or those of one lesson, such as "06"."""
    from . import exercises as room

    for module in sorted(m.name for m in pkgutil.iter_modules(room.__path__)):
        importlib.import_module(f"{room.__name__}.{module}")
    return [EXERCISES[number] for number in sorted(EXERCISES) if lesson is None or number.split(".")[0] == lesson]


def find(number: str) -> Exercise:
    """Return the exercise of a number. Raises ValueError with the numbers that there are."""
    known = {e.number: e for e in declared()}
    if number not in known:
        lesson = str(number).split(".")[0]
        near = [n for n in known if n.startswith(f"{lesson}.")]
        there = f"lesson {lesson} has {', '.join(near)}" if near else f"there are {', '.join(known)}"
        raise ValueError(f'an exercise has a number such as "01.1"; got {number!r}; {there}')
    return known[number]


def gradients(f: Callable, *arrays: Any, g: Any = None) -> tuple[Any, ...]:
    """Return what the library's own backward pass gives for each array: the right answer to many exercises.

    f: Tensors → a Tensor.    arrays: (...), g: the gradient of the output → one gradient for each array
    """
    leaves = [tensor(a, requires_grad=True) for a in arrays]
    f(*leaves).backward(g)
    return tuple(as_array(leaf.grad) for leaf in leaves)

"""Run a student's function, compare it with the right answer, and say what is wrong, where, and perhaps why."""

from __future__ import annotations

import copy
import inspect
import linecache
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..tensor import as_array
from .exercise import CASES, Exercise, Mistake, find
from .verdict import Verdict

SHOWN = "{:.6g}"


class _Case(NamedTuple):
    """One set of inputs, with what should come out and what did."""

    inputs: tuple[Any, ...]
    expected: list[Any]
    got: list[Any]
    typed: list[bool]  # which of them came with a dtype; Python's own numbers have none
    changed: list[str]  # names of the inputs that the function has changed


class _Trouble(Exception):
    """A result that cannot be compared at all: the complaint, and perhaps the name of a mistake."""

    def __init__(self, complaint: str, mistake: str = "", state: str = "wrong"):
        super().__init__(complaint)
        self.mistake, self.state = mistake, state


def check(number: str, function: Callable | None = None) -> Verdict:
    """Check a function that you wrote for an exercise, and say at once what is wrong with it.

        mt.lessons.check("01.1")               what to write
        mt.lessons.check("01.1", function)     right or wrong: which element, expected and got, and a hint

    Whatever the function does, the answer is a Verdict and never an exception.
    """
    try:
        exercise = find(number)
    except ValueError as unknown:
        return Verdict(str(number), "open", (str(unknown),))
    head = f"{exercise.number} {exercise.title}"
    if function is None:
        return Verdict(number, "open", (f"{head}: write {exercise.signature}", exercise.task))
    try:
        _check_signature(exercise, function)
        cases = [_try(exercise, function, seed) for seed in range(CASES)]
        lines, mistake = _judge(exercise, cases)
        if not lines and exercise.float32:
            lines, mistake = _judge_dtype(exercise, function)
    except _Trouble as trouble:
        said = {"open": f"{head}: nothing is returned yet", "wrong": f"{head}: not right yet"}[trouble.state]
        lines = [exercise.task] if trouble.state == "open" else str(trouble).split("\n")
        return Verdict(number, trouble.state, (said, *lines), trouble.mistake)
    if lines:
        return Verdict(number, "wrong", (f"{head}: not right yet", *lines), mistake)
    return Verdict(number, "right", (f"{head}: right, on {CASES} different inputs",))


def _check_signature(exercise: Exercise, function: Callable) -> None:
    if not callable(function):
        raise _Trouble(
            f"check takes the function itself; got {type(function).__name__}; "
            f'write check("{exercise.number}", {exercise.answer.__name__}), without calling it'
        )
    try:
        inspect.signature(function).bind(*exercise.arguments)
    except TypeError:
        own = f"{getattr(function, '__name__', 'it')}{inspect.signature(function)}"
        raise _Trouble(f"the function takes {', '.join(exercise.arguments)}; got {own}; change its arguments") from None
    except ValueError:  # a builtin without a signature: the call will tell
        return


def _inputs(exercise: Exercise, seed: int) -> tuple[Any, ...]:
    return tuple(exercise.inputs(np.random.default_rng(seed)))


def _try(exercise: Exercise, function: Callable, seed: int, dtype: str | None = None) -> _Case:
    """Call the function on the inputs of a seed, and put the right answer beside its own."""
    inputs = tuple(_as_dtype(a, dtype) if dtype else a for a in _inputs(exercise, seed))
    expected = _parts(exercise, exercise.run(exercise.answer, *copy.deepcopy(inputs)))
    given = copy.deepcopy(inputs)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            result = exercise.run(function, *given)
        except (Exception, SystemExit) as error:
            raise _Trouble(_where(error, function)) from None
    # Where `run` takes more than the function does, the names end before the inputs.
    names = [*exercise.arguments, *[""] * len(inputs)]
    changed = [n for n, a, b in zip(names, inputs, given, strict=False) if not _unchanged(a, b)]
    if result is None:
        raise _Trouble("nothing is returned", state="open")
    typed = [hasattr(value, "dtype") for value in _values(exercise, result)]
    return _Case(inputs, expected, _parts(exercise, result), typed, [] if exercise.in_place else changed)


def _as_dtype(value: Any, dtype: str) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_as_dtype(v, dtype) for v in value)
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def _unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_unchanged, before, after))
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    return True


def _where(error: BaseException, function: Callable) -> str:
    """Say in one line which exception a student's function has raised, and at which of its lines."""
    code = getattr(function, "__code__", None)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if code is not None and f.filename == code.co_filename
    ]
    said = " ".join(str(error).split())
    place = ""
    if frames and code is not None:
        line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
        place = f" at line {frames[-1].lineno}" + (f", “{line}”" if line else "")
    return f"the function raised {type(error).__name__}{place}: {said or 'without a message'}"


def _values(exercise: Exercise, value: Any) -> list[Any]:
    """Return the results as a list, as long as the names that the exercise has for them."""
    names = exercise.returns
    if len(names) == 1:
        return [value]
    if isinstance(value, list | tuple) and len(value) == len(names):
        return list(value)
    came = f"{len(value)} values" if isinstance(value, list | tuple) else f"one {type(value).__name__}"
    raise _Trouble(f"the function returns {', '.join(names)}; got {came}; write return {', '.join(names)}")


def _parts(exercise: Exercise, value: Any) -> list[Any]:
    """Return the results as arrays."""
    return [_plain(name, v) for name, v in zip(exercise.returns, _values(exercise, value), strict=True)]


def _plain(name: str, value: Any) -> Any:
    if value is None:
        raise _Trouble(f"{name} is an array or a number; got None; compute it, and return it")
    try:
        array = np.asarray(as_array(value))
    except ValueError:
        raise _Trouble(f"{name} is an array of one shape; got a ragged list; stack what has one shape") from None
    if array.dtype.kind not in "biufU":
        raise _Trouble(f"{name} is an array or a number; got {type(value).__name__}; return numbers")
    return array


# -- comparing --------------------------------------------------------------------------------------------------
def _off(got: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
    """Return where two arrays of one shape differ by more than rtol times the largest number expected."""
    if expected.dtype.kind == "b" and got.dtype.kind != "b":
        return np.ones(got.shape, bool)
    if expected.dtype.kind == "U" or got.dtype.kind == "U":
        return np.asarray(got.astype(str) != expected.astype(str))
    a, b = got.astype("float64"), expected.astype("float64")
    finite = np.abs(b[np.isfinite(b)])
    close = np.abs(a - b) <= rtol * max(finite.max(initial=0.0), 1e-30) if a.size else np.ones(a.shape, bool)
    return np.asarray(~(close | (a == b) | (np.isnan(a) & np.isnan(b))))


def _agree(got: list[Any], expected: list[Any], rtol: float) -> bool:
    return all(a.shape == b.shape and not _off(a, b, rtol).any() for a, b in zip(got, expected, strict=True))


def _judge(exercise: Exercise, cases: list[_Case]) -> tuple[list[str], str]:
    """Return what is wrong, line by line (nothing when all is right), and the name of the mistake if it is known."""
    changed = next((case.changed for case in cases if case.changed), [])
    wrong = next((case for case in cases if not _agree(case.got, case.expected, exercise.rtol)), None)
    lines = _differences(exercise, wrong) if wrong is not None else []
    if changed:
        hint = f"the function changes its input {changed[0]}".rstrip()
        hint += ", which others still need: write y = x * 2 and not x *= 2."
        return [*lines, f"Hint: {hint}"], "changes its input"
    if wrong is None:
        return [], ""
    known = _known(exercise, cases)
    if known:
        return [*lines, *(f"Hint: {mistake.hint}" for mistake in known)], ", ".join(mistake.name for mistake in known)
    name, hint = _general_hint(cases)
    return [*lines, *([f"Hint: {hint}"] if hint else [])], name


def _known(exercise: Exercise, cases: list[_Case]) -> list[Mistake]:
    """Return the mistake that gives these very numbers on all inputs; else one for each result that one explains."""
    results = range(len(exercise.returns))
    wrong = {i for i in results if not all(_agree([c.got[i]], [c.expected[i]], exercise.rtol) for c in cases)}
    explained = {mistake: _same(exercise, mistake.function, cases) for mistake in exercise.mistakes}
    for enough in (set(results), wrong):
        whole = [mistake for mistake, same in explained.items() if enough <= same]
        if whole:
            return whole[:1]
    first = {i: next((m for m, same in explained.items() if i in same), None) for i in sorted(wrong)}
    return list(dict.fromkeys(m for m in first.values() if m is not None))


def _same(exercise: Exercise, function: Callable, cases: list[_Case]) -> set[int]:
    """Return the places of the results that are those of a mistake's function, on all inputs."""
    same = set(range(len(exercise.returns)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for case in cases:
            try:
                result = _parts(exercise, exercise.run(function, *copy.deepcopy(case.inputs)))
            except Exception:
                return set()
            same = {i for i in same if _agree([case.got[i]], [result[i]], exercise.rtol)}
    return same


def _differences(exercise: Exercise, case: _Case) -> list[str]:
    lines = []
    for name, got, expected in zip(exercise.returns, case.got, case.expected, strict=True):
        if got.shape != expected.shape:
            lines.append(f"{name}: expected the shape {expected.shape}, got {got.shape}")
            continue
        off = _off(got, expected, exercise.rtol)
        if not off.any():
            if len(exercise.returns) > 1:
                lines.append(f"{name} is right")
            continue
        if expected.dtype.kind == "b" and got.dtype.kind != "b":
            lines.append(f"{name}: expected True and False, got {got.dtype}")
            continue
        place = tuple(int(i) for i in np.argwhere(off)[0])
        at = f"{name}[{', '.join(map(str, place))}]" if place else name
        many = f" ({int(off.sum())} of {off.size} elements differ)" if off.size > 1 else ""
        lines.append(f"{at}: expected {_number(expected[place])}, got {_number(got[place])}{many}")
    return lines


def _number(value: Any) -> str:
    return str(value) if isinstance(value, np.str_ | np.bool_) else SHOWN.format(value)


def _general_hint(cases: list[_Case]) -> tuple[str, str]:
    """Name what can be seen without knowing the exercise: NaN, a transpose, a constant factor."""
    pairs = [(a, b) for case in cases for a, b in zip(case.got, case.expected, strict=True)]
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs):
        return (
            "not finite",
            "there is NaN or infinity in it: a division by zero, a logarithm or a root of what is not positive?",
        )
    if all(a.shape == b.shape[::-1] for a, b in pairs) and any(a.shape != b.shape for a, b in pairs):
        turned = all(not _off(a.T, b, 1e-8).any() for a, b in pairs)
        return (
            "transposed",
            "it is the transpose of what is expected." if turned else "its axes are the other way round.",
        )
    if all(a.dtype.kind == b.dtype.kind == "b" and a.shape == b.shape and (a != b).all() for a, b in pairs):
        return "polarity", "True and False are exchanged, everywhere."
    if any(a.shape != b.shape or b.dtype.kind != "f" or a.dtype.kind not in "fiu" for a, b in pairs):
        return "", ""
    factors = []
    for case in cases:
        a, b = (np.concatenate([v.astype("float64").ravel() for v in side]) for side in (case.got, case.expected))
        factor = float(a @ b / (b @ b)) if b.any() else 0.0
        if not factor or _off(a, factor * b, 1e-8).any():
            return "", ""
        factors.append(factor)
    if np.allclose(factors, -1):
        return "sign", "every element has the wrong sign."
    if np.ptp(factors) <= 1e-8 * abs(factors[0]):
        times = SHOWN.format(factors[0])
        return "factor", f"every element is {times} times what it should be: a factor is missing, or there twice."
    return "factor", "each result is a multiple of what it should be, another for each input: does it depend on a size?"


def _judge_dtype(exercise: Exercise, function: Callable) -> tuple[list[str], str]:
    """Try once more in float32: a float64 constant or array inside the function would show in the dtype."""
    case = _try(exercise, function, 0, "float32")
    if not any(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in case.inputs):
        return [], ""
    for name, got, expected, typed in zip(exercise.returns, case.got, case.expected, case.typed, strict=True):
        if typed and expected.dtype == np.float32 and got.dtype != np.float32:
            hint = (
                "the numbers are right, but float64 has crept in: by np.zeros or np.arange without a dtype, "
                "or by a number of NumPy's such as np.sqrt(2), where math.sqrt(2) takes the dtype of the array."
            )
            return [f"{name}: float32 went in, {got.dtype} came out", f"Hint: {hint}"], "float64"
    return [], ""

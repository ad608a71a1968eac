"""Compare derivatives with differences of values: the net under everything that is written here.

The numbers come from central differences, (φ(x + h) − φ(x − h))/2h, at halving steps h. Their errors are a series in
h², which Richardson's extrapolation removes term by term; the table keeps the entry that agrees best with its
neighbours, and their disagreement is its error estimate (Ridders 1982, Advances in Engineering Software 4(2)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import get_backend, to_backend
from .tensor import Tensor, grad, no_grad

LEVELS = 6
FIRST_STEP = 2.0**-4
TOLERANCE = {1: 1e-7}  # and 1e-5 for every higher order


class GradcheckError(AssertionError):
    """A derivative that does not agree with differences, with the place and both numbers."""


class Report(NamedTuple):
    """What a check that passed has seen."""

    points: int  # how many numbers were compared
    worst: tuple[float, ...]  # the largest relative error, for each order


def difference(phi: Callable[[float], float], step: float = FIRST_STEP) -> tuple[float, float]:
    """Return φ′(0) by extrapolated central differences, and an estimate of its error."""
    table: list[list[float]] = []
    best, error = float("nan"), float("inf")
    for level in range(LEVELS):
        h = step / 2**level
        row = [(phi(h) - phi(-h)) / (2 * h)]
        for k in range(1, level + 1):
            row.append(row[k - 1] + (row[k - 1] - table[-1][k - 1]) / (4**k - 1))
            guess = max(abs(row[k] - row[k - 1]), abs(row[k] - table[-1][k - 1]))
            if guess <= error:
                best, error = row[k], guess
        table.append(row)
    return best, error


def _outputs(f: Callable, arrays: Sequence[Any]) -> list[Tensor]:
    y = f(*arrays)
    outputs = list(y) if isinstance(y, tuple | list) else [y]
    for out in outputs:
        if not isinstance(out, Tensor):
            raise TypeError(
                f"gradcheck needs a function that returns Tensors; got {type(out).__name__}; use the ops of mt.ops"
            )
        if out.dtype != np.float64:
            raise TypeError(
                f"gradcheck works in float64; the function returned {out.dtype}; "
                "look for an array of that dtype inside it"
            )
    return outputs


def _lifted(array: np.ndarray) -> Tensor:
    """Return a Tensor on the current backend, where the function under check runs."""
    return Tensor(to_backend(array, get_backend()))


def _scalar(f: Callable, rng: np.random.Generator, arrays: Sequence[np.ndarray]) -> Callable[..., Tensor]:
    """Return φ(x) = Σ u·f(x), u random: with one of ones softmax and LayerNorm would have no gradient at all."""
    with no_grad():
        first, second = ([t.numpy() for t in _outputs(f, [_lifted(a) for a in arrays])] for _ in range(2))
    if any((a != b).any() for a, b in zip(first, second, strict=True)):
        raise GradcheckError(
            "a function under check gives the same values each time; this one does not; fix its dropout mask or seed"
        )
    if not all(np.isfinite(a).all() for a in first):
        raise GradcheckError(
            "a function under check is finite; this one returned NaN or infinity; choose another point"
        )
    cotangents = [_lifted(rng.standard_normal(a.shape)) for a in first]

    def phi(*xs: Any) -> Tensor:
        total: Any = 0.0
        for out, u in zip(_outputs(f, xs), cotangents, strict=True):
            total = total + (out * u).sum()
        return total

    return phi


def gradcheck(
    f: Callable,
    *arrays: np.ndarray,
    order: int = 1,
    rtol: float | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    zero: Sequence[int] = (),
    max_coordinates: int = 48,
    directions: int = 3,
) -> Report:
    """Check the derivatives of f against differences, and raise where they disagree.

        order 1:  ∂φ/∂x against differences of φ,           φ(x) = Σ u·f(x),  u random
        order 2:  ∂ψ/∂x against differences of ψ,           ψ(x) = Σ v·∂φ/∂x, v random; and so on

    f: Tensors → a Tensor, or a tuple of them, of any shape.    arrays: float64, finite, the point of the check

    Every coordinate is checked of an argument of up to max_coordinates elements, a sample of larger ones, and
    random directions through all arguments together. The error of a coordinate is |a − n| over the largest of |a|,
    |n| and the root mean square of that argument's numbers n. The bound is 1e-7 at order 1 and 1e-5 above.

    An argument whose first derivative is zero throughout proves nothing, and is refused, unless its index is in
    `zero`: then it must be zero. Raises GradcheckError with argument, index and both numbers; TypeError for arrays
    that are not float64.
    """
    for i, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            raise TypeError(
                "gradcheck takes float64 arrays; "
                f"argument {i} is {getattr(array, 'dtype', type(array).__name__)}; write a.astype('float64')"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"gradcheck takes finite arrays; argument {i} is not; choose another point")
    if order < 1:
        raise ValueError(f"orders go from 1; got {order}; write order=1")
    rng = np.random.default_rng(seed)
    labels = list(names) if names else [f"argument {i}" for i in range(len(arrays))]
    phi = _scalar(f, rng, arrays)
    every = tuple(range(len(arrays)))
    points, worst = 0, []
    for k in range(1, order + 1):
        check = _Check(phi, grad(phi, every), arrays, labels, k, rtol or TOLERANCE.get(k, 1e-5), rng)
        worst.append(check.run(set(zero), max_coordinates, directions))
        points += check.points
        phi = _directional(phi, every, [rng.standard_normal(a.shape) for a in arrays])
    return Report(points, tuple(worst))


def _directional(phi: Callable, every: tuple[int, ...], along: list[Any]) -> Callable[..., Tensor]:
    """Return ψ(x) = Σ v·∂φ/∂x, whose gradient is the next order."""
    along = [_lifted(v) for v in along]

    def psi(*xs: Any) -> Tensor:
        total: Any = 0.0
        for g, v in zip(grad(phi, every)(*xs), along, strict=True):
            total = total + (g * v).sum()
        return total

    return psi


class _Check:
    """One order of one function at one point."""

    def __init__(
        self, phi: Callable, gradient: Callable, arrays: Any, labels: list[str], order: int, rtol: float, rng: Any
    ):
        self.phi, self.arrays, self.labels, self.order, self.rtol, self.rng = phi, arrays, labels, order, rtol, rng
        self.analytic = [g.numpy() for g in gradient(*[_lifted(a) for a in arrays])]
        self.points = 0

    def along(self, direction: list[np.ndarray]) -> tuple[float, float]:
        """Return the derivative of φ along a direction, by differences, and its error estimate."""

        def line(t: float) -> float:
            return float(self.phi(*[_lifted(a + t * d) for a, d in zip(self.arrays, direction, strict=True)]))

        if self.order > 1:  # φ is made of gradients itself
            return difference(line)
        with no_grad():
            return difference(line)

    def places(self, i: int, most: int) -> Iterator[tuple[int, ...]]:
        """Yield the coordinates of argument i to check."""
        size = self.arrays[i].size
        chosen = range(size) if size <= most else sorted(self.rng.choice(size, most, replace=False).tolist())
        return (tuple(map(int, np.unravel_index(c, self.arrays[i].shape))) for c in chosen)

    def run(self, zero: set[int], most: int, directions: int) -> float:
        """Check all arguments; return the worst relative error."""
        worst, all_rms = 0.0, []
        for i, array in enumerate(self.arrays):
            places = list(self.places(i, most))
            numbers = []
            for place in places:
                direction = [np.zeros_like(a) for a in self.arrays]
                direction[i][place] = 1.0
                numbers.append(self.along(direction))
            n = np.array([value for value, _ in numbers])
            a = np.array([self.analytic[i][place] for place in places])
            rms = float(np.sqrt(np.mean(n * n))) if n.size else 0.0
            all_rms.append(rms)
            self.points += len(places)
            flat = rms < 1e-10 * (1 + float(np.abs(array).max(initial=0)))
            if flat and np.abs(a).max(initial=0) < 1e-9:
                if self.order == 1 and i not in zero:
                    raise GradcheckError(
                        f"a gradient of zero proves nothing; that of {self.labels[i]} is zero throughout; "
                        f"change the function, or say zero=[{i}]"
                    )
                continue
            if i in zero and self.order == 1:
                raise GradcheckError(
                    f"the gradient of {self.labels[i]} was said to be zero; it has a size of {rms:.3g}; "
                    f"remove {i} from zero"
                )
            for place, value, (number, doubt) in zip(places, a, numbers, strict=True):
                worst = max(worst, self.compare(f"{self.labels[i]}{list(place)}", float(value), number, doubt, rms))
        return max([worst, *(self.one_direction(d, all_rms) for d in range(directions))])

    def one_direction(self, index: int, all_rms: list[float]) -> float:
        """Check one random direction through all arguments together."""
        direction = [
            self.rng.standard_normal(a.shape) / np.sqrt(max(sum(b.size for b in self.arrays), 1)) for a in self.arrays
        ]
        number, doubt = self.along(direction)
        value = sum(float((g * d).sum()) for g, d in zip(self.analytic, direction, strict=True))
        self.points += 1
        size = float(np.sqrt(np.mean(np.square(all_rms))))
        if size < 1e-10 and abs(value) < 1e-9:  # linear, at this order
            return 0.0
        return self.compare(f"direction {index}", value, number, doubt, size)

    def compare(self, where: str, value: float, number: float, doubt: float, rms: float) -> float:
        """Return the relative error, or raise when it is too large."""
        size = max(abs(value), abs(number), rms)
        error = abs(value - number) / size
        if error <= self.rtol:
            return error
        hint = ""
        if doubt / size > self.rtol:
            hint = f"; the differences are only good to {doubt / size:.1g}: is there a kink or a tie near this point?"
        raise GradcheckError(
            f"derivative of order {self.order} at {where}: backward gives {value:.12g}, "
            f"differences give {number:.12g}, "
            f"relative error {error:.2e} > {self.rtol:g}{hint}"
        )

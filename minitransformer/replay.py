"""A worker's part of a training step, recorded once as a list of NumPy's calls and then made again without the rest.

Python takes as long to say what is to be computed in a small model as NumPy to compute a third of it: it calls the
modules, makes the tape and walks it back, and all of that comes to the same calls each step. Here they are written
down (kernels/recorded.py), given memory (kernels/program.py), and from then on made one after another. graph.py does
this on a GPU, where CUDA keeps the list.

What a recorded step has decided by its numbers is decided again at each replay; where the answer is another one the
step is taken as usual. What it does not see are variables of Python: a loss may depend on its arrays, the parameters,
`train()`/`eval()`, what can be switched in the library, and its random numbers, and does nothing but give its result.
So that nothing else goes unnoticed for long, the result is compared with the step's own, bit for bit: as it is
recorded, and at the first replay, the fourth, the sixteenth and so on. Then the step is taken twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backend, draws
from .kernels.blas import blas_threads
from .kernels.memory import give_back_freed_memory
from .kernels.program import Arena, Program
from .kernels.recorded import new_recorder
from .kernels.recorder import Changed, plain
from .nn import Module
from .ops.precision import is_autocast
from .tensor import Tensor, _propagate, is_grad_enabled, is_observed, kernels_enabled

CALLS = 40_000  # of all programs together, at about a kilobyte each; steps of further shapes are taken as usual
PATIENCE = 8  # replays that may end early before a program is given up, beyond those that do not; and recordings


def is_compared(replay: int) -> bool:
    """Tell whether a program's replay of a number, from 1 on, is compared with the step: 1, 4, 16, 64, ..."""
    return replay & (replay - 1) == 0 and replay.bit_length() % 2 == 1


def number(value: Any) -> Any:
    """Return a Python number, also for an array of one."""
    return value.item() if hasattr(value, "dtype") else value


class Result(NamedTuple):
    """What comes of a part of a batch: its mean loss, its tokens, and which parameters got a gradient."""

    loss: float
    tokens: Any  # a number
    reached: list[int]

    def same(self, other: Result) -> bool:
        """Tell whether another result is the same, nan being nan."""
        both_nan = self.loss != self.loss and other.loss != other.loss
        return (both_nan or self.loss == other.loss) and self[1:] == other[1:]


NOTHING = Result(0.0, 0, [])


class Part:
    """Compute the loss of some rows, and leave nᵢ·gᵢ in `slots`, an array for each parameter.

    loss(*arrays) → (mean loss, its count of tokens), by a model; replay: whether to record what comes more than once.
    """

    def __init__(self, loss: Callable, model: Module, slots: Sequence[np.ndarray], replay: bool = True):
        self.loss, self.parameters, self.slots, self.replay = loss, model.parameters(), slots, replay
        self.modules = list(model.modules())
        self.arena, self.moved = Arena(), 0
        self.seen: set[tuple] = set()
        self.programs: dict[tuple, _Recording | None] = {}  # None: cannot be recorded
        self.replayed = 0

    def __call__(self, arrays: Sequence[np.ndarray], scale: float) -> Result:
        """Return what comes of some rows whose loss is multiplied by `scale`, for the gradients."""
        if not self.replay or is_observed() or not is_grad_enabled():
            return self.computed(arrays, scale)
        switches = kernels_enabled(), is_autocast(), blas_threads(), *[m.training for m in self.modules]
        key = (switches, *[(a.shape, a.dtype) for a in arrays])
        if key not in self.programs:
            if key not in self.seen or self._calls() >= CALLS:
                self.seen.add(key)
                return self.computed(arrays, scale)
            return self._recorded(key, arrays, scale)
        program = self.programs[key]
        if program is None:
            return self.computed(arrays, scale)
        if not program.fits(self.parameters):
            self.moved += 1
            if self.moved > PATIENCE:
                self.programs[key] = None
                return self.computed(arrays, scale)
            return self._recorded(key, arrays, scale)
        return self._replayed(key, program, arrays, scale)

    def _calls(self) -> int:
        return sum(len(recording.program) for recording in self.programs.values() if recording is not None)

    # -- as usual -------------------------------------------------------------------------------------------
    def computed(self, arrays: Sequence[Any], scale: float) -> Result:
        """Run the loss and its backward pass."""
        value, tokens = self.loss(*arrays)
        tokens = number(tokens)
        if value.node is None or not tokens:
            return NOTHING
        seed = np.full(value.shape, tokens * scale, dtype=value.dtype)
        return Result(float(value.data), tokens, self._walk(value, seed, self.slots))

    def _walk(self, value: Tensor, seed: Any, slots: Sequence[Any]) -> list[int]:
        """Run a backward pass, each gradient straight into its slot."""
        places = {p.node: (i, slots[i]) for i, p in enumerate(self.parameters)}
        reached = []
        for node, g, _ in _propagate(value.node, seed, keep_graph=False):  # type: ignore[arg-type]
            if node in places:
                i, slot = places[node]
                slot[...] = g
                reached.append(i)
        return reached

    # -- recorded -------------------------------------------------------------------------------------------
    def _recorded(self, key: tuple, arrays: Sequence[np.ndarray], scale: float) -> Result:
        """Take a step, recorded and then as usual; keep the program if there is one and both came to the same."""
        before, program, found = draws.random_state(), None, None
        self.programs.pop(key, None)
        try:
            program, found = self._record(arrays, scale)
            total = self._sum(found)
        except Exception:  # whatever it is, the step itself says it better
            program = None
        draws.set_random_state(*before)
        result = self.computed(arrays, scale)
        if program is not None and not (found is not None and result.same(found) and self._sum(result) == total):
            program = None
        self.programs[key] = program
        return result

    def _record(self, arrays: Sequence[np.ndarray], scale: float) -> tuple[_Recording, Result]:
        recorder = new_recorder()
        inputs = [recorder.outside(a.copy()) for a in arrays]
        homes, before = [p.data for p in self.parameters], draws.random_state()[1]
        with recorder.recording(), draws.drawing_ahead():
            try:
                for p in self.parameters:
                    p.data = recorder.outside(p.data)
                value, tokens = self.loss(*inputs)
                count = number(plain(tokens))
                if value.node is None or not count:
                    raise backend.NotRecordable("nothing to record: no gradient, or no token")
                forward = len(recorder.calls)
                seed = recorder.outside(np.full(value.shape, count * scale, dtype=value.dtype))
                reached = self._walk(value, seed, [recorder.outside(slot) for slot in self.slots])
            finally:
                for p, home in zip(self.parameters, homes, strict=True):
                    p.data = home
        if recorder.spoiled:
            raise backend.NotRecordable("another thread used the model while its step was recorded")
        result = Result(float(value.data.array), count, reached)
        ends = [forward, len(recorder.calls)]
        program = Program(recorder, ends, (value.data, tokens), self.slots, self.arena)
        nodes = [p.node for p in self.parameters]
        drawn = draws.random_state()[1] - before
        return _Recording(program, [plain(a) for a in inputs], plain(seed), reached, homes, nodes, drawn), result

    def _replayed(self, key: tuple, program: _Recording, arrays: Sequence[np.ndarray], scale: float) -> Result:
        """Replay a step, and now and then compare it with the step itself."""
        before, expected, found = draws.random_state(), None, 0
        if is_compared(program.replays + 1):
            self.arena.give_back()  # one of them at a time needs its memory
            expected = self.computed(arrays, scale)
            found = self._sum(expected)
            give_back_freed_memory()
            draws.set_random_state(*before)
        try:
            result = program.replay(arrays, scale)
        except Exception:  # the step itself says what is wrong, if it is
            program.given_up += 1
            if program.given_up - program.replays > PATIENCE:
                self.programs[key] = None
            draws.set_random_state(*before)
            return self.computed(arrays, scale)
        self.replayed += 1
        if expected is not None and not (result.same(expected) and self._sum(result) == found):
            self.programs[key] = None
            draws.set_random_state(*before)
            return self.computed(arrays, scale)
        return result

    def _sum(self, result: Result) -> int:
        """Return a number that other gradients would not have."""
        total = 0
        for i in result.reached:
            total = zlib.crc32(self.slots[i].data, total)
        return total


class _Recording:
    """A program, what goes into it, and what it was recorded with."""

    def __init__(
        self, program: Program, inputs: list[np.ndarray], seed: np.ndarray, reached: list[int], homes: list[Any],
        nodes: list[Any], drawn: int,
    ):  # fmt: skip
        self.program, self.inputs, self.seed, self.reached = program, inputs, seed, reached
        self.homes, self.nodes, self.drawn = homes, nodes, drawn
        self.replays = self.given_up = 0

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Tell whether the parameters are still where they were, and learn or are frozen as they were."""
        known = zip(parameters, self.homes, self.nodes, strict=True)
        return all([p.data is home and p.node is node for p, home, node in known])

    def replay(self, arrays: Sequence[np.ndarray], scale: float) -> Result:
        """Make the calls again, for other rows. Raises Changed where they would be others."""
        forward, backward = self.program.ready()
        loss, tokens = self.program.kept
        size = np.getbufsize()
        try:
            with draws.drawing_ahead(self.drawn):
                for room, array in zip(self.inputs, arrays, strict=True):
                    room[...] = array
                for call in forward:
                    call()
                count = number(tokens)
                if not count:
                    raise Changed
                self.seed.fill(count * scale)
                for call in backward:
                    call()
        finally:
            np.setbufsize(size)
        self.replays += 1
        return Result(float(loss), count, self.reached)

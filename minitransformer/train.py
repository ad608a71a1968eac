"""One loop for every task: a batch, its loss, its gradients, a step; logged, checkpointed, resumable to the bit.

Nothing random outlives a step. Batch n is a function of (seed, n), and its dropout is drawn from a stream named
(seed, n); so weights, optimizer state and the number n are the whole state of a run. A step takes one batch, or as many
as `accumulate` says.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import backend, checkpoint, draws, optim
from .distributed import DataParallel, Ranks
from .graph import GraphedStep
from .models.config import LayersConfig
from .nn import Module
from .ops.precision import autocast
from .parallel import Workers, default_workers
from .tensor import Tensor, no_grad


@dataclasses.dataclass
class TrainConfig(LayersConfig):
    """Every setting of a run: what `--set key=value` may change, and config.json records."""

    task: str = "reversal"
    seed: int = 0
    backend: str = "numpy"
    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 3e-3  # the peak of the schedule; noam has its own, 1/√(d_model·warmup_steps)
    warmup_steps: int = 100
    optimizer: str = "adamw"  # adamw, adam, sgd, adafactor or lion (whose learning_rate is 3 to 10 times smaller)
    schedule: str = "cosine"  # cosine, linear, inverse_sqrt, exponential, step, constant or noam; all warm up
    lr_floor: float = 0.0  # which the schedule does not fall below (noam and constant have none)
    lr_decay: float = 0.1  # exponential and step: the factor of lr_decay_every steps together
    lr_decay_every: int = 500
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0: never clip
    clip_value: float = 0.0  # of each element of a gradient, before their norm; 0: never clip
    spike: float = 0.0  # leave a step out whose loss lies this many deviations above the last ones; 0: take them all
    accumulate: int = 1  # batches whose gradients are added up, weighted by their tokens, before a step
    label_smoothing: float = 0.0
    loss_chunk: int = 0  # tokens whose logits are held at once; 0: all
    d_model: int = 64
    heads: int = 4
    layers: int = 2
    d_ff: int = 256
    dropout: float = 0.0
    norm: str = "pre"
    activation: str = "relu"
    positions: str = "sinusoidal"
    tie_embeddings: str = "none"
    max_length: int = 64
    symbols: int = 10  # reversal
    limit: int = 1000  # numbers: 0 … limit − 1
    tokens: str = "char"  # pairs and text: char or bpe
    vocab_size: int = 1000  # with bpe
    validation: float = 0.1  # share of pairs or text held out
    pairs: str = ""
    text: str = ""
    log_every: int = 25
    checkpoint_every: int = 250
    validate_every: int = 250
    precision: str = "float32"  # of products: float32, tf32 (on a GPU) or float16 (with a scaled loss)
    graph: bool | str = "auto"  # record steps, for each shape of a batch (graph.py, replay.py); auto: where it can be
    workers: int = 0  # processes that share a step; 0: as many as there are cores (written down when the run begins)

    def __post_init__(self) -> None:
        self.require(
            steps=1, batch_size=1, warmup_steps=0, log_every=1, checkpoint_every=1, validate_every=1, seed=0,
            d_model=1, heads=1, layers=0, d_ff=1, max_length=2, vocab_size=260, limit=20, workers=0, loss_chunk=0,
            lr_decay_every=1, accumulate=1,
        )  # fmt: skip
        if not self.workers:
            self.workers = default_workers() if self.backend == "numpy" else 1
        for name, low, high in (
            ("learning_rate", 0, math.inf), ("weight_decay", 0, math.inf), ("clip_norm", 0, math.inf),
            ("label_smoothing", 0, 0.999), ("dropout", 0, 0.999), ("validation", 0.001, 0.9),
            ("lr_floor", 0, math.inf), ("lr_decay", 1e-9, 1), ("clip_value", 0, math.inf), ("spike", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high or value == math.inf:  # written so that nan fails
                raise ValueError(f"{name} lies in {low} … {high}; got {value!r}; write {name}={max(low, 0.1)}")
        choices = {
            "optimizer": ("adamw", "adam", "sgd", "adafactor", "lion"), "schedule": tuple(SCHEDULES),
            "tokens": ("char", "bpe"), "backend": backend.BACKENDS, "precision": ("float32", "tf32", "float16"),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}; write {name}={allowed[0]}"
                )
        if self.lr_floor > self.learning_rate:
            came = f"lr_floor={self.lr_floor}, learning_rate={self.learning_rate}"
            raise ValueError(f"lr_floor is at most learning_rate; got {came}; write lr_floor=0")
        if self.precision == "tf32" and self.backend == "numpy":
            raise ValueError("precision=tf32 is for a GPU; got backend=numpy; write precision=float32")
        if not isinstance(self.graph, bool) and self.graph != "auto":
            raise ValueError(f"graph is true, false or auto; got {self.graph!r}; write graph=auto")
        if self.graph is True and (self.backend == "numpy" or self.precision == "float16"):
            came = f"backend={self.backend}, precision={self.precision}"
            raise ValueError(f"graph=true is for a GPU, without a scaled loss; got {came}; write graph=false")
        if self.graph is True and self.accumulate > 1:
            raise ValueError(
                f"graph=true records steps of one batch; got accumulate={self.accumulate}; write graph=false"
            )
        if self.graph is True and self.spike:
            came = f"spike={self.spike}, graph=true"
            raise ValueError(f"spike has to know each loss before its step; got {came}; write spike=0")


class Task(Protocol):
    """What the loop needs to know of a task."""

    model: Module

    def batch(self, step: int) -> tuple[Any, ...]:
        """Return batch number `step`, counted from 1: arrays of integers with one row for each example.

        It is the batch of that step; with `accumulate` there are as many to a step, one after another.
        """

    def loss(self, *arrays: Any) -> tuple[Tensor, int]:
        """Return the mean loss of a batch or a part of one, in nats per token, and its count of tokens."""

    def tokens(self, *arrays: Any) -> int:
        """Return the count of tokens of a batch or a part of one."""

    def held_out_loss(self) -> float:
        """Return the mean loss on data held out, in nats per token, without smoothing; nothing is recorded."""

    def evaluate(self) -> dict[str, Any]:
        """Return figures on data held out, by name; the model is in eval mode and nothing is recorded."""


def make_optimizer(config: TrainConfig, model: Module) -> Any:
    """Make the optimizer that the config names; one-dimensional parameters are not decayed.

    lion moves every weight by learning_rate in each step: give it a tenth to a third of what suits adamw.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr = config.learning_rate
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=0.9)
    if config.optimizer == "adafactor":
        return optim.Adafactor(groups, lr=lr, convention="torch")
    if config.optimizer == "lion":
        return optim.Lion(groups, lr=lr)
    return (optim.AdamW if config.optimizer == "adamw" else optim.Adam)(groups, lr=lr, betas=(0.9, 0.98))


# name → the schedule of a config and its warm-up; w is cut short for those that have to end it before config.steps
# (tasks.make_config refuses what would be cut here, and early runs are resumed as they began)
SCHEDULES: dict[str, Callable[[TrainConfig, int], Callable[[int], float]]] = {
    "cosine": lambda c, w: optim.WarmupCosine(c.learning_rate, min(w, c.steps - 1), c.steps, c.lr_floor),
    "linear": lambda c, w: optim.WarmupLinear(c.learning_rate, min(w, c.steps - 1), c.steps, c.lr_floor),
    "inverse_sqrt": lambda c, w: optim.InverseSquareRoot(c.learning_rate, w, c.lr_floor),
    "exponential": lambda c, w: optim.Exponential(c.learning_rate, w, c.lr_decay, c.lr_decay_every, c.lr_floor),
    "step": lambda c, w: optim.StepDecay(c.learning_rate, w, c.lr_decay, c.lr_decay_every, c.lr_floor),
    "constant": lambda c, w: optim.Constant(c.learning_rate, w),
    "noam": lambda c, w: optim.Noam(c.d_model, max(w, 1)),
}


def make_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Make the learning rate as a function of the step, counted from 1."""
    return SCHEDULES[config.schedule](config, config.warmup_steps)


class Stopped(Exception):
    """Raised out of the loop after Ctrl-C or SIGTERM, once the checkpoint is written."""


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event that the loop looks at between steps."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.signal(s, lambda *_: event.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Progress:
    """Show step, loss, speed and time left: one line rewritten on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, quiet: bool = False):
        self.steps, self.quiet, self.live = steps, quiet, sys.stderr.isatty()

    def show(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Print one state.    loss in nats per token"""
        if self.quiet:
            return
        left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
        line = f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {loss:.4f} nats/token"
        line += f"  {tokens_per_second:,.0f} tokens/s  {left} left"
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line that was rewritten."""
        if self.live and not self.quiet:
            print(file=sys.stderr)


class Log:
    """Write metrics.jsonl, one line for each step logged. A resumed run drops the lines after its checkpoint first."""

    def __init__(self, path: Path, resumed_at: int):
        kept = []
        if resumed_at and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_at:
                        kept.append(line + "\n")
                except (ValueError, KeyError):  # the last line of a run that was killed while writing it
                    break
        checkpoint.write_atomically(path, "".join(kept).encode())
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def write(self, **figures: Any) -> None:
        """Append one line."""
        self.file.write(json.dumps(figures, allow_nan=False) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _graphed(
    workers: Any, gradients: _Gradients, optimizer: Any, task: Task, config: TrainConfig
) -> GraphedStep | None:
    """Return what takes whole steps by a graph; None where steps are taken one launch after another."""
    can = config.backend == "cupy" and config.precision != "float16" and config.accumulate == 1 and not config.spike
    alone, wanted = isinstance(workers, Workers), config.graph is True
    if wanted and not alone:
        raise ValueError("graph=true is for one process; got several ranks; write graph=false")
    if not (wanted or (config.graph == "auto" and can and alone and hasattr(task, "tokens"))):
        return None

    def step(*arrays: Any) -> tuple[Any, int, Any]:
        loss, tokens = workers.backward(*arrays)
        norm = gradients.clip()
        optimizer.step()
        return loss, tokens, norm

    return GraphedStep(step, optimizer, task.tokens, may_fail=not wanted)


class Silence:
    """Stands in for the log on the ranks that do not write."""

    def write(self, **figures: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _in_half(loss: Callable) -> Callable:
    """Return the loss with its products in half precision."""

    def compute(*arrays: Any) -> tuple[Tensor, int]:
        with autocast():
            return loss(*arrays)  # type: ignore[no-any-return]

    return compute


def _backward(workers: Workers | DataParallel, task: Task, config: TrainConfig, step: int) -> tuple[Any, int]:
    """Leave the gradient of a step in `.grad`; return the mean loss of its batches, and their tokens.

    Several batches are weighted by their tokens, as the parts of one are. Ranks sum up the gradients of each.
    """
    if config.accumulate == 1:
        draws.manual_seed((config.seed, step))
        return workers.backward(*task.batch(step))
    gradients, total = optim.GradAccumulator(task.model.parameters()), 0.0
    for number in range((step - 1) * config.accumulate + 1, step * config.accumulate + 1):
        draws.manual_seed((config.seed, number))
        loss, tokens = workers.backward(*task.batch(number))
        gradients.add(tokens)
        total = total + loss * tokens  # on a GPU nobody waits for it
    tokens = gradients.finish()
    return total / max(tokens, 1), tokens


def _split(model: Module, loss: Any, config: TrainConfig, ranks: Ranks | None) -> Workers | DataParallel:
    """Return what splits a batch: ranks where mpiexec has started some, else workers."""
    if ranks is not None:
        return DataParallel(model, loss, ranks)
    return Workers(model, loss, config.workers, replay=config.graph is not False)


def _flat(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an optimizer's state into arrays named "index.name" and the rest, for JSON."""
    arrays, rest = {}, []
    for i, entry in enumerate(state["state"]):
        arrays.update(
            {f"{i}.{name}": np.asarray(backend.to_numpy(v)) for name, v in entry.items() if hasattr(v, "dtype")}
        )
        rest.append({name: v for name, v in entry.items() if not hasattr(v, "dtype")})
    return arrays, {**state, "state": rest}


def _unflat(arrays: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    entries = [dict(entry) for entry in rest["state"]]
    for name, value in arrays.items():
        i, _, field = name.partition(".")
        entries[int(i)][field] = value
    return {**rest, "state": entries}


def train(
    task: Task, config: TrainConfig, folder: Path, resume: bool = False, quiet: bool = False,
    ranks: Ranks | None = None, begin: Callable[[], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train until config.steps and return the figures of `task.evaluate()`, with loss, steps, seconds and memory.

    Every checkpoint_every steps, at the end and when stopped, a checkpoint goes to folder/checkpoint; with `resume`
    the newest is loaded first, and the final weights are, bit for bit, those of a run that was never stopped.
    With `ranks` all of them call this, each takes a part of every batch, and rank 0 alone writes and measures; the
    others get {} back. `begin` is called when all is ready for the first step, before anything is written: a run that
    is refused leaves nothing behind. With `spike` each loss is looked at before its step (see `optim.SpikeGuard`; a GPU
    is waited for), and a step left out is a line of metrics.jsonl with left_out. Raises Stopped after Ctrl-C,
    FloatingPointError (with parameter and step) when a gradient is not finite, or losses leap again and again.
    """
    model, optimizer, schedule = task.model, make_optimizer(config, task.model), make_schedule(config)
    start, seconds = 0, 0.0
    last_loss: float | None = None  # none has been read yet
    scaler = optim.GradScaler() if config.precision == "float16" else None
    names = [name for name, _ in model.named_parameters()]
    guard = optim.SpikeGuard(config.spike, names) if config.spike else None
    if resume:
        arrays, moments, state = checkpoint.load_checkpoint(folder / "checkpoint")
        model.load_state_dict(arrays)
        optimizer.load_state_dict(_unflat(moments, state["optimizer"]))
        start, seconds, last_loss = state["step"], state["seconds"], state["loss"]
        if scaler:
            scaler.load_state_dict(state["scaler"])
        if guard:
            guard.load_state_dict(state["guard"])
    if config.backend == "cupy":
        backend.allow_tf32(config.precision == "tf32")
    began = time.perf_counter() - seconds
    writes = ranks is None or ranks.rank == 0

    def write_checkpoint(step: int) -> None:
        moments, rest = _flat(optimizer.state_dict())
        state = {"optimizer": rest, "seconds": time.perf_counter() - began, "loss": last_loss}
        if scaler:
            state["scaler"] = scaler.state_dict()
        if guard:
            state["guard"] = guard.state_dict()
        checkpoint.save_checkpoint(folder / "checkpoint", step, model.state_dict(), moments, state)

    log: Log | Silence = Silence()
    progress = Progress(config.steps, quiet or not writes)
    gradients = _Gradients(model, config.clip_norm, config.clip_value)
    counted, since = 0, time.perf_counter()
    try:
        loss_of = _in_half(task.loss) if scaler else task.loss
        # What overflows is found below, by the norm; workers, which are forked here, keep silent, too.
        silent = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        with silent, _split(model, loss_of, config, ranks) as workers, _stop_signals() as stop:
            model.train()
            graphed = _graphed(workers, gradients, optimizer, task, config)
            if writes:
                if begin is not None:
                    begin()
                log = Log(folder / "metrics.jsonl", start)
            for step in range(start + 1, config.steps + 1):
                optimizer.lr = schedule(step)
                if graphed is not None:
                    draws.manual_seed((config.seed, step))
                    loss, tokens, norm = graphed(*task.batch(step))
                    gradients.note(step, norm, loss)
                else:
                    if scaler:
                        workers.scale = scaler.scale
                    loss, tokens = _backward(workers, task, config, step)
                    if scaler is None or _unscaled(scaler, gradients, step, loss):
                        norms = optim.grad_norms(model.parameters()) if guard else []  # before they are clipped
                        gradients.note(step, gradients.clip(), loss)
                        if guard is None or not _left_out(guard, gradients, log, step, loss.item(), norms):
                            workers.step(optimizer)
                counted += tokens
                stopping = workers.agree(stop.is_set())
                validation = step % config.validate_every == 0 or step == config.steps
                if validation or step % config.log_every == 0 or stopping:
                    last_loss, now = loss.item(), time.perf_counter()
                    speed = counted / max(now - since, 1e-9)
                    figures = {"loss": last_loss, "lr": optimizer.lr, "grad_norm": gradients.read()}
                    if validation and writes:
                        figures["validation_loss"] = _validation_loss(task)
                    _check_finite(figures, gradients, step, loss)
                    log.write(step=step, **figures, tokens_per_second=round(speed))
                    progress.show(step, last_loss, speed, (now - since) / (step - start) * (config.steps - step))
                if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                    gradients.read()
                    if writes:
                        write_checkpoint(step)
                if stopping and step < config.steps:
                    raise Stopped(f"stopped after step {step} of {config.steps}; the checkpoint is written")
    finally:
        progress.close()
        log.close()
    model.eval()
    if not writes:
        return {}
    with no_grad():
        figures = task.evaluate()
    memory = {
        "parameter_bytes": sum(p.data.nbytes for p in model.parameters()), "optimizer_bytes": optimizer.state_bytes(),
    }  # fmt: skip
    seconds = round(time.perf_counter() - began, 2)
    if guard:
        figures["left_out"] = guard.left_out
    return {**figures, "loss": last_loss, "steps": config.steps, "seconds": seconds, **memory}


def _validation_loss(task: Task) -> float:
    """Return the loss on what is held out, in eval mode; training goes on as if nothing had happened."""
    task.model.eval()
    with no_grad():
        loss = task.held_out_loss()
    task.model.train()
    return loss


def _check_finite(figures: dict[str, float], gradients: _Gradients, step: int, loss: Any) -> None:
    """Raise FloatingPointError for a figure that a log could not hold.

    With a scaled loss a step may have been left out whose loss was not finite; and weights may overflow in the last.
    """
    if not math.isfinite(figures["loss"]):
        raise gradients.error(step, math.inf, loss, IN_HALF)
    for name, value in figures.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"figures of a run are finite numbers; {name} is {value} after step {step}; lower learning_rate"
            )


def _unscaled(scaler: optim.GradScaler, gradients: _Gradients, step: int, loss: Any) -> bool:
    """Tell whether there is a step to be taken. Where not even the unscaled loss would do, name the parameter."""
    try:
        return scaler.unscale_(gradients.model.parameters())
    except FloatingPointError:
        raise gradients.error(step, math.inf, loss, IN_HALF) from None


def _left_out(
    guard: optim.SpikeGuard, gradients: _Gradients, log: Log | Silence, step: int, loss: float, norms: list[float]
) -> bool:
    """Tell whether a step is left out, and if so write it down. A gradient that is not finite raises first."""
    gradients.read()
    spike = guard.look(step, loss, norms)
    if spike is not None:
        log.write(**spike._asdict())
    return spike is not None


IN_HALF = "write precision=float32, or lower learning_rate"  # what helps where a scaled loss does not


class _Gradients:
    """Clip the gradients of each step, and say which parameter's was not finite, and when.

    On the host that is known at once. A GPU is asked only where the loop waits for it anyway; it has noted then what
    happened meanwhile.
    """

    def __init__(self, model: Module, limit: float, value: float):
        self.model, self.limit, self.value = model, limit or math.inf, value
        self.unread: list[tuple[int, Any, Any]] = []  # (step, norm, loss)
        self.norm = 0.0  # the last that was read

    def clip(self) -> Any:
        """Bring each element down to `value`, then the norm of all to the limit; return what the norm was at first.

        The elements come first: a single wild one would make the norm so large that all others, divided by it, were as
        good as gone.
        """
        parameters = self.model.parameters()
        if not self.value:
            return optim.clip_grad_norm_(parameters, self.limit, error_if_nonfinite=False)
        norm = optim.clip_grad_norm_(parameters, math.inf, error_if_nonfinite=False)
        if backend.backend_of(norm) == "numpy" and not math.isfinite(norm):
            return norm  # an infinite element, brought down to `value`, could not be named any more
        optim.clip_grad_value_(parameters, self.value)
        if self.limit != math.inf:
            optim.clip_grad_norm_(parameters, self.limit, error_if_nonfinite=False)
        return norm

    def note(self, step: int, norm: Any, loss: Any) -> None:
        """Remember the norm of a step. Raises as `read` does, on a GPU later."""
        self.unread.append((step, norm, loss))
        if backend.backend_of(norm) == "numpy":
            self.read()

    def read(self) -> float:
        """Return the last norm. Raises FloatingPointError, with parameter and step, where one was not finite."""
        if not self.unread:
            return self.norm
        on_device = tuple(norm for _, norm, _ in self.unread)
        norms = backend.to_numpy(backend.namespace(on_device).stack(on_device)).tolist()
        for (step, norm, loss), value in zip(self.unread, norms, strict=True):
            if not math.isfinite(value):
                raise self.error(step, norm, loss, "lower learning_rate or lengthen warmup_steps")
        self.unread, self.norm = [], norms[-1]
        return self.norm

    def error(self, step: int, norm: Any, loss: Any, remedy: str) -> FloatingPointError:
        """Return what to raise for a norm that is not finite."""
        fault = optim.gradients_at_fault(norm, self.model.parameters())
        if fault is None:
            what = "norm of all gradients overflows" if math.isfinite(loss) else "loss is not finite"
            return FloatingPointError(f"the {what} at step {step}; {remedy}")
        name = [name for name, _ in self.model.named_parameters()][fault.first]
        came = f"that of {name} is not"
        if fault.bad == fault.of > 1:  # the first of them says nothing
            came = f"those of all {fault.of} parameters are not ({self._before(norm, loss)})"
        elif fault.bad > 1:
            came = f"those of {fault.bad} of {fault.of} parameters are not, the first that of {name}"
        return FloatingPointError(f"gradients are finite numbers; {came}, at step {step}; {remedy}")

    def _before(self, norm: Any, loss: Any) -> str:
        """Say what was not finite before the backward pass began: the loss, or a parameter itself."""
        came = f"the loss is {float(loss):.4g}"
        if backend.backend_of(norm) != "numpy":  # a GPU has changed the parameters since
            return came
        bad = [name for name, p in self.model.named_parameters() if not np.isfinite(backend.to_numpy(p.data)).all()]
        return f"{came}, and {bad[0]} itself is not finite" if bad else f"{came}, though all parameters are finite"

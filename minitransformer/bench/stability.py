"""Where gradients vanish or explode in a deep stack, and what each remedy does about it.

At initialisation: the norm of the gradient that reaches each layer, with one thing changed at a time. What no model
should do without, residuals and norms, is taken out here and nowhere else. In training: the same reversal run with one
thing added at a time, by plain SGD with momentum, whose step is as long as its gradient (Adam divides the length out).
What regularises and what changes the learning rate is shown as well, remedy or not, and what a batch does whose targets
are wrong.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import data, draws, nn, ops, optim, tasks
from .. import draw as figures
from ..kernels.blas import limit_blas_threads
from ..train import train

LAYERS, WIDTH, HEADS, HIDDEN = 24, 32, 4, 128
ROWS, LENGTH, VOCAB = 8, 16, 16
HE = 2**0.25  # each of two layers; together they make up for what a ReLU takes
LARGE = 8.0  # times the queries' and the keys' weights: 64 times the logits
LAST = 20  # steps of which the final loss is the mean
NEXT = 10  # steps behind wrong targets
POINTS = 30  # of a curve over the steps

Panels = dict[str, dict[str, list[float]]]

BASE = {
    "batch_size": 16, "d_model": 32, "d_ff": 64, "layers": 4, "norm": "post", "optimizer": "sgd", "learning_rate": 0.1,
    "schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0, "workers": 1,
}  # fmt: skip
CALM = {"norm": "pre", "warmup_steps": 100}  # what the panels after the first begin with
ADAM = {**CALM, "learning_rate": 3e-3}
FALLS = {**CALM, "lr_decay": 0.5, "lr_decay_every": 50}  # after the warm-up
BAD = 200  # the step whose batch has wrong targets, where one has
FIRST, REGULARISED, SCHEDULED, SPOILED = (
    "post-norm, and one remedy each", "pre-norm and warm-up, regularised", "pre-norm, a warm-up of 100, then",
    f"pre-norm and warm-up; wrong targets at step {BAD}",
)  # fmt: skip
TRAININGS: dict[str, dict[str, dict[str, Any]]] = {
    FIRST: {
        "none": {},
        "warm-up": {"warmup_steps": 100},
        "clipping by norm": {"clip_norm": 1.0},
        "clipping by value": {"clip_value": 0.02},
        "4 batches a step": {"accumulate": 4},
        "pre-norm": {"norm": "pre"},
        "warm-up, clipping, pre-norm": {**CALM, "clip_norm": 1.0},
    },
    REGULARISED: {
        "nothing": CALM,
        "dropout 0.1": {**CALM, "dropout": 0.1},
        "label smoothing 0.1": {**CALM, "label_smoothing": 0.1},
        "L2 penalty 0.001": {**CALM, "weight_decay": 1e-3},
        "Adam, L2 penalty 0.1": {**ADAM, "optimizer": "adam", "weight_decay": 0.1},
        "AdamW, decoupled decay 0.1": {**ADAM, "optimizer": "adamw", "weight_decay": 0.1},
    },
    SCHEDULED: {name: {**FALLS, "schedule": name} for name in ("constant", "cosine", "linear", "inverse_sqrt")}
    | {name: {**FALLS, "schedule": name} for name in ("exponential", "step", "noam")},
    SPOILED: {
        "no wrong targets": CALM,
        "nothing done": CALM,
        "clipping by norm": {**CALM, "clip_norm": 1.0},
        "spike guard": {**CALM, "spike": 6.0},
    },
}


class Bare(nn.EncoderLayer):
    """A layer without its norms, and, if asked, without its residuals.    (B, T, D) → (B, T, D)"""

    def __init__(self, residuals: bool = False, attends: bool = True, act: str = "relu"):
        super().__init__(WIDTH, HEADS, HIDDEN, norm="post", act=act)
        self.residuals, self.attends = residuals, attends

    def residual(self, x: Any, norm: nn.Module, sublayer: Callable) -> Any:
        """Return sublayer(x), or x + sublayer(x)."""
        if norm is self.norm1 and not self.attends:
            return x
        return self.add(x, sublayer(x)) if self.residuals else sublayer(x)


def whole(norm: str, act: str = "relu", **attention: Any) -> nn.EncoderLayer:
    """Make a layer as it should be."""
    return nn.EncoderLayer(WIDTH, HEADS, HIDDEN, norm=norm, act=act, **attention)


def layer_norms(
    make: Callable[[], nn.EncoderLayer], layers: int, scale: float = 1.0, outputs: float = 1.0, logits: float = 1.0
) -> list[float]:
    """Return the norm of the gradient of each layer's parameters, from the first layer to the last.

        loss: cross-entropy of a linear head on the stack, for random tokens and targets

    scale: of all weight matrices, after they were drawn; outputs: of those that write into the residual sum; logits: of
    those that make queries and keys. In double precision, since what explodes here is beyond single.
    """
    draws.manual_seed(0)
    embedding, stack = nn.Embedding(VOCAB, WIDTH), nn.Encoder([make() for _ in range(layers)], WIDTH)
    head = nn.Linear(WIDTH, VOCAB)
    for name, p in stack.named_parameters():
        if name.endswith("weight") and p.ndim == 2:
            into_sum, of_scores = ("out_proj" in name or "down" in name), ("q_proj" in name or "k_proj" in name)
            p.data *= scale * (outputs if into_sum else 1.0) * (logits if of_scores else 1.0)
    for module in (embedding, stack, head):
        module.to("float64")
    ids, targets = np.random.default_rng(0).integers(0, VOCAB, (2, ROWS, LENGTH))
    ops.cross_entropy(head(stack(embedding(ids), causal=True)), targets).backward()
    return [math.hypot(*optim.grad_norms(layer.parameters())) for layer in stack.layers]


def at_initialisation(layers: int) -> Panels:
    """Measure the gradient's norm at each layer: panel → curve → norms, from the first layer to the last."""
    pre, post, bare, feed_forward = partial(whole, "pre"), partial(whole, "post"), Bare, partial(Bare, attends=False)
    summed, into_sum = partial(Bare, residuals=True), 1 / math.sqrt(2 * layers)
    activations = {f"{a}, bare": layer_norms(partial(feed_forward, act=a), layers) for a in ("relu", "gelu", "silu")}
    activations["relu, bare, He's scale"] = layer_norms(feed_forward, layers, HE)
    # A gate multiplies small numbers by small ones: a bare stack of them underflows even in double precision.
    for name in ("gelu", "silu", "swiglu"):
        activations[f"{name}, pre-norm"] = layer_norms(partial(pre, act=name), layers)
    logits = {
        "weights as drawn": layer_norms(pre, layers),
        "logits × 64": layer_norms(pre, layers, logits=LARGE),
        "logits × 64, QK-norm": layer_norms(partial(pre, qk_norm=True), layers, logits=LARGE),
    }
    return {
        "no residuals, no norms": {
            f"weights × {scale:g}": layer_norms(bare, layers, scale) for scale in (0.5, 0.7, 1.0, 1.4)
        },
        "one remedy each": {
            "none": layer_norms(bare, layers),
            "residuals": layer_norms(summed, layers),
            "residuals, outputs × 1/√(2·layers)": layer_norms(summed, layers, outputs=into_sum),
            "residuals and post-norm": layer_norms(post, layers),
            "residuals and pre-norm": layer_norms(pre, layers),
        },
        "initial scale, with residuals and norms": {
            f"{name}-norm, weights × {scale:g}": layer_norms(make, layers, scale)
            for name, make in (("post", post), ("pre", pre))
            for scale in (0.5, 2.0)
        },
        "activations": activations,
        "large logits, pre-norm": logits,
    }


class Run(NamedTuple):
    """What a training run leaves: loss and norm of the gradient, before clipping, of each step; norms of each layer."""

    losses: list[float]
    norms: list[float]
    layers: list[float]  # at its end, on a new batch, encoder first


def training_run(settings: dict[str, Any], steps: int, seed: int, bad: int = 0) -> Run:
    """Train on reversal. bad: the step whose batch has wrong targets; 0 for none."""
    fields = {**BASE, **settings, "steps": steps, "seed": seed, "log_every": 1, "checkpoint_every": steps}
    if fields["schedule"] == "noam":
        del fields["learning_rate"]  # it has a peak of its own
    if fields["schedule"] in ("cosine", "linear"):
        fields["warmup_steps"] = min(fields["warmup_steps"], steps // 2)  # of a quick look
    config = tasks.make_config("reversal", {**fields, "validate_every": steps})
    task = tasks.make_task(config)
    task.evaluate = dict  # what it can translate by then is not asked
    batch = task.batch
    task.batch = lambda step: _spoiled(batch(step)) if step == bad else batch(step)
    with tempfile.TemporaryDirectory() as folder, limit_blas_threads(1):  # the products are too small for more
        train(task, config, Path(folder), quiet=True)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        taken = [line for line in lines if "left_out" not in line]
        task.model.zero_grad()
        task.loss(*batch(steps + 1))[0].backward()
    layers = [*task.model.encoder.layers, *task.model.decoder.layers]
    norms = [math.hypot(*optim.grad_norms(layer.parameters())) for layer in layers]
    return Run([line["loss"] for line in taken], [line["grad_norm"] for line in taken], norms)


def _spoiled(batch: Any) -> Any:
    """Return a batch whose targets are <unk>, as of a file that could not be read: no other batch has that."""
    return batch._replace(target_out=np.where(batch.target_out == data.PAD, data.PAD, data.UNK))


def in_training(steps: int, seeds: int, progress: Any) -> dict[str, dict[str, Any]]:
    """Train with each thing of each panel, for some seeds: final losses, the largest norm, norms over the steps.

    The first panel's runs have the norms of their layers at the end, too.
    """
    bad = min(BAD, 2 * steps // 3)
    result: dict[str, dict[str, Any]] = {}
    for panel, runs in TRAININGS.items():
        result[panel] = {}
        for name, settings in runs.items():
            progress(f"stability: training, {panel}: {name}")
            spoiled = bad if panel == SPOILED and name != "no wrong targets" else 0
            made = [training_run(settings, steps, seed, spoiled) for seed in range(seeds)]
            parts = np.array_split(np.arange(steps), min(POINTS, steps))
            if panel == SPOILED:  # step by step, around it
                parts = list(np.arange(max(bad - 20, 1), min(bad + 40, steps + 1))[:, None] - 1)
            norms = np.mean([run.norms for run in made], axis=0)
            result[panel][name] = {
                "final_loss": [float(np.mean(run.losses[-LAST:])) for run in made],
                "next_loss": float(np.mean([run.losses[bad : bad + NEXT] for run in made])),
                "largest_norm": max(max(run.norms) for run in made),
                "steps": [float(part.mean() + 1) for part in parts],
                "norms": [float(norms[part].mean()) for part in parts],
                "layers": np.mean([run.layers for run in made], axis=0).tolist(),
            }
    return result


def stability(layers: int, steps: int, seeds: int, progress: Any) -> dict[str, Any]:
    """Measure both: a stack at initialisation, and training with each remedy."""
    progress(f"stability: {layers} layers at initialisation")
    panels = at_initialisation(layers)
    return {"layers": layers, "steps": steps, "panels": panels, "training": in_training(steps, seeds, progress)}


def _loss(panel: str, run: dict[str, Any]) -> str:
    if panel == SPOILED:
        return f"loss of the next {NEXT} steps {run['next_loss']:.2f}"
    return f"loss {np.mean(run['final_loss']):.2f}"


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    lines = [f"norm of the gradient at initialisation, {result['layers']} layers of width {WIDTH}"]
    for title, curves in result["panels"].items():
        lines.append(f"{title:<42}{'first layer':>12}{'last layer':>12}{'first/last':>12}")
        lines += [f"  {name:<40}{g[0]:>12.2g}{g[-1]:>12.2g}{g[0] / g[-1]:>12.2g}" for name, g in curves.items()]
    lines.append(f"{result['steps']} steps of reversal, SGD with momentum, batches of {BASE['batch_size']}")
    for panel, runs in result["training"].items():
        lines.append(f"{panel:<50}{'largest norm':>13}{'final loss':>12}{'over the seeds':>16}{'first/last layer':>18}")
        for name, run in runs.items():
            losses, layers = run["final_loss"], run["layers"]
            spread = f"{min(losses):.2f} … {max(losses):.2f}"
            lines.append(
                f"  {name:<48}{run['largest_norm']:>13.3g}{np.mean(losses):>12.2f}{spread:>16}"
                f"{layers[0] / layers[-1]:>18.2g}" + (f"   {_loss(panel, run)}" if panel == SPOILED else "")
            )
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw two figures: norms of each layer, at initialisation and after training; and norms over the steps."""
    panels = {
        title: {name: (range(1, len(g) + 1), g) for name, g in curves.items()}
        for title, curves in result["panels"].items()
    }
    after = f"after {result['steps']} steps: {FIRST}"
    trained = result["training"][FIRST]
    panels[after] = {name: (range(1, len(run["layers"]) + 1), run["layers"]) for name, run in trained.items()}
    title = f"Norm of the gradient of each layer: {result['layers']} layers at initialisation, and after training"
    half = len(next(iter(trained.values()))["layers"]) // 2
    across = f"layer (1–{half} of the encoder, {half + 1}–{2 * half} of the decoder)"
    figures.gradient_norms(panels, path, title, {after: across})
    over_steps = {
        panel: {f"{name}: {_loss(panel, run)}": (run["steps"], run["norms"]) for name, run in runs.items()}
        for panel, runs in result["training"].items()
    }
    title = "Norm of the gradient in training, by SGD if not said"
    beside = path.with_name(f"{path.stem}-training{path.suffix}")
    figures.gradient_norms(over_steps, beside, title, dict.fromkeys(over_steps, "step"), wide=2)

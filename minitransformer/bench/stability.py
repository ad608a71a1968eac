"""Where gradients vanish or explode in a deep stack, and what each remedy does about it.

At initialisation: the norm of the gradient that reaches each layer, with one thing changed at a time. What no model
should do without, residuals and norms, is taken out here and nowhere else. In training: the same reversal run with one
remedy added at a time, by plain SGD with momentum, whose step is as long as its gradient (Adam divides the length out).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend, nn, ops, optim, tasks
from .. import draw as figures
from ..kernels.blas import limit_blas_threads
from ..train import train

LAYERS, WIDTH, HEADS, HIDDEN = 24, 32, 4, 128
ROWS, LENGTH, VOCAB = 8, 16, 16
HE = 2**0.25  # each of two layers; together they make up for what a ReLU takes
LARGE = 8.0  # times the queries' and the keys' weights: 64 times the logits
LAST = 20  # steps of which the final loss is the mean
POINTS = 30  # of a curve over the steps

Panels = dict[str, dict[str, list[float]]]

BASE = {
    "batch_size": 16, "d_model": 32, "d_ff": 64, "layers": 4, "norm": "post", "optimizer": "sgd", "learning_rate": 0.1,
    "schedule": "constant", "warmup_steps": 0, "clip_norm": 0.0, "workers": 1,
}  # fmt: skip
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "warm-up": {"warmup_steps": 100},
    "clipping by norm": {"clip_norm": 1.0},
    "clipping by value": {"clip_value": 0.02},
    "4 batches a step": {"accumulate": 4},
    "pre-norm": {"norm": "pre"},
    "warm-up, clipping, pre-norm": {"warmup_steps": 100, "clip_norm": 1.0, "norm": "pre"},
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
    backend.manual_seed(0)
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


def training_run(settings: dict[str, Any], steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Train on reversal and return the loss and the norm of the gradient (before clipping) of each step."""
    fields = {**BASE, **settings, "steps": steps, "seed": seed, "log_every": 1, "checkpoint_every": steps}
    config = tasks.make_config("reversal", {**fields, "validate_every": steps})
    task = tasks.make_task(config)
    task.evaluate = dict  # what it can translate by then is not asked
    with tempfile.TemporaryDirectory() as folder, limit_blas_threads(1):  # the products are too small for more
        train(task, config, Path(folder), quiet=True)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], [line["grad_norm"] for line in lines]


def in_training(steps: int, seeds: int, progress: Any) -> dict[str, Any]:
    """Train with each remedy, for some seeds: their final losses, the largest norm, and the norms over the steps."""
    result = {}
    for name, settings in REMEDIES.items():
        progress(f"stability: training, {name}")
        runs = [training_run(settings, steps, seed) for seed in range(seeds)]
        parts = np.array_split(np.arange(steps), min(POINTS, steps))
        norms = np.mean([norms for _, norms in runs], axis=0)
        result[name] = {
            "final_loss": [float(np.mean(losses[-LAST:])) for losses, _ in runs],
            "largest_norm": max(max(norms) for _, norms in runs),
            "steps": [float(part.mean() + 1) for part in parts],
            "norms": [float(norms[part].mean()) for part in parts],
        }
    return result


def stability(layers: int, steps: int, seeds: int, progress: Any) -> dict[str, Any]:
    """Measure both: a stack at initialisation, and training with each remedy."""
    progress(f"stability: {layers} layers at initialisation")
    panels = at_initialisation(layers)
    return {"layers": layers, "steps": steps, "panels": panels, "training": in_training(steps, seeds, progress)}


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    lines = [f"norm of the gradient at initialisation, {result['layers']} layers of width {WIDTH}"]
    for title, curves in result["panels"].items():
        lines.append(f"{title:<42}{'first layer':>12}{'last layer':>12}{'first/last':>12}")
        lines += [f"  {name:<40}{g[0]:>12.2g}{g[-1]:>12.2g}{g[0] / g[-1]:>12.2g}" for name, g in curves.items()]
    lines.append(f"{result['steps']} steps of reversal, post-norm, SGD with momentum, batches of {BASE['batch_size']}")
    lines.append(f"{'remedy':<42}{'largest norm':>12}{'final loss':>12}{'over the seeds':>18}")
    for name, run in result["training"].items():
        losses = run["final_loss"]
        spread = f"{min(losses):.2f} … {max(losses):.2f}"
        lines.append(f"  {name:<40}{run['largest_norm']:>12.3g}{np.mean(losses):>12.2f}{spread:>18}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a panel for each question at initialisation, and one for training."""
    panels = {
        title: {name: (range(1, len(g) + 1), g) for name, g in curves.items()}
        for title, curves in result["panels"].items()
    }
    over_steps = "training by SGD, post-norm if not said"
    panels[over_steps] = {
        f"{name}: loss {np.mean(run['final_loss']):.2f}": (run["steps"], run["norms"])
        for name, run in result["training"].items()
    }
    title = f"Norm of the gradient in {result['layers']} layers at initialisation, and in training"
    figures.gradient_norms(panels, path, title, {over_steps: "step"})

"""What each way to change attention does to a small language model, and to long sequences: `bench attention`.

The model learns to write numbers in three ways, "87 eighty-seven siebenundachtzig", a line each. Its figures are the
count of parameters, the products of matrices in a step (counted as they are called), the time of a step beside that of
the plain model in the same turn, the most memory that a step's arrays take at once, and the loss on lines held out
after some steps of training. Then models that were trained on short texts read longer ones; and attention alone runs
on sequences of growing length.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, draws, optim
from ..draw import attention_effects
from ..kernels.blas import limit_blas_threads
from ..models import GPT2, GPT2Config
from ..tasks import loss_of
from ..tensor import Tensor, no_grad
from . import long
from .run import Peer, summarise, turns

LENGTH, BATCH = 96, 8
SIZES: dict[str, Any] = {
    "d_model": 64, "heads": 4, "layers": 4, "d_ff": 256, "dropout": 0.0, "max_length": 512, "activation": "gelu_tanh",
}  # fmt: skip
HELD_OUT = 64  # texts
TURN = 10  # steps
LEARNING_RATE = 3e-3
# what is changed → (group, fields of GPT2Config); "chunk" is the loss in chunks
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain: learned positions, pre-norm": ("", {}),
    "multi-query": ("sharing", {"kv_heads": 1}),
    "grouped-query, 2 heads": ("sharing", {"kv_heads": 2}),
    "one projection for q and k": ("sharing", {"share": "qk"}),
    "one projection for all heads": ("sharing", {"share": "heads"}),
    "output tied to the values": ("sharing", {"tie_output": True}),
    "one layer, four times": ("sharing", {"distinct_layers": 1}),
    "embedding not tied": ("sharing", {"tie_embeddings": False}),
    "sinusoidal": ("positions", {"positions": "sinusoidal"}),
    "rotary": ("positions", {"positions": "rotary"}),
    "ALiBi": ("positions", {"positions": "alibi"}),
    "relative buckets": ("positions", {"positions": "relative"}),
    "none": ("positions", {"positions": "none"}),
    "blockwise": ("long sequences", {"attention": "blockwise"}),
    "window of 24": ("long sequences", {"window": 24}),
    "linear": ("long sequences", {"attention": "linear"}),
    "layers recomputed": ("long sequences", {"recompute": True}),
    "loss in chunks of 128": ("long sequences", {"chunk": 128}),
    "QK-norm": ("stability", {"qk_norm": True}),
    "ReLU": ("stability", {"activation": "relu"}),
    "SwiGLU, ⅔ of the width": ("stability", {"activation": "swiglu", "d_ff": 171}),
}
EXTRAPOLATED = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")
READ = (48, 96, 192, 384)  # lengths that models trained on LENGTH read
LENGTHS = (1024, 4096, 16384)


class Texts:
    """Endless lines of numbers in digits, in English and in German, cut to a length."""

    def __init__(self) -> None:
        lines = [f"{n} {data.english(n)} {data.german(n)}\n" for n in range(1000)]
        self.tokenizer = data.CharTokenizer.train(lines)
        self.lines = [self.tokenizer.encode(line) for line in lines]
        order = np.random.default_rng(0).permutation(len(lines))
        self.known, self.unseen = order[:800].tolist(), order[800:].tolist()

    def batch(self, step: int, size: int, length: int, unseen: bool = False) -> np.ndarray:
        """Return texts number `step`: (size, length + 1) ids, each beginning with a line."""
        rng = np.random.default_rng((int(unseen), step))
        rows = []
        for _ in range(size):
            row: list[int] = []
            while len(row) <= length:
                row += self.lines[rng.choice(self.unseen if unseen else self.known)]
            rows.append(row[: length + 1])
        return np.array(rows)


class Trained:
    """One variant of the model, and its training."""

    def __init__(self, texts: Texts, fields: dict[str, Any]):
        draws.manual_seed(0)
        self.texts = texts
        self.chunk = fields.get("chunk", 0)
        known = {name: value for name, value in fields.items() if name != "chunk"}
        self.model = GPT2(GPT2Config(vocab_size=len(texts.tokenizer), **{**SIZES, **known}))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.steps = 0

    def loss(self, ids: np.ndarray) -> Tensor:
        """Return the mean loss of texts, in nats per character."""
        return loss_of(self.model, self.model.features(ids[:, :-1]), ids[:, 1:], chunk=self.chunk)

    def step(self) -> None:
        """Take one step of training, with warm-up and clipping."""
        self.steps += 1
        ids = self.texts.batch(self.steps, BATCH, LENGTH)
        self.optimizer.lr = LEARNING_RATE * min(1.0, self.steps / 50)
        self.optimizer.zero_grad()
        self.loss(ids).backward()
        optim.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def held_out(self, length: int) -> float:
        """Return the mean loss on lines that training never saw, in nats per character; all texts of one length."""
        with no_grad():
            size = max(1, HELD_OUT * LENGTH // length)
            return self.loss(self.texts.batch(0, size, length, unseen=True)).item()


@contextlib.contextmanager
def counted_products() -> Iterator[list[int]]:
    """Count the operations of all products of matrices that NumPy is asked for inside the block, in its one number."""
    count, real = [0], np.matmul

    def matmul(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        y = real(a, b, *args, **kwargs)
        count[0] += 2 * math.prod(np.shape(y)) * a.shape[-1]
        return y

    np.matmul = matmul  # type: ignore[assignment]
    try:
        yield count
    finally:
        np.matmul = real


def catalogue(steps: int, progress: Any) -> list[dict[str, Any]]:
    """Train every variant, all of them in turns, and return a row of figures for each."""
    texts = Texts()
    trained = {name: Trained(texts, fields) for name, (_, fields) in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in trained}
    for done in range(0, steps, TURN):
        progress(f"attention: {done} of {steps} steps of {len(trained)} models")
        for name, each in trained.items():
            began = time.perf_counter()
            for _ in range(TURN):
                each.step()
            if done:  # the first turn warms up
                times[name].append((time.perf_counter() - began) / TURN)
    figures, rows = summarise(times, next(iter(trained)), share=0.5), []
    for name, each in trained.items():
        loss = each.held_out(LENGTH)
        with counted_products() as products, limit_blas_threads(1):  # one thread, so that none counts for another
            each.step()
        tracemalloc.start()
        each.step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append({
            "name": name, "group": VARIANTS[name][0], "parameters": sum(p.size for p in each.model.parameters()),
            "products": products[0], **figures[name], "peak": peak, "loss": loss,
        })  # fmt: skip
    return rows


def extrapolation(steps: int, progress: Any) -> dict[str, dict[str, list[Any]]]:
    """Train a model for each kind of positions on texts of LENGTH, and let it read shorter and longer ones.

    None where it cannot: learned positions end where training did. "rotary, scaled" reads with its angles squeezed
    by how much longer the text is, without having been trained on it.
    """
    texts = Texts()
    curves: dict[str, dict[str, list[Any]]] = {}
    for kind in EXTRAPOLATED:
        progress(f"attention: {kind} positions on longer texts")
        most = LENGTH if kind == "learned" else max(READ)
        each = Trained(texts, {"positions": kind, "max_length": most})
        for _ in range(steps):
            each.step()
        losses = [each.held_out(length) if length <= most else None for length in READ]
        curves[kind] = {"lengths": list(READ), "losses": losses}
        if kind == "rotary":
            curves["rotary, scaled"] = {"lengths": list(READ), "losses": [_scaled(each, length) for length in READ]}
    return curves


def _scaled(each: Trained, length: int) -> float:
    """Return the loss at a length with rotary angles squeezed into those that were trained on."""
    turning = each.model.decoder.layers[0].self_attention.positions
    plain = turning.cos, turning.sin
    squeezed = type(turning)(2 * turning.cos.shape[1], len(turning.cos), scaling=max(1.0, length / LENGTH))
    turning.cos, turning.sin = squeezed.cos, squeezed.sin
    turning.forget_tables()
    try:
        return each.held_out(length)
    finally:
        turning.cos, turning.sin = plain
        turning.forget_tables()


def long_sequences(lengths: tuple[int, ...], rounds: int, progress: Any) -> list[dict[str, Any]]:
    """Time attention alone, forward and backward, at growing lengths, in processes that take turns."""
    kinds = [*long.KINDS, *(long.TORCH if importlib.util.find_spec("torch") else ())]
    rows = []
    for length in lengths:
        peers = [Peer(k, str(length), module="minitransformer.bench.long") for k in kinds if long.feasible(k, length)]
        times: dict[str, list[float]] = {peer.name: [] for peer in peers}
        memory = {}
        try:
            for i, peer in turns(peers, f"attention: length {length}", rounds, progress):
                answer = peer.run(1)
                memory[peer.name] = answer["memory"]
                if i:
                    times[peer.name].append(answer["seconds"][0])
        finally:
            for peer in peers:
                peer.close()
        for name, seconds in times.items():
            beside = "torch-causal" if name.endswith("causal") else "torch"
            figures = summarise({name: seconds, "beside": times.get(beside, seconds)}, "beside")[name]
            whole = times.get(name.removesuffix("-causal")) if name.endswith("-causal") else None
            rows.append({
                "kind": name, "length": length, "seconds": figures["seconds"], "memory": memory[name],
                "of_torch": figures["ratio"] if beside in times else None,
                "spread": [figures["least"], figures["greatest"]] if beside in times else None,
                "of_full": None if whole is None else summarise({name: seconds, "full": whole}, "full")[name]["ratio"],
            })  # fmt: skip
    return rows


def effects(quick: bool, progress: Any) -> dict[str, Any]:
    """Measure all three: the catalogue, longer texts, long sequences."""
    steps = 20 if quick else 400
    return {
        "model": {**SIZES, "length": LENGTH, "batch": BATCH, "steps": steps},
        "catalogue": catalogue(steps, progress),
        "extrapolation": extrapolation(steps, progress),
        "trained_length": LENGTH,
        "long": long_sequences(LENGTHS[:1] if quick else LENGTHS, 1 if quick else 3, progress),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to print."""
    m = result["model"]
    lines = [
        f"a language model of width {m['d_model']} and {m['layers']} layers, on {m['batch']} texts of {m['length']} "
        f"characters, after {m['steps']} steps",
        f"{'':<36}{'parameters':>11}{'MFLOP':>8}{'ms/step':>9}{'ratio':>7}{'middle half':>12}{'peak':>9}{'loss':>8}",
    ]
    group = ""
    for row in result["catalogue"]:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"{group}:")
        lines.append(
            f"  {row['name']:<34}{row['parameters']:>11,}{row['products'] / 1e6:>8.0f}{1e3 * row['seconds']:>9.1f}"
            f"{row['ratio']:>7.2f}{row['least']:>7.2f}–{row['greatest']:.2f}{row['peak'] / 2**20:>5.1f} MiB"
            f"{row['loss']:>8.4f}"
        )
    read = "".join(f"{n:>9}" for n in next(iter(result["extrapolation"].values()))["lengths"])
    lines += [f"loss on texts of other lengths than the {result['trained_length']} trained on, in nats per character"]
    lines += [f"  {'':<34}{read}"]
    for name, curve in result["extrapolation"].items():
        losses = "".join(f"{'–' if loss is None else f'{loss:.4f}':>9}" for loss in curve["losses"])
        lines.append(f"  {name:<34}{losses}")
    lines.append(
        f"attention alone, forward and backward, 1 × {long.HEADS} heads × {long.WIDTH}, resident memory in all"
    )
    for row in result["long"]:
        of = "" if row["of_torch"] is None else f"{row['of_torch']:>8.2f} of PyTorch's fused kernel"
        if row["spread"]:
            of += f" ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})"
        if row["of_full"] is not None:
            of += f", {row['of_full']:.2f} of what it takes without the mask"
        name = f"T = {row['length']:,}: {long.name_of(row['kind'])}"
        lines.append(f"  {name:<44}{row['seconds']:>9.3f} s{row['memory'] / 2**20:>8.0f} MiB{of}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the catalogue, the longer texts and the long sequences."""
    rows = result["catalogue"]
    curves = {name: (c["lengths"], c["losses"]) for name, c in result["extrapolation"].items()}
    sequences: dict[str, list[dict[str, Any]]] = {}
    for row in result["long"]:
        sequences.setdefault(long.name_of(row["kind"]), []).append(row)
    attention_effects(rows, curves, result["trained_length"], sequences, path)

"""What can be trained by name: reversal, numbers, translate (a user's pairs) and lm (a user's text).

A task owns its data, its tokenizers and its model; it knows its loss, its figures and the pictures of its run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from . import backend, checkpoint, data, draw, draws, generate, ops
from .models import GPT2, GPT2Config, Transformer, TransformerConfig
from .models.config import LayersConfig
from .models.transformer import TIES
from .ops.mask import band_mask
from .tensor import Tensor, no_grad
from .train import TrainConfig

# What differs from TrainConfig's own defaults, which are those of reversal.
DEFAULTS: dict[str, dict[str, Any]] = {
    "reversal": {},
    "numbers": {"steps": 1200, "max_length": 32},
    "translate": {"steps": 3000, "dropout": 0.1, "label_smoothing": 0.1, "max_length": 256, "learning_rate": 2e-3},
    "lm": {"steps": 1500, "batch_size": 16, "d_model": 128, "d_ff": 512, "layers": 4, "max_length": 64,
           "activation": "gelu_tanh", "learning_rate": 2e-3, "tokens": "bpe", "dropout": 0.1, "positions": "learned",
           "tie_embeddings": "target"},
}  # fmt: skip
# What the fields of TrainConfig and TransformerConfig have in common.
SIZES = (
    "d_model", "heads", "layers", "d_ff", "dropout", "max_length", "norm", "activation", "positions", "tie_embeddings",
    *[field.name for field in dataclasses.fields(LayersConfig)],
)  # fmt: skip
NONE_IGNORED = -100  # no token has this id
TEST_SEQUENCES = 2048
VALIDATED = 256  # pairs, or windows of a text, whose loss is measured now and then while training
GREEDY, DRAWN = generate.Options(), generate.Options(temperature=0.8, top_k=40)
EXAMPLE = "0 1 2 3 4 5 6 7"


def loss_of(
    model: Any, features: Any, targets: Any, ignored: int = NONE_IGNORED, smoothing: float = 0.0, chunk: int = 0
) -> Tensor:
    """Return the mean loss from a model's features, with all logits at once (0) or a chunk of rows at a time.

    features: (B, T, D), targets: integers (B, T) → a number, in nats per token
    """
    if chunk:
        return ops.linear_cross_entropy(features, model.output_weight, targets, ignored, smoothing, chunk=chunk)
    return ops.cross_entropy(ops.linear(features, model.output_weight), targets, ignored, smoothing)


class SequenceTask:
    """An encoder-decoder, its two tokenizers, and pairs of texts held out."""

    def __init__(self, config: TrainConfig, source: data.Tokenizer, target: data.Tokenizer):
        self.config, self.source, self.target = config, source, target
        draws.manual_seed(config.seed)
        sizes = {name: getattr(config, name) for name in SIZES}
        self.model: Any = Transformer(TransformerConfig(source_vocab=len(source), target_vocab=len(target), **sizes))

    held_out: list[tuple[str, str]]

    def batch(self, step: int) -> data.Batch:
        """Return the batch of a step, counted from 1."""
        raise NotImplementedError

    def loss(self, *arrays: Any) -> tuple[Tensor, Any]:
        """Return the mean loss of a batch, in nats per token, and its count of tokens, a number in an array."""
        source, target_in, target_out = backend.send(*arrays)
        memory, mask = self.model.encode(source)
        x, c = self.model.features(target_in, memory, mask), self.config
        return loss_of(self.model, x, target_out, data.PAD, c.label_smoothing, c.loss_chunk), data.Batch(*arrays).tokens

    def tokens(self, *arrays: Any) -> int:
        """Return the count of target tokens of a batch."""
        return int(data.Batch(*arrays).tokens)

    def held_out_loss(self) -> float:
        """Return the mean loss on the first held-out pairs, in nats per token, without label smoothing."""
        pairs = [(self.source.encode(s), self.target.encode(t)) for s, t in self.held_out[:VALIDATED]]
        longest = self.config.max_length
        fitting = sorted((p for p in pairs if len(p[0]) <= longest and len(p[1]) < longest), key=lambda p: len(p[1]))
        total, tokens = 0.0, 0
        for start in range(0, len(fitting), 64):
            batch = data.pad_batch(fitting[start : start + 64])
            source, target_in, target_out = backend.send(*batch)
            total += ops.cross_entropy(self.model(source, target_in), target_out, data.PAD, reduction="sum").item()
            tokens += batch.tokens
        return total / max(tokens, 1)

    def vocabulary(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""
        return {"source": self.source.to_json(), "target": self.target.to_json(), "data": _digest(self.config.pairs)}

    def translate(self, texts: list[str], options: generate.Options = GREEDY, batch_size: int = 256) -> list[str]:
        """Translate texts: greedily, by drawing, or as the best of several beams; text i draws as row i, see `sampler`.

        Raises ValueError for a text that is empty, too long or in unknown tokens.
        """
        batch_size = max(1, batch_size // options.beams)
        rows = [self.encode(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths together: less padding
        written: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            limit = min(self.config.max_length - 1, 2 * len(rows[chosen[-1]]) + 32)
            ids = options.translations(self.model, [rows[i] for i in chosen], data.BOS, data.EOS, limit, chosen)
            written.update({i: self.target.decode(row) for i, row in zip(chosen, ids, strict=True)})
        return [written[i] for i in range(len(rows))]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a source text, checked."""
        ids = self.source.encode(text)
        if not ids:
            raise ValueError(f"a source has at least one token; got {text!r}; write a text")
        if len(ids) > self.config.max_length:
            raise ValueError(
                f"a source has at most max_length={self.config.max_length} tokens; got {len(ids)}; shorten it"
            )
        if data.UNK in ids:
            bad = next(piece for piece in self.source.split(text) if piece not in self.source.ids)
            known = " ".join(self.source.vocabulary[len(data.SPECIALS) :][:40])
            raise ValueError(f"this model reads the tokens {known}; got {bad!r}; write with those")
        return ids

    def evaluate(self) -> dict[str, Any]:
        """Translate what was held out and return the share of exact matches, and the scores of the task."""
        sources, references = zip(*self.held_out, strict=True)
        outputs = self.translate([s for s in sources])
        exact = [o == r for o, r in zip(outputs, references, strict=True)]
        return {"exact_match": float(np.mean(exact)), "held_out": len(exact), **self.scores(outputs, list(references))}

    def scores(self, outputs: list[str], references: list[str]) -> dict[str, float]:
        """Return more figures than exact match; a task may have none."""
        return {}

    def batch_of(self, source: str, target: str | None = None) -> data.Batch:
        """Return a batch of one pair of texts; the model's own translation by default."""
        written = self.target.encode(self.translate([source])[0] if target is None else target)
        return data.pad_batch([(self.encode(source), written)])

    def attention(
        self, source: str, target: str | None = None
    ) -> tuple[dict[str, list[np.ndarray]], list[str], list[str]]:
        """Return all weights for one pair (the model's own translation by default), and the labels of both sides.

        Rows of the decoder are labelled by the token they write, so that a row shows what was read to write it.
        """
        ids = self.encode(source)
        written = self.target.encode(self.translate([source])[0] if target is None else target)
        xp = backend.xp()
        with no_grad():
            weights = self.model.attention(xp.asarray([ids]), xp.asarray([[data.BOS, *written]]))
        arrays = {name: [backend.to_numpy(w)[0] for w in layers] for name, layers in weights.items()}
        return arrays, self.source.tokens(ids), self.target.tokens([*written, data.EOS])

    def examples(self) -> list[tuple[str, str]]:
        """Return a few sources and what the model makes of them."""
        sources = [s for s, _ in self.held_out[:3]]
        return list(zip(sources, self.translate(sources), strict=True))

    def figures(self, folder: Path) -> None:
        """Draw the cross-attention of the first example into a folder: all heads, and the mean of the last layer's."""
        weights, columns, rows = self.attention(self.examples()[0][0])
        draw.attention_grid(
            np.stack(weights["cross"]), rows, columns, folder / "cross_attention.png", "cross-attention"
        )
        mean = np.mean(weights["cross"][-1], axis=0)
        draw.attention_heatmap(
            mean,
            rows,
            columns,
            folder / "cross_attention_mean.png",
            "cross-attention of the last layer, mean of its heads",
        )


class ReversalTask(SequenceTask):
    """Reverse sequences of symbols."""

    def __init__(self, config: TrainConfig):
        self.data = data.Reversal(config.symbols, seed=config.seed)
        longest = self.data.max_length + 1  # with BOS
        if config.max_length < longest:
            raise ValueError(
                f"reversal needs max_length of at least {longest}; got {config.max_length}; write --set max_length=64"
            )
        super().__init__(config, self.data.tokenizer, self.data.tokenizer)
        decode = self.data.tokenizer.decode
        self.held_out = [(decode(ids), decode(ids[::-1])) for ids in self.data.held_out(TEST_SEQUENCES)]

    def batch(self, step: int) -> data.Batch:
        return self.data.batch(step, self.config.batch_size)

    def examples(self) -> list[tuple[str, str]]:
        example = EXAMPLE if self.config.symbols >= 8 else self.held_out[-1][0]
        return [(example, self.translate([example])[0])]


class PairTask(SequenceTask):
    """Learn from pairs of texts; a share of them is held out."""

    def __init__(
        self,
        config: TrainConfig,
        pairs: list[tuple[str, str]],
        tokenizers: tuple[data.Tokenizer, data.Tokenizer] | None,
    ):
        training, self.held_out = data.split_pairs(pairs, config.validation, config.seed)
        super().__init__(config, *(tokenizers or self._tokenizers(config, training)))
        ids = [(self.source.encode(s), self.target.encode(t)) for s, t in training]
        longest = max(max(len(s), len(t) + 1) for s, t in ids)
        if longest > config.max_length:
            raise ValueError(
                f"a side has at most max_length={config.max_length} tokens; got {longest}; "
                f"write --set max_length={longest}"
            )
        mean = np.mean([max(len(s), len(t) + 1) for s, t in ids])
        self.batches = data.PairBatches(ids, int(config.batch_size * mean), config.seed)
        # A held-out text may have characters that training never saw: they count as wrong, and do not end the run.
        self.held_out = [(s, t) for s, t in self.held_out if len(self.source.encode(s)) <= config.max_length]

    @staticmethod
    def _tokenizers(config: TrainConfig, pairs: list[tuple[str, str]]) -> tuple[data.Tokenizer, data.Tokenizer]:
        sides = [s for s, _ in pairs], [t for _, t in pairs]
        if config.tie_embeddings == "all":
            sides = (sides[0] + sides[1],) * 2
        if config.tokens == "bpe":
            return data.BPETokenizer.train(sides[0], config.vocab_size), data.BPETokenizer.train(
                sides[1], config.vocab_size
            )
        return data.CharTokenizer.train(sides[0]), data.CharTokenizer.train(sides[1])

    def batch(self, step: int) -> data.Batch:
        return self.batches.at(step)

    def scores(self, outputs: list[str], references: list[str]) -> dict[str, float]:
        """Return BLEU and chrF of the corpus, by sacrebleu.    Papineni et al. 2002; Popović 2015"""
        try:
            import sacrebleu
        except ImportError:
            return {}
        figures = {"padding": round(self.batches.padding_fraction(), 4)}
        # Where no reference has four words there are no 4-grams, and BLEU would be 0 for a perfect translation.
        short = max(len(reference.split()) for reference in references) < 4
        bleu = sacrebleu.corpus_bleu(outputs, [references], use_effective_order=short)
        figures["bleu"] = round(bleu.score, 2)
        return {**figures, "chrf": round(sacrebleu.corpus_chrf(outputs, [references]).score, 2)}


class NumbersTask(PairTask):
    """Translate English number words into German ones."""

    def __init__(self, config: TrainConfig):
        tokenizers = data.NumberWordTokenizer("numbers-en"), data.NumberWordTokenizer("numbers-de")
        super().__init__(config, data.number_pairs(config.limit), tokenizers)

    def examples(self) -> list[tuple[str, str]]:
        sources = [data.english(87), *[s for s, _ in self.held_out[:2]]]
        return list(zip(sources, self.translate(sources), strict=True))


class TranslateTask(PairTask):
    """Translate between the two sides of a file."""

    def __init__(self, config: TrainConfig):
        super().__init__(config, data.read_pairs(_named(config.pairs, "pairs")), None)

    def encode(self, text: str) -> list[int]:
        ids = self.source.encode(text)
        if not ids or len(ids) > self.config.max_length:
            raise ValueError(
                f"a source has 1 to max_length={self.config.max_length} tokens; got {len(ids)}; change the text"
            )
        return ids


class LanguageTask:
    """Guess the next token of a text; the last part of it is held out."""

    def __init__(self, config: TrainConfig):
        text = data.read_text(_named(config.text, "text"))
        cut = int(len(text) * (1 - config.validation))
        if config.tokens == "bpe":
            tokenizer: data.Tokenizer = data.BPETokenizer.train([text[:cut]], config.vocab_size)
        else:
            tokenizer = data.CharTokenizer.train([text[:cut]])
        self.build(config, tokenizer)
        self.training = data.TextWindows(
            self.tokenizer.encode(text[:cut]), config.max_length, config.batch_size, config.seed
        )
        self.validation = np.array(self.tokenizer.encode(text[cut:]))
        self.bytes_per_token = len(text[cut:].encode()) / max(len(self.validation), 1)

    def build(self, config: TrainConfig, tokenizer: data.Tokenizer) -> None:
        """Make the model for a vocabulary. Its only embedding is tied to the output by "target" and by "all"."""
        self.config, self.tokenizer = config, tokenizer
        draws.manual_seed(config.seed)
        ties = config.tie_embeddings
        if ties not in TIES:
            raise ValueError(f"tie_embeddings is one of {', '.join(TIES)}; got {ties!r}; write tie_embeddings=target")
        sizes = {name: getattr(config, name) for name in SIZES} | {"tie_embeddings": ties != "none"}
        self.model: Any = GPT2(GPT2Config(vocab_size=len(tokenizer), **sizes))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the batch of a step, counted from 1: windows of the text, and the same one token on."""
        return self.training.at(step)

    def loss(self, *arrays: Any) -> tuple[Tensor, int]:
        """Return the mean loss of a batch, in nats per token, and its count of tokens."""
        inputs, targets = backend.send(*arrays)
        x, c = self.model.features(inputs), self.config
        return loss_of(self.model, x, targets, NONE_IGNORED, c.label_smoothing, c.loss_chunk), targets.size

    def tokens(self, *arrays: Any) -> int:
        """Return the count of target tokens of a batch."""
        return int(arrays[1].size)

    def vocabulary(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""
        return {"text": self.tokenizer.to_json(), "data": _digest(self.config.text)}

    def evaluate(self) -> dict[str, Any]:
        """Return the loss on the held-out text, in nats per token and bits per byte, over windows side by side."""
        nats = self._loss_of(len(self.validation))
        return {"validation_loss": nats, "bits_per_byte": nats / np.log(2) / self.bytes_per_token}

    def held_out_loss(self) -> float:
        """Return the mean loss on the first windows of the held-out text, in nats per token."""
        return self._loss_of(VALIDATED * self.config.max_length + 1)

    def _loss_of(self, count: int) -> float:
        """Return the mean loss over the first `count` held-out tokens, in windows side by side."""
        context, ids = self.config.max_length, self.validation[:count]
        whole = (len(ids) - 1) // context  # windows of full length go in batches, the rest of the text after them
        pieces = [ids[i : i + context + 1] for i in range(0, whole * context, context)]
        batches = [np.stack(pieces[i : i + 32]) for i in range(0, whole, 32)] + [ids[None, whole * context :]]
        total = 0.0
        for batch in batches:
            if batch.shape[1] > 1:
                inputs, targets = backend.send(batch[:, :-1], batch[:, 1:])
                total += ops.cross_entropy(self.model(inputs), targets, reduction="sum").item()
        return total / max(len(ids) - 1, 1)

    def write(self, prompts: list[str], count: int, options: generate.Options = DRAWN, stop: str = "") -> list[str]:
        """Continue prompts, all at once, each with up to `count` tokens; before the text `stop` each ends.

        Raises ValueError for an empty prompt.
        """
        rows, decode = [self.tokenizer.encode(prompt) for prompt in prompts], self.tokenizer.decode
        until = (lambda ids: stop in decode(ids)) if stop else None
        written = options.texts(self.model, rows, count, until)
        texts = [decode(ids) for ids in written]
        return [p + (text.split(stop, 1)[0] if stop else text) for p, text in zip(prompts, texts, strict=True)]

    def batch_of(self, source: str, target: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch of one text, of at least two tokens: it, and the same one token on."""
        ids = np.array([self.tokenizer.encode(source)])
        if ids.shape[1] < 2:
            raise ValueError(f"a text to learn from has at least 2 tokens; got {source!r}; write a longer one")
        return ids[:, :-1], ids[:, 1:]

    def attention(
        self, source: str, target: str | None = None
    ) -> tuple[dict[str, list[np.ndarray]], list[str], list[str]]:
        """Return all weights over a text, and its labels on both sides."""
        ids = self.tokenizer.encode(source)
        with no_grad():
            weights = self.model.attention(backend.xp().asarray([ids]))
        labels = self.tokenizer.tokens(ids)
        return {"decoder": [backend.to_numpy(w)[0] for w in weights["decoder"]]}, labels, labels

    def examples(self) -> list[tuple[str, str]]:
        """Return the beginning of the text and how the model goes on."""
        prompt = self.tokenizer.decode(self.training.ids[:8].tolist())
        return [(prompt, self.write([prompt], 60)[0][len(prompt) :])]

    def figures(self, folder: Path) -> None:
        """Draw the attention over the beginning of the held-out text."""
        weights, columns, rows = self.attention(
            self.tokenizer.decode(self.validation[: min(24, self.config.max_length)].tolist())
        )
        allowed = may_look(self.config, "decoder", len(rows), len(columns))
        path = folder / "attention.png"
        draw.attention_grid(np.stack(weights["decoder"]), rows, columns, path, "causal self-attention", allowed)


def may_look(config: TrainConfig, kind: str, queries: int, keys: int) -> np.ndarray | None:
    """Return which query of one sequence may look at which key, boolean (T, S); None where each may at all.

    kind: encoder, decoder or cross attention, of a model with this config.
    """
    causal, window = kind == "decoder", 0 if kind == "cross" else config.window
    if not causal and not window:
        return None
    return band_mask(np.arange(queries) + (keys - queries), np.arange(keys), causal, window)


def _digest(path: str) -> str:
    """Return the SHA-256 of a file, so that a resumed run notices when its data has changed; "" for no file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _named(path: str, option: str) -> str:
    if not path:
        raise ValueError(f"this task learns from a file; got none; write --{option} FILE")
    return path


TASKS: dict[str, Any] = {
    "reversal": ReversalTask,
    "numbers": NumbersTask,
    "translate": TranslateTask,
    "lm": LanguageTask,
}


def make_config(task: str, settings: dict[str, Any]) -> TrainConfig:
    """Return a task's config with settings over its defaults.

    A warm-up by default is cut to a run that is short. Raises ValueError for unknown names, bad values, or settings
    that the schedule would not heed.
    """
    if task not in TASKS:
        raise ValueError(f"a task is one of {', '.join(TASKS)}; got {task!r}; write train reversal")
    config = TrainConfig.from_dict({"task": task, **DEFAULTS[task], **settings})
    if config.schedule == "noam":
        _check_noam(config, "learning_rate" in settings)
    if config.schedule in ("cosine", "linear") and config.warmup_steps >= config.steps:
        if "warmup_steps" in settings:
            came, fits = f"warmup_steps={config.warmup_steps}, steps={config.steps}", config.steps // 10
            raise ValueError(
                f"schedule={config.schedule} falls after its warm-up; got {came}; write warmup_steps={fits}"
            )
        return dataclasses.replace(config, warmup_steps=config.steps - 1)
    return config


def _check_noam(config: TrainConfig, with_rate: bool) -> None:
    """Raise ValueError for what Noam's curve, made of d_model and warmup_steps alone, has no room for."""
    if with_rate:
        came = f"schedule=noam, learning_rate={config.learning_rate}"
        raise ValueError(
            f"learning_rate is the peak of all schedules but noam, which has its own; got {came}; "
            "write schedule=inverse_sqrt, the same curve with a peak of yours"
        )
    if not config.warmup_steps:
        raise ValueError("schedule=noam warms up for at least one step; got warmup_steps=0; write warmup_steps=100")


def read_config(folder: Path) -> TrainConfig:
    """Read the config of a run. Raises ValueError where it is missing, damaged, or of another program."""
    fields = checkpoint.read_json(folder / "config.json")
    if not isinstance(fields, dict) or fields.get("task") not in TASKS:
        raise ValueError(f"a run's config names its task; {folder / 'config.json'} does not; name another run")
    if fields.get("positions") != "rotary":  # early runs took these, and did nothing with them
        fields = {name: value for name, value in fields.items() if name not in ("rotary_pairing", "rotary_scaling")}
    return TrainConfig.from_dict(fields if fields["task"] != "lm" else _as_saved(folder, fields))


def _as_saved(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a language model as its checkpoint has them.

    Early runs of `lm` wrote norm and tie_embeddings down, and were pre-norm and tied all the same.
    """
    if not checkpoint.checkpoints(folder / "checkpoint"):
        return fields
    names = checkpoint.load_checkpoint(folder / "checkpoint")[0]
    tied = fields.get("tie_embeddings") in ("target", "all")
    if "output.weight" not in names and not tied:
        fields = {**fields, "tie_embeddings": "target"}
    return {**fields, "norm": "pre"} if "decoder.norm.weight" in names else fields


def make_task(config: TrainConfig) -> Any:
    """Build a task, with its data and a model of fresh weights."""
    return TASKS[config.task](config)


def load_task(folder: Path) -> Any:
    """Return the task of a trained run, ready to use without the data that it was trained on.

    Raises ValueError for a folder that is no run, or a damaged one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"a model is the folder of a run; {folder} is not one; write --model runs/reversal-001")
    config = read_config(folder)
    vocabulary = checkpoint.read_json(folder / "tokenizer.json")
    if not isinstance(vocabulary, dict):
        raise ValueError(
            f"a run keeps its vocabulary in tokenizer.json; {folder} has another file there; name another run"
        )
    task = object.__new__(TASKS[config.task])  # without its __init__, which would read the data
    if config.task == "lm":
        task.build(config, data.tokenizer_from_json(vocabulary.get("text")))
    else:
        SequenceTask.__init__(
            task, config, *(data.tokenizer_from_json(vocabulary.get(side)) for side in ("source", "target"))
        )
    task.model.load_state_dict(checkpoint.load_checkpoint(folder / "checkpoint")[0])
    task.model.eval()
    return task

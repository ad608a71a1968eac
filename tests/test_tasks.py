"""What can be trained by name: each learns what it should, and cannot where a part is missing."""

import json
from pathlib import Path

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import checkpoint, data, generate, tasks
from minitransformer.train import train

SMALL = {"d_model": 16, "d_ff": 32, "heads": 2, "layers": 1, "batch_size": 8}


def trained(name, folder, **settings):
    """Train a task as the command does and return it, loaded again from its folder, with its figures."""
    config = tasks.make_config(name, settings)
    task = tasks.make_task(config)
    folder.mkdir(exist_ok=True)
    checkpoint.write_json(folder / "config.json", config.to_dict())
    checkpoint.write_json(folder / "tokenizer.json", task.vocabulary())
    result = train(task, config, folder, quiet=True)
    return tasks.load_task(folder), result


# -- the main job -------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_reversal_is_learned_for_five_seeds(seed, tmp_path):
    task, result = trained("reversal", tmp_path / "run", seed=seed)
    assert result["exact_match"] >= 0.999 and result["held_out"] >= 2000 and result["steps"] <= 1500
    assert task.translate(["0 1 2 3 4 5 6 7", "5 5 9", "4"]) == ["7 6 5 4 3 2 1 0", "9 5 5", "4"]
    weights, columns, rows = task.attention("0 1 2 3 4 5 6 7")
    last = np.mean(weights["cross"][-1], axis=0)[:8, ::-1]  # rows write 7 … 0; columns now read 7 … 0
    assert np.abs(last.argmax(axis=-1) - np.arange(8)).max() <= 1 and np.trace(last) > 4  # the anti-diagonal is plain
    assert rows[:8] == columns[::-1]


class NoAttention(mt.nn.Module):
    """Stands in for an attention layer: a linear layer that each position applies to itself, or nothing at all.

    (Attention that weighs all keys alike is not "none": a mean of 64 numbers can carry a short sequence, and that
    model reversed a quarter of them.)
    """

    def __init__(self, d_model):
        self.out_proj = mt.nn.Linear(d_model, d_model)

    def forward(self, query, key=None, **ignored):
        return self.out_proj(query) if key is None else query * 0


def without_attention(task):
    """Take every attention out of a task's model."""
    for layer in [*task.model.encoder.layers, *task.model.decoder.layers]:
        layer.self_attention = NoAttention(task.config.d_model)
    for layer in task.model.decoder.layers:
        layer.cross_attention = NoAttention(task.config.d_model)


def exact_match_of_length_4_and_more(task):
    chosen = [(s, t) for s, t in task.held_out if len(s.split()) >= 4]
    outputs = task.translate([s for s, _ in chosen])
    assert len(chosen) >= 1500
    return np.mean([o == t for o, (_, t) in zip(outputs, chosen, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["attention", "positions"])
def test_without_attention_or_positions_nothing_longer_is_reversed(part, tmp_path):
    config = tasks.make_config("reversal", {"positions": "none"} if part == "positions" else {})
    task = tasks.make_task(config)
    if part == "attention":
        without_attention(task)
    result = train(task, config, tmp_path, quiet=True)
    assert exact_match_of_length_4_and_more(task) < 0.05
    assert result["loss"] > 0.3


def test_reversal_begins_to_learn_within_seconds(tmp_path):
    _, result = trained("reversal", tmp_path / "run", steps=60, warmup_steps=20)
    assert result["loss"] < 1.7  # a blind guess costs ln 10 = 2.3, and the end of the sequence


# -- number words -------------------------------------------------------------------------------------------------
def test_numbers_are_learned_and_their_heatmap_crosses(tmp_path):
    task, result = trained("numbers", tmp_path / "run")
    assert result["exact_match"] >= 0.97 and result["held_out"] == 100
    assert result["bleu"] > 90 and result["chrf"] > 95
    assert task.translate(["eighty-seven"]) == ["siebenundachtzig"]
    weights, columns, rows = task.attention("eighty-seven")
    assert columns == ["eighty", "seven"] and rows == ["sieben", "und", "achtzig", "<eos>"]
    heads = np.concatenate(weights["cross"])  # (layers · heads, T, S)
    crossing = heads[:, 0, 1] * heads[:, 2, 0]  # sieben looks at seven, achtzig at eighty
    assert crossing.max() > 0.8


def test_a_word_that_is_no_number_is_named(tmp_path):
    task = tasks.make_task(tasks.make_config("numbers", {**SMALL, "limit": 30}))
    with pytest.raises(ValueError, match="got 'dozen'; write with those"):
        task.translate(["dozen"])


# -- a user's pairs -----------------------------------------------------------------------------------------------
def write_pairs(path):
    path.write_text("".join(f"{data.english(n)}\t{data.german(n)}\n" for n in range(200)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("tokens", ["char", "bpe"])
@pytest.mark.parametrize("ties", ["none", "all"])
def test_pairs_of_a_file_are_trained_on_and_scored(tokens, ties, tmp_path):
    settings = {**SMALL, "steps": 8, "tokens": tokens, "vocab_size": 300, "tie_embeddings": ties}
    task, result = trained("translate", tmp_path / "run", pairs=write_pairs(tmp_path / "p.tsv"), **settings)
    assert result["held_out"] == 20 and {"exact_match", "bleu", "chrf", "padding"} <= set(result)
    assert result["padding"] < 0.25
    assert len(task.translate(["one hundred", "two"])) == 2
    assert (task.model.source_embedding is task.model.target_embedding) == (ties == "all")


@pytest.mark.slow
def test_characters_of_number_words_are_learned(tmp_path):
    task, result = trained(
        "translate", tmp_path / "run", pairs=write_pairs(tmp_path / "p.tsv"), steps=1200, max_length=64
    )
    assert result["exact_match"] >= 0.7 and result["chrf"] > 85


def test_scores_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    task = tasks.make_task(tasks.make_config("numbers", {**SMALL, "limit": 30}))
    outputs, references = ["the cat sat on the mat today", "a dog"], ["the cat sat on a mat today", "the dog"]
    scores = task.scores(outputs, references)
    assert scores["bleu"] == round(sacrebleu.corpus_bleu(outputs, [references]).score, 2) > 0
    assert scores["chrf"] == round(sacrebleu.corpus_chrf(outputs, [references]).score, 2) > 0
    assert task.scores(["eins"], ["eins"])["bleu"] == 100  # a perfect translation of one word


@pytest.mark.parametrize(
    "settings, text",
    [
        ({}, "--pairs FILE"),
        ({"pairs": "p.tsv", "max_length": 8}, "max_length=8 tokens; got .*; write --set max_length="),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_named(settings, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("p.tsv"))
    with pytest.raises(ValueError, match=text):
        tasks.make_task(tasks.make_config("translate", {**SMALL, **settings}))


# -- a user's text ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tokens", ["char", "bpe"])
def test_a_text_is_trained_on_and_continued(tokens, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the cat sat on the mat. the dog sat on the log. " * 120, encoding="utf-8")
    settings = {**SMALL, "steps": 150, "tokens": tokens, "vocab_size": 300, "max_length": 32, "dropout": 0.0}
    task, result = trained("lm", tmp_path / "run", text=str(text), learning_rate=1e-2, **settings)
    assert result["bits_per_byte"] < 1.0  # eight would be chance, and the text repeats itself
    written = task.write(["the cat "], 30, generate.Options())[0]
    assert written.startswith("the cat ") and len(written) > 20
    drawn = generate.Options(temperature=1.0, top_k=5, seed=3)
    assert task.write(["the "], 9, drawn) == task.write(["the "], 9, drawn)
    weights, columns, rows = task.attention("the cat sat")
    assert rows == columns and weights["decoder"][0].shape == (2, len(rows), len(rows))
    assert not np.triu(weights["decoder"][0][0], 1).any()


def language(folder, **settings):
    """Train a tiny language model for three steps; return it, loaded again, and its loss."""
    folder.mkdir()
    (folder / "t.txt").write_text("the cat sat on the mat. " * 40)
    more = {"text": str(folder / "t.txt"), "tokens": "char", "max_length": 8, "steps": 3, "workers": 1, **settings}
    task, result = trained("lm", folder / "run", **SMALL, **more)
    return task, result["loss"]


def test_norm_and_ties_of_a_language_model_are_those_asked_for(tmp_path):
    usual, loss = language(tmp_path / "usual")
    assert usual.model.decoder.norm is not None and usual.model.output is None
    post, other = language(tmp_path / "post", norm="post")
    assert post.model.decoder.norm is None and post.model.decoder.layers[0].norm == "post" and other != loss
    untied, other = language(tmp_path / "untied", tie_embeddings="none")
    assert untied.model.output.weight.shape == untied.model.embedding.weight.shape and other != loss
    assert language(tmp_path / "all", tie_embeddings="all")[1] == language(tmp_path / "t", tie_embeddings="target")[1]


@pytest.mark.parametrize("settings", [{"norm": "foo"}, {"tie_embeddings": "foo"}, {"tie_embeddings": True}])
def test_a_language_model_refuses_other_norms_and_ties(settings, tmp_path):
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} is one of .*; got {value!r}; write {name}="):
        language(tmp_path / "run", **settings)


@pytest.mark.parametrize("wrote", [{"tie_embeddings": "none"}, {"tie_embeddings": "none", "norm": "post"}])
def test_an_early_run_whose_norm_and_ties_were_not_heeded_is_loaded_as_it_was_built(wrote, tmp_path):
    task, _ = language(tmp_path / "early")
    config = checkpoint.read_json(tmp_path / "early/run/config.json")
    checkpoint.write_json(tmp_path / "early/run/config.json", {**config, **wrote})
    again = tasks.load_task(tmp_path / "early/run")
    assert again.write(["the "], 6) == task.write(["the "], 6)
    assert again.config.to_dict() == config


def test_what_early_runs_took_without_effect_does_not_keep_them_from_being_loaded(tmp_path):
    trained("numbers", tmp_path, limit=30, steps=3, **SMALL)
    config = checkpoint.read_json(tmp_path / "config.json")
    early = {"warmup_steps": 100, "rotary_scaling": 2.0, "rotary_pairing": "neighbours"}
    checkpoint.write_json(tmp_path / "config.json", {**config, **early})
    assert tasks.load_task(tmp_path).config.to_dict() == {**config, "warmup_steps": 100}
    checkpoint.write_json(tmp_path / "config.json", {**config, "schedule": "noam", "warmup_steps": 0})
    assert tasks.load_task(tmp_path).config.schedule == "noam"


def test_bits_per_byte_is_the_loss_in_other_units(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("äöü abc " * 200, encoding="utf-8")
    task = tasks.make_task(tasks.make_config("lm", {**SMALL, "text": str(text), "tokens": "char", "max_length": 16}))
    task.model.eval()
    figures = task.evaluate()
    per_token = figures["validation_loss"] / np.log(2)
    assert figures["bits_per_byte"] == pytest.approx(per_token * 8 / 11, rel=0.02)  # 8 characters in 11 bytes


def test_a_text_is_drawn_alike_in_batches_of_any_size(tmp_path):
    """Texts of like lengths are read together, in another order than they came; each draws under its own number."""
    mt.manual_seed(3)
    task = tasks.make_task(tasks.make_config("translate", {**SMALL, "pairs": write_pairs(tmp_path / "p.tsv")}))
    task.model.eval()
    texts, drawn = [s for s, _ in task.held_out[:5]], generate.Options(temperature=1.0, seed=4)
    at_once = task.translate(texts, drawn)
    assert at_once == task.translate(texts, drawn, batch_size=2) == task.translate(texts, drawn, batch_size=1)
    assert at_once[:2] == task.translate(texts[:2], drawn) and len(set(at_once)) == len(texts)
    assert at_once != task.translate(texts, generate.Options(temperature=1.0, seed=5))


# -- loading ------------------------------------------------------------------------------------------------------
def test_a_loaded_run_answers_as_it_did_without_its_data(tmp_path):
    pairs = tmp_path / "p.tsv"
    settings = {**SMALL, "steps": 5, "pairs": write_pairs(pairs)}
    config = tasks.make_config("translate", settings)
    before = tasks.make_task(config)
    loaded, _ = trained("translate", tmp_path / "run", **settings)
    pairs.unlink()
    again = tasks.load_task(tmp_path / "run")
    assert again.translate(["two"]) == loaded.translate(["two"])
    assert again.source.vocabulary == before.source.vocabulary


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda run: (run / "config.json").unlink(), "config.json does not exist"),
        (lambda run: (run / "tokenizer.json").write_text("{}"), "kind and tokens"),
        (lambda run: (run / "config.json").write_text("{"), "damaged"),
        (lambda run: [f.write_bytes(f.read_bytes()[:50]) for f in run.glob("checkpoint/*/model.*")], "cut short"),
        (lambda run: (run / "config.json").write_text(json.dumps({"task": "x"})), "config.json"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(damage, text, tmp_path):
    config = tasks.make_config("numbers", {**SMALL, "limit": 30, "steps": 1})
    task = tasks.make_task(config)
    checkpoint.write_json(tmp_path / "config.json", config.to_dict())
    checkpoint.write_json(tmp_path / "tokenizer.json", task.vocabulary())
    train(task, config, tmp_path, quiet=True)
    tasks.load_task(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=text) as caught:
        tasks.load_task(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not one; write --model"):
        tasks.load_task(tmp_path / "none")


# -- the loss on held-out data ------------------------------------------------------------------------------------
def nats(logits, targets):
    """Return the summed cross-entropy of one sequence, in plain NumPy."""
    logits = logits.astype(np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return (log_z - logits[np.arange(len(targets)), targets]).sum()


def test_held_out_loss_of_pairs_is_that_of_each_pair_alone():
    task = tasks.make_task(
        tasks.make_config("numbers", {**SMALL, "limit": 200, "label_smoothing": 0.3, "dropout": 0.5})
    )
    task.model.eval()
    total = tokens = 0
    for source, target in task.held_out:
        ids = task.target.encode(target)
        logits = task.model(np.array([task.encode(source)]), np.array([[data.BOS, *ids]])).numpy()[0]
        total, tokens = total + nats(logits, [*ids, data.EOS]), tokens + len(ids) + 1
    assert task.held_out_loss() == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("length", [1, 30, 33, 80])
def test_held_out_loss_of_a_text_reads_every_token_once(length, tmp_path):
    (tmp_path / "t.txt").write_text("the cat sat on the mat. " * 40)
    settings = {**SMALL, "text": str(tmp_path / "t.txt"), "max_length": 8, "tokens": "char", "dropout": 0.5}
    task = tasks.make_task(tasks.make_config("lm", settings))
    task.model.eval()
    task.validation = task.validation[:length]
    total = 0
    for start in range(0, length - 1, 8):
        window = task.validation[start : start + 9]
        total += nats(task.model(window[None, :-1]).numpy()[0], window[1:])
    assert task.held_out_loss() == pytest.approx(total / max(length - 1, 1), rel=1e-5)
    assert task.evaluate()["validation_loss"] == pytest.approx(task.held_out_loss(), rel=1e-6)

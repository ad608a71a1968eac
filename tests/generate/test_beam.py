"""Beam search: greedy with one beam, exhaustive with enough of them, and token for token what transformers finds."""

import itertools

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate, ops
from minitransformer.data import BOS, EOS
from minitransformer.generate.beam import _search
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig
from tests.oracles import gpt2_state, shaken

PROMPTS = [[4, 2, 7], [9], [3, 3, 8, 1, 5]]


def language(vocab=11, positions="learned", kv_heads=0):
    mt.manual_seed(2)
    model = GPT2(GPT2Config(vocab, 24, 16, 4, 2, 24, 0.0, positions=positions, kv_heads=kv_heads)).eval()
    for p in model.parameters():  # spread out, so that tokens differ
        p.data[...] *= 5
    return model


def translator(vocab=11):
    mt.manual_seed(1)
    model = Transformer(TransformerConfig(vocab, vocab, 16, 4, 2, 24, 0.0, 24)).eval()
    for p in model.parameters():
        p.data[...] *= 1.5
    return model


def log_p(model, ids, count):
    """Return ln p of the last `count` ids of a row, by one full forward."""
    with mt.no_grad():
        shares = ops.log_softmax(mt.tensor(model(mt.tensor(np.array([ids[:-1]])).data).numpy().astype("float64")))
    return sum(shares.numpy()[0, len(ids) - 1 - i, ids[-i]] for i in range(1, count + 1))


@pytest.mark.parametrize("cached", [True, False])
def test_one_beam_is_greedy(cached):
    model = language()
    found = generate.beam_texts(model, PROMPTS, 9, beams=1, stop={5}, cached=cached)
    assert [best.ids for (best,) in found] == generate.continue_texts(model, PROMPTS, 9, stop={5})
    model, sources = translator(), [[4, 7, 7, 5], [9], [3, 3, 8]]
    found = generate.beam_translate(model, sources, BOS, EOS, 9, beams=1, cached=cached)
    assert [best.ids for (best,) in found] == generate.translate(model, sources, BOS, EOS, 9)


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
def test_with_enough_beams_nothing_better_exists(length_penalty):
    """All 3 + 2·3 + ... texts of up to 4 tokens out of {0, 1, 2}, of which 2 ends a text, scored one by one."""
    vocab, end, longest = 3, 2, 4
    model = language(vocab)
    for prompt in ([0, 1], [1, 1, 0]):
        scored = []
        for length in range(1, longest + 1):
            for body in itertools.product(range(vocab), repeat=length):
                if end not in body[:-1] and (length == longest or body[-1] == end):
                    ids = [token for token in body if token != end]
                    scored.append((log_p(model, [*prompt, *body], length) / length**length_penalty, ids))
        scored.sort(reverse=True)
        assert len(scored) == 1 + 2 + 4 + 8 * 3
        (found,) = generate.beam_texts(model, [prompt], longest, len(scored), length_penalty, stop={end})
        assert [text.ids for text in found] == [ids for _, ids in scored]
        np.testing.assert_allclose([text.score for text in found], [score for score, _ in scored], rtol=1e-5)


def test_a_few_beams_find_what_greedy_misses():
    """Not always: the beginning that greedy takes may fall out of the beams. So over a hundred prompts."""
    prompts = [list(pair) for pair in itertools.product(range(1, 11), repeat=2)]
    greedy, found = (
        np.array([best[0].score for best in generate.beam_texts(language(), prompts, 6, beams, 0.0)])
        for beams in (1, 8)
    )
    assert (found > greedy + 1e-5).sum() > 40 and (found < greedy - 1e-5).sum() < 10


class Dear:
    """A reader of a language in which a text ends with 1 or 2 at once, or pays for a 0 and goes on with 0 for free."""

    def __init__(self):
        self.rows, self.asked = [[]], 0

    def scores(self):
        self.asked += 1
        return np.log([[0.1, 0.45, 0.45] if not row else [1.0, 1e-9, 1e-9] for row in self.rows])

    def written(self, row):
        return list(self.rows[row])

    def select(self, rows):
        self.rows = [list(self.rows[i]) for i in rows]

    def append(self, tokens):
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)


@pytest.mark.parametrize(
    "penalty, longest, best, steps", [(1.0, 4, [0] * 4, 4), (1.0, 2, [], 1), (0.0, 4, [], 1), (-1.0, 4, [], 1)]
)
def test_a_search_ends_when_nothing_better_can_come_and_no_sooner(penalty, longest, best, steps):
    """ln 0.1 = −2.3 is worse than ln 0.45 = −0.8, but not over four tokens: −0.58; over two it is −1.15."""
    reader = Dear()
    (found,) = _search(reader, longest, 2, {1, 2}, penalty)
    assert found[0].ids == best and len(found) == 2
    assert reader.asked == steps


@pytest.mark.parametrize("positions, kv_heads", [("learned", 0), ("rotary", 2), ("alibi", 0), ("relative", 1)])
def test_the_beams_of_a_batch_are_those_of_each_alone_with_and_without_a_cache(positions, kv_heads):
    model = language(positions=positions, kv_heads=kv_heads)
    together = generate.beam_texts(model, PROMPTS, 12, beams=3, stop={6})
    for cached in (True, False):
        for prompt, wanted in zip(PROMPTS, together, strict=True):
            (alone,) = generate.beam_texts(model, [prompt], 12, beams=3, stop={6}, cached=cached, chunk=2)
            assert [text.ids for text in alone] == [text.ids for text in wanted]
            np.testing.assert_allclose([t.score for t in alone], [t.score for t in wanted], atol=1e-5)
    assert len({tuple(texts[0].ids) for texts in together}) > 1


def test_translations_of_a_batch_are_those_of_each_alone_with_and_without_a_cache(rng):
    model = translator()
    sources = [rng.integers(3, 11, n).tolist() for n in (3, 7, 1, 5)]
    together = generate.beam_translate(model, sources, BOS, EOS, 12, beams=3)
    for cached in (True, False):
        for source, wanted in zip(sources, together, strict=True):
            (alone,) = generate.beam_translate(model, [source], BOS, EOS, 12, beams=3, cached=cached)
            assert [text.ids for text in alone] == [text.ids for text in wanted]
    assert generate.beam_translate(model, [], BOS, EOS, 12) == []


def both_models(torch, transformers, end):
    """Return a GPT-2 of transformers and ours, with the same weights."""
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=24, n_embd=16, n_layer=2, n_head=4, n_inner=24, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, bos_token_id=None, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = shaken(transformers.GPT2LMHeadModel(config), torch).eval()
    with torch.no_grad():
        theirs.transformer.wte.weight *= 2
    model = GPT2(GPT2Config(23, 24, 16, 4, 2, 24, 0.0)).eval()
    model.load_state_dict(gpt2_state(theirs))
    return theirs, model


@pytest.mark.parametrize("beams", [1, 2, 4, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("end", [None, 8])
def test_beams_are_those_of_transformers(beams, length_penalty, end, torch, transformers):
    theirs, model = both_models(torch, transformers, end)
    agree_with_transformers(theirs, model, torch, end, beams, length_penalty)


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("repetition_penalty", [0.8, 1.3, 2.0])
@pytest.mark.parametrize("end", [None, 8])
def test_beams_with_a_repetition_penalty_are_those_of_transformers(
    beams, length_penalty, repetition_penalty, end, torch, transformers
):
    theirs, model = both_models(torch, transformers, end)
    agree_with_transformers(theirs, model, torch, end, beams, length_penalty, repetition_penalty)


def agree_with_transformers(theirs, model, torch, end, beams, length_penalty, repetition_penalty=1.0):
    prompts = np.random.default_rng(0).integers(1, 23, (4, 5))
    wanted = theirs.generate(
        torch.tensor(prompts), attention_mask=torch.ones(4, 5, dtype=torch.long), num_beams=beams, max_new_tokens=12,
        length_penalty=length_penalty, early_stopping="never", do_sample=False, num_return_sequences=beams,
        return_dict_in_generate=True, output_scores=True, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    found = generate.beam_texts(
        model, prompts.tolist(), 12, beams, length_penalty, set() if end is None else {end},
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    rows = wanted.sequences[:, 5:].tolist()
    rows = [row[: row.index(end)] if end in row else row for row in rows]
    assert [text.ids for texts in found for text in texts] == rows
    if beams > 1:
        scores = [text.score for texts in found for text in texts]
        np.testing.assert_allclose(scores, wanted.sequences_scores.numpy(), rtol=1e-4)
    assert end is None or repetition_penalty > 1 or any(len(row) < 12 for row in rows)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_penalised_translation_is_scored_as_its_tokens_are(penalty):
    """Beside the definition: ln p of each token, times the penalty if the target has it already."""
    model, source = translator(), [4, 7, 7, 5]
    (found,) = generate.beam_translate(model, [source], BOS, EOS, 9, 3, 1.0, repetition_penalty=penalty)
    for text in found:
        ids = [BOS, *text.ids] if len(text.ids) == 9 else [BOS, *text.ids, EOS]
        scores = model(mt.tensor(np.array([source])).data, mt.tensor(np.array([ids[:-1]])).data).numpy()
        shares = ops.log_softmax(mt.tensor(scores.astype("float64"))).numpy()[0]
        each = [shares[i, t] * (penalty if t in ids[: i + 1] else 1) for i, t in enumerate(ids[1:])]
        assert text.score == pytest.approx(np.mean(each), rel=1e-4)
    assert len(found) == 3


def test_more_tokens_can_end_a_translation():
    model, source = translator(), [4, 7, 7, 5]
    (free,) = generate.translate(model, [source], BOS, EOS, 9)
    stop = free[2]
    assert generate.translate(model, [source], BOS, EOS, 9, stop={stop}) == [free[: free.index(stop)]]
    (found,) = generate.beam_translate(model, [source], BOS, EOS, 9, beams=1, stop=[stop])
    assert found[0].ids == free[: free.index(stop)]


def test_a_text_of_a_search_ends_where_told():
    """At a token of `stop`, which is left out, or once `until` is true, with what made it true: the same searches."""
    model, stop = language(), {6, 3}
    for beams in (1, 2, 5):
        stopped = generate.beam_texts(model, PROMPTS, 9, beams, stop=stop)
        told = generate.beam_texts(model, PROMPTS, 9, beams, until=lambda ids: ids[-1] in stop)
        for a, b in zip(sum(stopped, []), sum(told, []), strict=True):
            assert a.score == pytest.approx(b.score) and a.ids == [t for t in b.ids if t not in stop]
    assert any(len(text.ids) < 9 for texts in stopped for text in texts)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"beams": 0}, "beams >= 1.*got 0, 3 and 1.0; write beams=4"),
        ({"length_penalty": float("nan")}, "finite length penalty; got 4, 3 and nan"),
        ({"prompts": [[1], []]}, "prompt has at least one token"),
        ({"chunk": -1}, "0 for all at once; got -1"),
    ],
)
def test_misuse_is_named(settings, text):
    with pytest.raises(ValueError, match=text):
        generate.beam_texts(language(), **{"prompts": [[1]], "count": 3, **settings})

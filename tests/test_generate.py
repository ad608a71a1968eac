"""Decoding: greedy takes the likeliest at every step, sampling draws what it says, ends are ends."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate
from minitransformer.data import BOS, EOS, PAD
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig


@pytest.fixture
def model():
    mt.manual_seed(1)
    return Transformer(TransformerConfig(11, 11, 12, 3, 1, 20, 0.0, 20)).eval()


@pytest.fixture
def language():
    mt.manual_seed(1)
    return GPT2(GPT2Config(11, 6, 12, 3, 1, 20, 0.0)).eval()


def test_greedy_takes_the_likeliest_token_each_time(model):
    source = [4, 7, 7, 5]
    (written,) = generate.translate(model, [source], BOS, EOS, 9)
    target = [BOS]
    for token in written:
        logits = model(np.array([source]), np.array([target])).numpy()[0, -1]
        assert token == logits.argmax()
        target.append(token)
    assert len(written) == 9 or model(np.array([source]), np.array([target])).numpy()[0, -1].argmax() in (EOS, PAD)


def test_a_batch_decodes_as_its_members_alone(model):
    sources = [[4, 7, 7, 5], [9], [3, 3, 3, 3, 3, 3, 8]]
    together = generate.translate(model, sources, BOS, EOS, 9)
    assert together == [generate.translate(model, [s], BOS, EOS, 9)[0] for s in sources]
    assert generate.translate(model, [], BOS, EOS, 9) == []


def test_the_end_is_not_part_of_the_text(model):
    model.output.weight.data[...] = 0
    model.output.weight.data[EOS] = 1

    def always_end(scores):
        return np.full(len(scores), EOS)

    assert generate.translate(model, [[4, 5]], BOS, EOS, 9, always_end) == [[]]


def test_sampling_draws_what_softmax_says():
    scores = np.tile(np.log([0.5, 0.3, 0.15, 0.05]), (40_000, 1))
    for temperature, expected in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.5, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)):
        counts = np.bincount(generate.sampler(temperature, seed=1)(scores), minlength=4) / 40_000
        np.testing.assert_allclose(counts, expected, atol=0.01)
    counts = np.bincount(generate.sampler(1.0, top_k=2, seed=1)(scores), minlength=4) / 40_000
    np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.01)


def test_a_seed_names_the_draw(language):
    def write(seed):
        return generate.continue_text(language, [1, 2], 30, generate.sampler(1.0, seed=seed))

    assert write(3) == write(3) != write(4)


def test_a_text_grows_beyond_the_context_and_stops_where_told(language):
    written = generate.continue_text(language, [1, 2, 3], 20)
    assert len(written) == 20 and all(0 <= t < 11 for t in written)
    stop = written[0]
    assert generate.continue_text(language, [1, 2, 3], 20, stop=stop) == []


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda m: generate.translate(m, [[4], []], BOS, EOS, 5), "at least one token"),
        (lambda m: generate.continue_text(m, [], 5), "prompt has at least one token"),
        (lambda m: generate.sampler(0.0), "temperature > 0"),
        (lambda m: generate.sampler(1.0, top_k=-1), "top_k >= 0"),
    ],
)
def test_misuse_is_named(act, text, model):
    with pytest.raises(ValueError, match=text):
        act(model)

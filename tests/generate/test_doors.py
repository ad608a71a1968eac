"""What is no number of tokens, no token or no prompt is named in one line, before a model reads anything."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate
from minitransformer.generate import doors
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

LANGUAGE = {"prompts": [[1]], "count": 3}
TRANSLATION = {"sources": [[4]], "bos": 1, "eos": 2, "max_length": 3}


class Read(AssertionError):
    """Something was read."""


@pytest.fixture
def models(monkeypatch):
    """A language model and a translator that must not be asked."""

    def forbidden(*args, **kwargs):
        raise Read

    for kind, names in ((GPT2, ["forward"]), (Transformer, ["encode", "decode"])):
        for name in names:
            monkeypatch.setattr(kind, name, forbidden)
    sizes = TransformerConfig(11, 13, 12, 3, 1, 20, 0.0, 20, tie_embeddings="target")
    language = GPT2(GPT2Config(11, 8, 12, 3, 1, 20, 0.0)).eval()
    return {"texts": language, "translate": Transformer(sizes).eval()}


WRONG = [
    ({"count": -5}, r"count is an integer of at least 0; got -5; write count=20"),
    ({"count": 2.5}, r"count is an integer of at least 0; got 2.5"),
    ({"count": True}, r"got True"),
    ({"stop": 5}, r"stop is a set of token ids; got 5; write stop=\{2\}"),
    ({"stop": "5"}, r"got '5'"),
    ({"stop": {99999}}, r"stop has token ids, integers from 0 to 10; got 99999; write stop=\{2\}"),
    ({"stop": {-1}}, r"from 0 to 10; got -1"),
    ({"stop": {2.5}}, r"from 0 to 10; got 2.5"),
    ({"chunk": 1.5}, r"0 for all at once; got 1.5; write chunk=64"),
    ({"prompts": [[1.5]]}, r"prompts are lists of token ids, integers from 0 to 10; got \[1.5\]; write prompts="),
    ({"prompts": [[1], [11]]}, r"from 0 to 10; got \[11\]"),
    ({"prompts": [[-1]]}, r"got \[-1\]"),
    ({"prompts": [1, 2]}, r"from 0 to 10; got 1; write"),
    ({"prompts": [[[1], 2]]}, r"got \[\[1\], 2\]"),
    ({"prompts": "the"}, r"prompts are lists of token ids; got 'the'"),
    ({"prompts": ["the"]}, r"got 'the'"),
    ({"prompts": 7}, r"prompts are lists of token ids; got 7"),
    ({"repetition_penalty": "a"}, r"positive, 1 for none; got 'a'"),
    ({"repetition_penalty": 0.0}, r"positive, 1 for none; got 0.0"),
    ({"max_length": -3}, r"max_length is an integer of at least 0; got -3; write max_length=20"),
    ({"eos": 999}, r"eos is a token id, an integer from 0 to 12; got 999; write eos=2"),
    ({"bos": 1.0}, r"bos is a token id, an integer from 0 to 12; got 1.0"),
    ({"sources": [[11]]}, r"sources are lists of token ids, integers from 0 to 10; got \[11\]"),
    ({"sources": [[2], []]}, r"a source has at least one token"),
    ({"bos": 1, "stop": [13]}, r"integers from 0 to 12; got 13"),
]
WRONG_CHOICES = [
    ({"choose": 0.8}, r"choose is a function of scores .* got 0.8; write choose=generate.sampler\(0.8\)"),
    ({"bos": 1, "choose": None}, r"got None"),
]
WRONG_SEARCHES = [
    ({"beams": 1.5}, r"beams >= 1.* got 1.5, 3 and 1.0"),
    ({"beams": "4"}, r"got '4', 3 and 1.0"),
    ({"bos": 1, "beams": 0}, r"got 0, 3 and 1.0"),
    ({"bos": 1, "length_penalty": "a"}, r"got 4, 3 and 'a'"),
]


def _kind(settings):
    return "translate" if {"bos", "eos", "sources", "max_length"} & set(settings) else "texts"


@pytest.mark.parametrize("settings, text", WRONG + WRONG_CHOICES, ids=str)
def test_misuse_of_writing_is_named_and_nothing_is_read(settings, text, models):
    kind = _kind(settings)
    write, given = (generate.translate, TRANSLATION) if kind == "translate" else (generate.continue_texts, LANGUAGE)
    with pytest.raises(ValueError, match=text) as caught:
        write(models[kind], **{**given, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings, text", WRONG + WRONG_SEARCHES, ids=str)
def test_misuse_of_a_search_is_named_and_nothing_is_read(settings, text, models):
    kind = _kind(settings)
    search, given = (generate.beam_translate, TRANSLATION) if kind == "translate" else (generate.beam_texts, LANGUAGE)
    if {"count", "max_length"} & set(settings):
        text = "a beam search has beams >= 1, at least one token"
    with pytest.raises(ValueError, match=text):
        search(models[kind], **{**given, **settings})


def test_numpy_s_integers_and_arrays_are_welcome():
    mt.manual_seed(0)
    model = GPT2(GPT2Config(11, 8, 12, 3, 1, 20, 0.0)).eval()
    wanted = generate.continue_texts(model, [[1, 2]], 3, stop={4})
    assert generate.continue_texts(model, np.array([[1, 2]]), np.int64(3), stop=np.array([4])) == wanted
    assert generate.continue_texts(model, ((1, 2),), 3, stop=[4], chunk=np.int32(1)) == wanted
    assert generate.continue_text(model, [1], 0) == []
    (found,) = generate.beam_texts(model, np.array([[1, 2]]), np.int64(3), np.int64(1), np.float32(1))
    assert len(found) == 1


def test_a_model_that_does_not_say_how_many_tokens_it_has_may_have_any(models):
    assert doors.vocabulary(models["translate"]) == 13 and doors.vocabulary(models["translate"], source=True) == 11
    models["texts"].config = object()
    assert doors.vocabulary(models["texts"]) == np.inf
    assert doors.stops({10**9}, np.inf) == {10**9}
    with pytest.raises(ValueError, match="integers from 0; got -1"):
        doors.stops([-1], np.inf)

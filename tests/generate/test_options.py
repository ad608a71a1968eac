"""One set of options for texts and translations: each reaches what it is about, and contradictions are named."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate
from minitransformer.data import BOS, EOS
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

PROMPTS = [[4, 2, 7], [9], [3, 3, 8, 1, 5]]
SAID = [
    {}, {"repetition_penalty": 1.4}, {"temperature": 1.2, "top_k": 5, "top_p": 0.9, "seed": 3},
    {"temperature": 1.2, "repetition_penalty": 1.4}, {"beams": 3, "length_penalty": 0.5, "repetition_penalty": 1.4},
]  # fmt: skip
DRAWING = ("temperature", "top_k", "top_p", "seed")


def spread(model, factor):
    for p in model.parameters():
        p.data[...] *= factor
    return model.eval()


@pytest.mark.parametrize("said", SAID, ids=str)
def test_texts_and_translations_are_written_as_was_said(said):
    mt.manual_seed(2)
    language = spread(GPT2(GPT2Config(11, 24, 16, 4, 2, 24, 0.0)), 5)
    translator = spread(Transformer(TransformerConfig(11, 11, 16, 4, 2, 24, 0.0, 24)), 1.5)
    options = generate.Options(**said)
    rest = {name: value for name, value in said.items() if name not in DRAWING}
    drawing = {name: value for name, value in said.items() if name in DRAWING}
    texts, translations, (what, into) = generate.continue_texts, generate.translate, ((9,), (BOS, EOS, 9))
    if options.beams > 1:
        texts, translations = (
            lambda *a, of=of, **k: [best[0].ids for best in of(*a, **k)]
            for of in (generate.beam_texts, generate.beam_translate)
        )

    def chosen(**rows):
        return {"choose": generate.sampler(**drawing, **rows)} if drawing else {}

    assert options.texts(language, PROMPTS, *what) == texts(language, PROMPTS, *what, **rest, **chosen())
    wanted = translations(translator, PROMPTS, *into, **rest, **chosen(rows=[5, 0, 2]))
    assert options.translations(translator, PROMPTS, *into, rows=[5, 0, 2]) == wanted


@pytest.mark.parametrize("said", [{}, {"beams": 2}], ids=str)
def test_chunks_and_ends_reach_the_readers(said, monkeypatch):
    mt.manual_seed(2)
    model, lengths, real = spread(GPT2(GPT2Config(11, 24, 16, 4, 2, 24, 0.0)), 5), [], GPT2.forward

    def forward(self, ids, *args, **kwargs):
        lengths.append(ids.shape[1])
        return real(self, ids, *args, **kwargs)

    monkeypatch.setattr(GPT2, "forward", forward)
    texts = generate.Options(chunk=2, **said).texts(model, PROMPTS, 6, until=lambda ids: len(ids) == 3)
    assert lengths[:3] == [2, 2, 1] and [len(text) for text in texts] == [3, 3, 3]


@pytest.mark.parametrize(
    "said, text",
    [
        ({"beams": 2, "temperature": 0.8}, "beams search and draw nothing; got beams=2 and temperature=0.8; write one"),
        ({"top_k": 4}, "got top_k=4 and top_p=1.0 at temperature 0, where nothing is; write temperature=0.8, too"),
        ({"top_p": 0.9, "beams": 2}, "got top_k=0 and top_p=0.9 at temperature 0"),
        ({"length_penalty": 0.5}, "got length_penalty=0.5 and one beam; write beams=4, too"),
        ({"temperature": "a"}, "a temperature is >= 0, 0 for the likeliest token; got 'a'"),
        ({"temperature": -1}, "got -1; write temperature=0.8"),
        ({"temperature": float("inf")}, "got inf"),
        ({"temperature": 1, "top_k": 1.5}, "top_k >= 0 .* got 1.5 and 1.0"),
        ({"beams": 1.5}, "beams >= 1.* got 1.5"),
        ({"beams": "4"}, "beams >= 1.* got '4'"),
        ({"beams": 2, "length_penalty": "a"}, "got 2, 1 and 'a'"),
        ({"repetition_penalty": "a"}, "positive, 1 for none; got 'a'"),
        ({"chunk": 1.5}, "0 for all at once; got 1.5"),
        ({"seed": -1}, "a seed is a whole number from 0 up, or a tuple of such; got -1"),
    ],
)
def test_misuse_is_named(said, text):
    with pytest.raises(ValueError, match=text) as caught:
        generate.Options(**said)
    assert "\n" not in str(caught.value)


def test_numpy_s_numbers_are_welcome():
    assert generate.Options(temperature=np.float32(1), top_k=np.int64(4), seed=np.int32(2)).top_k == 4

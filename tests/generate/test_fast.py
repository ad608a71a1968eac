"""The fast way to score one more token is the book's, for every model that it takes; and it takes no other."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate, nn
from minitransformer.generate import fast
from minitransformer.generate.read import Texts, Translations
from minitransformer.kernels import decoding
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
ACTIVATIONS = ["relu", "silu", "gelu", "gelu_tanh"]

pytestmark = pytest.mark.skipif("config.where != 'numpy'", reason="NumPy's own")


def shaken(model, factor=1.0):
    """Move every parameter, norms and biases too, to a generic place."""
    rng = np.random.default_rng(5)
    for p in model.parameters():
        p.data[...] = factor * p.data + 0.1 * rng.standard_normal(p.shape)
    return model.eval()


def language(positions="learned", kv_heads=0, act="gelu_tanh", factor=1.0, **options):
    mt.manual_seed(3)
    sizes = {"vocab_size": 29, "max_length": 40, "d_model": 24, "heads": 4, "layers": 2, "d_ff": 36, **options}
    return shaken(GPT2(GPT2Config(**sizes, positions=positions, kv_heads=kv_heads, activation=act)), factor)


def translator(positions="sinusoidal", kv_heads=0, act="relu", norm="post"):
    mt.manual_seed(3)
    sizes = {"source_vocab": 29, "target_vocab": 29, "d_model": 24, "heads": 4, "layers": 2, "d_ff": 36}
    settings = {"max_length": 40, "positions": positions, "kv_heads": kv_heads, "activation": act, "norm": norm}
    return shaken(Transformer(TransformerConfig(**sizes, **settings)))


@pytest.fixture(params=["in cache", "from memory"])
def where(request, monkeypatch):
    """Both ways to multiply by weights."""
    if request.param == "from memory":
        monkeypatch.setattr(decoding, "IN_CACHE", 0)


def agree(make, steps=12, tolerance=3e-6):
    """Read the same tokens by the book and by the fast way, with rows that leave and come twice on the way."""
    with mt.no_grad():
        readers = [make(), make()]
        for step in range(steps):
            with mt.use_kernels(False):
                book = readers[0].scores()
            found = readers[1].scores()
            assert readers[0].fast is None and isinstance(readers[1].fast, fast.Fast)
            assert found.dtype == book.dtype == "float32" and found.shape == book.shape
            np.testing.assert_allclose(found, book, rtol=0, atol=tolerance * np.abs(book).max())
            tokens = (7 * np.arange(len(book)) + 3 * step) % 26 + 3
            for reader in readers:
                reader.append(tokens.tolist())
                if step == 4 and len(book) > 1:
                    reader.select([2, 0, 2])
                if step == 8 and len(book) > 1:
                    reader.select([1])


@pytest.mark.parametrize("prompts", [[[4, 2, 7]], [[4, 2, 7], [9, 1, 1], [3, 8, 1]], [[4, 2, 7], [9], [3, 8, 1, 5, 6]]])
@pytest.mark.parametrize("kv_heads", [0, 1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_texts_are_scored_as_by_the_book(positions, kv_heads, prompts, where):
    model = language(positions, kv_heads)
    agree(lambda: Texts(model, prompts))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 4}, {"window": 4, "positions": "rotary"}, {"window": 3, "positions": "alibi", "kv_heads": 2},
        {"window": 5, "positions": "relative"}, {"tie_embeddings": False}, {"distinct_layers": 1},
        {"norm": "post"}, {"norm": "post", "positions": "rotary", "kv_heads": 2}, {"norm": "post", "layers": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("prompts", [[[4, 2, 7]], [[4, 2, 7], [9], [3, 8, 1, 5, 6]]])
def test_windows_and_what_is_shared_or_not_are_known(options, prompts, where):
    model = language(**options)
    agree(lambda: Texts(model, prompts))


@pytest.mark.parametrize("options", [{"share": "qk"}, {"share": "heads"}, {"tie_output": True}, {"qk_norm": True},
                                     {"attention": "linear", "dropout": 0.0}, {"act": "swiglu"}])  # fmt: skip
def test_other_options_are_read_by_the_book(options):
    with mt.no_grad():
        assert not fast.fits(language(**options))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions, kv_heads", [("sinusoidal", 0), ("rotary", 2), ("relative", 1), ("learned", 4)])
def test_translations_are_scored_as_by_the_book(positions, kv_heads, norm, act, where):
    model = translator(positions, kv_heads, act, norm)
    for sources in ([[5, 6, 7]], [[5, 6, 7], [8], [3, 4, 5, 6, 9]]):
        agree(lambda sources=sources: Translations(model, sources, 1))


@pytest.mark.parametrize("length", [1, 2, 17, 40])
@pytest.mark.parametrize(
    "positions, kv_heads, pairing",
    [("learned", 0, ""), ("none", 2, ""), ("rotary", 1, "halves"), ("rotary", 2, "neighbours")],
)
def test_the_beginning_of_a_text_is_read_at_once_as_by_the_book(
    positions, kv_heads, pairing, length, where, rng, monkeypatch
):
    """Its scores, and the keys and values that it leaves behind; and the book is not asked."""
    options = {"rotary_pairing": pairing} if pairing else {}
    model, prompt = language(positions, kv_heads, **options), rng.integers(0, 29, length).tolist()
    with mt.no_grad():
        book, quick = Texts(model, [prompt]), Texts(model, [prompt])
        with mt.use_kernels(False):
            wanted = book.scores()
        monkeypatch.setattr(GPT2, "forward", None)
        found = quick.scores()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())
    assert quick.read == length and found.dtype == "float32"
    for a, b in zip(quick.caches, book.caches, strict=True):
        assert a.past.length == length
        for ours, theirs in zip(a.past.arrays(), b.past.arrays(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "options, prompts, chunk",
    [
        ({"positions": "alibi"}, [[4, 2, 7]], 0), ({"positions": "relative"}, [[4, 2, 7]], 0),
        ({"window": 2}, [[4, 2, 7]], 0), ({}, [[4, 2, 7], [9, 1, 1]], 0), ({}, [[4, 2, 7]], 2),
        ({}, [[4, 2, 7] * 10], 0),
    ],
)  # fmt: skip
def test_other_beginnings_are_read_by_the_book(options, prompts, chunk, monkeypatch):
    """Where distances count, several texts, chunks, a long one; what follows is read fast all the same."""
    monkeypatch.setattr(fast, "FEW", 29)
    asked, real = [], GPT2.forward

    def forward(self, ids, *args, **kwargs):
        asked.append(ids.shape[1])
        return real(self, ids, *args, **kwargs)

    monkeypatch.setattr(GPT2, "forward", forward)
    written = generate.continue_texts(language(**options), prompts, 5, chunk=chunk)
    assert sum(asked) == len(prompts[0]) and [len(text) for text in written] == [5] * len(prompts)


def test_in_post_norm_the_same_tokens_are_written():
    model = language(norm="post")
    for prompt in ([1, 2, 3], [7]):
        texts = []
        for fast_way in (True, False):
            with mt.use_kernels(fast_way):
                texts.append(generate.continue_text(model, prompt, 24, generate.sampler(1.0, 40, 1.0, 3)))
        assert texts[0] == texts[1] and len(set(texts[0])) > 5


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_is_that_of_the_book(act):
    agree(lambda: Texts(language(act=act), [[1, 2], [3, 4], [5, 6]]))


@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
def test_both_pairings_turn_as_by_the_book(pairing):
    model = language("rotary")
    for layer in model.decoder.layers:
        layer.self_attention.positions = nn.RotaryPositions(6, 40, base=100.0, pairing=pairing, scaling=2.0)
    agree(lambda: Texts(model.eval(), [[1, 2, 3]]))


def test_a_stack_whose_last_norm_was_taken_away_keeps_its_mean():
    model = language()
    model.decoder.norm = None
    agree(lambda: Texts(model, [[1, 2, 3]]))


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_overflow_or_vanish_are_shifted(size, sign, rng):
    """Against float64: all scores of one head far up or down, those of another small."""
    q, k, v = (rng.standard_normal((2, 3, n, 5)) for n in (1, 11, 11))
    k[:, 0, :, 0], q[:, 0, :, 0] = size, sign * size
    q, k, v = (a.astype("float32") for a in (q, k, v))
    with np.errstate(over="ignore"):
        y = decoding.attend(q, k, v, None)
    p = np.matmul(q.astype("float64"), k.swapaxes(-1, -2).astype("float64"))
    p = np.exp(p - p.max(axis=-1, keepdims=True))
    wanted = np.matmul(p / p.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(y[:, 1:], wanted[:, 1:], atol=2e-6)
    assert np.isfinite(y).all() and np.abs(y[:, 0] - wanted[:, 0]).max() < (1e-3 if size < 100 else 10)


def test_a_row_that_may_look_nowhere_gives_zeros(rng):
    q, k, v = (rng.standard_normal((1, 2, n, 5)).astype("float32") for n in (1, 4, 4))
    assert not decoding.attend(q, k, v, np.full((1, 1, 1, 4), -np.inf, "float32")).any()


def test_what_changes_between_two_texts_is_seen():
    """Steps of training write into the weights in place."""
    model = language()
    before = generate.continue_text(model, [1, 2, 3], 12)
    for p in model.parameters():
        p.data *= -1.5
    after = generate.continue_text(model, [1, 2, 3], 12)
    with mt.use_kernels(False):
        assert after == generate.continue_text(model, [1, 2, 3], 12) != before


def test_the_book_reads_on_where_the_fast_way_has_stopped(rng):
    model, ids = language("rotary", 2), rng.integers(0, 29, (1, 12))
    with mt.no_grad():
        caches = model.decoder.new_caches()
        model(ids[:, :4], caches=caches)
        quick = fast.Fast(model, caches)
        rows = [quick.scores(ids[:, i]) for i in range(4, 7)]
        rows += list(model(ids[:, 7:10], caches=caches).numpy()[0, :, None])
        rows += [quick.scores(ids[:, i]) for i in range(10, 12)]
        full = model(ids).numpy()
    np.testing.assert_allclose(np.concatenate(rows), full[0, 4:], rtol=0, atol=3e-6 * np.abs(full).max())


def test_nothing_is_written_into_the_weights():
    for model in (language(), language("relative")):
        before = {name: value.copy() for name, value in model.state_dict().items()}
        generate.continue_text(model, [1, 2, 3], 10)
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


def own_layer(model):
    class Mine(nn.EncoderLayer):
        """A layer of a user's."""

    model.decoder.layers[0].__class__ = Mine


def own_attention(model):
    model.decoder.layers[1].self_attention.temperature = 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.to("float64"),
        lambda model: setattr(model.decoder.layers[1].feed_forward, "act", nn.Sequential(nn.ReLU())),
        lambda model: model.decoder.layers[0].norm1.train(),
        lambda model: setattr(model.decoder.layers[0], "norm", "post"),
        lambda model: setattr(model.decoder.layers[0].self_attention, "k_proj", None),
        lambda model: setattr(model.decoder.layers[0].self_attention, "v_proj", nn.Linear(24, 6).eval()),
        own_layer,
        own_attention,
        lambda model: setattr(model, "__class__", type("Mine", (GPT2,), {})),
    ],
)
def test_models_that_are_more_than_is_known_are_read_by_the_book(change):
    model = language()
    with mt.no_grad():
        assert fast.fits(model)
        change(model)
        assert not fast.fits(model)


def test_a_model_that_does_not_fit_is_read_by_the_book():
    model = language().to("float64")
    own_attention(model)
    with mt.no_grad():
        reader = Texts(model, [[1, 2]])
        for _ in range(3):
            assert reader.scores().dtype == "float64" and reader.fast is None
            reader.append([3])


def test_where_the_book_is_asked_for_it_is_read():
    model = language()
    assert not fast.fits(model), "gradients are on"
    with mt.no_grad():
        assert fast.fits(model)
        with mt.use_kernels(False):
            assert not fast.fits(model)
        with mt.autocast():
            assert not fast.fits(model)
        assert not fast.fits(GPT2(GPT2Config(5, 8, 4, 2, 0, 8)).eval()), "without layers"


@pytest.mark.parametrize("prompts", [[[4, 2]], [[4, 2], [3, 1]]])
@pytest.mark.parametrize("token", [-1, 29])
def test_a_token_that_does_not_exist_is_told_as_by_the_book(prompts, token):
    """And nothing has been read."""
    for kernels in (True, False):
        with mt.no_grad(), mt.use_kernels(kernels):
            reader = Texts(language(), prompts)
            reader.scores()
            reader.append([token] * len(prompts))
            with pytest.raises(IndexError, match=f"token ids lie in 0 … 28; got {token}; check the tokenizer"):
                reader.scores()
            assert [cache.past.length for cache in reader.caches] == [2, 2]


def test_a_translation_longer_than_the_table_is_refused_as_by_the_book():
    model = translator()
    with pytest.raises(ValueError, match="max_length=40; got a sequence of 41"):
        generate.translate(model, [[5]], 1, 2, 60, choose=lambda scores: np.full(len(scores), 7))

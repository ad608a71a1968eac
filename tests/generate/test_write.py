"""Decoding: greedy takes the likeliest at every step, sampling draws what it says, ends are ends."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate
from minitransformer.data import BOS, EOS, PAD
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig
from tests.oracles import gpt2_state, shaken


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


def test_a_seed_names_the_draw(language):
    def write(seed):
        return generate.continue_text(language, [1, 2], 30, generate.sampler(1.0, seed=seed))

    assert write(3) == write(3) != write(4)


@pytest.mark.parametrize("cached", [True, False])
def test_what_a_prompt_draws_depends_on_its_number_and_on_no_other_prompt(cached):
    """With and without others, also when they stop earlier; the number of a prompt alone is told by rows."""
    model = spread()

    def alone(row, **options):
        choose = generate.sampler(1.5, top_k=8, seed=3, rows=[row])
        return generate.continue_text(model, PROMPTS[row], 15, choose, **options)

    def together(**options):
        choose = generate.sampler(1.5, top_k=8, seed=3)
        return generate.continue_texts(model, PROMPTS, 15, choose, cached=cached, **options)

    free = together()
    assert free == [alone(row) for row in range(len(PROMPTS))]
    assert free == together() and len({tuple(text) for text in free}) == len(PROMPTS)
    stop = {free[0][2], free[3][5]}
    stopped = together(stop=stop)
    assert stopped == [alone(row, stop=stop) for row in range(len(PROMPTS))]
    assert len({len(text) for text in stopped}) > 2, "some stop before others"
    same = generate.continue_texts(model, [[4, 2]] * 3, 15, generate.sampler(1.5, seed=3))
    assert len({tuple(text) for text in same}) == 3, "one prompt in several rows is continued in several ways"


def test_a_source_draws_what_it_draws_alone_under_its_number(model):
    sources, drawn = [[4, 7, 7, 5], [9], [3, 3, 3, 3, 3, 3, 8]], []
    for rows in ([0, 1, 2], [2], [1, 0]):
        choose = generate.sampler(2.0, seed=5, rows=rows)
        drawn.append(generate.translate(model, [sources[row] for row in rows], BOS, EOS, 9, choose))
    assert drawn[1] == drawn[0][2:] and drawn[2] == [drawn[0][1], drawn[0][0]]


def test_a_text_grows_beyond_the_context_and_stops_where_told(language):
    written = generate.continue_text(language, [1, 2, 3], 20)
    assert len(written) == 20 and all(0 <= t < 11 for t in written)
    stop = written[0]
    assert generate.continue_text(language, [1, 2, 3], 20, stop={stop}) == []


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda m: generate.translate(m, [[4], []], BOS, EOS, 5), "at least one token"),
        (lambda m: generate.continue_text(m, [], 5), "prompt has at least one token"),
        (lambda m: generate.continue_texts(m, [[1]], 5, chunk=-2), "0 for all at once; got -2; write chunk=64"),
        (lambda m: generate.translate(m, [[4]], BOS, EOS, 5, repetition_penalty=-1.0), "penalty is positive"),
    ],
)
def test_misuse_is_named(act, text, model):
    with pytest.raises(ValueError, match=text):
        act(model)


POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]
PROMPTS = [[4, 2, 7], [9], [3, 3, 8, 1, 5, 6, 2], [7, 7], [1, 2, 3, 4, 5, 6, 7]]


def spread(positions="learned", kv_heads=0, max_length=24):
    mt.manual_seed(3)
    model = GPT2(GPT2Config(11, max_length, 16, 4, 2, 24, 0.1, positions=positions, kv_heads=kv_heads))
    for p in model.parameters():  # so that tokens differ
        p.data[...] *= 4
    return model.eval()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("chunk", [0, 1, 3])
@pytest.mark.parametrize("kv_heads", [0, 1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_each_prompt_of_a_batch_goes_on_as_it_does_alone(positions, kv_heads, chunk, cached):
    model = spread(positions, kv_heads)
    alone = [generate.continue_text(model, prompt, 15) for prompt in PROMPTS]
    assert generate.continue_texts(model, PROMPTS, 15, cached=cached, chunk=chunk) == alone
    assert len({tuple(text) for text in alone}) > 1 and len(set(sum(alone, []))) > 1


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_batch_moves_its_window_as_each_prompt_does_alone(positions):
    """The longest outgrows 12 tokens after five, the shortest after eleven."""
    model = spread(positions, max_length=12)
    alone = [generate.continue_text(model, prompt, 20) for prompt in PROMPTS]
    assert generate.continue_texts(model, PROMPTS, 20, chunk=2) == alone


@pytest.mark.parametrize("positions", POSITIONS)
def test_rows_that_have_stopped_leave_and_the_others_do_not_notice(positions, monkeypatch):
    """Long prompts that stop at once leave columns behind that only pad: they must not use up the window."""
    model, prompts = spread(positions, max_length=16), [[5] * 15, [4, 2, 7], [6] * 12, [9]]
    free = [generate.continue_text(model, prompt, 14) for prompt in prompts]
    stop = {free[0][0], free[2][1]} - {free[1][0], free[3][0]}
    alone = [generate.continue_text(model, prompt, 14, stop=stop) for prompt in prompts]
    rows, real = [], GPT2.forward

    def forward(self, ids, *args, **kwargs):
        rows.append(len(ids))
        return real(self, ids, *args, **kwargs)

    monkeypatch.setattr(GPT2, "forward", forward)
    assert generate.continue_texts(model, prompts, 14, stop=stop) == alone
    rows.clear()
    with mt.use_kernels(False):  # so that each token is read by forward
        assert generate.continue_texts(model, prompts, 14, stop=stop) == alone
    assert rows == sorted(rows, reverse=True) and rows[0] == 4
    assert min(map(len, alone)) < max(map(len, alone)), "some stop before others"


def test_what_pads_is_never_looked_at():
    """Whatever stands in the padding, the scores stay the same to the bit."""
    model, seen = spread(), []
    for filler in (0, 10):
        ids = np.array([[filler, filler, 4, 2], [1, 2, 3, 4]])
        with mt.no_grad():
            seen.append(model(mt.tensor(ids).data, padding=mt.tensor(np.array([2, 0])).data).numpy()[:, -1])
    np.testing.assert_array_equal(*seen)


def test_a_text_ends_where_told(language):
    written = generate.continue_texts(language, [[1, 2], [3]], 6, until=lambda ids: len(ids) == 2)
    assert [len(text) for text in written] == [2, 2]
    assert generate.continue_texts(language, [], 5) == []


def test_a_repetition_penalty_acts_on_prompt_and_text():
    model = spread()
    prompt, text = [1, 2], generate.continue_text(model, [1, 2], 9, repetition_penalty=3.0)
    ids = list(prompt)
    for token in text:
        scores = model(mt.tensor(np.array([ids])).data).numpy()[:, -1]
        assert token == generate.penalise(scores, [ids], 3.0)[0].argmax()
        ids.append(token)
    assert text != generate.continue_text(model, prompt, 9)


def test_greedy_with_a_repetition_penalty_is_that_of_transformers(torch, transformers):
    config = transformers.GPT2Config(
        vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=4, n_inner=24, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = shaken(transformers.GPT2LMHeadModel(config), torch).eval()
    model = GPT2(GPT2Config(23, 32, 16, 4, 2, 24, 0.0)).eval()
    model.load_state_dict(gpt2_state(theirs))
    padded, mask = np.array([[0, 0, 4, 2], [7, 8, 9, 1]]), np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    for penalty in (1.0, 1.3):
        wanted = theirs.generate(
            torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=20, do_sample=False,
            repetition_penalty=penalty,
        )[:, 4:].tolist()  # fmt: skip
        prompts = [[4, 2], [7, 8, 9, 1]] if penalty == 1 else [[0, 0, 4, 2], [7, 8, 9, 1]]
        ours = generate.continue_texts(model, prompts, 20, repetition_penalty=penalty)
        # with the penalty theirs counts the padding as a token that came before, so only the row without agrees
        assert ours[1] == wanted[1] and (penalty != 1 or ours == wanted)

"""A text on two cores is the text on one: the same scores, caches from which anybody reads on, and no long wait."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate
from minitransformer.generate import fast
from minitransformer.generate.read import Texts
from minitransformer.kernels import halves, two_cores
from minitransformer.kernels.one_row import OneRow
from minitransformer.kernels.two_cores import LATER, TwoCores
from minitransformer.models import GPT2, GPT2Config

PROMPT = [4, 2, 7]

pytestmark = [
    pytest.mark.skipif("config.where != 'numpy'", reason="NumPy's own"),
    pytest.mark.skipif(not two_cores.possible(), reason="Linux on an x86 processor with two cores, and no CuPy"),
]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A process without a helper, that has time: on a busy machine two cores are slower, and right all the same."""
    monkeypatch.setattr(two_cores._Here, "pair", None)
    monkeypatch.setattr(two_cores._Here, "misfortunes", 0)
    monkeypatch.setattr(two_cores, "TRIED", 1 << 30)
    monkeypatch.setattr(two_cores, "LEAST", 0)
    monkeypatch.setattr(halves, "PATIENCE", 10.0)
    yield
    if two_cores._Here.pair is not None:
        two_cores._Here.pair.end()


def language(seed=3, **options):
    mt.manual_seed(seed)
    sizes = {"vocab_size": 30, "max_length": 64, "d_model": 24, "heads": 4, "layers": 2, "d_ff": 36, **options}
    model, rng = GPT2(GPT2Config(**sizes)), np.random.default_rng(seed)
    for p in model.parameters():
        p.data[...] = p.data + 0.1 * rng.standard_normal(p.shape)
    return model.eval()


def text(model, count=40):
    return generate.continue_text(model, PROMPT, count)


def alone(model, count=40):
    before, fast.taken_over = fast.taken_over, lambda one, *_: one
    try:
        return text(model, count)
    finally:
        fast.taken_over = before


def begun(model, tokens=LATER + 4):
    """Return a reader whose text is on two cores."""
    reader = Texts(model, [PROMPT])
    for step in range(tokens):
        reader.scores()
        reader.append([(7 * step) % 30])
    assert isinstance(reader.fast.one, TwoCores) and reader.fast.one.pair is not None
    return reader


def agree(reader, steps=6):
    """Go on with a reader, and beside it with the book, which reads everything anew."""
    for step in range(steps):
        with mt.use_kernels(False):
            wanted = Texts(reader.model, [reader.rows[0]], cached=False).scores()
        found = reader.scores()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
        reader.append([(11 * step) % 30])


@pytest.mark.parametrize(
    "options",
    [
        {}, {"positions": "rotary"}, {"positions": "rotary", "rotary_pairing": "neighbours", "kv_heads": 2},
        {"positions": "alibi", "kv_heads": 2}, {"positions": "relative"}, {"positions": "none"}, {"norm": "post"},
        {"activation": "relu"}, {"activation": "gelu"}, {"activation": "silu"}, {"tie_embeddings": False},
        {"distinct_layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_scores_are_the_books(options):
    with mt.no_grad():
        agree(begun(language(**options)))


def test_the_same_text_from_the_first_token_on_and_again():
    model = language()
    assert text(model) == alone(model) == text(model) and two_cores._Here.misfortunes == 0


@pytest.mark.parametrize("options", [{"kv_heads": 1}, {"vocab_size": 29}, {"d_ff": 35}, {"window": 8}], ids=str)
def test_what_has_no_halves_is_written_alone(options):
    model = language(**options)
    assert text(model) == alone(model) and two_cores._Here.pair is None


def test_what_lies_in_one_second_cache_is_written_alone(monkeypatch):
    model = language()
    nbytes = sum(p.data.nbytes for p in model.parameters())
    monkeypatch.setattr(two_cores, "LEAST", 2 * nbytes)
    assert text(model) == alone(model) and two_cores._Here.pair is None
    monkeypatch.setattr(two_cores, "LEAST", nbytes // 2)
    assert text(model) == alone(model) and two_cores._Here.pair is not None


def test_weights_are_those_of_the_moment():
    model, other = language(), language(seed=4)
    text(model)
    child = two_cores._Here.pair.child
    model.load_state_dict(other.state_dict())
    assert text(model) == alone(other) and two_cores._Here.pair.child == child


def test_a_model_of_another_shape_has_a_helper_of_its_own():
    small, large = language(), language(layers=3)
    text(small)
    child = two_cores._Here.pair.child
    assert text(large) == alone(large) and two_cores._Here.pair.child != child
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_two_texts_in_turn():
    model = language()
    with mt.no_grad():
        one, two = begun(model), begun(model, LATER + 9)
        assert not any(cache.past.lives_in(one.fast.one.alone.x) for cache in one.caches)
        for _ in range(4):
            agree(one, 1)
            agree(two, 1)


def test_the_book_reads_on_and_so_does_the_text_behind_it():
    with mt.no_grad():
        reader = begun(language())
        with mt.use_kernels(False):
            ids = np.array([reader.rows[0][-1:]])
            found = reader.model(ids, caches=reader.caches).numpy()[:, -1]
            wanted = Texts(reader.model, [reader.rows[0]], cached=False).scores()
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
        reader.append([5])
        reader.read += 1
        agree(reader)


def asleep():
    """Wait until the helper sleeps."""
    numbers, until = two_cores._Here.pair.desk.numbers, time.monotonic() + 10
    while not numbers[halves.NUMBERS + halves.ASLEEP] and time.monotonic() < until:
        time.sleep(0.001)
    assert numbers[halves.NUMBERS + halves.ASLEEP]


@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_helper_a_text_goes_on(how, sleeps, monkeypatch):
    monkeypatch.setattr(halves, "PATIENCE", 0.2)
    with mt.no_grad():
        reader = begun(language())
        if sleeps:
            asleep()
        os.kill(two_cores._Here.pair.child, how)
        time.sleep(0.01)
        agree(reader)
        assert two_cores._Here.misfortunes == 1 and reader.fast.one.pair is None and two_cores._Here.pair is None
        agree(begun(language()))  # with another one
    two_cores._Here.misfortunes = two_cores.MISFORTUNES
    pair = two_cores._Here.pair
    assert text(language()) == alone(language()) and pair.count == two_cores._Here.pair.count


def test_an_interrupted_token_leaves_nothing_behind(monkeypatch):
    with mt.no_grad():
        reader = begun(language())
        run = halves.Half.run

        def interrupted(self, token, place):
            self.calls, calls = self.calls[: len(self.calls) // 2], self.calls
            run(self, token, place)
            self.calls = calls
            raise KeyboardInterrupt

        monkeypatch.setattr(halves.Half, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.scores()
        monkeypatch.setattr(halves.Half, "run", run)
        agree(reader)
        assert two_cores._Here.pair is None


def test_slower_than_one_core_is_given_up(monkeypatch):
    monkeypatch.setattr(two_cores, "TRIED", 4)
    with mt.no_grad():
        reader = begun(language(), LATER + 2)
        reader.fast.one.usual = 0.0
        agree(reader, 20)
        assert reader.fast.one.pair is None and two_cores._Here.misfortunes == 1
        assert two_cores._Here.pair is not None  # for a text that it may do better


def test_a_helper_sleeps_while_nothing_is_to_be_done_and_wakes_up():
    with mt.no_grad():
        reader = begun(language())
        asleep()
        agree(reader)


def test_beyond_the_last_position_the_text_goes_on():
    model = language(max_length=24)
    assert text(model, 60) == alone(model, 60)


def test_another_thread_writes_alone():
    model = language()
    wanted, found = text(model), []
    used = two_cores._Here.pair.count
    thread = threading.Thread(target=lambda: found.append(text(model)))
    thread.start()
    thread.join()
    assert found == [wanted] and two_cores._Here.pair.count == used


def test_a_fork_leaves_its_parents_helper_alone():
    model = language()
    wanted = text(model)
    pid = os.fork()
    if not pid:
        same = text(model) == wanted
        if two_cores._Here.pair is not None:
            two_cores._Here.pair.end()
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert text(model) == wanted


PROGRAM = """
import sys
import minitransformer as mt
from minitransformer import generate
from minitransformer.kernels import two_cores
from minitransformer.models import GPT2, GPT2Config
two_cores.LEAST = 0
model = GPT2(GPT2Config(vocab_size=30, max_length=64, d_model=24, heads=4, layers=2, d_ff=36)).eval()
generate.continue_text(model, [1, 2], 30)
print(two_cores._Here.pair.child, flush=True)
{}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_helper_outlives_its_process(end):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(end)], capture_output=True, text=True, timeout=60)
    child, until = int(done.stdout), time.monotonic() + 10
    assert done.stderr == ""
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid):
    """Tell whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_row_begins_every_text():
    with mt.no_grad():
        reader = Texts(language(), [PROMPT])
        for _ in range(LATER):
            reader.append([int(reader.scores()[0].argmax())])
        assert isinstance(reader.fast.one, OneRow)

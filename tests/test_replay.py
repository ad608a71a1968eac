"""A part of a step that is replayed is the part itself, to the bit, or it is not replayed."""

import gc
import threading

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend, draws, nn, ops, optim, tasks
from minitransformer import replay as module
from minitransformer.bench.attention import VARIANTS
from minitransformer.models import GPT2, GPT2Config
from minitransformer.replay import Part
from minitransformer.tasks import loss_of
from minitransformer.trace import trace

pytestmark = pytest.mark.skipif("config.where != 'numpy'", reason="NumPy's calls are recorded; a GPU has graphs")
VOCAB = 50
SIZES = {"d_model": 32, "heads": 4, "layers": 2, "d_ff": 64, "max_length": 80, "activation": "gelu_tanh"}


class Both:
    """One model's part, taken as usual and replayed; `same` takes a step both ways."""

    def __init__(self, model, loss):
        self.model, parameters = model, model.parameters()
        self.slots = [[np.zeros_like(p.data) for p in parameters] for _ in range(2)]
        self.plain = Part(loss, model, self.slots[0], replay=False)
        self.part = Part(loss, model, self.slots[1])

    def same(self, step, *arrays, scale=1.0):
        found = []
        for part in (self.plain, self.part):
            draws.manual_seed((3, step))
            with draws.drawing_for_rows(step % 3, len(arrays[0])):
                found.append((part(arrays, scale), draws.random_state()))
        assert found[0] == found[1]
        for a, b in zip(*self.slots, strict=True):
            np.testing.assert_array_equal(a, b)
        return found[0][0]


def ids_of(step, shape=(3, 70)):
    rng = np.random.default_rng(step)
    return rng.integers(0, VOCAB, shape), rng.integers(0, VOCAB, shape)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_model(name, dropout):
    fields = dict(VARIANTS[name][1])
    chunk = fields.pop("chunk", 0)
    mt.manual_seed(0)
    sizes = {**SIZES, "layers": 4} if "distinct_layers" in fields else SIZES
    model = GPT2(GPT2Config(VOCAB, **{**sizes, "dropout": dropout, **fields}))
    both = Both(model, lambda ids, to: (loss_of(model, model.features(ids), to, chunk=chunk), to.size))
    for step in range(5):
        both.same(step, *ids_of(step))
        for p in model.parameters():
            p.data *= 0.99  # as an optimizer would change them
    assert both.part.replayed == (0 if name == "blockwise" else 3)  # which waits for other threads


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("reversal", {"norm": "post", "tie_embeddings": "all"}),
        ("numbers", {"label_smoothing": 0.1, "dropout": 0.1}),
        ("reversal", {"loss_chunk": 64, "activation": "gelu"}),
    ],
)
def test_every_task(task, fields):
    """Batches of several shapes, with padding: counts of tokens and masks are others each time."""
    config = tasks.make_config(task, {"d_model": 32, "batch_size": 24, **fields})
    task = tasks.make_task(config)
    both, counts = Both(task.model, task.loss), []
    for step in range(1, 25):
        counts.append(both.same(step, *task.batch(step), scale=float(2 ** (step % 3))).tokens)
    assert both.part.replayed >= 15 and len(set(counts)) > 2
    assert all(recording.given_up == 0 for recording in both.part.programs.values())


class Net(nn.Module):
    """A table and a layer."""

    def __init__(self, rows=VOCAB):
        self.table, self.drop, self.out = nn.Embedding(rows, 8), nn.Dropout(0.5), nn.Linear(8, VOCAB)

    def forward(self, ids):
        return self.out(self.drop(self.table(ids)))


def net(loss=None, rows=VOCAB):
    mt.manual_seed(2)
    model = Net(rows)
    plain = lambda ids, to: (ops.cross_entropy(model(ids), to), to.size)  # noqa: E731
    return Both(model, plain if loss is None else lambda ids, to: loss(model, ids, to))


def test_a_large_table_gets_its_rows():
    both = net(rows=1000)
    for step in range(6):
        both.same(step, *ids_of(step))
    assert both.part.replayed == 4


def test_training_and_evaluation_are_two_programs():
    both, losses = net(), []
    for step in range(8):
        both.model.train(step % 2 == 0)
        losses.append(both.same(step, *ids_of(0)).loss)
    assert both.part.replayed == 4 and len(both.part.programs) == 2
    assert losses[1] == losses[3] == losses[5] == losses[7] != losses[0] != losses[2]  # dropout drew anew


def test_what_the_loss_decides_is_decided_again():
    def loss(model, ids, to):
        y = ops.cross_entropy(model(ids), to)
        return (y * 2 if (ids == 0).any() else y), to.size

    both = net(loss)
    for step in range(12):
        ids, to = ids_of(step, (2, 9))
        ids[0, 0], ids[ids == 0] = 1, 1
        ids[1, 1] = 0 if step in (5, 8) else 1
        both.same(step, ids, to)
    (recording,) = both.part.programs.values()
    assert (recording.replays, recording.given_up) == (8, 2)
    for step in range(20):  # from now on always the other way
        ids, to = ids_of(step, (2, 9))
        ids[1, 1] = 0
        both.same(step, ids, to)
    assert list(both.part.programs.values()) == [None]


def test_scores_that_are_too_large_are_seen():
    """Attention takes exponentials as they are up to a score, and subtracts the maximum beyond."""
    mt.manual_seed(0)
    model = GPT2(GPT2Config(VOCAB, **{**SIZES, "dropout": 0.0}))
    both = Both(model, lambda ids, to: (ops.cross_entropy(model(ids), to), to.size))
    for step in range(6):
        if step == 4:
            for layer in model.decoder.layers if hasattr(model, "decoder") else model.layers:
                for name, p in layer.named_parameters():
                    if "q_proj.weight" in name or "k_proj.weight" in name:
                        p.data *= 60
        both.same(step, *ids_of(step))
    (recording,) = both.part.programs.values()
    assert recording.replays == 2 and recording.given_up == 2


def test_a_loss_that_is_nan_is_nan_again():
    both = net()
    for step in range(7):
        both.model.out.bias.data[0] = np.nan if step > 3 else 0.0
        draws.manual_seed(step)
        plain = both.plain(ids_of(step), 1.0)
        draws.manual_seed(step)
        assert both.part(ids_of(step), 1.0).same(plain) and not plain.same(plain._replace(tokens=1))
    assert both.part.replayed == 5  # of which the fourth was compared


def test_tokens_may_have_weights():
    both = net(lambda model, ids, to: (ops.cross_entropy(model(ids), to), 2.5))
    for step in range(4):
        assert both.same(step, *ids_of(step)).tokens == 2.5
    assert both.part.replayed == 2


def test_variables_of_python_are_noticed():
    """What a loss reads elsewhere, or counts: seen when it is recorded, or at the next comparison."""
    factor, calls = [1.0], []
    both = net(lambda model, ids, to: (ops.cross_entropy(model(ids), to) * factor[0], to.size))
    for step in range(4):
        both.same(step, *ids_of(step))
    factor[0] = 2.0
    both.part(ids_of(4), 1.0)  # the third replay, of which nobody knows better
    both.same(5, *ids_of(5))
    assert list(both.part.programs.values()) == [None] and both.part.replayed == 4

    def counting(model, ids, to):
        calls.append(1)
        return ops.cross_entropy(model(ids), to) * float(len(calls)), to.size

    both = net(counting)
    for step in range(6):
        both.part(ids_of(step), 1.0)
    assert list(both.part.programs.values()) == [None] and both.part.replayed == 0


def test_switches_of_the_library_are_seen():
    both = net()
    for step in range(18):
        with mt.no_grad() if step in (5, 11) else mt.autocast(step % 4 == 3):
            both.model.drop.train(step % 5 != 4)  # of a part of the model alone
            both.same(step, *ids_of(step))
    assert both.part.replayed >= 4


def test_threads_that_read_meanwhile_are_not_disturbed():
    both, seen = net(), []

    def loss(model, ids, to):
        thread = threading.Thread(target=lambda: seen.append(model(ids[:1]).numpy()))
        thread.start()
        thread.join()
        return ops.cross_entropy(model(ids), to), to.size

    both = net(loss)
    both.model.eval()
    for step in range(4):
        both.same(step, *ids_of(step))
    assert both.part.replayed == 0 and len(seen) == 2 * 4 + 1 and all(type(a) is np.ndarray for a in seen)


def test_the_size_of_numpys_buffer_is_left_as_it_is():
    mt.manual_seed(0)
    model = GPT2(GPT2Config(VOCAB, **{**SIZES, "d_model": 256, "dropout": 0.0}))
    both, before = Both(model, lambda ids, to: (ops.cross_entropy(model(ids), to), to.size)), np.getbufsize()
    try:
        for step in range(4):
            np.setbufsize(4096 if step > 1 else before)
            both.same(step, *ids_of(step, (2, 5)))
            assert np.getbufsize() == (4096 if step > 1 else before)
    finally:
        np.setbufsize(before)
    assert both.part.replayed == 2


def test_class_weights_and_what_was_frozen_for_a_while():
    weight = np.linspace(0.5, 2, VOCAB, dtype=np.float32)
    both = net(lambda model, ids, to: (ops.cross_entropy(model(ids), to, weight=weight), to.size))
    for step in range(12):
        both.model.table.weight.requires_grad = not 4 <= step < 8
        both.same(step, *ids_of(step))
    assert both.part.replayed == 2 + 3 + 3


def test_replays_are_compared_ever_more_seldom():
    assert [n for n in range(1, 1000) if module.is_compared(n)] == [1, 4, 16, 64, 256]


@pytest.mark.parametrize("how", ["generator", "plain", "no gradient", "no token"])
def test_what_cannot_be_recorded_is_taken_as_usual(how):
    def loss(model, ids, to):
        if how == "no gradient":
            return mt.tensor(np.array(1.0, np.float32)), 3
        y = ops.cross_entropy(model(ids), to)
        if how == "generator":
            y = y * float(draws.generator().random())
        if how == "plain":
            y = y * float(np.mean(np.asarray(backend.to_numpy(ids))))
        return y, (0 if how == "no token" else to.size)

    both = net(loss)
    for step in range(4):
        both.same(step, *ids_of(step))
    assert both.part.replayed == 0 and list(both.part.programs.values()) == [None]


def test_a_wrong_id_is_told_as_usual():
    both = net()
    for step in range(4):
        both.same(step, *ids_of(step))
    ids, to = ids_of(9)
    ids[1, 2] = VOCAB
    with pytest.raises(IndexError, match=f"token ids lie in 0 … {VOCAB - 1}; got {VOCAB}"):
        both.part((ids, to), 1.0)
    both.same(10, *ids_of(10))
    assert both.part.replayed == 3


def test_parameters_that_moved_or_were_frozen_are_seen():
    both = net()
    weight = both.model.out.weight
    for step in range(4):
        both.same(step, *ids_of(step))
    weight.data = weight.data + 1
    both.same(5, *ids_of(5))
    assert both.part.replayed == 2
    both.same(6, *ids_of(6))
    assert both.part.replayed == 3
    both.model.table.weight.requires_grad = False
    both.same(7, *ids_of(7))
    assert both.part.replayed == 3
    for step in range(30):  # somebody moves it each time
        weight.data = weight.data.copy()
        both.same(step, *ids_of(step))
    assert list(both.part.programs.values()) == [None]


def test_an_observer_sees_every_op():
    both = net()
    for step in range(4):
        both.same(step, *ids_of(step))
    record = trace(lambda: (both.part(ids_of(4), 1.0), mt.tensor([1.0]) * 2)[1])
    assert len(record.steps) > 3 and both.part.replayed == 2


def test_programs_have_so_many_calls_together(monkeypatch):
    both = net()
    for step in range(2):
        both.same(step, *ids_of(step, (2, 3)))
    (first,) = both.part.programs.values()
    monkeypatch.setattr(module, "CALLS", 2 * len(first.program))
    for step in range(2, 12):
        both.same(step, *ids_of(step, (2, 3 + step % 3)))
    assert len(both.part.programs) == 2 and both.part.replayed == 3 + 2


def test_the_book_has_a_program_of_its_own():
    both = net()
    both.model.eval()  # the book's dropout looks its draws up once
    for step in range(8):
        with mt.use_kernels(step % 2 == 0):
            both.same(step, *ids_of(step))
    assert len(both.part.programs) == 2 and both.part.replayed == 4


def test_half_precision_goes_the_same_way():
    mt.manual_seed(0)
    model = GPT2(GPT2Config(VOCAB, **{**SIZES, "dropout": 0.1}))

    def loss(ids, to):
        with mt.autocast():
            return ops.cross_entropy(model(ids), to), to.size

    both = Both(model, loss)
    for step in range(5):
        both.same(step, *ids_of(step), scale=1024.0)
    assert both.part.replayed == 3


def test_a_program_is_smaller_than_the_step_and_leaves_nothing_behind():
    both = net()
    for step in range(3):
        both.same(step, *ids_of(step))
    (recording,) = both.part.programs.values()
    gc.collect()
    gc.disable()
    try:
        both.part(ids_of(4), 1.0)
        both.part(ids_of(5), 1.0)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert recording.program.size < 3 * 210 * (VOCAB + 8) * 4 * 2


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_workers_replay_and_nobody_can_tell(kind):
    found = []
    for replay in (False, True):
        mt.manual_seed(1)
        model = Net()
        with mt.Workers(model, lambda i, t, m=model: (ops.cross_entropy(m(i), t), t.size), 2, replay) as workers:  # noqa: B023
            optimizer, losses = kind(model.parameters(), lr=0.1), []
            for step in range(8):
                draws.manual_seed((1, step))
                losses.append(float(workers.backward(*ids_of(step, (5, 7)))[0]))
                workers.step(optimizer)
            assert workers._own.replayed == (6 if replay else 0)
        found.append((losses, [p.data.copy() for p in model.parameters()]))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(a, b)

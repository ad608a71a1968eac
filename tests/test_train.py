"""The loop: what a step does, what is logged, and that stopping changes nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import checkpoint, data, draws, tasks
from minitransformer import train as train_module
from minitransformer.train import SCHEDULES, Stopped, TrainConfig, make_optimizer, make_schedule, train

SMALL = {"steps": 12, "d_model": 16, "d_ff": 32, "heads": 2, "layers": 1, "batch_size": 8, "checkpoint_every": 5}
SMALL |= {"log_every": 2, "dropout": 0.1, "warmup_steps": 3}


@pytest.fixture(autouse=True)
def few_test_sequences(monkeypatch, backend):
    """An untrained model never says that it is done: decoding 2,048 sequences with it takes seconds."""
    few = 64 if backend == "numpy" else 4
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", few)
    monkeypatch.setattr(tasks, "VALIDATED", few)


def config(**settings):
    return tasks.make_config("reversal", {**SMALL, **settings})


def weights(folder):
    return checkpoint.load_checkpoint(folder / "checkpoint")[0]


def run(folder, resume=False, **settings):
    folder.mkdir(exist_ok=True)
    c = config(**settings)
    return train(tasks.make_task(c), c, folder, resume=resume, quiet=True)


def test_a_checkpoint_before_the_first_line_of_the_log(tmp_path):
    """No loss has been read then; none is made up."""
    run(tmp_path, steps=3, warmup_steps=0, checkpoint_every=1, log_every=100)
    states = [
        json.loads((step / "state.json").read_text()) for step in sorted((tmp_path / "checkpoint").glob("step-*"))
    ]
    assert states[0]["loss"] is None and states[-1]["loss"] > 0


class StopAt:
    """A task that asks the loop to stop, as Ctrl-C would, in the middle of one step."""

    def __init__(self, task, step, how):
        self.model, self.inner, self.step, self.how = task.model, task, step, how
        self.evaluate, self.held_out_loss = task.evaluate, task.held_out_loss
        self.loss, self.tokens = task.loss, task.tokens

    def batch(self, step):
        if step == self.step:
            os.kill(os.getpid(), self.how)
        return self.inner.batch(step)


def test_a_run_logs_and_returns_its_figures(tmp_path):
    result = run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm", "tokens_per_second"}
    assert set(lines[-1]) == set(lines[0]) | {"validation_loss"}
    assert result["loss"] == lines[-1]["loss"] and result["steps"] == 12 and result["held_out"] == tasks.TEST_SEQUENCES
    assert lines[-1]["lr"] == pytest.approx(make_schedule(config())(12))


def test_the_memory_of_parameters_and_optimizer_is_told(tmp_path):
    """Adafactor's rows and columns beside Adam's two moments, and Lion's one."""
    found = {
        name: run(tmp_path / name, optimizer=name, steps=2, warmup_steps=1)
        for name in ("adamw", "lion", "adafactor", "sgd")
    }
    model = tasks.make_task(config()).model
    assert {r["parameter_bytes"] for r in found.values()} == {4 * sum(p.size for p in model.parameters())}
    n = found["adamw"]["parameter_bytes"]
    factored = sum(4 * (sum(p.shape) if p.ndim == 2 else p.size) for p in model.parameters())
    assert {name: r["optimizer_bytes"] for name, r in found.items()} == {
        "adamw": 2 * n, "lion": n, "adafactor": factored, "sgd": n,
    }  # fmt: skip
    assert factored < n / 4


def test_looking_at_held_out_data_changes_nothing(tmp_path):
    run(tmp_path / "often", validate_every=3, log_every=100)
    run(tmp_path / "never", validate_every=100)
    lines = [json.loads(line) for line in (tmp_path / "often" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6, 9, 12]
    for name, value in weights(tmp_path / "never").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "often")[name], err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor", "lion"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_ends_in_the_same_bits(optimizer, how, tmp_path):
    settings = {"optimizer": optimizer, "learning_rate": 0.01}
    straight = run(tmp_path / "a", **settings)
    (tmp_path / "b").mkdir()
    c = config(**settings)
    with pytest.raises(Stopped, match="stopped after step 7 of 12"):
        train(StopAt(tasks.make_task(c), 7, how), c, tmp_path / "b", quiet=True)
    resumed = run(tmp_path / "b", resume=True, **settings)
    for name, value in weights(tmp_path / "a").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "b")[name], err_msg=name)
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {k: v for k, v in straight.items() if k != "seconds"}
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 7, 8, 10, 12]


class Twice:
    """A task whose batch number n is the batches 2n − 1 and 2n of another, in one."""

    def __init__(self, task):
        self.model, self.inner = task.model, task
        self.evaluate, self.held_out_loss, self.loss, self.tokens = (
            getattr(task, name) for name in ("evaluate", "held_out_loss", "loss", "tokens")
        )

    def batch(self, step):
        parts = [self.inner.batch(n) for n in (2 * step - 1, 2 * step)]
        longest = [max(a.shape[1] for a in arrays) for arrays in zip(*parts, strict=True)]
        pad = [[np.pad(a, ((0, 0), (0, n - a.shape[1]))) for a, n in zip(p, longest, strict=True)] for p in parts]
        return data.Batch(*[np.concatenate(arrays) for arrays in zip(*pad, strict=True)])


@pytest.mark.parametrize("precision, workers", [("float32", 1), ("float32", 2), ("float16", 1)])
def test_two_batches_to_a_step_are_one_of_twice_the_rows(precision, workers, tmp_path, backend):
    """Weights, losses and norms of a whole run: to rounding, with the tokens of both batches weighted alike."""
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "dropout": 0.0, "precision": precision, "backend": backend}
    settings |= {"workers": workers, "log_every": 1}
    run(tmp_path / "two", accumulate=2, **settings)
    c = config(**settings)
    (tmp_path / "one").mkdir()
    train(Twice(tasks.make_task(c)), c, tmp_path / "one", quiet=True)
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    tolerance = 1e-5 if precision == "float32" else 2e-3
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([x[name] for x in two], [x[name] for x in one], rtol=10 * tolerance, err_msg=name)
    for name, value in weights(tmp_path / "one").items():
        np.testing.assert_allclose(weights(tmp_path / "two")[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_each_batch_of_a_step_has_random_numbers_of_its_own(tmp_path):
    """Those of (seed, number of the batch); with one batch to a step, that is (seed, step)."""
    c = config(accumulate=3, workers=1, steps=2, warmup_steps=1)
    task, seen = tasks.make_task(c), []
    real = task.loss
    task.loss = lambda *arrays: seen.append(draws.random_state()) or real(*arrays)
    train(task, c, tmp_path, quiet=True)
    expected = []
    for number in range(1, 7):
        mt.manual_seed((c.seed, number))
        expected.append(draws.random_state())
    assert seen == expected and len({str(state) for state in seen}) == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_of_several_batches_a_step_resumes_to_the_bit(workers, tmp_path, backend):
    settings = {"accumulate": 3, "workers": workers, "backend": backend}
    run(tmp_path / "a", **settings)
    (tmp_path / "b").mkdir()
    c = config(**settings)
    with pytest.raises(Stopped, match="stopped after step 7 of 12"):
        train(StopAt(tasks.make_task(c), 20, signal.SIGINT), c, tmp_path / "b", quiet=True)  # batch 20, of step 7
    run(tmp_path / "b", resume=True, **settings)
    for name, value in weights(tmp_path / "a").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "b")[name], err_msg=name)


class Poisoned:
    """A task whose loss, for some batches, is dragged up through one parameter alone."""

    NAME = "encoder.layers.0.norm2.weight"

    def __init__(self, task, *numbers):
        self.model, self.inner, self.numbers, self.number = task.model, task, numbers, 0
        self.evaluate, self.held_out_loss, self.tokens = task.evaluate, task.held_out_loss, task.tokens

    def batch(self, step):
        self.number = step
        return self.inner.batch(step)

    def loss(self, *arrays):
        loss, tokens = self.inner.loss(*arrays)
        if self.number in self.numbers:
            weight = dict(self.model.named_parameters())[self.NAME]
            loss = loss + (weight * weight).sum() * 5.0
        return loss, tokens


GUARDED = {"spike": 6.0, "workers": 1, "checkpoint_every": 1, "log_every": 5, "schedule": "constant"}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_step_whose_loss_leaps_is_left_out_and_told(tmp_path, backend):
    c = config(**GUARDED, steps=25, backend=backend)
    result = train(Poisoned(tasks.make_task(c), 25), c, tmp_path, quiet=True)
    before, after = (checkpoint.load(f / "model.safetensors") for f in checkpoint.checkpoints(tmp_path / "checkpoint"))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    (told,) = [line for line in lines_of(tmp_path) if "left_out" in line]
    assert told["step"] == 25 and told["left_out"] == Poisoned.NAME and told["leap"] > 6 and told["growth"] > 10
    assert told["loss"] == result["loss"] > 50 and result["left_out"] == 1


def test_without_the_guard_the_same_batch_changes_the_weights(tmp_path):
    c = config(**{**GUARDED, "spike": 0.0}, steps=25)
    assert "left_out" not in train(Poisoned(tasks.make_task(c), 25), c, tmp_path, quiet=True)
    before, after = (checkpoint.load(f / "model.safetensors") for f in checkpoint.checkpoints(tmp_path / "checkpoint"))
    assert np.abs(after[Poisoned.NAME] - before[Poisoned.NAME]).max() > 1e-4


def test_a_guarded_run_that_was_stopped_goes_on_to_the_bit(tmp_path):
    """The second leap comes so soon after that a guard which had forgotten would let it pass."""
    c = config(**GUARDED, steps=36)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = train(Poisoned(tasks.make_task(c), 24, 33), c, tmp_path / "a", quiet=True)
    with pytest.raises(Stopped, match="after step 28 of 36"):
        train(StopAt(Poisoned(tasks.make_task(c), 24, 33), 28, signal.SIGINT), c, tmp_path / "b", quiet=True)
    again = train(Poisoned(tasks.make_task(c), 24, 33), c, tmp_path / "b", quiet=True, resume=True)
    assert whole["left_out"] == again["left_out"] == 2
    for name, value in weights(tmp_path / "a").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "b")[name], err_msg=name)
    told = [[line for line in lines_of(tmp_path / name) if "left_out" in line] for name in ("a", "b")]
    assert told[0] == told[1] and [line["step"] for line in told[0]] == [24, 33]


def test_a_loss_that_stays_up_ends_the_run_with_parameter_and_step(tmp_path):
    c = config(**GUARDED, steps=40)
    with pytest.raises(FloatingPointError, match=rf"5 times in a row, at step 30 .*{Poisoned.NAME} grew most"):
        train(Poisoned(tasks.make_task(c), *range(26, 41)), c, tmp_path, quiet=True)
    assert checkpoint.load_checkpoint(tmp_path / "checkpoint")[2]["step"] == 29


def test_a_guarded_run_without_a_leap_is_the_run_without_a_guard(tmp_path, backend):
    for name, spike in (("guarded", 50.0), ("plain", 0.0)):
        run(tmp_path / name, spike=spike, backend=backend, steps=24)
    for name, value in weights(tmp_path / "plain").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "guarded")[name], err_msg=name)


def test_elements_are_clipped_before_the_norm(tmp_path, backend):
    """And the norm that is logged is that of the gradient as it came."""
    c = config(clip_value=0.01, clip_norm=0.05, workers=1, backend=backend)
    task = tasks.make_task(c)
    draws.manual_seed((c.seed, 1))
    loss, _ = task.loss(*task.batch(1))
    loss.backward()
    raw = [p.grad.numpy().copy() for p in task.model.parameters()]
    gradients = train_module._Gradients(task.model, c.clip_norm, c.clip_value)
    norm = float(gradients.clip())
    assert norm == pytest.approx(math.sqrt(sum((g**2).sum() for g in raw)), rel=1e-5)
    cut = [g.clip(-0.01, 0.01) for g in raw]
    factor = 0.05 / math.sqrt(sum((g**2).sum() for g in cut))
    assert factor < 1 and max(np.abs(g).max() for g in raw) > 0.05
    for p, g in zip(task.model.parameters(), cut, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), factor * g, rtol=1e-4, atol=1e-9)


def test_an_infinite_gradient_is_told_though_its_elements_are_clipped(backend):
    """Infinity cut down to 0.01 would be a number like any other. (A nan would stay one.)"""
    task = tasks.make_task(config(workers=1, backend=backend))
    loss, _ = task.loss(*task.batch(1))
    loss.backward()
    name, parameter = list(task.model.named_parameters())[5]
    parameter.grad.data[...] = np.inf
    gradients = train_module._Gradients(task.model, 1.0, 0.01)
    with pytest.raises(FloatingPointError, match=rf"that of {name} is not, at step 7"), np.errstate(all="ignore"):
        gradients.note(7, gradients.clip(), loss.data)
        gradients.read()


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    from minitransformer.train import _stop_signals

    with _stop_signals() as event:
        os.kill(os.getpid(), signal.SIGTERM)
        assert event.wait(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def command(*arguments, cwd):
    return [sys.executable, "-W", "error", "-m", "minitransformer.cli", *map(str, arguments)]


def test_kill_minus_nine_at_any_moment_then_resume_ends_in_the_same_bits(tmp_path):
    options = [f"--set={key}={value}" for key, value in {**SMALL, "steps": 60, "checkpoint_every": 3}.items()]
    straight = command("train", "reversal", "--out", "a", "--json", *options, cwd=tmp_path)
    expected = json.loads(subprocess.run(straight, cwd=tmp_path, capture_output=True, check=True).stdout)
    begin = command("train", "reversal", "--out", "b", *options, cwd=tmp_path)
    resume = command("train", "--resume", "b", cwd=tmp_path)
    kills = 0
    for attempt in range(6):
        process = subprocess.Popen(
            begin if attempt == 0 else resume, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.time() + 60
        while not list((tmp_path / "b").glob(f"checkpoint/step-*{3 * (4 * attempt + 2):02d}")):
            if process.poll() is not None or time.time() > deadline:
                break
            time.sleep(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    done = subprocess.run(command("train", "--resume", "b", "--json", cwd=tmp_path), cwd=tmp_path, capture_output=True)
    result = json.loads(done.stdout)
    assert kills >= 2, "the run was never killed on its way"
    assert result["exact_match"] == expected["exact_match"] and result["loss"] == expected["loss"]
    for name, value in weights(tmp_path / "a").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "b")[name], err_msg=name)


def test_a_log_cut_by_a_kill_is_mended(tmp_path):
    run(tmp_path)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    for step in checkpoint.checkpoints(tmp_path / "checkpoint")[-1:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()  # back to step 10
    log.write_text(whole[:-20])
    run(tmp_path, resume=True)
    strip = [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in whole.splitlines()]
    again = [json.loads(line) for line in log.read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in again] == strip


def test_a_gradient_that_is_not_finite_is_told_with_parameter_and_step(tmp_path):
    c = config()
    task = tasks.make_task(c)
    task.model.encoder.layers[0].feed_forward.up.weight.data[0, 0] = np.inf
    with pytest.raises(FloatingPointError, match=r"at step 1; lower learning_rate"), np.errstate(all="ignore"):
        train(task, c, tmp_path, quiet=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_gradients_are_bad_no_first_one_is_blamed(workers, tmp_path, backend):
    """After a forward pass that gives no number they all are; what is told is what was no number before."""
    c = config(workers=workers)
    task = tasks.make_task(c)
    count, name = len(task.model.parameters()), "encoder.layers.0.feed_forward.up.weight"
    dict(task.model.named_parameters())[name].data[0, 0] = np.inf
    with pytest.raises(FloatingPointError) as caught:
        train(task, c, tmp_path, quiet=True)
    itself = f", and {name} itself is not finite" if backend == "numpy" else ""  # a GPU has taken the step by then
    assert str(caught.value) == (
        f"gradients are finite numbers; those of all {count} parameters are not (the loss is nan{itself}), "
        "at step 1; lower learning_rate or lengthen warmup_steps"
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [{"workers": 1}, {"workers": 2}, {"workers": 1, "accumulate": 2}])
def test_a_run_away_is_told_in_one_line_and_no_warning(settings, tmp_path, capfd, backend):
    finite = ", though all parameters are finite" if backend == "numpy" else ""
    with pytest.raises(FloatingPointError, match=rf"\(the loss is nan{finite}\), at step 2; lower"):
        run(tmp_path, learning_rate=1e30, warmup_steps=0, **settings)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("log_every, step", [(100, 17), (2, 2)])  # 65,536 is halved 16 times first
def test_what_overflows_half_precision_unscaled_is_told_with_parameter_and_step(log_every, step, tmp_path, backend):
    c = config(precision="float16", workers=1, backend=backend, log_every=log_every, steps=20, checkpoint_every=100)
    task = tasks.make_task(c)
    name = "decoder.norm.weight"
    dict(task.model.named_parameters())[name].data[0] = np.nan
    told = rf"\(the loss is nan, and {name} itself is not finite\), at step {step}; write precision=float32, or lower"
    with pytest.raises(FloatingPointError, match=told):
        train(task, c, tmp_path, quiet=True)


@pytest.mark.filterwarnings("error")
def test_one_gradient_that_overflows_half_precision_is_named(tmp_path, backend):
    c = config(precision="float16", workers=1, backend=backend, log_every=100, steps=20, checkpoint_every=100)
    task = tasks.make_task(c)
    name, weight = list(task.model.named_parameters())[5]
    plain = task.loss

    def loss(*arrays):
        value, tokens = plain(*arrays)
        return value + (weight * 0.0).sqrt().sum(), tokens  # whose value is 0, and whose slope is infinite there

    task.loss = loss
    with pytest.raises(FloatingPointError, match=f"that of {name} is not, at step 17; write precision=float"):
        train(task, c, tmp_path, quiet=True)


def test_weights_that_overflow_in_the_last_step_are_told(tmp_path):
    """Its gradients were still numbers; what is held out is looked at after it."""
    c = config()
    task = tasks.make_task(c)
    task.held_out_loss = lambda: math.nan
    with pytest.raises(FloatingPointError, match="validation_loss is nan after step 12; lower learning_rate"):
        train(task, c, tmp_path, quiet=True)


def test_every_schedule_can_be_asked_for_by_name():
    """Each warms up in the same line, and is then where its formula says."""
    common = {"steps": 41, "warmup_steps": 10, "learning_rate": 0.2, "lr_decay": 0.5, "lr_decay_every": 20}
    expected = {
        "cosine": 0.02 + 0.18 / 2 * (1 + np.cos(np.pi * 20 / 31)), "linear": 0.02 + 0.18 * 11 / 31,
        "inverse_sqrt": 0.2 * np.sqrt(10 / 30), "exponential": 0.1, "step": 0.1, "constant": 0.2,
        "noam": 16**-0.5 * 30**-0.5,
    }  # fmt: skip
    assert set(expected) == set(SCHEDULES)
    for name, value in expected.items():
        settings = common if name != "noam" else {k: v for k, v in common.items() if k != "learning_rate"}
        schedule = make_schedule(config(schedule=name, lr_floor=0.002 if name == "noam" else 0.02, **settings))
        assert schedule(30) == pytest.approx(value), name
        peak = schedule(10)
        assert peak == pytest.approx(0.2 if name != "noam" else 16**-0.5 * 10**-0.5)
        np.testing.assert_allclose([schedule(t) for t in range(1, 11)], peak * np.arange(1, 11) / 10, err_msg=name)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"recompute": True}, {"clip_value": 0.01, "clip_norm": 0.05}])
def test_a_frozen_part_stays_as_it_was_and_the_rest_is_trained(more, workers, tmp_path, backend):
    """With weight decay, which a frozen parameter must not see either; and it costs the optimizer no state."""
    c = config(workers=workers, weight_decay=0.1, backend=backend, steps=4, **more)
    task = tasks.make_task(c)
    frozen = ["source_embedding.weight", "encoder.layers.0.feed_forward.up.weight"]
    parameters = dict(task.model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad = False
    task.model.to("float32")
    before = {name: p.numpy().copy() for name, p in parameters.items()}
    result = train(task, c, tmp_path, quiet=True)
    assert [name for name, p in parameters.items() if (p.numpy() == before[name]).all()] == frozen
    trained = sum(p.data.nbytes for name, p in parameters.items() if name not in frozen)
    assert result["optimizer_bytes"] == 2 * trained


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_warm_up_by_default_is_cut_to_a_short_run_and_written_down(name):
    for schedule in ("cosine", "linear"):
        assert tasks.make_config(name, {"steps": 4, "schedule": schedule}).warmup_steps == 3
        assert tasks.make_config(name, {"steps": 1, "schedule": schedule}).warmup_steps == 0
    assert tasks.make_config(name, {}).warmup_steps == 100
    assert tasks.make_config(name, {"steps": 4, "schedule": "inverse_sqrt"}).warmup_steps == 100


def test_vectors_are_not_decayed():
    model = tasks.make_task(config()).model
    groups = make_optimizer(TrainConfig(**SMALL), model).groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"steps": 0}, "steps is an integer of at least 1; got 0"),
        ({"steps": "many"}, "got 'many'"),
        ({"learning_rate": -1}, "learning_rate lies in"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"dropout": 1.0}, "dropout lies in"),
        ({"optimizer": "tiger"}, "adamw, adam, sgd, adafactor, lion; got 'tiger'"),
        ({"schedule": "polynomial"}, "cosine, linear, inverse_sqrt, exponential, step, constant, noam; got 'polyn"),
        ({"lr_floor": 1.0}, "lr_floor is at most learning_rate; got lr_floor=1.0, learning_rate=0.003"),
        ({"lr_decay": 0}, "lr_decay lies in"),
        ({"lr_decay": 1.5}, "lr_decay lies in"),
        ({"clip_value": -1.0}, "clip_value lies in"),
        ({"spike": float("inf")}, "spike lies in"),
        ({"accumulate": 0}, "accumulate is an integer of at least 1; got 0"),
        ({"lr_decay_every": 0}, "lr_decay_every is an integer of at least 1"),
        ({"stepz": 3}, "got stepz"),
        ({"warmup_steps": 12}, "schedule=cosine falls after its warm-up; got warmup_steps=12, steps=12; write warm"),
        ({"warmup_steps": 50, "schedule": "linear"}, "schedule=linear falls after its warm-up; got warmup_steps=50"),
        ({"schedule": "noam", "learning_rate": 0.5}, "but noam, which has its own; got .*learning_rate=0.5; write sch"),
        ({"schedule": "noam", "warmup_steps": 0}, "warms up for at least one step; got warmup_steps=0"),
        ({"rotary_scaling": 2}, "for rotary positions; got rotary_pairing=halves, rotary_scaling=2, positions=sinus"),
        ({"rotary_pairing": "neighbours", "positions": "alibi"}, "positions=alibi; write positions=rotary"),
        ({"symbols": 99}, "2 to 36 symbols"),
        ({"heads": 3}, "heads must divide"),
        ({"norm": "mid"}, "got 'mid'"),
        ({"positions": 5}, "got 5"),
        ({"d_model": True}, "d_model is an integer"),
    ],
)
def test_impossible_settings_are_named_in_one_line(settings, text):
    with pytest.raises(ValueError, match=text) as caught:
        tasks.make_task(config(**settings))
    assert "\n" not in str(caught.value)


def test_progress_shows_step_loss_speed_and_time_left(capsys):
    from minitransformer.train import Progress

    progress = Progress(1500)
    progress.show(25, 2.0837, 12809.4, 83.2)
    progress.close()
    line = capsys.readouterr().err
    for part in ("step   25/1500", "2.0837 nats/token", "12,809 tokens/s", "1:23 left"):
        assert part in line
    assert line.endswith("\n") and "\r" not in line  # plain lines where there is no terminal


def test_the_loop_runs_on_both_backends(backend, tmp_path):
    c = config(steps=2, warmup_steps=1, backend=backend)
    assert train(tasks.make_task(c), c, tmp_path, quiet=True)["steps"] == 2
    assert mt.get_backend() == backend


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_a_run_in_another_precision_goes_on_as_it_was(precision, tmp_path, backend):
    """The loss scale is in the checkpoint."""
    if precision == "tf32" and backend == "numpy":
        with pytest.raises(ValueError, match="precision=tf32 is for a GPU"):
            config(precision="tf32")
        return
    run(tmp_path / "whole", precision=precision, backend=backend)
    c = config(precision=precision, backend=backend)
    with pytest.raises(Stopped):
        train(StopAt(tasks.make_task(c), 7, signal.SIGINT), c, tmp_path, quiet=True)
    run(tmp_path, resume=True, precision=precision, backend=backend)
    for name, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(weights(tmp_path)[name], value)


@pytest.mark.slow
def test_half_precision_reaches_the_same_accuracy(tmp_path, backend, pytestconfig):
    if "mock" in pytestconfig.where:
        pytest.skip("takes ten minutes on the host mock")
    exact = {}
    small = {"steps": 600, "d_model": 64, "d_ff": 64, "heads": 4, "symbols": 4, "batch_size": 32, "max_length": 17}
    for precision in ("float32", "float16"):
        settings = {**small, "learning_rate": 5e-3, "warmup_steps": 50, "dropout": 0.0, "log_every": 100}
        c = config(**settings, precision=precision, backend=backend)
        (tmp_path / precision).mkdir()
        exact[precision] = train(tasks.make_task(c), c, tmp_path / precision, quiet=True)["exact_match"]
    assert min(exact.values()) >= 0.9, exact

"""The switch: NumPy alone unless asked, an answer where CuPy or a GPU is missing, one seed for all."""

import builtins
import json
import subprocess
import sys

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend, checkpoint, tasks
from minitransformer.train import train


def test_importing_the_package_imports_no_cupy_torch_or_matplotlib():
    heavy = ("cupy", "torch", "matplotlib", "safetensors")
    code = f"import minitransformer, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif("config.where != 'numpy'", reason="CuPy is there")
def test_cupy_that_is_not_installed_is_answered_with_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_cupy(name, *args, **kwargs):
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_cupy)
    monkeypatch.setattr(backend, "_cupy", None)
    with pytest.raises(RuntimeError, match=r"minitransformer\[gpu12\].*--backend numpy"):
        mt.set_backend("cupy")
    assert mt.get_backend() == "numpy"


def test_a_library_without_a_gpu_is_answered_too(monkeypatch):
    class Fake:
        __version__ = "99"

        class cuda:
            class runtime:
                class CUDARuntimeError(RuntimeError):
                    pass

                @staticmethod
                def getDeviceCount():
                    raise Fake.cuda.runtime.CUDARuntimeError("cudaErrorNoDevice")

    monkeypatch.setitem(sys.modules, "cupy", Fake)
    monkeypatch.setattr(backend, "_cupy", None)
    with pytest.raises(RuntimeError, match="needs a CUDA GPU; CuPy 99 is installed but answers 'cudaErrorNoDevice'"):
        mt.set_backend("cupy")


def test_use_backend_comes_back_even_after_an_error(backend):
    before = mt.get_backend()
    with pytest.raises(KeyError), mt.use_backend("numpy"):
        assert mt.get_backend() == "numpy"
        raise KeyError
    assert mt.get_backend() == before == backend


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="numpy, cupy; got 'jax'"):
        mt.set_backend("jax")


def test_moving_to_where_one_is_costs_nothing():
    a = np.ones(3)
    assert backend.to_numpy(a) is a and backend.to_backend(a, "numpy") is a and backend.backend_of(a) == "numpy"


class Pretender(np.ndarray):
    """Stands in for cupy.ndarray: an array that NumPy must not touch."""


def test_arrays_of_two_backends_do_not_mix(monkeypatch):
    class Fake:
        ndarray = Pretender

    monkeypatch.setattr(backend, "_cupy", Fake)
    on_gpu = np.ones(3).view(Pretender)
    with pytest.raises(TypeError, match="numpy and cupy together; write x.to"):
        mt.ops.add(np.ones(3), on_gpu)
    assert backend.namespace((on_gpu, 2.0, None)) is Fake


# -- one program on both backends -----------------------------------------------------------------------------------
on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
TINY = {
    "steps": 12,
    "d_model": 16,
    "d_ff": 32,
    "heads": 2,
    "layers": 1,
    "batch_size": 8,
    "log_every": 1,
    "dropout": 0.1,
}
TINY |= {"warmup_steps": 3, "checkpoint_every": 6}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 4)
    monkeypatch.setattr(tasks, "VALIDATED", 4)


def trained(where, folder, resume=False, **settings):
    """Train reversal on a backend and return (losses by step, weights)."""
    config = tasks.make_config("reversal", {**TINY, **settings, "backend": where})
    folder.mkdir(exist_ok=True)
    with mt.use_backend(where):
        train(tasks.make_task(config), config, folder, resume=resume, quiet=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], checkpoint.load_checkpoint(folder / "checkpoint")[0]


def seen(weights):
    """Leave out the keys' biases: softmax cannot see them, and Adam follows the rounding in their gradients."""
    return [name for name in weights if not name.endswith("k_proj.bias")]


@on_cupy
def test_one_seed_gives_the_same_weights_masks_and_losses(tmp_path, few):
    """The losses of a run with dropout agree step by step to the rounding of float32."""
    (a, mine), (b, theirs) = (trained(where, tmp_path / where) for where in ("numpy", "cupy"))
    assert len(a) == 12
    np.testing.assert_allclose(a, b, rtol=2e-6)
    for name in seen(mine):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=2e-4)


@on_cupy
@pytest.mark.parametrize("first, then", [("numpy", "cupy"), ("cupy", "numpy")])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd", "lion"])
def test_a_run_saved_on_one_backend_goes_on_on_the_other(first, then, optimizer, tmp_path, few):
    whole, weights = trained("numpy", tmp_path / "whole", optimizer=optimizer)
    trained(first, tmp_path / "split", optimizer=optimizer, steps=6, schedule="constant")
    trained("numpy", tmp_path / "same", optimizer=optimizer, steps=6, schedule="constant")
    for where, name in ((then, "split"), ("numpy", "same")):
        trained(where, tmp_path / name, resume=True, optimizer=optimizer, schedule="constant")
    split, same = (checkpoint.load_checkpoint(tmp_path / n / "checkpoint")[0] for n in ("split", "same"))
    assert set(split) == set(weights)
    for name in seen(same):
        np.testing.assert_allclose(split[name], same[name], rtol=0, atol=2e-4)


@on_cupy
def test_initial_weights_and_dropout_are_the_same_to_the_bit():
    made = []
    for where in ("numpy", "cupy"):
        with mt.use_backend(where):
            mt.manual_seed(7)
            layer = mt.nn.Linear(5, 3)
            x = mt.tensor(np.ones((4, 9), "float32"))
            made.append((layer.weight.numpy(), mt.ops.dropout(x, 0.3).numpy(), mt.ops.dropout(x, 0.3).numpy()))
    for a, b in zip(*made, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (made[0][1] != made[0][2]).any()


@on_cupy
def test_a_gradient_that_is_not_finite_is_told_later_with_its_step(tmp_path, few):
    """Which parameter it was nobody knows by then: the weights have moved on, and all gradients have the NaN."""
    config = tasks.make_config("reversal", {**TINY, "backend": "cupy", "log_every": 5})
    task = tasks.make_task(config)
    inner, name = task.batch, "decoder.layers.0.feed_forward.down.weight"

    def batch(step):
        if step == 3:
            dict(task.model.named_parameters())[name].data[0, 0] = np.nan
        return inner(step)

    task.batch = batch
    said = r"those of all \d+ parameters are not \(the loss is nan\), at step 3; lower"
    with pytest.raises(FloatingPointError, match=said):
        train(task, config, tmp_path, quiet=True)
    assert not (tmp_path / "checkpoint").exists()


@on_cupy
def test_a_batch_goes_over_in_one_copy():
    arrays = [np.arange(6).reshape(2, 3), np.arange(4).reshape(2, 2), np.zeros((2, 0), int)]
    for array, sent in zip(arrays, backend.send(*arrays), strict=True):
        assert backend.backend_of(sent) == "cupy"
        np.testing.assert_array_equal(array, backend.to_numpy(sent))


@on_cupy
@pytest.mark.slow
def test_reversal_is_learned_on_both_backends_alike(tmp_path, monkeypatch):
    """A small reversal, to its end: the same accuracy. (On a GPU seconds; the host mock takes minutes.)"""
    small = {"steps": 600, "d_model": 64, "d_ff": 64, "heads": 4, "layers": 1, "symbols": 4, "batch_size": 32}
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 64)
    monkeypatch.setattr(tasks, "VALIDATED", 64)
    exact = {}
    for where in ("numpy", "cupy"):
        settings = {**small, "max_length": 17, "learning_rate": 5e-3, "warmup_steps": 50, "backend": where}
        config = tasks.make_config("reversal", settings)
        (tmp_path / where).mkdir()
        with mt.use_backend(where):
            exact[where] = train(tasks.make_task(config), config, tmp_path / where, quiet=True)["exact_match"]
    assert min(exact.values()) >= 0.95 and abs(exact["numpy"] - exact["cupy"]) <= 2 / 64, exact


@pytest.mark.parametrize("seed", [-1, 1.5, True, (0, -1), "a", ()])
def test_a_seed_is_a_whole_number_from_0_up(seed):
    from minitransformer import generate

    for act in (mt.manual_seed, lambda seed: generate.sampler(seed=seed)):
        with pytest.raises(
            ValueError, match="a seed is a whole number from 0 up, or a tuple of such; got .*; write"
        ) as e:
            act(seed)
        assert "\n" not in str(e.value)

"""Ranks of mpiexec: the same step as one process, the same bits on each, buckets that set off early, a clean end."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import checkpoint, distributed
from minitransformer.kernels.cuda import nccl
from minitransformer.tensor import _propagate
from tests import hostcuda

ROOT = Path(__file__).parent.parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
try:
    import mpi4py
except ImportError:
    mpi4py = None
needs_mpi = pytest.mark.skipif(not MPIEXEC or mpi4py is None, reason="no mpiexec with mpi4py here")
on_host = pytest.mark.skipif("config.where != 'numpy'", reason="to measure this model takes the mock 8 seconds")
on_mock = pytest.mark.skipif("not config.where.startswith('cupy on the host')", reason="for the host mock alone")

SMALL = ["--set=d_model=16", "--set=d_ff=32", "--set=heads=2", "--set=layers=1", "--set=batch_size=7"]
SMALL += ["--set=dropout=0.1", "--set=log_every=2", "--set=max_length=20"]


def environment(gpus=1):
    """Return what ranks are started with: nothing of another mpiexec; with CuPy, a mock of some GPUs."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI", "MPI"))}
    return {**mine, "PYTHONPATH": str(ROOT), "HOSTCUDA_DEVICES": str(gpus)}


def mpiexec(count, *command, gpus=None, **options):
    if mt.backend.get_backend() == "cupy" and not hostcuda.is_active():
        found = mt.backend.xp().cuda.runtime.getDeviceCount()
        if found < count:
            pytest.skip(f"{count} ranks need a GPU each; there are {found}")
    return subprocess.run(
        [MPIEXEC, "-n", str(count), *map(str, command)],
        capture_output=True, text=True, env=environment(gpus or count), **options,
    )  # fmt: skip


def python(*words):
    """Return the command that runs a module or a script where the tests run: on the host, or on the mock."""
    if hostcuda.is_active():
        return [sys.executable, "-W", "error", "-m", "tests.hostcuda", *words]
    return [sys.executable, "-W", "error", *([] if str(words[0]).endswith(".py") else ["-m"]), *words]


def command(*words):
    return python("minitransformer.cli", *words)


def where():
    """Return the option that puts a run where the tests run."""
    return ["--backend", mt.backend.get_backend()]


def seen(arrays):
    """Leave out the keys' biases: softmax cannot see them, and their gradients are rounding alone."""
    return [name for name in arrays if not name.endswith(("k_proj.bias", "early_", "counts_"))]


STEP = """
    import sys
    import numpy as np
    import minitransformer as mt
    from minitransformer import backend, distributed
    from minitransformer.models import Transformer, TransformerConfig
    from tests import hostcuda

    out, where, rows, bucket, late = *sys.argv[1:3], *map(int, sys.argv[3:])
    used = [False]
    ranks = distributed.ranks()
    rank = ranks.rank if ranks else 0
    mt.set_backend(where)
    counts = []
    mt.manual_seed(rank)  # rank 0's weights are sent around
    model = Transformer(TransformerConfig(11, 11, 8, 2, 2, 16, 0.1, 16, "pre"))
    model.unused = mt.nn.Linear(3, 3)
    rng = np.random.default_rng(3)
    source, target = rng.integers(1, 11, (rows, 5)), rng.integers(0, 11, (rows, 6))
    def loss(s, t):
        tokens = int((t[:, 1:] != 0).sum())
        s, t = backend.send(s, t)
        value = mt.ops.cross_entropy(model(s, t[:, :-1]), t[:, 1:], 0)
        if used[0]:
            value = value + (model.unused.weight * model.unused.weight).sum()
        return value, tokens
    if ranks:
        workers = distributed.DataParallel(model, loss, ranks, bucket)
    else:
        workers = mt.Workers(model, loss, 1)
    with workers:
        for step in range(3):
            mt.manual_seed((5, step))
            used[0] = late and step == 2  # in the last step a parameter is used that was not before
            if hostcuda.is_active():
                hostcuda.reset()
            value, tokens = workers.backward(source, target)
            if hostcuda.is_active():
                counts = [hostcuda.counts()[what] for what in ("to_host", "sync")]
                counts.append(hostcuda.kernels().get("ncclAllReduce", 0))
                assert {p.data.device.id for p in model.parameters()} == {rank}
    grads = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    early = np.array([getattr(workers, "early", 0), len(getattr(workers, "buckets", []))])
    value = backend.to_numpy(value)
    np.savez(f"{out}/{rank}.npz", value=value, tokens=tokens, early_=early, counts_=np.array(counts), **grads)
"""


def one_step(folder, count, rows, bucket=1 << 20, late=0):
    folder.mkdir()
    script = folder / "step.py"
    script.write_text(textwrap.dedent(STEP))
    words = python(script, folder, mt.backend.get_backend(), rows, bucket, late)
    options = {"capture_output": True, "text": True, "env": environment()}
    done = mpiexec(count, *words) if count > 1 else subprocess.run(list(map(str, words)), **options)
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(count)]


@needs_mpi
@pytest.mark.parametrize("count, rows", [(2, 7), (3, 7), (3, 2)])
def test_the_gradient_is_that_of_one_process_and_the_same_bits_on_each_rank(count, rows, tmp_path):
    """Three ranks over two rows leave one of them without any."""
    (alone,) = one_step(tmp_path / "1", 1, rows)
    several = one_step(tmp_path / "n", count, rows)
    assert all(set(found) == set(alone) and "unused.weight" not in found for found in several)
    for name in seen(alone):
        for found in several[1:]:
            np.testing.assert_array_equal(found[name], several[0][name])
        size = max(np.abs(alone[name]).max(), 1e-3)
        np.testing.assert_allclose(several[0][name], alone[name], rtol=0, atol=3e-6 * size, err_msg=name)
    if hostcuda.is_active():  # nothing is copied to the host, nobody waits, and the sums are a bucket and the loss
        assert all(found["counts_"].tolist() == [0, 0, 2] for found in several)


@needs_mpi
def test_a_gradient_that_nobody_expected_is_summed_all_the_same(tmp_path):
    (alone,) = one_step(tmp_path / "1", 1, 7, late=1)
    for found in one_step(tmp_path / "n", 2, 7, 500, late=1):
        np.testing.assert_allclose(found["unused.weight"], alone["unused.weight"], rtol=1e-5)
        np.testing.assert_allclose(
            found["source_embedding.weight"], alone["source_embedding.weight"], rtol=1e-4, atol=1e-6
        )


@needs_mpi
def test_buckets_set_off_while_the_backward_pass_runs(tmp_path):
    few, many = (one_step(tmp_path / str(b), 2, 7, b)[0] for b in (1 << 20, 500))
    early, buckets = many["early_"]
    assert buckets > 8 and early >= buckets - 1
    assert few["early_"][1] == 1
    for name in seen(few):
        np.testing.assert_allclose(few[name], many[name], rtol=1e-5, atol=1e-7)


def test_a_leaf_is_ready_when_its_last_gradient_has_come(rng):
    """Parameters used twice wait for both; each leaf comes once, with the gradient it has at the end."""
    w, v = (mt.tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(2))
    x = mt.tensor(rng.standard_normal((2, 3)), requires_grad=True)

    def loss():
        return (((x @ w).tanh() @ v).tanh() @ w).sum()

    loss().backward()
    order, found = [], {}
    value = loss()
    for node, g, _ in _propagate(value.node, value.data * 0 + 1, keep_graph=False, leaves_when_ready=True):
        order.append(node)
        found[node] = g
    assert order == [v.node, w.node, x.node] or order == [v.node, x.node, w.node]
    for t in (w, v, x):
        np.testing.assert_allclose(mt.backend.to_numpy(found[t.node]), t.grad.numpy())


@needs_mpi
@pytest.mark.parametrize(
    "task, accumulate, others", [pytest.param("reversal", 1, 3, marks=on_host), ("translate", 2, 1)]
)
def test_training_on_two_ranks_ends_where_one_does_and_goes_on_on_another_number(task, accumulate, others, tmp_path):
    steps = "--set=steps=8", "--set=checkpoint_every=4", f"--set=accumulate={accumulate}", "--set=spike=50", *where()
    if task == "translate":
        lines = [f"{n} {n * n}\t{n * n} {n}\n" for n in range(60)]
        (tmp_path / "pairs.tsv").write_text("".join(lines))
        steps += ("--set=pairs=pairs.tsv",)
    for count, name in ((1, "one"), (2, "two")):
        words = command("train", task, *SMALL, *steps, "--out", name)
        done = mpiexec(count, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run: ") == 1
    weights = {n: checkpoint.load_checkpoint(tmp_path / n / "checkpoint")[0] for n in ("one", "two")}
    for name in seen(weights["one"]):
        w = weights["one"][name]
        np.testing.assert_allclose(weights["two"][name], w, rtol=0, atol=2e-4, err_msg=name)
    shutil.copytree(tmp_path / "two", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoint/step-00000008")
    done = mpiexec(others, *command("train", "--resume", "cut"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cut = checkpoint.load_checkpoint(tmp_path / "cut/checkpoint")[0]
    for name in seen(cut):
        np.testing.assert_allclose(cut[name], weights["two"][name], rtol=0, atol=2e-4, err_msg=name)


def start(folder, *words):
    words = command("train", "reversal", *SMALL, *where(), "--set=steps=100000", "--out", "r", *words)
    return subprocess.Popen(
        [MPIEXEC, "-n", "2", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(2),
    )  # fmt: skip


@needs_mpi
def test_ctrl_c_stops_all_ranks_at_one_step(tmp_path):
    process = start(tmp_path)
    for line in process.stderr:  # it ends where the ranks do
        if "step" in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and rest.count("the checkpoint is written; go on with") == 1
    assert checkpoint.checkpoints(tmp_path / "r/checkpoint")


@needs_mpi
def test_a_rank_that_is_killed_ends_the_others_and_the_run_can_go_on(tmp_path):
    process = start(tmp_path, "--set=checkpoint_every=5")
    while not (tmp_path / "r/checkpoint").exists() or not checkpoint.checkpoints(tmp_path / "r/checkpoint"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    ranks = [p for p in children_of(process.pid) if "minitransformer" in Path(f"/proc/{p}/cmdline").read_text()]
    os.kill(ranks[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "KILLED" in (out + err).upper()
    for pid in ranks:
        assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    assert checkpoint.load_checkpoint(tmp_path / "r/checkpoint")[2]["step"] >= 5


def children_of(pid):
    """Return all processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children_of(child)]
    return found


@needs_mpi
@pytest.mark.parametrize("words, text", [(["--set=stepz=3"], "got stepz"), (["--out", "full"], "is not empty")])
def test_bad_input_is_answered_once(words, text, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    done = mpiexec(2, *command("train", "reversal", *words), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("minitransformer: ") == 1 and text in done.stderr
    assert not (tmp_path / "runs").exists()


@needs_mpi
@on_mock
def test_ranks_that_share_a_gpu_are_told_before_anything_is_written(tmp_path):
    done = mpiexec(3, *command("train", "reversal", *SMALL, *where()), gpus=2, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("minitransformer: ") == 1, done.stderr
    assert "got 3 ranks and 2 GPUs; write mpiexec -n 2" in done.stderr
    assert not (tmp_path / "runs").exists()


EARLY = """
    import minitransformer as mt
    from minitransformer import distributed
    mt.set_backend("cupy")
    model = mt.nn.Linear(3, 3)  # on GPU 0, in all ranks
    try:
        distributed.DataParallel(model, None, distributed.ranks())
    except (RuntimeError, distributed.Elsewhere) as error:
        print(error)
"""


@needs_mpi
@on_mock
def test_a_model_made_before_its_rank_had_a_gpu_is_an_error_on_all_ranks(tmp_path):
    (tmp_path / "early.py").write_text(textwrap.dedent(EARLY))
    done = mpiexec(2, *python(tmp_path / "early.py"), timeout=60)
    assert done.returncode == 0, done.stderr
    assert "got one on GPU 0, and the rank works on 1; call distributed.ranks() before the model" in done.stdout
    assert "rank 1 has failed" in done.stdout


@on_mock
def test_without_nccl_it_is_said_what_to_install(monkeypatch):
    from cupy.cuda import nccl as found

    monkeypatch.setattr(found, "available", False)
    with pytest.raises(RuntimeError, match="write pip install nvidia-nccl-cu12"):
        nccl.require_nccl(mt.tensor(np.zeros(3)).data)


def test_without_mpiexec_there_are_no_ranks(monkeypatch):
    for name in distributed.SIZES:
        monkeypatch.delenv(name, raising=False)
    assert distributed.ranks() is None


def test_without_mpi4py_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RuntimeError, match=r"pip install 'minitransformer\[mpi\]'"):
        distributed.ranks()

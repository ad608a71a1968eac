"""The mock's NCCL: fixed sums, and an error where NCCL would hang, crash or add up nonsense."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif("not config.where.startswith('cupy on the host')", reason="for the host mock alone")

RANK = """
    import sys, time
    import cupy
    import numpy as np
    from cupy.cuda import nccl

    rank, size = int(sys.argv[1]), int(sys.argv[2])
    cupy.cuda.Device(rank).use()
    comm = nccl.NcclCommunicator(size, bytes.fromhex(sys.argv[3]), rank)

    def total(x, type=nccl.NCCL_FLOAT32, op=nccl.NCCL_SUM):
        try:
            comm.allReduce(x.data.ptr, x.data.ptr, x.size, type, op, 0)
        except nccl.NcclError as error:
            sys.exit(str(error))
        return x
"""


@pytest.fixture
def ranks(tmp_path):
    """Start processes, each with a script of its own, that meet by NCCL."""
    from cupy.cuda import nccl

    name, started = nccl.get_unique_id(), []

    def start(*bodies):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HOSTCUDA_DEVICES": "3"}
        for rank, body in enumerate(bodies):
            script = tmp_path / f"{rank}.py"
            script.write_text(textwrap.dedent(RANK) + textwrap.dedent(body))
            words = [sys.executable, "-m", "tests.hostcuda", script, rank, len(bodies), name.hex()]
            started.append(
                subprocess.Popen(
                    list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    env=environment, cwd=tmp_path,
                )
            )  # fmt: skip
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()
    assert not Path("/dev/shm", name.rstrip(b"\0").decode().strip("/")).exists()


def test_sums_are_made_in_the_order_of_ranks_in_every_type(ranks, tmp_path):
    """(1e8 + 1) − 1e8 is 0 in float32 in this order, and 1 in another. 70,000 doubles travel in three parts."""
    body = """
        x = total(cupy.full(5, [1e8, 1, -1e8][rank], dtype="f4"))
        found = {"order": x.get()}
        for char, type in (("e", 6), ("f", 7), ("d", 8), ("b", 0), ("B", 1), ("i", 2), ("I", 3), ("l", 4), ("L", 5)):
            for op in range(4):
                found[f"{char}{op}"] = total((cupy.arange(7) % 3 + rank + 1).astype(char), type, op).get()
        found["long"] = total(cupy.arange(70_000, dtype="f8") * (rank + 1), 8).get()
        x = cupy.full(70_000, rank, dtype="f8")
        comm.broadcast(x.data.ptr, x.data.ptr, x.size, 8, 2, 0)
        found["sent"] = x.get()
        np.savez(f"{rank}.npz", **found)
    """
    for process in ranks(body, body, body):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    for rank in range(3):
        found = dict(np.load(tmp_path / f"{rank}.npz"))
        assert (found.pop("order") == 0).all() and (found.pop("sent") == 2).all()
        np.testing.assert_array_equal(found.pop("long"), 6.0 * np.arange(70_000))
        given = np.stack([np.arange(7) % 3 + r + 1 for r in range(3)])
        for name, value in found.items():
            assert value.dtype.char == name[0]
            np.testing.assert_array_equal(value, (np.sum, np.prod, np.max, np.min)[int(name[1])](given, axis=0))


# Once the ranks have met: they do not start at the same moment.
IMPATIENT = "import os; os.environ['HOSTCUDA_PATIENCE'] = '1'; total(cupy.zeros(3, 'f4'))"


@pytest.mark.parametrize(
    "first, second, text",
    [
        ("total(cupy.zeros(3, 'f4'))", "total(cupy.zeros(4, 'f4'))", "ranks have made different calls"),
        ("total(cupy.zeros(3, 'f4'))", "total(cupy.zeros(3, 'f4'), op=2)", "ranks have made different calls"),
        (IMPATIENT, "time.sleep(30)", "rank 1 has not come for 1 s"),
        ("total(cupy.zeros(3, 'f4'))", "", "rank 1 has ended"),
        ("total(cupy.zeros(3, 'f4'), 77)", "", "a type, operation or rank that the mock does not have"),
        ("comm.reduce(0, 0, 0, 7, 0, 0, 0)", "", "this call is not in the mock"),
        ("comm.allReduce(np.ones(1).ctypes.data, 0, 1, 7, 0, 0)", "", "a pointer to host memory"),
    ],
)
def test_what_would_hang_or_go_wrong_on_a_gpu_is_an_error(first, second, text, ranks):
    process, _ = ranks(first, second)
    _, err = process.communicate(timeout=30)
    assert process.returncode and text in err


def test_two_ranks_on_one_gpu_are_refused(ranks, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "RANK", RANK.replace("Device(rank)", "Device(0)"))
    for process in ranks("", ""):
        _, err = process.communicate(timeout=30)
        assert process.returncode and "Duplicate GPU detected: two ranks are on device 0" in err


def test_a_killed_rank_ends_the_wait_of_the_others(ranks):
    waits = "total(cupy.zeros(3, 'f4')); print('met', flush=True); total(cupy.zeros(3, 'f4'))"
    first, second, third = ranks(waits, waits, waits.replace("; total", "; time.sleep(60); total"))
    assert third.stdout.readline() == "met\n"
    third.kill()
    began = time.perf_counter()
    for process in (first, second):
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1 and "NCCL_ERROR_REMOTE_ERROR: rank 2 has ended" in err
    assert time.perf_counter() - began < 10

"""A peer in a process of its own answers each order with a line of JSON."""

import json
import os
import subprocess
import sys

import numpy as np

from minitransformer.bench import configs, peer


def test_each_order_gets_one_answer(tmp_path):
    np.savez(tmp_path / "w.npz", **configs.weights(configs.CONFIGS["reversal"]))
    command = [sys.executable, "-m", "minitransformer.bench.peer", "ours", "reversal", tmp_path / "w.npz"]
    orders = '{"steps": 2}\n{"steps": 1}\n'
    done = subprocess.run(command, input=orders, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [len(a["seconds"]) for a in answers] == [2, 1], done.stderr
    assert [len(a["losses"]) for a in answers] == [2, 1] and min(answers[0]["seconds"]) > 0
    assert answers[1]["losses"][0] != answers[0]["losses"][0], "it goes on where it was"
    assert answers[0]["memory"] > 10 * 2**20


def test_memory_sees_what_this_process_took():
    before = peer.memory([os.getpid()])
    kept = np.ones(40_000_000)  # 320 MB
    during = peer.memory([os.getpid()])
    del kept
    assert during >= before and peer.memory([os.getpid()]) > 320e6, "a peak stays a peak"


def test_importing_peers_imports_no_library():
    code = "import sys, minitransformer.bench.run; print({'torch', 'jax', 'autograd'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"

"""Run a module or a script on the mock: `HOSTCUDA_DEVICES=2 mpiexec -n 2 python -m tests.hostcuda SCRIPT.py ...`."""

import runpy
import sys

from tests import hostcuda

hostcuda.activate()
del sys.argv[0]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

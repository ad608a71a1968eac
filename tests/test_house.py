"""The rules of the house: each failure says where the line should live."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minitransformer as mt

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minitransformer"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# Import order is reading order: a room imports only from rooms on its left.
ORDER = [
    "backend", "draws", "tensor", "recompute", "gradcheck", "ops", "views", "trace", "kernels", "nn", "models", "optim",
    "examples", "replay", "parallel", "distributed", "graph", "gradcases", "data", "checkpoint", "train", "generate",
    "draw", "tasks", "lessons", "figures", "bench", "cli",
]  # fmt: skip
MAY_SAY_CUPY = {"backend", "kernels"}
MAY_DEFINE_VJP = {"tensor", "recompute", "ops", "kernels", "gradcheck", "lessons"}
MAY_IMPORT_MATPLOTLIB = {"draw"}
MAY_PRINT_OR_OPEN = {"cli", "train", "draw", "data", "checkpoint"}
FUNCTION_LINES, FILE_LINES = 50, 300
# Larger than the rule of thumb, each with its reason.
LARGE = {
    "tensor.py": "the engine is read in one piece",
    "draw.py": "layout, checks and saving of three kinds of figure",
    "gradcases.py": "a table",
    "parallel.py": "worker processes: how they begin, what travels each step, how they end",
    "distributed.py": "what ranks agree on, and the sum they make of their gradients",
    "tasks.py": "four tasks beside one another",
    "cli.py": "every sub-command and its help",
    "data/tokenizer.py": "three tokenizers beside one another",
    "train.py": "the loop with its log and its signals",
}
LONG_FUNCTIONS = {"train", "build_parser", "run_train", "attention", "blockwise_attention", "_blockwise_attention"}


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def at(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imports(path):
    """Yield (node, room) for each import of the package's own modules, and (node, "=name") for others."""
    here = list(path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node, "=" + alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node, "=" + (node.module or "").split(".")[0]
                continue
            base = here[: len(here) - (node.level - 1)]
            full = base + (node.module.split(".") if node.module else [])
            if full:
                yield node, full[0]
            else:
                yield from ((node, alias.name) for alias in node.names)


def in_type_checking(path, node):
    return any(
        isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING" and node in ast.walk(outer)
        for outer in ast.walk(TREES[path])
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_its_left(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        return
    own = ORDER.index(room(path))
    for node, other in imports(path):
        if other.startswith("=") or other in ("__version__",):
            continue
        assert other in ORDER, f"{at(path, node)}: {other} is no room of the house; add it to the reading order"
        assert ORDER.index(other) <= own, f"{at(path, node)}: {room(path)} reads before {other}; move the line there"


def test_every_room_stands_in_the_reading_order():
    assert {room(p) for p in FILES} - {"__init__"} == set(ORDER)


def test_cupy_is_spoken_of_in_the_backend_and_the_kernels_only():
    for path in FILES:
        if room(path) in MAY_SAY_CUPY:
            continue
        for node, other in imports(path):
            assert other != "=cupy", f"{at(path, node)}: cupy is imported in backend.py and kernels/ alone"
        for node in ast.walk(TREES[path]):
            named = isinstance(node, ast.Name) and node.id in ("cupy", "cp")
            assert not named, f"{at(path, node)}: only backend.py and kernels/ say cupy; ask backend.namespace for xp"


def test_vjps_live_with_the_ops():
    for path in FILES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef) and node.name == "vjp":
                assert room(path) in MAY_DEFINE_VJP, f"{at(path, node)}: a vjp lives in ops/, below its forward"


def test_matplotlib_is_imported_inside_draw_only():
    for path in FILES:
        for node, other in imports(path):
            if other == "=matplotlib":
                assert room(path) in MAY_IMPORT_MATPLOTLIB, f"{at(path, node)}: drawing belongs to draw.py"
                top = node in TREES[path].body
                assert not top, f"{at(path, node)}: matplotlib is imported inside functions, where it is needed"


def test_only_the_outer_rooms_print_and_open_files():
    for path in FILES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "open"):
                assert room(path) in MAY_PRINT_OR_OPEN, (
                    f"{at(path, node)}: {node.func.id}( belongs to cli, train or data"
                )


def test_no_op_names_a_dtype():
    names = re.compile(r"^(float|int|uint|complex)(8|16|32|64)$|^bool_$")
    allowed = {"philox.py"}  # its words are integers of 64 bits by definition
    for path in FILES:
        if room(path) != "ops" or path.name in allowed:
            continue
        docs = {id(node.value) for node in ast.walk(TREES[path]) if isinstance(node, ast.Expr)}
        for node in ast.walk(TREES[path]):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in docs else getattr(node, "attr", "")
            assert not (isinstance(text, str) and names.match(text)), (
                f"{at(path, node)}: ops keep the dtype they are given"
            )


def test_nothing_is_ever_unpickled_or_evaluated():
    for path in FILES:
        for node, other in imports(path):
            assert other not in ("=pickle", "=marshal", "=shelve", "=dill"), f"{at(path, node)}: nothing is unpickled"
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{at(path, node)}: no eval, no exec"


def test_there_is_no_utils():
    for path in [*FILES, *(ROOT / "tests").rglob("*.py")]:
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), (
            f"{path}: name the room by what it holds"
        )


def public():
    """Yield (name, object) of everything public that is a class or a function."""
    rooms = [
        "backend",
        "tensor",
        "recompute",
        "gradcheck",
        "ops",
        "views",
        "trace",
        "examples",
        "parallel",
        "nn",
        "nn.init",
        "models",
        "optim",
        "data",
    ]
    for module in [
        *rooms,
        "data",
        "checkpoint",
        "train",
        "generate",
        "draw",
        "tasks",
        "gradcases",
        "lessons",
        "figures",
    ]:
        loaded = importlib.import_module(f"minitransformer.{module}")
        for name in getattr(loaded, "__all__", vars(loaded)):
            value = getattr(loaded, name)
            named = not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
            if named and value.__module__.startswith(f"minitransformer.{module.split('.')[0]}"):
                yield f"{module}.{name}", value


PUBLIC = dict(public())
TAKES_ARRAYS = {"ops", "nn"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    value = PUBLIC[name]
    assert value.__doc__, f"{name} has no docstring"
    first = value.__doc__.strip().split("\n")[0]
    assert re.search(r"[.:)]$|→|\S$", first) and first[0].isupper() or first[0] in "\"'`", f"{name}: {first!r}"
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if (
                inspect.isfunction(function)
                and not method.startswith("_")
                and method not in ("forward", "to_json", "split")
            ):
                inherited = any(method in vars(base) for base in value.__mro__[1:])
                assert function.__doc__ or inherited, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", [n for n in PUBLIC if n.split(".")[0] in TAKES_ARRAYS])
def test_what_takes_arrays_says_their_shapes(name):
    value = PUBLIC[name]
    takes = not inspect.isclass(value) or (hasattr(value, "forward") and name not in ("nn.Module", "nn.ModuleList"))
    if takes and name not in ("nn.Parameter",):
        assert "→" in value.__doc__, f"{name}: its docstring has no shape line, such as x: (B, T, D) → (B, T, D)"


def test_size_is_a_smell():
    for path in FILES:
        name, lines = str(path.relative_to(PACKAGE)), len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= FILE_LINES or name in LARGE, f"{name} has {lines} lines; split it, or give its reason in LARGE"
        assert name not in LARGE or lines > FILE_LINES * 0.75, f"{name} is small again; take it out of LARGE"
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                doc = len((ast.get_docstring(node) or "").splitlines())
                assert length - doc <= FUNCTION_LINES or node.name in LONG_FUNCTIONS, (
                    f"{at(path, node)}: {length} lines"
                )


def test_tests_mirror_the_package():
    """You can guess the path of any test: package/a/b.py is held by tests/a/test_b.py.

    All kernels are held by tests/kernels/test_registry.py, and all exercises with their solutions by
    tests/lessons/test_exercise.py, which walk them.
    """
    elsewhere = {"optim/sgd.py", "optim/adam.py", "optim/adafactor.py"}  # tests/optim/test_against_oracles.py
    for path in FILES:
        name = path.relative_to(PACKAGE)
        if path.name == "__init__.py" or str(name) in elsewhere or room(path) == "kernels":
            continue
        if path.parent.name in ("exercises", "solutions"):
            continue
        test = ROOT / "tests" / name.parent / f"test_{name.name}"
        assert test.exists(), f"{name} has no {test.relative_to(ROOT)}"


def test_no_test_is_shadowed_by_a_second_of_its_name():
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = [n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
        assert len(names) == len(set(names)), f"{path.name}: {[n for n in names if names.count(n) > 1]}"


def test_ci_runs_the_readmes_test_command():
    readme, ci = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".ci/run"))
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2, "README has two commands: one that runs the main job, one that runs the tests"
    assert commands[1] in ci.replace("install -q", "install"), ".ci/run calls another command than the README names"


def test_the_readmes_links_and_pictures_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), f"README points at {target}, which is not there"


def test_the_readmes_example_runs(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in re.findall(r"# → (.*)", example):
        assert line.strip() in done.stdout, f"the README says {line!r}; it printed {done.stdout!r}"


def test_public_names_are_those_of_the_package():
    for name in mt.__all__:
        assert hasattr(mt, name)
    for name in "tensor Tensor no_grad grad value_and_grad gradcheck manual_seed ops nn optim models save load".split():
        assert name in mt.__all__

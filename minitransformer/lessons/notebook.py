"""From lessons/NN_name.py to lessons/NN_name.ipynb: run in a clean kernel, and written so that nothing changes in vain.

The source is jupytext's py:percent; the notebook holds the same cells with their outputs. Ids of cells come from
their text, no time is kept, and what a cell prints comes as one piece.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint import write_atomically

PACKAGES = Path(__file__).resolve().parents[2]  # where the kernel shall find this very minitransformer
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
# Run before the first cell. Switching pictures on makes IPython forget what it was told about figures: so it is first.
PREPARE = "%matplotlib inline\n__import__('minitransformer.lessons.pictures').lessons.pictures.prepare_kernel()"
SECONDS = 600  # after which a cell that does not end is stopped


class Picture(NamedTuple):
    """A figure of a lesson: its name, its PNG and its numbers."""

    name: str
    png: bytes
    values: dict[str, Any]


class Run(NamedTuple):
    """A lesson that was run: the notebook, its pictures and how long it took."""

    notebook: Any
    pictures: list[Picture]
    seconds: float


def tools() -> Any:
    """Return (jupytext, nbformat, nbclient). Raises RuntimeError that says how to install them."""
    try:
        import jupytext
        import nbclient
        import nbformat
    except ImportError as error:
        raise RuntimeError(
            "building lessons needs jupytext, nbclient and ipykernel; they are not installed here; "
            "write pip install 'minitransformer[lessons]'"
        ) from error
    return jupytext, nbformat, nbclient


def sources(folder: Path, numbers: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """Return the sources of the lessons asked for, or of all, in order. Raises ValueError where there are none."""
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not found:
        raise ValueError(f"lessons are NN_name.py in a folder; {folder} has none; write --folder PATH/lessons")
    known = {path.name[:2]: path for path in found}
    for number in numbers:
        if number not in known:
            raise ValueError(f"a lesson has two digits; got {number!r}; there are {', '.join(known)}")
    return [known[number] for number in known if not numbers or number in numbers]


def parse(path: Path) -> Any:
    """Return the notebook that a source stands for, without outputs."""
    jupytext, nbformat, _ = tools()
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells = []
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        name = f"{path.name[:2]}-{digest}" + (f"-{seen[digest]}" if seen[digest] > 1 else "")
        new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        cells.append(new(cell.source, id=name))
    return nbformat.v4.new_notebook(cells=cells, metadata=json.loads(json.dumps(METADATA)))


def read(path: Path) -> Any:
    """Return the notebook beside a source. Raises ValueError when it is missing."""
    built = path.with_suffix(".ipynb")
    if not built.exists():
        raise ValueError(f"each source has a notebook; {built} is missing; write minitransformer lessons build")
    return tools()[1].read(built, as_version=4)


def execute(path: Path) -> Run:
    """Run a source from a clean kernel, with warnings as errors.

    Raises RuntimeError with the cell and the complaint when one fails.
    """
    _, nbformat, nbclient = tools()
    notebook = parse(path)
    cells = notebook.cells
    notebook.cells = [nbformat.v4.new_code_cell(PREPARE), *cells]
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=50"],  # the kernel's own remarks are no part of a lesson
        resources={"metadata": {"path": str(path.parent)}},
    )
    paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    begun = time.perf_counter()
    try:
        with client.setup_kernel(env=environment):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index, store_history=index > 0)
    except nbclient.exceptions.CellExecutionError as error:
        said = re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}")
        first = notebook.cells[index].source.splitlines()[0]
        raise RuntimeError(
            f"a lesson runs without an error; {path.name} cell {index}, “{first}”: {said}; mend it"
        ) from None
    seconds = time.perf_counter() - begun
    notebook.cells = cells
    notebook.metadata = json.loads(json.dumps(METADATA))
    return Run(notebook, _pictures(path, cells), seconds)


def _pictures(path: Path, cells: Any) -> list[Picture]:
    """Take the numbers of the figures out of the outputs, where they would be twice."""
    pictures = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data and "application/json" in data:
                values = data.pop("application/json")
                output.metadata.pop("application/json", None)
                png = base64.b64decode(data["image/png"])
                pictures.append(Picture(values["figure"], png, values))
    names = Counter(picture.name for picture in pictures)
    for name, count in names.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or count > 1:
            raise ValueError(
                f'each picture of a lesson has a name of its own, of a-z, 0-9 and "-"; {path.name} has {name!r}, '
                f'{count} times; write plt.subplots(num="some-name")'
            )
    return pictures


def write(path: Path, run: Run, figures: Path) -> None:
    """Write the notebook beside its source, and figures/NN/name.png and .json; remove pictures that are no more."""
    _, nbformat, _ = tools()
    text = nbformat.writes(run.notebook, version=nbformat.NO_CONVERT)
    folder = figures / path.name[:2]
    kept = {f"{picture.name}.{kind}" for picture in run.pictures for kind in ("png", "json")}
    if run.pictures:
        folder.mkdir(parents=True, exist_ok=True)
    for picture in run.pictures:
        write_atomically(folder / f"{picture.name}.png", picture.png)
        panels = ",\n".join(json.dumps(panel, ensure_ascii=False) for panel in picture.values["panels"])
        head = f'{{"figure": {json.dumps(picture.name)}, "lesson": {json.dumps(path.stem)}, "panels": [\n'
        write_atomically(folder / f"{picture.name}.json", f"{head}{panels}\n]}}\n".encode())
    for stale in folder.glob("*.*"):
        if stale.name not in kept:
            stale.unlink()
    write_atomically(path.with_suffix(".ipynb"), text.rstrip("\n").encode() + b"\n")

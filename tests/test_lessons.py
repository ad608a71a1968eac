"""The lessons: each notebook is its source, run; and each source runs from a clean kernel without a warning."""

import base64
import json
from pathlib import Path

import pytest

from minitransformer.lessons import declared, notebook, rules

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "lessons"
FIGURES = ROOT / "figures" / "lessons"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SECONDS = 60  # on two cores, from the start of the kernel


def by_name(path):
    return path.stem


def test_the_ladder_has_no_missing_rung():
    assert [path.name[:2] for path in SOURCES] == [f"{i:02d}" for i in range(1, len(SOURCES) + 1)]
    stray = {path.stem for path in FOLDER.glob("*.ipynb")} - {path.stem for path in SOURCES}
    assert not stray, f"notebooks without a source: {stray}"


@pytest.mark.parametrize("path", SOURCES, ids=by_name)
def test_a_lesson_keeps_the_rules(path):
    """Source and notebook agree; question, short cells that show something, checked formulas, links, exercises."""
    found = rules.complaints(path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=by_name)
def test_a_lesson_has_a_few_exercises(path):
    assert 2 <= len(declared(path.name[:2])) <= 4


@pytest.mark.parametrize("path", SOURCES, ids=by_name)
def test_no_exercise_is_solved_in_the_notebook(path):
    for cell in notebook.read(path).cells:
        if cell.cell_type == "code" and "lessons.check(" in cell.source:
            (output,) = [o for o in cell.outputs if "text/html" in o.get("data", {})]
            assert output.data["text/plain"].startswith("○"), output.data["text/plain"]


@pytest.mark.parametrize("path", SOURCES, ids=by_name)
def test_each_picture_lies_in_figures_with_its_numbers(path):
    pictures = [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.read(path).cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    folder = FIGURES / path.name[:2]
    files = sorted(folder.glob("*.png"))
    assert sorted(pictures) == sorted(f.read_bytes() for f in files), f"{folder} differs from the notebook; build it"
    assert {p.name for p in folder.glob("*")} == {f"{f.stem}.{kind}" for f in files for kind in ("json", "png")}
    for file in files:
        values = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        assert values["figure"] == file.stem and values["lesson"] == path.stem and any(values["panels"])


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=by_name)
def test_a_lesson_runs_from_a_clean_kernel(path):
    """Warnings are errors there; every cell shows what kind of thing its notebook shows; nothing takes long."""
    run = notebook.execute(path)
    assert run.seconds <= SECONDS, f"{run.seconds:.0f} s"

    def kinds(cells):
        return [[sorted(o.get("data", [o.get("name")])) for o in c.get("outputs", ())] for c in cells]

    assert kinds(run.notebook.cells) == kinds(notebook.read(path).cells)
    assert not list(rules.outputs(run.notebook))


def test_the_readme_lists_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in SOURCES:
        assert f"(lessons/{path.stem}.ipynb)" in readme, f"README has no line for {path.stem}"

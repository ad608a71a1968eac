"""One command makes the figures, with their numbers beside them, the same each time."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from minitransformer import figures, tasks

ROOT = Path(__file__).parent.parent
SMALL = {"d_model": 16, "d_ff": 32, "heads": 2, "layers": 1, "batch_size": 8, "steps": 4}


def test_a_trained_model_is_drawn_from_its_seed(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 8)
    said, settings = [], {**SMALL, "backend": backend}
    texts = []
    for out in ("a", "b"):
        made = figures.make(["reversal"], tmp_path / out, tmp_path, 3, settings, said.append)
        assert made == [tmp_path / out / "reversal"]
        texts.append((made[0] / "attend-cross-layer1.json").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] and said == ["training reversal"] * 2
    assert sorted(p.suffix for p in made[0].iterdir()) == [".json", ".png", ".svg"]
    values = json.loads(texts[0])
    assert values["columns"] == "0 1 2 3 4 5 6 7".split() and values["rows"][-1] == "<eos>"
    assert len(values["weights"]) == 1 and len(values["weights"][0]) == 2  # one layer, all heads


def test_lessons_are_run(tmp_path):
    (tmp_path / "lessons").mkdir()
    source = tmp_path / "lessons" / "01_one.py"
    source.write_text("# %%\nimport matplotlib.pyplot as plt\n\nplt.figure('dot')\nplt.plot([1], 'o')\nplt.show()\n")
    figures.make(["lessons"], tmp_path / "figures", tmp_path / "lessons")
    assert (tmp_path / "figures/lessons/01/dot.png").exists() and source.with_suffix(".ipynb").exists()


def test_an_unknown_name_makes_nothing(tmp_path):
    with pytest.raises(ValueError, match="figures are reversal, numbers, step, lessons; got 'loss'"):
        figures.make(["reversal", "loss"], tmp_path / "figures", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [[], ["step"]])
def test_without_a_browser_nothing_is_begun(tmp_path, monkeypatch, names):
    monkeypatch.setattr(figures.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="Chromium draws step; .*minitransformer figures reversal numbers lessons$"):
        figures.make(names, tmp_path / "figures", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_a_step_is_drawn_as_a_browser_shows_it(tmp_path, browser_binary):
    figures.make(["step"], tmp_path, tmp_path)
    picture = plt.imread(tmp_path / "step" / "attention.png")
    assert picture.shape[:2] == (1050, 1770) and (picture[..., :3].min(axis=-1) < 0.5).mean() > 0.02  # ink
    record = json.loads((tmp_path / "step" / "attention.json").read_text(encoding="utf-8"))
    assert record["steps"][figures.STEP[1] - 1]["op"] == "_softmax"


def test_a_browser_that_draws_nothing_is_quoted(tmp_path):
    with pytest.raises(RuntimeError, match="false made no picture; it said: nothing"):
        figures.shown_step(shutil.which("false"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_figures_of_the_readme_are_made_by_a_command():
    """All but timings, which are of one machine: those are made by `bench`."""
    made = {*figures.NAMES, "bench"}
    assert {p.name for p in (ROOT / "figures").iterdir()} == made
    for name in figures.SHOWN:
        assert (ROOT / "figures" / name / f"attend-cross-layer{figures.LAYER}.json").exists()
    for picture in (ROOT / "figures").rglob("*.png"):
        assert picture.with_suffix(".json").exists(), f"{picture} has no numbers beside it"

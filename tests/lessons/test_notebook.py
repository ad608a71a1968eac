"""A source becomes a notebook that is the same in every run."""

import json
import sys

import pytest

from minitransformer.lessons import notebook

SOURCE = """\
# %% [markdown]
# # 01 · A test
#
# Is it?

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(num="two-points")
axes.plot([1, 2], [3, 4])
plt.show()

# %%
import sys

import minitransformer as mt

print("one")
print("two")
mt.__file__

# %%
print("again")

# %%
print("again")
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "lessons").mkdir()
    path = tmp_path / "lessons" / "01_test.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_ids_come_from_the_text_and_differ(source):
    ids = [cell.id for cell in notebook.parse(source).cells]
    assert ids == [cell.id for cell in notebook.parse(source).cells] and len(set(ids)) == 5
    assert ids[4] == ids[3] + "-2" and all(i.startswith("01-") for i in ids)
    source.write_text(SOURCE.replace('"one"', '"three"'), encoding="utf-8")
    changed = [cell.id for cell in notebook.parse(source).cells]
    assert [a == b for a, b in zip(ids, changed, strict=True)] == [True, True, False, True, True]


def test_a_build_is_the_same_twice_and_uses_this_library(source, tmp_path):
    figures = tmp_path / "figures"
    (figures / "01").mkdir(parents=True)
    (figures / "01" / "old.png").touch()
    texts = []
    for _ in range(2):
        run = notebook.execute(source)
        notebook.write(source, run, figures)
        texts.append(source.with_suffix(".ipynb").read_bytes())
    assert texts[0] == texts[1] and texts[0].endswith(b"}\n")
    built = notebook.read(source)
    first, second = built.cells[2].outputs
    assert first.text == "one\ntwo\n"
    assert second.data["text/plain"].strip("'") == str(notebook.PACKAGES / "minitransformer" / "__init__.py")
    assert b'"execution"' not in texts[0] and b"application/json" not in texts[0]
    assert sorted(p.name for p in (figures / "01").iterdir()) == ["two-points.json", "two-points.png"]
    values = json.loads((figures / "01" / "two-points.json").read_text())
    assert values["lesson"] == "01_test" and values["panels"][0]["lines"][0]["y"] == [3, 4]


@pytest.mark.parametrize(
    "cell, said",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import warnings\nwarnings.warn('old')", "UserWarning: old"),
        ("import numpy as np\nnp.log(np.array(0.0))", "RuntimeWarning: divide by zero"),
    ],
)
def test_an_error_or_a_warning_stops_the_build(cell, said, source):
    source.write_text(f"# %%\n{cell}\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="a lesson runs without an error; 01_test.py cell 1") as caught:
        notebook.execute(source)
    assert said in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Two Points", "two"])
def test_a_picture_has_a_name_of_its_own(name, source):
    one = f"plt.subplots(num={name!r})[1].plot([1])\nplt.show()\n" if name else "plt.plot([1])\nplt.show()\n"
    source.write_text(f"# %%\nimport matplotlib.pyplot as plt\n{one * 2}", encoding="utf-8")
    with pytest.raises(ValueError, match="each picture of a lesson has a name of its own"):
        notebook.execute(source)


def test_which_lessons(source, tmp_path):
    other = source.with_name("02_more.py")
    other.touch()
    assert notebook.sources(source.parent) == [source, other]
    assert notebook.sources(source.parent, ["02"]) == [other]
    with pytest.raises(ValueError, match="got '3'; there are 01, 02"):
        notebook.sources(source.parent, ["3"])
    with pytest.raises(ValueError, match="has none; write --folder"):
        notebook.sources(tmp_path / "none")
    with pytest.raises(ValueError, match="01_test.ipynb is missing"):
        notebook.read(source)


def test_without_jupytext_one_line_says_what_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(RuntimeError, match=r"write pip install 'minitransformer\[lessons\]'"):
        notebook.parse(source)

"""Each rule of the lessons catches a lesson that breaks it."""

import nbformat
import pytest

from minitransformer.lessons import notebook, rules

GOOD = """\
# %% [markdown]
# # 98 · Squares
#
# How large is the square of a number?
#
# See [shape.py](../minitransformer/ops.py).

# %% [markdown]
# $$y = x^2$$

# %%
x = 3
assert x**2 == 9
x**2

# %% [markdown]
# ## Exercises

# %%
def f(x): ...
lessons.check("99.1", f)
"""


@pytest.fixture
def lesson(tmp_path):
    """Write a lesson that keeps the rules, with a part of its text exchanged; return what the rules say."""
    (tmp_path / "minitransformer").mkdir()
    (tmp_path / "minitransformer" / "ops.py").touch()
    (tmp_path / "lessons").mkdir()

    def write(old="", new="", change=lambda built: None):
        path = tmp_path / "lessons" / "98_squares.py"
        path.write_text(GOOD, encoding="utf-8")
        built = notebook.parse(path)
        count = 0
        for cell in built.cells:
            if cell.cell_type == "code":
                count += 1
                cell.execution_count = count
                cell.outputs = [nbformat.v4.new_output("stream", text="9\n")]
        change(built)
        nbformat.write(built, path.with_suffix(".ipynb"))
        assert old in GOOD
        path.write_text(GOOD.replace(old, new) if old else GOOD, encoding="utf-8")
        return [line for line in rules.complaints(path) if "99.1" not in line]  # which no lesson declares

    return write


def test_a_good_lesson_is_not_complained_of(lesson):
    assert lesson() == []


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("x**2 == 9", "x * x == 9", "differs from the notebook"),
        ("# # 98 · Squares", "# # Squares", "begins with a cell of text"),
        ("of a number?", "of a number.", "asks a question"),
        ("## Exercises", "## The end", 'the last section of a lesson is "## Exercises"'),
        ('lessons.check("99.1", f)', "f", "the last code cell"),
        ("x = 3\n", "x = 3\n" + "x\n" * 10, "13 lines; at most 12"),
        ("x = 3\n", "x = 3  # " + "x" * 100 + "\n", "109 characters"),
        ("assert x**2 == 9\n", "", "displays a formula"),
        ("assert x**2 == 9\n", "assert True\n", "displays a formula"),
        ("x = 3\n", "import scipy\nx = 3\n", "imports scipy"),
        ("x = 3\n", "from torch.nn import Linear\nx = 3\n", "imports torch"),
        ("../minitransformer/ops.py", "../minitransformer/none.py", "leads nowhere"),
        ("[shape.py](../minitransformer/ops.py)", "nothing", "links to the file where the real thing lives"),
    ],
)  # fmt: skip
def test_a_source_that_breaks_a_rule(old, new, said, lesson):
    assert any(said in line for line in lesson(old, new)), lesson(old, new)


def _no_output(built):
    built.cells[2].outputs = []


def _error(built):
    built.cells[2].outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]


def _warning(built):
    built.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="UserWarning")]


def _address(built):
    built.cells[2].outputs = [nbformat.v4.new_output("stream", text="<object at 0x7f0012345678>")]


def _order(built):
    built.cells[2].execution_count = 7


def _other_cell(built):
    built.cells[2].source = "x"


def _other_id(built):
    built.cells[2].id = "another"


def _one_cell_more(built):
    built.cells.append(nbformat.v4.new_markdown_cell("more", id="more"))


def _metadata(built):
    built.metadata["author"] = "me"


def _matplotlib(built):
    data = {"text/plain": "(Text(0.5, 0, 'x'), None)"}
    built.cells[2].outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)]


def _large(built):
    built.cells[2].outputs = [nbformat.v4.new_output("stream", text="9" * 1_000_000)]


@pytest.mark.parametrize(
    "change, said",
    [
        (_no_output, "shows nothing"),
        (_matplotlib, "end it with plt.show()"),
        (_error, "holds an error, ValueError"),
        (_warning, "standard error"),
        (_address, "an address or a path"),
        (_order, "not run in order"),
        (_other_cell, "differs from the notebook"),
        (_other_id, "differs from the notebook"),
        (_one_cell_more, "differs from the notebook"),
        (_metadata, "metadata"),
        (_large, "at most 1000000 bytes"),
    ],
)
def test_a_notebook_that_breaks_a_rule(change, said, lesson):
    assert any(said in line for line in lesson(change=change)), lesson(change=change)


def test_a_missing_notebook_and_a_missing_neighbour(lesson, tmp_path):
    assert lesson() == []
    second = tmp_path / "lessons" / "99_cubes.py"
    second.write_text(GOOD.replace("98 ·", "99 ·"), encoding="utf-8")
    assert any("99_cubes.ipynb is missing" in line for line in rules.complaints(second))
    assert any("98_squares.ipynb is not linked" in line for line in rules.complaints(second))
    assert any("99_cubes.ipynb is not linked" in line for line in lesson())


def test_exercises_are_those_that_are_declared(tmp_path):
    path = tmp_path / "01_none.py"
    path.write_text(GOOD, encoding="utf-8")
    said = list(rules.graded("01", notebook.parse(path)))
    assert "exercise 99.1 is asked for but not declared; write both, or neither" in said
    assert any("exercise 01.1 is declared but not asked for" in line for line in said)
    assert any("**01.1 The slopes of a quotient**" in line for line in said)
    assert any("def quotient_slopes(a, b)" in line for line in said)

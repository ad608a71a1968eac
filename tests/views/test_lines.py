"""Which line is running, which part of it, and what its value is called."""

import sys

from minitransformer.views import lines


def look(*_):
    return lines.calling(sys._getframe(1), test_whose_code_it_is.__code__)


def deep():
    return look()


def test_the_name_is_that_of_the_variable():
    found = look()
    assert found.name == "found" and found.lines[0].text == "found = look()"
    assert found.lines[0].where.endswith(f"tests/views/test_lines.py:{found.lines[0].number}")


def test_it_looks_no_further_out_than_it_is_told():
    def inner():
        return lines.calling(sys._getframe(0), test_it_looks_no_further_out_than_it_is_told.__code__)

    found = inner()
    assert found.name is None and [line.function.rpartition(".")[2] for line in found.lines] == ["inner"]


def test_returns_pass_the_name_on():
    def given():
        given_name = deep()
        return given_name

    found = given()
    assert found.name == "given_name" and found.lines[0].function == "deep"


def test_two_names_in_one_line_are_told_apart():
    first, second = deep(), look()
    assert (first.name, second.name) == ("first", "second")
    box = {}
    box["k"] = deep()
    assert box["k"].name == "box['k']"


def test_an_expression_without_a_name_is_called_by_itself_if_it_is_short():
    assert (look(), 1)[0].name == "look()"
    a_long_name_for_a_thing_that_is_not_short = 1
    assert [look(a_long_name_for_a_thing_that_is_not_short)][0].name is None


def test_lines_of_more_than_one_row_are_shown_whole_up_to_a_few():
    many = look(
        1,
        2,
    )
    assert many.lines[0].text == "many = look(\n    1,\n    2,\n)" and many.lines[0].end == 0
    most = look(
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    )
    assert most.lines[0].text.count("\n") == lines.MOST_LINES and most.lines[0].text.endswith("…")


def test_columns_count_characters_and_not_bytes():
    wörter = [look("ä"), look("é")]
    line = wörter[1].lines[0]
    assert line.text[line.start : line.end] == 'look("é")'


def test_whose_code_it_is():
    import numpy as np

    from minitransformer import Tensor, nn, ops

    assert lines.kind_of(Tensor.backward.__code__) == "engine"
    assert lines.kind_of(ops.softmax.__code__) == "book"
    assert lines.kind_of(nn.Linear.forward.__code__) == "package"
    assert lines.kind_of(np.linspace.__wrapped__.__code__) == "user"
    assert lines.kind_of(ops._add.__code__) == "engine"  # an operator passes on


def test_a_file_that_is_no_python_gives_no_name(tmp_path):
    assert lines._uses("cell", "%matplotlib inline\nx = 1") == {}


def test_paths_are_shown_without_what_is_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lines.short_path(str(tmp_path / "a" / "b.py")) == "a/b.py"
    assert lines.short_path("/somewhere/private/c.py") == "c.py"
    assert lines.short_path("/somewhere/ipykernel_123/988627483.py") == "cell"
    assert lines.short_path(lines.__file__) == "minitransformer/views/lines.py"

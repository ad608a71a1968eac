"""A user's files: what is read, what is refused and with which words; splits that do not leak."""

import numpy as np
import pytest

from minitransformer import data


def test_pairs_are_read_as_written(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeffone\teins\r\n\n  two \tzwei\ncafe\u0301\tx".encode())
    assert data.read_pairs(path) == [("one", "eins"), ("two", "zwei"), ("café", "x")]


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"one\teins\ntwo zwei\n", "line 2 has 0 TABs"),
        (b"a\tb\tc\n", "line 1 has 2 TABs"),
        (b"a\tb\n\t\n c\t \n", "line 3 has an empty side"),
        (b"a\tb\n\xff\xfe\tx\n", "not, at line 2"),
    ],
)
def test_what_is_no_pair_is_named_with_its_line(content, text, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text) as caught:
        data.read_pairs(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        data.read_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder"):
        data.read_text(tmp_path)


def test_no_source_is_on_both_sides_of_a_split():
    pairs = [(f"s{i % 50}", f"t{i}") for i in range(200)]
    training, held = data.split_pairs(pairs, 0.2, seed=1)
    assert {s for s, _ in training}.isdisjoint({s for s, _ in held})
    assert len({s for s, _ in held}) == 10 and sorted(training + held) == sorted(pairs)
    assert data.split_pairs(pairs, 0.2, seed=1) == (training, held) != data.split_pairs(pairs, 0.2, seed=2)
    assert len(data.split_pairs(pairs[:2], 0.01)[1]) == 1
    with pytest.raises(ValueError, match="two different sources; got 1"):
        data.split_pairs([("a", "b"), ("a", "c")])


def test_windows_are_a_function_of_seed_and_step_and_targets_come_one_later():
    windows = data.TextWindows(list(range(100)), 8, 4, seed=5)
    inputs, targets = windows.at(3)
    assert inputs.shape == targets.shape == (4, 8)
    np.testing.assert_array_equal(inputs + 1, targets)
    np.testing.assert_array_equal(inputs, data.TextWindows(list(range(100)), 8, 4, seed=5).at(3)[0])
    ends = {int(t[-1]) for step in range(1, 400) for t in windows.at(step)[1]}
    assert max(ends) == 99  # the last token is learned too
    with pytest.raises(ValueError, match="max_length=8"):
        data.TextWindows(list(range(9)), 8, 4)

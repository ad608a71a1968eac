"""The numbers beside a picture are those that it shows."""

import json

import numpy as np

from minitransformer.lessons.pictures import MOST, plotted_values


def figure(**settings):
    from matplotlib.figure import Figure

    return Figure(**settings)


def test_what_is_drawn_is_what_is_kept():
    drawn = figure(label="all-kinds")
    left, right = drawn.subplots(1, 2)
    left.plot([0, 1], [2.0, 1 / 3], label="a line")
    left.set(title="T", xlabel="x", ylabel="y")
    left.text(0.5, 0.25, "here")
    left.text(0, 0, "")
    right.scatter([1, 2], [3, np.nan])
    right.bar(["a", "b"], [5, 7])
    right.imshow(np.ma.masked_greater([[1, 2], [3, 4]], 3))
    values = json.loads(json.dumps(plotted_values(drawn), allow_nan=False))
    one, two = values["panels"]
    assert values["figure"] == "all-kinds"
    assert one == {
        "title": "T", "x": "x", "y": "y", "lines": [{"label": "a line", "x": [0, 1], "y": [2.0, 0.333333]}],
        "words": [{"text": "here", "at": [0.5, 0.25]}],
    }  # fmt: skip
    assert two["points"] == [[[1, 3], [None, None]]]
    assert [bar[3] for bar in two["bars"]] == [5, 7]
    assert two["images"] == [[[1, 2], [3, None]]]


def test_words_and_large_arrays():
    drawn = figure(label="large")
    axes = drawn.subplots()
    axes.imshow(np.zeros((MOST, 2)))
    axes.plot(["a", "b"], [1, 2])
    (panel,) = plotted_values(drawn)["panels"]
    assert panel["images"] == [f"{2 * MOST} numbers, shape ({MOST}, 2)"]
    assert panel["lines"][0]["x"] == ["a", "b"]

"""What is shown of an array: every number of a small one, a true picture of a large one, and nothing hidden."""

import base64
import io
import warnings

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.views import arrays
from minitransformer.views.arrays import LARGEST, MINUS_INF, NAN, PLUS_INF, ZERO, array_html, picture


def test_up_to_twelve_by_twelve_every_number_is_shown(rng):
    x = rng.standard_normal((12, 12))
    (panel,) = picture(x).panels
    shown = np.array([float(t.replace("−", "-")) for t in panel.text]).reshape(12, 12)
    np.testing.assert_allclose(shown, x, atol=5.01e-3)
    assert picture(rng.standard_normal((12, 13))).panels[0].text is None


def test_cells_lie_on_a_scale_with_zero_in_the_middle():
    (panel,) = picture(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]])).panels
    assert panel.cells.tolist() == [[0, 62, ZERO, 188, LARGEST]]
    assert picture(np.zeros((2, 2))).panels[0].cells.tolist() == [[ZERO] * 2] * 2


def test_a_large_array_is_shown_in_means_of_blocks(rng):
    x = rng.standard_normal((50, 100))
    shown = picture(x)
    (panel,) = shown.panels
    assert panel.cells.shape == (17, 20) and panel.block == (3, 5) and "mean of 3×5 numbers" in shown.note
    size = np.abs(x).max()
    for r, c in ((0, 0), (16, 19), (7, 11)):  # the last row of blocks has two rows
        mean = x[3 * r : 3 * r + 3, 5 * c : 5 * c + 5].mean()
        assert panel.cells[r, c] == round(ZERO + mean / size * ZERO)
    assert (shown.low, shown.high) == (x.min(), x.max()) and shown.mean == pytest.approx(x.mean())


@pytest.mark.parametrize("shape", [(3, 5), (500, 700)])
def test_what_is_not_finite_is_seen_in_a_cell_and_counted(shape):
    x = np.ones(shape)
    x[0, 0], x[-1, -1], x[-1, 0] = np.nan, np.inf, -np.inf
    shown = picture(x)
    cells = shown.panels[0].cells
    assert (cells[0, 0], cells[-1, -1], cells[-1, 0]) == (NAN, PLUS_INF, MINUS_INF)
    assert shown.extent == "min 1 · mean 1 · max 1 · 3 NaN or ±∞"
    if shown.panels[0].text:
        assert (shown.panels[0].text[0], shown.panels[0].text[-1]) == ("NaN", "∞")
    assert picture(np.full((2, 2), np.nan)).extent == "4 NaN or ±∞"


def test_more_axes_are_shown_by_their_first_matrices(rng):
    x = rng.standard_normal((2, 3, 4, 5))
    shown = picture(x)
    assert [p.at for p in shown.panels] == ["[0, 0]", "[0, 1]", "[0, 2]", "[1, 0]"]
    assert "4 of 6 matrices" in shown.note
    flat = [float(t.replace("−", "-")) for t in shown.panels[3].text]
    np.testing.assert_allclose(flat, x[1, 0].ravel(), atol=5.01e-3)


@pytest.mark.parametrize(
    "value, text",
    [
        (np.array(3.14159265), ["3.14159"]),
        (np.array(7), ["7"]),
        (np.array([True, False]), ["T", "F"]),
        (np.array([[10**12, -5]]), ["1000000000000", "-5"]),
        (np.array([1e-9, 0.0]), ["1.0e−09", "0"]),
        (np.array([123.4, 0.001]), ["123", "0"]),
        (np.array([-0.0001, 1.0]), ["0.00", "1.00"]),
        (np.array([0.5, -0.25], "float16"), ["0.500", "−0.250"]),
    ],
)
def test_numbers_of_every_kind_read_sensibly(value, text):
    assert picture(value).panels[0].text == text


def test_nothing_is_shown_of_nothing():
    shown = picture(np.zeros((0, 3)))
    assert (shown.panels, shown.extent, shown.about) == ([], "empty", "float64 (0, 3)")
    assert array_html(np.zeros((0, 3)))


def test_a_picture_shrinks_and_keeps_what_is_strange(rng):
    x = rng.standard_normal((24, 24))
    x[5, 7] = np.nan
    small = picture(x).shrunk(6)
    assert small.panels[0].cells.shape == (6, 6) and small.panels[0].block == (4, 4)
    assert small.panels[0].cells[1, 1] == NAN and (small.panels[0].cells == NAN).sum() == 1
    mean = x[8:12, 8:12].mean() / np.nanmax(np.abs(x)) * ZERO + ZERO
    assert abs(int(small.panels[0].cells[2, 2]) - mean) <= 1
    assert picture(x).shrunk(0).panels == [] and picture(x[:3, :3]).shrunk(6).panels[0].text


def test_the_png_is_one(rng):
    from matplotlib.image import imread

    cells = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    pixels = imread(io.BytesIO(arrays.png(cells)))
    np.testing.assert_array_equal(np.round(pixels * 255), [[arrays.colour(c) for c in row] for row in cells.tolist()])


def test_ink_can_be_read_on_every_cell():
    def luminance(rgb):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return sum(p * w for p, w in zip(parts, (0.2126, 0.7152, 0.0722), strict=True))

    for code in range(256):
        ground = luminance(arrays.colour(code))
        ink = {"#000": 0.0, "#fff": 1.0}[arrays.ink(code)]
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 4.5, code


def test_a_tensor_shows_itself_in_a_notebook(rng):
    text = mt.tensor(rng.standard_normal((3, 5)), requires_grad=True)._repr_html_()
    assert "float64 (3, 5)" in text and "requires_grad" in text and text.count("<td") == 15 and len(text) < 4000
    large = mt.tensor(rng.standard_normal((300, 500)))._repr_html_()
    assert "<img" in large and len(large) < 6000
    assert base64.b64decode(large.partition("base64,")[2].partition('"')[0]).startswith(b"\x89PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = mt.tensor([[float("nan"), float("inf")]])._repr_html_()
    assert "NaN" in odd and "∞" in odd
    made = mt.ops.softmax(mt.tensor([1.0, 2.0], requires_grad=True))._repr_html_()
    assert "made by softmax" in made and "script" not in made
    assert "number" in mt.tensor(3.5)._repr_html_() and ">3.5<" in mt.tensor(3.5)._repr_html_()
    assert "&lt;b&gt;" in array_html(np.ones(2), "<b>")

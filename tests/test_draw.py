"""Figures: the numbers beside them, the conventions in them, nothing half-written, nothing global."""

import json
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import draw


def weights(rng, *shape):
    w = rng.random(shape)
    return w / w.sum(-1, keepdims=True)


def test_a_heatmap_is_three_files_with_the_plotted_values(tmp_path, rng):
    w = weights(rng, 3, 5)
    draw.attention_heatmap(w, "abc", "vwxyz", tmp_path / "deep" / "map.png", title="a $title$ with_underscores")
    values = json.loads((tmp_path / "deep" / "map.json").read_text())
    np.testing.assert_allclose(values["weights"], w, atol=1e-6)
    assert values["rows"] == list("abc") and values["columns"] == list("vwxyz") and values["allowed"] is None
    assert (tmp_path / "deep" / "map.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(tmp_path / "deep" / "map.svg")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["map.json", "map.png", "map.svg"]


def test_the_same_input_gives_the_same_bytes(tmp_path, rng):
    w = weights(rng, 2, 3, 4, 5)
    for name in ("a", "b"):
        draw.attention_grid(w, "abcd", "vwxyz", tmp_path / name, title="t")
    for ending in ("png", "svg", "json"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_rows_are_queries_the_scale_is_0_to_1_and_numbers_are_printed_when_few(rng):
    w = weights(rng, 3, 5) * 0.5
    figure = draw.attention_heatmap(w, ["q0", "q1", "q2"], ["k0", "k1", "k2", "k3", "k4"])
    axes = figure.axes[0]
    (image,) = axes.images
    assert image.get_clim() == (0, 1) and axes.get_ylim()[0] > axes.get_ylim()[1]  # the first query on top
    np.testing.assert_allclose(image.get_array(), w)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["q0", "q1", "q2"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["k0", "k1", "k2", "k3", "k4"]
    assert len(axes.texts) == 15 and axes.texts[0].get_text() == f"{w[0, 0]:.2f}"
    assert not draw.attention_heatmap(weights(rng, 13, 13), range(13), range(13)).axes[0].texts


def test_a_grid_has_a_panel_for_each_head_of_each_layer(rng):
    figure = draw.attention_grid(weights(rng, 2, 3, 4, 5), "abcd", "vwxyz")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"layer {i} · head {j}" for i in (1, 2) for j in (1, 2, 3)]
    figure = draw.attention_grid(weights(rng, 1, 1, 4, 5), "abcd", "vwxyz", first=(2, 4))
    assert figure.axes[0].get_title() == "layer 2 · head 4"


@pytest.mark.parametrize("heads, tokens", [(1, 12), (4, 6), (12, 12)])
def test_numbers_in_a_grid_fit_their_cells(rng, heads, tokens):
    figure = draw.attention_grid(weights(rng, 1, heads, tokens, tokens), range(tokens), range(tokens))
    for axes in figure.axes[:heads]:
        assert len(axes.texts) == tokens**2
        wide = axes.bbox.width / tokens
        assert (
            all(t.get_window_extent().width < wide for t in axes.texts[:: tokens + 1]) and axes.texts[0].get_size() >= 6
        )


def test_masked_cells_are_blank_and_a_leak_is_refused():
    allowed = np.tri(3, dtype=bool)
    w = allowed / allowed.sum(-1, keepdims=True)
    figure = draw.attention_heatmap(w, "abc", "abc", allowed=allowed)
    np.testing.assert_array_equal(np.ma.getmaskarray(figure.axes[0].images[0].get_array()), ~allowed)
    assert len(figure.axes[0].texts) == 6
    with pytest.raises(ValueError, match="leak in the mask"):
        draw.attention_heatmap(np.full((3, 3), 1 / 3), "abc", "abc", allowed=allowed)


@pytest.mark.parametrize(
    "tokens",
    [
        ["$x^2$", "a_b", "\\alpha"],
        ["日本", "🙂", "ß"],
        ["\n", " ", "\x00"],
        ["x" * 300, "", "y"],
        ["עברית", "é", "\ud800"],
    ],
)
def test_any_token_can_be_a_label(tokens, tmp_path, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw.attention_heatmap(weights(rng, 3, 3), tokens, tokens, tmp_path / "x.png")
    assert len(json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["rows"]) == 3
    ElementTree.parse(tmp_path / "x.svg")


def test_tensors_and_lists_are_taken(rng):
    w = weights(rng, 2, 2)
    for given in (mt.tensor(w), w.tolist(), w.astype("float16")):
        draw.attention_heatmap(given, "ab", "ab")


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda: draw.attention_heatmap(np.ones((2, 3)) / 3, "ab", "ab"), ValueError, "2 rows and 2 columns"),
        (lambda: draw.attention_heatmap(np.ones((2, 2, 2)) / 2, "ab", "ab"), ValueError, "attention_grid"),
        (lambda: draw.attention_heatmap(np.array([[2.0, -1.0]]), "a", "ab"), ValueError, "0..1; got -1 to 2"),
        (lambda: draw.attention_heatmap(np.array([[np.nan, 1.0]]), "a", "ab"), ValueError, r"first at \(0, 0\)"),
        (lambda: draw.attention_heatmap([["x", "y"]], "a", "ab"), TypeError, "real numbers"),
        (lambda: draw.gradient_norms({"a": {"b": ([1, 2], [1.0])}}), ValueError, "a, b: x and norms must be two lists"),
        (lambda: draw.gradient_norms({"a": {"b": ([2, 1], [1.0, 1.0])}}), ValueError, "x must increase"),
        (lambda: draw.gradient_norms({"a": {"b": ([1, 2], [1.0, -1.0])}}), ValueError, "a least norm of -1"),
        (lambda: draw.gradient_norms({"a": {"b": ([1, 2], [1.0, np.inf])}}), ValueError, "must be finite"),
        (lambda: draw.gradient_norms({"a": {"b": ([1, 2], ["x", "y"])}}), TypeError, "real numbers"),
        (lambda: draw.loss_curve([1, 2], [1.0]), ValueError, "one length"),
        (lambda: draw.loss_curve([2, 1], [1.0, 2.0]), ValueError, "must increase; got 2 then 1"),
        (lambda: draw.loss_curve([], []), ValueError, "N ≥ 1"),
        (lambda: draw.loss_curve([1], [float("inf")]), ValueError, "finite"),
    ],
)
def test_what_would_draw_a_lie_is_refused_in_one_line(act, error, text):
    with pytest.raises(error, match=text) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_loss_curve_shows_every_value_and_goes_logarithmic_when_it_has_to(tmp_path):
    steps = np.arange(1, 101)
    figure = draw.loss_curve(steps, 2.0 ** -(steps / 8.0), tmp_path / "loss.png", validation=([50, 100], [0.1, 0.01]))
    axes = figure.axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "loss (nats per token)"
    assert draw.loss_curve(steps, np.linspace(2, 1, 100)).axes[0].get_yscale() == "linear"
    values = json.loads((tmp_path / "loss.json").read_text())
    assert values["unit"] == "nats per token" and len(values["losses"]) == 100
    assert values["validation"] == {"steps": [50, 100], "losses": [0.1, 0.01]}


def test_norms_of_gradients_are_drawn_on_logarithmic_axes_with_their_values_beside(tmp_path):
    norms = 10.0 ** -np.arange(1, 41)
    norms[3] = 0.0
    panels = {
        "a $deep$ stack": {"vanishes": (range(1, 41), norms), "stays": (range(1, 41), np.ones(40))},
        "training": {"run": ([10, 20.5], [3.0, 2.0])}, "third": {"x": ([1], [1.0])}, "fourth": {"none": ([1], [0.0])},
    }  # fmt: skip
    figure = draw.gradient_norms(panels, tmp_path / "norms.png", "a title", {"training": "step"})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == list(panels)
    assert all(axes.get_yscale() == "log" for axes in shown)
    assert [axes.get_xlabel() for axes in shown[:2]] == ["layer (1 is next to the input)", "step"]
    first = shown[0]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["vanishes", "stays"]
    line = first.get_lines()[0].get_ydata()
    assert np.isnan(line[3])  # a gap
    np.testing.assert_array_equal(np.delete(line, 3), np.delete(norms, 3))
    low, high = first.get_ylim()
    assert low < 1e-40 and high > 1.0
    low, high = shown[1].get_ylim()
    assert high / low > 100  # what is flat looks flat
    values = json.loads((tmp_path / "norms.json").read_text())
    np.testing.assert_allclose(values["panels"]["a $deep$ stack"]["vanishes"], [np.arange(1, 41), norms], rtol=1e-5)
    assert values["across"] == {"training": "step"} and values["panels"]["training"]["run"] == [[10, 20.5], [3, 2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["norms.json", "norms.png", "norms.svg"]


def test_a_legend_hides_no_line():
    """It stands below the axes, and below the name of x."""
    curves = {f"curve {i}": (range(1, 9), np.full(8, 10.0**i)) for i in range(7)}
    figure = draw.gradient_norms({name: curves for name in ("one", "two", "three", "four")})
    figure.draw_without_rendering()
    for axes in figure.axes[:4]:
        assert axes.get_position().height > 0.2
        legend, name = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
        assert legend.y1 <= name.y0 + 1 and legend.y0 >= 0


def test_pyplot_is_never_loaded_and_no_setting_is_left_changed(rng, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw.attention_heatmap(weights(rng, 2, 2), "ab", "ab")
    assert dict(matplotlib.rcParams) == before
    code = """
import sys, numpy as np
from minitransformer import draw
draw.attention_grid(np.ones((1, 1, 2, 2)) / 2, "ab", "ab", "x.png")
draw.loss_curve([1, 2], [3.0, 2.0], "y.png")
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr


def test_a_failed_save_leaves_nothing(tmp_path, rng, monkeypatch):
    def broken(figure, kind):
        if kind == "svg":
            raise OSError("No space left on device")
        return b"png"

    monkeypatch.setattr(draw, "_render", broken)
    with pytest.raises(OSError, match="No space"):
        draw.attention_heatmap(weights(rng, 2, 2), "ab", "ab", tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path, rng):
    with pytest.raises(ValueError, match="must name a file"):
        draw.attention_heatmap(weights(rng, 2, 2), "ab", "ab", tmp_path)


def test_a_notebook_gets_a_picture(rng):
    assert draw.attention_heatmap(weights(rng, 2, 2), "ab", "ab")._repr_png_().startswith(b"\x89PNG")


def test_padding_is_cropped_and_a_weight_on_it_is_refused(tmp_path, rng):
    w = np.zeros((2, 3, 4, 6))
    w[..., :5] = weights(rng, 2, 3, 4, 5)
    labels = list("abcd"), [*"vwxyz", "<pad>"]
    draw.attention_grid(w, *labels, tmp_path / "grid", lengths=(3, 5))
    values = json.loads((tmp_path / "grid.json").read_text())
    assert values["rows"] == list("abc") and values["columns"] == list("vwxyz")
    np.testing.assert_allclose(values["weights"], w[..., :3, :5], atol=1e-6)
    figure = draw.attention_heatmap(w[0, 0], *labels, lengths=(4, 5))
    assert figure.axes[0].images[0].get_array().shape == (4, 5)
    with pytest.raises(ValueError, match="0 on padding; got .* behind column 4"):
        draw.attention_heatmap(w[0, 0], *labels, lengths=(4, 4))
    with pytest.raises(ValueError, match=r"got \(5, 5\) of \(4, 6\)"):
        draw.attention_heatmap(w[0, 0], *labels, lengths=(5, 5))

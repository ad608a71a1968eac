"""What the page of heads holds: the weights to within half a step, and tokens that stay text."""

import base64
import json
import re
import zlib

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.views.heads import LONGEST_LABEL, head_view, packed_weights, shown_token


def weights(rng, *shape):
    w = rng.random(shape) ** 6
    return w / w.sum(-1, keepdims=True)


def unpacked(packed, t, s):
    shape = packed["layers"], packed["heads"], t
    largest = np.frombuffer(zlib.decompress(base64.b64decode(packed["largest"])), "<f4").reshape(shape)
    levels = np.frombuffer(zlib.decompress(base64.b64decode(packed["levels"])), np.uint8).reshape(*shape, s)
    return largest[..., None] * levels / 255


def test_weights_arrive_to_half_a_step_of_their_rows_largest(rng):
    w = weights(rng, 2, 3, 5, 7)
    w[0, 0, 0] = 0  # a row that may look nowhere
    w[1, 2, 3] = 1 / 7  # one that looks at all alike
    found = unpacked(packed_weights("cross", w, range(5), range(7)), 5, 7)
    assert (np.abs(found - w) <= w.max(-1, keepdims=True) / 510 + 1e-7).all()
    assert (found[0, 0, 0] == 0).all() and found[1, 2, 3].tolist() == pytest.approx([1 / 7] * 7)
    uniform = unpacked(packed_weights("d", np.full((1, 1, 512, 512), 1 / 512), range(512), range(512)), 512, 512)
    np.testing.assert_allclose(uniform, 1 / 512, rtol=1e-6)


def test_512_tokens_of_sharp_heads_take_a_fraction_of_their_bytes(rng):
    scores = rng.standard_normal((1, 4, 512, 512)) * 3 - np.abs(np.subtract.outer(range(512), range(512)))
    e = np.exp(scores - scores.max(-1, keepdims=True))
    page = head_view({"decoder": (e / e.sum(-1, keepdims=True), range(512), range(512))})
    assert len(page) < 0.25 * e.size


def test_the_page_holds_all_kinds_and_their_labels(tmp_path, rng):
    cross = mt.tensor(weights(rng, 2, 3, 2, 4).astype("float32"))
    page = head_view({"cross": (cross, "ab", "wxyz"), "encoder": (weights(rng, 2, 3, 4, 4), "wxyz", "wxyz")},
                     tmp_path / "heads.html", title="x < y")  # fmt: skip
    assert (tmp_path / "heads.html").read_text(encoding="utf-8") == page and "<title>x &lt; y</title>" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [k["kind"] for k in data["kinds"]] == ["cross", "encoder"]
    assert data["kinds"][0]["rows"] == [["a"], ["b"]] and data["kinds"][1]["columns"] == [[c] for c in "wxyz"]
    np.testing.assert_allclose(unpacked(data["kinds"][0], 2, 4), cross.numpy(), atol=2e-3)
    assert page._repr_html_().startswith('<iframe title="x &lt; y"') and page._repr_html_().count("<") == 2


def test_tokens_are_never_read_as_anything_but_text(rng):
    tokens = ["</script><script>x", "$x^2$", "<img onerror=a>", "\n", " ", "é" * 40]
    page = head_view({"d": (weights(rng, 1, 1, 6, 6), tokens, tokens)})
    assert "</script><script>x" not in page and "<img" not in page and page.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["kinds"][0]["rows"][3:5] == [["\\n", "\n"], ["␣", " "]]
    assert data["kinds"][0]["rows"][:3] == [[t] for t in tokens[:3]]
    assert len(shown_token("é" * 40)) == LONGEST_LABEL and shown_token("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    "attention, text",
    [
        ({}, "at least one kind"),
        ({"d": (np.ones((2, 2)) / 2, "ab", "ab")}, r"must be \(L, H, T, S\).*got \(2, 2\)"),
        ({"d": (np.ones((1, 1, 2, 2)) / 2, "ab", "abc")}, "2 rows and 3 columns"),
        ({"d": (np.full((1, 1, 2, 2), 2.0), "ab", "ab")}, "lie in 0..1; got 2 to 2"),
        ({"d": (np.full((1, 1, 2, 2), np.nan), "ab", "ab")}, "lie in 0..1; got nan"),
        ({"d": (np.ones((1, 0, 2, 2)), "ab", "ab")}, "none of them 0"),
    ],
)
def test_what_would_be_a_lie_is_refused_in_one_line(attention, text):
    with pytest.raises(ValueError, match=text) as caught:
        head_view(attention)
    assert "\n" not in str(caught.value)

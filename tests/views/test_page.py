"""A page stands by itself: what is put into it stays data, and a file is whole or not there."""

import json
import os
import re

import pytest

from minitransformer.views import page

NASTY = "</script><script>alert(1)</script><!-- & \u2028 ' \" é 日本 \ud800"


def test_data_comes_back_as_it_was_and_can_end_no_script():
    text = page.embedded({"token": NASTY})
    assert "<" not in text and ">" not in text and "&" not in text and text.isascii()
    assert json.loads(text) == {"token": NASTY}


@pytest.mark.parametrize("template", ["stepper.html", "heads.html"])
def test_a_filled_template_has_no_hole_and_fetches_nothing(template):
    text = page.fill(template, "a <b> title & more", {"x": 1})
    assert not re.search(r"@[A-Z]+@", text) and "a &lt;b&gt; title &amp; more" in text
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|\bsrc=", text)
    assert text.count("<script") == text.count("</script>") and 'lang="en"' in text


def test_two_frames_do_not_know_of_each_other():
    framed = page.in_frame('<p class="a">x & y</p>', 'a "title"', 100)
    assert framed == (
        '<iframe title="a &quot;title&quot;" style="width:100%;height:100px;border:1px solid #8888;border-radius:6px" '
        'srcdoc="&lt;p class=&quot;a&quot;&gt;x &amp; y&lt;/p&gt;"></iframe>'
    )


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    assert page.save("text", None) == "text"
    page.save("a · b", tmp_path / "deep" / "x.html")
    assert (tmp_path / "deep" / "x.html").read_text(encoding="utf-8") == "a · b"
    with pytest.raises(ValueError, match="must name a file; got the folder"):
        page.save("text", tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        page.save("new", tmp_path / "deep" / "x.html")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.html"]
    assert (tmp_path / "deep" / "x.html").read_text(encoding="utf-8") == "a · b"

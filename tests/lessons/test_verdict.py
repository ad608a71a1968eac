"""A verdict reads well in a terminal and in a notebook."""

from minitransformer.lessons.verdict import Verdict


def test_text_and_html():
    verdict = Verdict("01.1", "wrong", ("01.1 Slopes: not right yet", "a < b & c"), "sign")
    assert repr(verdict) == "✗ 01.1 Slopes: not right yet\n  a < b & c"
    assert "a &lt; b &amp; c" in verdict._repr_html_() and "<script" not in verdict._repr_html_()
    assert not verdict and not verdict.passed


def test_states():
    assert Verdict("01.1", "right", ("x",)).passed and bool(Verdict("01.1", "right", ("x",)))
    assert [repr(Verdict("", state, ("",)))[0] for state in ("right", "wrong", "open")] == list("✓✗○")

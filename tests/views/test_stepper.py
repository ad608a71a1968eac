"""The page of a record holds the record; what it does in a browser is held by test_browser.py."""

import json
import re

import numpy as np

import minitransformer as mt


def test_the_page_holds_the_whole_record_in_one_file(tmp_path, rng):
    x = mt.tensor(rng.standard_normal((2, 3)).astype("float32"))
    trace = mt.trace(lambda x: x.tanh(), x)
    page = trace.html(tmp_path / "trace.html")
    assert (tmp_path / "trace.html").read_text(encoding="utf-8") == page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data) == json.loads(json.dumps(trace.to_json()))
    assert len(page) < 40_000


def test_names_from_a_program_stay_text():
    nasty = {"</script><b>": mt.tensor(np.ones((1, 2), "float32"), requires_grad=True)}
    page = mt.trace(lambda: nasty["</script><b>"] * 2).html()
    assert "</script><b>" not in page and page.count("</script>") == 3


def test_in_a_notebook_it_is_a_frame_of_its_own(rng):
    trace = mt.trace(lambda x: x.tanh(), mt.tensor([1.0]))
    framed = trace._repr_html_()
    assert framed.startswith('<iframe title="step through a function"') and framed.count("<") == 2

"""Both pages in a real browser: they render, step and switch, by keys and buttons, without a complaint or a request."""

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.examples import EXAMPLES
from minitransformer.views.heads import head_view

pytestmark = pytest.mark.browser
ARROWS = {"right": "\ue014", "left": "\ue012", "up": "\ue013", "down": "\ue015"}
HOME, END, PAGE_DOWN, ESCAPE = "\ue011", "\ue010", "\ue00f", "\ue00c"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def stepper(browse, tmp_path):
    def open_trace(trace, **window):
        trace.html(tmp_path / "trace.html")
        return browse(tmp_path / "trace.html", **window)

    return open_trace


def table(page, index):
    """Return the numbers of one of the heatmaps that are shown."""
    rows = page.all("#stage table")[index].find_elements("css selector", "tr")
    cells = [[td.text for td in row.find_elements("css selector", "td") if td.text] for row in rows]
    return [[float(t.replace("−", "-")) for t in row] for row in cells if row]


def test_steps_forwards_and_backwards_by_keys(stepper):
    trace = mt.trace(EXAMPLES["attention"])
    page = stepper(trace)
    places = [page.text("#place")]
    for _ in range(2 * len(trace)):
        page.press(ARROWS["right"])
        places.append(page.text("#place"))
    n = len(trace)
    assert places == [f"forward {i} of {n}" for i in range(1, n + 1)] + [
        f"backward {i} of {n}" for i in range(1, n + 1)
    ] + ["the leaves"]
    page.press(ARROWS["right"])  # no further
    assert page.text("#place") == "the leaves" and len(page.all(".card.result")) == 3
    for _ in range(3):
        page.press(ARROWS["left"])
    assert page.text("#place") == f"backward {n - 2} of {n}"
    page.press(HOME)
    assert page.text("#place") == f"forward 1 of {n}"
    page.press(ARROWS["left"], END)
    assert page.text("#place") == "the leaves"


def test_steps_by_buttons_the_list_and_the_slider(stepper):
    page = stepper(mt.trace(EXAMPLES["attention"]))
    page.click("#next")
    page.click("#next")
    assert page.text("#place") == "forward 3 of 8" and page.text("#stage h2") == "scores"
    page.click("#other")
    assert page.text("#place") == "backward 6 of 8" and page.text("#stage h2") == "back through scores"
    page.press("b")
    assert page.text("#place") == "forward 3 of 8"
    page.click("#previous")
    page.click("#last")
    assert not page.all("#next")[0].is_enabled() and not page.all("#other")[0].is_enabled()
    page.click("#first")
    assert not page.all("#previous")[0].is_enabled()
    page.all("#list button")[3].click()
    assert page.text("#place") == "forward 4 of 8" and page.text("#list [aria-current]") == "4 weights: softmax"
    page.click(".card header button")
    assert page.text("#place") == "forward 3 of 8"
    page.run("(s => { s.value = 11; s.dispatchEvent(new Event('input')); })(document.getElementById('slider'))")
    assert page.text("#place") == "backward 4 of 8"


def test_a_link_opens_a_step(browse, tmp_path):
    mt.trace(EXAMPLES["attention"]).html(tmp_path / "trace.html")
    page = browse(tmp_path / "trace.html", at="#4")
    assert page.text("#place") == "forward 4 of 8"
    page.run("location.hash = '#99'")
    page.wait("document.getElementById('place').textContent === 'the leaves'")


def test_it_shows_the_numbers_the_formula_and_the_line(stepper):
    trace = mt.trace(EXAMPLES["attention"])
    page = stepper(trace)
    page.press(*[ARROWS["right"]] * 3)
    assert page.text(".formula").splitlines()[-1] == "y = e / Σ(e)"
    assert page.text("mark") == "ops.softmax(scores, mask=past)"
    q, k = (np.array(x, float) for x in ([[1, 0], [0, 2], [1, 1]], [[1, 0], [0, 1], [2, -1]]))
    scores = q @ k.T / np.sqrt(2)
    np.testing.assert_allclose(table(page, 0), scores, atol=6e-3)
    weights = np.exp(scores) * np.tri(3)
    np.testing.assert_allclose(table(page, 2), weights / weights.sum(-1, keepdims=True), atol=6e-3)
    page.press("b")
    assert page.text(".formula") == "g_x = y·(g − Σ(g·y))" and "g arrives, for weights" in page.text("#stage")


def test_the_derivative_of_an_elementwise_op_stands_between_what_comes_and_what_goes(stepper):
    page = stepper(mt.trace(EXAMPLES["neuron"]))
    while page.text("#stage h2") != "back through y":
        page.press(ARROWS["right"])
    arrives, slope, leaves = (np.array(table(page, i)) for i in range(3))
    np.testing.assert_allclose(arrives * slope, leaves, atol=2e-3)
    assert "∂y/∂x" in page.text("#stage")


def test_it_can_be_heard_and_reached_without_a_pointer(stepper):
    page = stepper(mt.trace(EXAMPLES["attention"]))
    page.press(ARROWS["right"])
    live = page.all('[aria-live="polite"]')[0]
    assert live.get_attribute("textContent") == "forward 2 of 8: 2  q @ k.T: matmul"
    assert page.run("document.getElementById('slider').getAttribute('aria-valuetext')") == "forward 2 of 8"
    unnamed = "[...document.querySelectorAll('button,input,canvas,table')].filter(e => !(e.textContent.trim() || "
    unnamed += "e.ariaLabel || e.title || e.ariaHidden === 'true')).length"
    assert page.run(unnamed) == 0
    names = set()
    for _ in range(5):
        page.press("\ue004")  # Tab
        names.add(page.run("document.activeElement.id"))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"first", "previous", "next"} <= names


@pytest.mark.parametrize("width, dark", [(1400, False), (1400, True), (360, False), (360, True)])
def test_nothing_is_cut_off_at_any_width_and_text_contrasts(stepper, width, dark):
    page = stepper(mt.trace(EXAMPLES["layer"]), width=width, dark=dark)
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(21, 21, 24)") == dark
    for _ in range(6):
        page.press(*[ARROWS["right"]] * 6)
        assert page.run(OVERFLOW) <= 0
    ink = page.run("getComputedStyle(document.body).color")
    assert abs(sum(eval(ground[3:])) - sum(eval(ink[3:]))) > 500


def test_a_record_of_thousands_of_steps_stays_fluid(stepper, rng):
    x = mt.tensor(rng.standard_normal((30, 30)).astype("float32"), requires_grad=True)

    def chain():
        y = x
        for _ in range(1500):
            y = (y + 0.1).tanh()
        return y

    page = stepper(mt.trace(chain, budget=4 << 20))
    start = time.perf_counter()
    page.press(*[PAGE_DOWN] * 20)
    assert page.text("#place") == "forward 201 of 3000" and len(page.all("#list button")) < 400
    page.press(END)
    assert page.text("#place") == "the leaves" and page.all("canvas")
    assert time.perf_counter() - start < 15


def test_names_are_text_and_nothing_else(stepper, tmp_path):
    table = {"<img src=x onerror=document.title='run'>": mt.tensor(np.ones((1, 2), "float32"), requires_grad=True)}
    page = stepper(mt.trace(lambda: table["<img src=x onerror=document.title='run'>"] * 2))
    assert "<img src=x" in page.text("#stage") and not page.all("img")
    assert page.driver.title == "Step through a function"


def test_two_frames_in_one_page_step_each_for_itself(browse, tmp_path):
    frames = [mt.trace(EXAMPLES[name])._repr_html_() for name in ("attention", "neuron")]
    tensor = mt.tensor(np.full((2, 2), np.nan))._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{''.join(frames)}{tensor}", "utf-8")
    page = browse(tmp_path / "notebook.html")
    seen = []
    for frame in page.all("iframe"):
        page.driver.switch_to.frame(frame)
        page.click("#next")
        seen.append((page.text("h1"), page.text("#place")))
        page.driver.switch_to.default_content()
    assert seen == [("Step through attention", "forward 2 of 8"), ("Step through neuron", "forward 2 of 7")]
    assert page.text("table").split() == ["NaN"] * 4


# -- the page of heads


def sharp(rng, layers, heads, t, s):
    scores = 4 * rng.standard_normal((layers, heads, t, s)) - np.abs(np.arange(t)[:, None] - np.arange(s)) / 2
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arrived(w):
    """Return weights as the page has them: in 255 steps of their rows' largest."""
    largest = w.max(-1, keepdims=True)
    return np.round(w / largest * 255) / 255 * largest


@pytest.fixture
def heads(browse, tmp_path):
    def open_heads(attention, **window):
        head_view(attention, tmp_path / "heads.html")
        page = browse(tmp_path / "heads.html", **window)
        page.wait("document.body.dataset.ready === 'yes'")
        painted(page)
        return page

    return open_heads


def painted(page):
    """Wait for two frames, so that what was asked for is drawn."""
    page.run("window.framed = false, requestAnimationFrame(() => requestAnimationFrame(() => window.framed = true))")
    page.wait("window.framed")
    return int(page.run("document.getElementById('lines').dataset.drawn"))


PAIR = ["die", "kleine", "Katze", "<eos>"], ["the", "little", "cat", "$x_1$", "<b>"]


def test_lines_are_drawn_for_every_weight_that_is_shown(heads, rng):
    w = arrived(sharp(rng, 2, 3, 4, 5))
    page = heads({"cross": (w, *PAIR)})
    assert painted(page) == (w[0] >= 0.01).sum()
    colours = page.run(
        "new Set([...new Uint32Array(document.getElementById('lines').getContext('2d').getImageData(0, 0, "
        "document.getElementById('lines').width, document.getElementById('lines').height).data.buffer)]).size"
    )
    assert colours > 20
    page.run("(s => { s.value = 9; s.dispatchEvent(new Event('input')); })(document.getElementById('least'))")
    assert painted(page) == (w[0] >= 0.3).sum() and page.text("#leastText") == "0.3"


def test_layers_heads_and_kinds_are_switched_by_keys_and_buttons(heads, rng):
    w = {"cross": sharp(rng, 2, 3, 4, 5), "encoder": sharp(rng, 3, 2, 5, 5)}
    page = heads({"cross": (w["cross"], *PAIR), "encoder": (w["encoder"], PAIR[1], PAIR[1])})

    def lines(kind, layer, *chosen):
        assert painted(page) == (arrived(w[kind])[layer, list(chosen)] >= 0.01).sum()
        pressed = [b.get_attribute("aria-pressed") == "true" for b in page.all("#heads [data-head]")]
        assert [h for h, on in enumerate(pressed) if on] == list(chosen)

    lines("cross", 0, 0, 1, 2)
    page.press("]")
    lines("cross", 1, 0, 1, 2)
    page.press(".")
    lines("cross", 1, 0)
    page.press(".", ".", ".", ",")
    lines("cross", 1, 2)
    page.press("[", "a")
    lines("cross", 0, 0, 1, 2)
    page.click('[data-head="1"]')
    lines("cross", 0, 1)
    page.run("document.querySelector('[data-head=\"2\"]').dispatchEvent(new MouseEvent('click', {ctrlKey: true}))")
    lines("cross", 0, 1, 2)
    page.click("#heads button")
    lines("cross", 0, 0, 1, 2)
    for field, value in (("kind", 1), ("layer", 2)):
        page.run(
            f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('change')); }})(document.getElementById('{field}'))"
        )
        page.wait("document.body.dataset.ready === 'yes'")
    lines("encoder", 2, 0, 1)
    assert [item.text for item in page.all("#queries li")] == PAIR[1]


def test_a_token_is_selected_by_keys_click_and_pointer(heads, rng, selenium):
    w = arrived(sharp(rng, 1, 2, 4, 5))
    page = heads({"cross": (w, *PAIR)})
    page.press(ARROWS["down"], ARROWS["down"])
    assert painted(page) == (w[0, :, 1] > 0.0003).sum()
    mean = w[0, :, 1].mean(0)
    best = mean.argmax()
    assert page.text("#info").startswith(
        f"kleine (query 2) looks at, mean of 2 heads: {PAIR[1][best]} {mean[best]:.2f}"
    )
    assert page.run("document.activeElement.textContent") == "kleine"
    page.press(ARROWS["right"], END)
    assert page.text("#info").startswith("<b> (key 5) is looked at by")
    page.press(ESCAPE)
    assert page.text("#info").startswith("Point at a token") and painted(page) == (w[0] >= 0.01).sum()
    page.all("#queries li")[2].click()
    assert page.all('[aria-selected="true"]')[0].text == "Katze"
    selenium.ActionChains(page.driver).move_to_element(page.all("#keys li")[0]).perform()
    assert page.text("#info").startswith("the (key 1)")
    selenium.ActionChains(page.driver).move_to_element(page.all("h1")[0]).perform()
    assert page.text("#info").startswith("Katze (query 3)")


def test_512_tokens_stay_fluid(heads, rng):
    w = sharp(rng, 2, 8, 512, 512)
    start = time.perf_counter()
    page = heads({"decoder": (w, range(512), range(512))})
    assert time.perf_counter() - start < 20 and len(page.all("#keys li")) == 512
    lines = page.text("#count")
    assert 0 < int(lines.split()[0].replace(",", "")) <= 2000
    start = time.perf_counter()
    for top in range(0, 8000, 400):
        page.run(f"document.getElementById('scroller').scrollTop = {top}")
        assert painted(page) < 2000
    page.press("]", ".", ARROWS["down"], END)
    assert page.text("#info").startswith("511 (query 512)")
    assert time.perf_counter() - start < 15
    assert page.run("document.getElementById('scroller').scrollTop") > 9000
    assert page.run("document.getElementById('lines').height") < 2500  # of the window, not of all tokens
    uniform = heads({"d": (np.full((1, 8, 512, 512), 1 / 512), range(512), range(512))})
    assert uniform.text("#count") == "5,992 of 2,097,152 lines, the strongest"


@pytest.mark.parametrize("width, dark", [(1300, False), (380, True)])
def test_the_heads_fit_their_window_and_tokens_are_text(heads, rng, width, dark):
    tokens = ["<img src=x onerror=alert(1)>", "$\\frac{1}{2}$", "\n", " ", "x" * 200, "日本", "עברית"]
    page = heads({"encoder": (sharp(rng, 1, 12, 7, 7), tokens, tokens)}, width=width, dark=dark)
    assert page.run(OVERFLOW) <= 0 and not page.all("img")
    shown = [item.get_attribute("textContent") for item in page.all("#keys li")]
    assert shown[:4] == ["<img src=x onerror=alert…", "$\\frac{1}{2}$", "\\n", "␣"] or len(shown[0]) <= 24
    assert page.run("document.getElementById('middle').clientWidth") > 60
    low = page.run(
        "Math.max(...[...document.querySelectorAll('#heads button')].map(b => b.getBoundingClientRect().right))"
    )
    assert low <= page.run("window.innerWidth")


def test_two_pages_of_heads_live_in_one_notebook(browse, tmp_path, rng):
    w = [arrived(sharp(rng, 1, n, 4, 5)) for n in (2, 3)]
    frames = [head_view({"cross": (x, *PAIR)})._repr_html_() for x in w]
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{''.join(frames)}", "utf-8")
    page = browse(tmp_path / "notebook.html")
    for frame, x in zip(page.all("iframe"), w, strict=True):
        page.driver.switch_to.frame(frame)
        page.wait("document.body.dataset.ready === 'yes'")
        page.click('[data-head="1"]')
        assert painted(page) == (x[0, 1] >= 0.01).sum()
        page.driver.switch_to.default_content()


def test_the_browser_would_notice_a_request_and_a_complaint(browse, tmp_path):
    class Quiet(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/x.js"
    (tmp_path / "bad.html").write_text(f"<!doctype html><script src='{address}'></script><script>nobody()</script>")
    page = browse(tmp_path / "bad.html")
    time.sleep(0.3)
    assert address in page.requests()
    assert any("nobody is not defined" in entry["message"] for entry in page.complaints())
    server.shutdown()
    server.server_close()

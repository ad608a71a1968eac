"""A real browser: Debian's Chromium without a window, which notes every complaint and every request."""

import importlib
import json
import shutil

import pytest

from tests.conftest import no_browser


@pytest.fixture(scope="session")
def selenium():
    """The library that steers a browser."""
    try:
        return importlib.import_module("selenium.webdriver")
    except ImportError:
        no_browser("selenium is not installed: pip install 'minitransformer[browser]'")


@pytest.fixture(scope="session")
def chromium(selenium, browser_binary):
    """One browser for all tests."""
    steering = shutil.which("chromedriver")
    if steering is None:
        no_browser("chromedriver is not installed: apt-get install chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser_binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(steering))
    yield driver
    driver.quit()


class Page:
    """A file in the browser, and what a reader does with it."""

    def __init__(self, driver, path, at):
        self.driver = driver
        self.driver.get_log("browser"), self.driver.get_log("performance")  # what came before is not ours
        self.address = path.as_uri()
        driver.get(self.address + at)

    def press(self, *keys):
        """Press keys, one after another, wherever the focus is."""
        actions = importlib.import_module("selenium.webdriver").ActionChains(self.driver)
        actions.send_keys(*keys).perform()

    def click(self, css):
        """Click what a selector finds."""
        self.driver.find_element("css selector", css).click()

    def text(self, css):
        """Return the text of what a selector finds."""
        return self.driver.find_element("css selector", css).text

    def all(self, css):
        """Return all that a selector finds."""
        return self.driver.find_elements("css selector", css)

    def run(self, script, *arguments):
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, script, seconds=10):
        """Wait until a script is true."""
        support = importlib.import_module("selenium.webdriver.support.ui")
        support.WebDriverWait(self.driver, seconds, 0.02).until(lambda d: d.execute_script(f"return {script}"))

    def requests(self):
        """Return the addresses that were asked for, but for the page's own and data inside it."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [
            url
            for url in asked
            if url.partition("#")[0] != self.address and not url.startswith(("data:", "blob:", "about:"))
        ]

    def complaints(self):
        """Return all that the page has written to the console."""
        return self.driver.get_log("browser")


@pytest.fixture
def browse(chromium, request):
    """Open files; at the end of the test no page has complained, or asked the network for anything."""
    pages = []

    def open_page(path, at="", width=1280, height=800, dark=False):
        chromium.set_window_size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        if pages:
            settle(pages[-1])
        pages.append(Page(chromium, path, at))
        return pages[-1]

    def settle(page):
        assert page.complaints() == []
        assert page.requests() == []

    yield open_page
    if pages:
        settle(pages[-1])

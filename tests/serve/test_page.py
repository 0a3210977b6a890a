"""The page at / in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_pictures import encoded
from PIL import Image
from serve_process import Served, serving

from qkernels import data as datasets
from qkernels.program import Program

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium-driver"
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(student: Path) -> Iterator[Served]:
    with serving(student / "student.qkp") as server:
        yield server


@pytest.fixture
def digit(student: Path, tmp_path: Path) -> tuple[Path, str]:
    """A test image as a file, and what the student takes it for."""
    data = datasets.load("digits")
    (images, _), *_ = data.batches("test", 1)
    path = tmp_path / "digit.png"
    path.write_bytes(encoded(Image.fromarray(data.test.images[torch.tensor([0])][0, 0].numpy())))
    return path, str(Program.load(student / "student.qkp")(images.numpy()).argmax())


class Page:
    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def __getitem__(self, name: str) -> webdriver.remote.webelement.WebElement:
        return self.browser.find_element("id", name)

    def drop(self, path: Path) -> None:
        """As from the file manager."""
        place = self["drop"].rect
        at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "data": data} | at
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def wait_for(self, what: Callable[[], bool]) -> None:
        WebDriverWait(self.browser, 20, 0.05).until(lambda _: what())

    def wait_for_text(self, name: str, pattern: str) -> None:
        self.wait_for(lambda: re.search(pattern, self[name].text) is not None)


def test_a_dropped_digit_gets_its_label_its_bars_and_its_latency(
    browser: webdriver.Chrome, server: Served, digit: tuple[Path, str]
) -> None:
    path, label = digit
    page = Page(browser, server.url)
    page.wait_for_text("about", "10 classes, 8 × 8 pixels, version")
    assert page["model"].text == browser.title == "student"
    page.drop(path)
    page.wait_for_text("label", f"^{label}$")
    page.wait_for_text(
        "times", r"^[\d.]+ ms of computation, [\d.]+ ms in the queue, [\d.]+ ms to decode; "
    )
    rows = page["top"].find_elements("tag name", "li")
    shares = [float(row.text.split()[1]) for row in rows]
    bars = [row.find_element("class name", "bar").rect["width"] for row in rows]
    assert rows[0].text.split()[0] == label and shares == sorted(shares, reverse=True)
    assert len(rows) == 5 and bars == sorted(bars, reverse=True) and bars[0] > 0
    assert page["picture"].get_property("naturalWidth") == 8

    page.wait_for_text("answered", "^1$")
    page.wait_for_text("p50", "ms$")
    page.wait_for_text("batch", r"^1\.0$")
    page.drop(path)
    page.wait_for_text("answered", "^2$")
    assert page["refused"].text == "0" and page["queue"].text == "0"
    assert browser.get_log("browser") == []


def test_what_is_no_picture_is_told_in_the_servers_sentence(
    browser: webdriver.Chrome, server: Served, digit: tuple[Path, str], tmp_path: Path
) -> None:
    page = Page(browser, server.url)
    page.drop(digit[0])
    page.wait_for_text("label", ".")
    (tmp_path / "notes.txt").write_text("no picture")
    page.drop(tmp_path / "notes.txt")
    page.wait_for_text("status", "^the body is no PNG, JPEG or WebP picture$")
    assert page["label"].text == page["top"].text == page["times"].text == ""
    page.drop(digit[0])
    page.wait_for_text("label", f"^{digit[1]}$")
    assert page["status"].text == ""


def test_the_page_asks_for_the_token_and_then_goes_on(
    browser: webdriver.Chrome, student: Path, digit: tuple[Path, str]
) -> None:
    path, label = digit
    with serving(student / "student.qkp", QKERNELS_TOKEN="a secret") as server:
        page = Page(browser, server.url)
        page.wait_for(lambda: page["login"].is_displayed())
        page.drop(path)
        for token in ("wrong", "a secret"):
            page.wait_for_text("status", "a bearer token is needed")
            page.wait_for(lambda: page["login"].is_displayed())
            page["token"].clear()
            page["token"].send_keys(token)
            page.press("\ue007")  # Enter
        page.wait_for_text("label", f"^{label}$")
        page.wait_for_text("p50", "ms$")
        assert not page["login"].is_displayed() and page["status"].text == ""
        browser.refresh()
        page.wait_for_text("about", "10 classes")


def test_a_file_can_be_chosen_with_the_keyboard_alone(
    browser: webdriver.Chrome, server: Served, digit: tuple[Path, str]
) -> None:
    page = Page(browser, server.url)
    page.press("\ue004")  # Tab
    focused = browser.switch_to.active_element
    assert focused.get_attribute("id") == "file" and "choose a file" in focused.accessible_name
    assert page["drop"].value_of_css_property("outline-style") == "solid"
    focused.send_keys(str(digit[0]))
    page.wait_for_text("label", f"^{digit[1]}$")
    assert page["status"].aria_role == "alert"
    assert page["result"].get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(
    browser: webdriver.Chrome, server: Served, scheme: str
) -> None:
    page = Page(browser, server.url)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    paper = luminance(browser.find_element("tag name", "body"), "background-color")
    assert (paper > 0.5) == (scheme == "light")
    for name, least in {"model": 7, "about": 4.5, "status": 4.5}.items():
        ink = luminance(page[name], "color")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= least  # WCAG 2.2, 1.4.3


def luminance(element: webdriver.remote.webelement.WebElement, part: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = re.findall(r"[\d.]+", element.value_of_css_property(part))[:3]
    values = np.array(parts, float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_model_that_takes_no_pictures_is_said(browser: webdriver.Chrome, served: Served) -> None:
    page = Page(browser, served.url)
    page.wait_for_text("about", "the model's file has no image_input")
    page.wait_for_text("answered", r"^\d+$")

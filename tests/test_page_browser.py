"""report.html in a real browser without a screen: what it draws, that it is quiet, and that it fits phones, the dark and paper."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_reports import frontier_report, hostile_report
from test_report import report

from axformer_onnx.result.page import frontier_picture, html_page
from axformer_onnx.result.report import Report, command_words

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (group browser)")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE, PHONE = (1100, 900), (375, 800)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A page, the messages of its console and errors, the addresses that it asked for beside its own."""

    page: Any
    messages: list[str]
    asked: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a report: opened(report, size, **settings of the context)."""
    contexts = []

    def opens(one: Report, size: tuple[int, int] = WIDE, **settings: Any) -> Opened:
        file = tmp_path / "report.html"
        file.write_text(html_page(one), encoding="utf-8")
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
        contexts.append(context)
        page, messages, asked = context.new_page(), list[str](), list[str]()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        return Opened(page, messages, [address for address in asked if address != file.as_uri()])

    yield opens
    for context in contexts:
        context.close()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_plot_is_drawn_with_its_texts_and_the_page_is_quiet_and_fits(opened: Any, size: tuple[int, int]) -> None:
    found = opened(frontier_report(), size)
    plot = found.page.locator("#frontier svg:visible")
    assert plot.count() == 1
    texts = plot.locator("text").all_text_contents()
    assert {"source", "the result", "accuracy, select rows"} <= set(texts) and any(
        "speed at 1 x 32" in t for t in texts
    )
    frame = plot.bounding_box()
    assert frame["width"] > 300 and plot.locator("circle.dot").count() == 4
    for dot in [*plot.locator("circle").all(), *plot.locator("text").all()]:
        box = dot.bounding_box()
        assert frame["x"] - 1 <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    assert [found.messages, found.asked] == [[], []]
    assert found.page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert float(plot.locator("text.name.result").evaluate("e => e.getBoundingClientRect().height")) >= 10


@pytest.mark.parametrize("one", [hostile_report(), report()], ids=["hostile", "walk"])
def test_no_text_of_the_record_runs_asks_for_anything_or_breaks_the_page(opened: Any, one: Report) -> None:
    found = opened(one, PHONE)
    assert [found.messages, found.asked] == [[], []]
    assert found.page.locator("img").count() == 0
    assert found.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_the_button_copies_the_command(opened: Any) -> None:
    one = frontier_report(options={"task": "mrpc", "data": "it's here"})
    found = opened(one, permissions=["clipboard-read", "clipboard-write"])
    found.page.get_by_role("button", name="Copy").click()
    found.page.get_by_text("Copied.").wait_for(timeout=5000)
    assert found.page.evaluate("navigator.clipboard.readText()") == " ".join(command_words(one))
    assert found.messages == []


def test_where_the_clipboard_is_refused_the_command_is_selected(opened: Any) -> None:
    found = opened(frontier_report())
    found.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    found.page.get_by_role("button", name="Copy").click()
    found.page.get_by_text("Selected: copy it with the keyboard.").wait_for(timeout=5000)
    assert found.page.evaluate("getSelection().toString()").strip() == " ".join(command_words(frontier_report()))


def test_without_scripts_the_page_lacks_nothing_but_the_button(opened: Any) -> None:
    found = opened(frontier_report(), java_script_enabled=False)
    assert found.page.locator("#frontier svg:visible").count() == 1
    assert found.page.get_by_role("button").count() == 0 and found.page.locator("#command").is_visible()


COLOURS = """() => ["body", "#frontier .name", "#frontier circle.measured", "#frontier circle.dot.result"].map(s => {
  const style = getComputedStyle(document.querySelector(s));
  return s === "body" ? style.backgroundColor : style.fill;
})"""


def luminance(colour: str) -> float:
    """Relative, of "rgb(r, g, b)" (WCAG 2)."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_plot_takes_other_colours_in_the_dark_and_stands_out_in_both(opened: Any) -> None:
    light, dark = (
        opened(frontier_report(), color_scheme=scheme).page.evaluate(COLOURS) for scheme in ("light", "dark")
    )
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert luminance(light[0]) > 0.8 and luminance(dark[0]) < 0.05
    for paper, *inks in (light, dark):
        for ink in inks:
            bright, dim = sorted((luminance(paper), luminance(ink)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (paper, ink)


def test_on_paper_the_page_is_light_and_without_a_button_also_from_a_dark_screen(opened: Any) -> None:
    page = opened(frontier_report(), color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page.evaluate(COLOURS)[0]) > 0.8
    assert not page.get_by_role("button", name="Copy").is_visible()
    assert page.locator("#frontier svg:visible").count() == 1
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_picture_is_drawn_by_itself_and_darker_in_the_dark(browser: Any, tmp_path: Path) -> None:
    file, papers = tmp_path / "frontier.svg", []
    file.write_text(frontier_picture(frontier_report()), encoding="utf-8")
    for scheme in ("light", "dark"):
        with browser.new_context(color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(file.as_uri())
            assert page.locator("circle.dot").count() == 4
            papers.append(page.evaluate("getComputedStyle(document.querySelector('.paper')).fill"))
    assert luminance(papers[0]) > 0.8 and luminance(papers[1]) < 0.05

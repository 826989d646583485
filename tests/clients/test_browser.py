"""The example's page in a real browser: a typed text gets the label and the shares that ONNX Runtime gives it in Python.

The page and the model come from a server on this machine, and nothing is asked of any other.
"""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_fixtures import BATCHES, batched, deployed, expected, labels, pairs, same_answers, tokens
from javascript_fixtures import CASES, EXAMPLE_PAGE, Made, as_lists, probabilities, require_node, tensor
from pruned_sst2 import sentences
from sst2_fixtures import WITHIN
from test_page_browser import PHONE, WIDE, browser

__all__ = ["browser"]
require_node()
PERCENT = {"float32": 0.006, "hard": 0.006, "int8": 2.5}
"""Of shares that the page rounds to 0.01; 0.05 of two logits (integers, clients_fixtures) move a share by 2.5 at most."""


class Files(http.server.SimpleHTTPRequestHandler):
    """Python's own server of files, which docs/browser.md starts, in silence."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Site:
    """The example's folder on a local server, with a model put into it.

    address    of the page
    messages   of the console, and errors
    strangers  addresses asked for that are not this server's
    """

    def __init__(self, browser: Any, folder: Path, port: int) -> None:
        self._browser, self._folder = browser, folder
        self.address = f"http://127.0.0.1:{port}/"
        self.messages: list[str] = []
        self.strangers: list[str] = []

    def put(self, model: Path) -> None:
        """Serve this folder as the model."""
        (self._folder / "model").symlink_to(model)

    def open(self, path: str = "", size: tuple[int, int] = WIDE, **settings: Any) -> Any:
        """The page, when it has loaded its model or says why not."""
        context = self._browser.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
        page = context.new_page()
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.goto(self.address + path)
        page.locator("button:enabled, #status.error").first.wait_for(timeout=60_000)
        return page

    def _note(self, address: str) -> None:
        if not address.startswith((self.address, "data:")):
            self.strangers.append(address)


@pytest.fixture
def site(browser: Any, tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in EXAMPLE_PAGE.iterdir():
        if path.name != "model":
            (folder / path.name).symlink_to(path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(browser, folder, server.server_port)
        for context in browser.contexts:
            context.close()
        server.shutdown()


def typed(page: Any, texts: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """Type the texts, press Enter; the label and the percents by label that the page then shows."""
    page.locator("#answer").evaluate("node => node.replaceChildren()")
    for field, text in zip(("#text", "#pair"), (*texts, "")[:2], strict=True):
        page.locator(field).fill("")
        page.locator(field).type(text)
    page.locator("#text").press("Enter")
    page.locator("#answer h2").wait_for(timeout=20_000)
    rows = [row.locator("span").all_text_contents() for row in page.locator("#answer .row").all()]
    return page.locator("#answer h2").text_content(), {name: float(share.removesuffix(" %")) for name, share in rows}


@pytest.mark.parametrize("kind", PERCENT)
def test_a_typed_text_gets_the_label_and_the_shares_that_python_gives_it(
    made: dict[str, Made], site: Site, kind: str
) -> None:
    source, folder, _ = made[kind]
    site.put(folder)
    page = site.open()
    for texts in [*pairs(4), ("All dogs are sleeping.",)]:
        label, shares = typed(page, texts)
        wanted = 100 * probabilities(expected(source, [texts]))[0]
        assert shares == pytest.approx(dict(zip(labels(folder), wanted, strict=True)), abs=PERCENT[kind])
        assert label == max(shares, key=shares.__getitem__) == next(iter(shares))
    assert page.locator("#status").text_content().startswith(f"{tokens(source, [texts])['input_ids'].size} tokens")
    assert [site.messages, site.strangers] == [[], []]


@pytest.mark.parametrize("kind", WITHIN)
def test_a_sentence_of_sst2_gets_the_label_and_the_shares_that_python_gives_it(
    sst2: dict[str, Path], site: Site, tmp_path: Path, kind: str
) -> None:
    folder = deployed(sst2[kind], tmp_path / "out", "transformersjs")
    site.put(folder)
    page = site.open()
    for texts in sentences(6):
        label, shares = typed(page, texts)
        wanted = 100 * probabilities(expected(sst2[kind], [texts]))[0]
        assert shares == pytest.approx(dict(zip(labels(folder), wanted, strict=True)), abs=PERCENT[kind])
        assert label == max(shares, key=shares.__getitem__)
    assert [site.messages, site.strangers] == [[], []]


RUN_IN_PAGE = """async ([graph, batches]) => {
  const ort = await import('/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs');
  ort.env.wasm.wasmPaths = '/node_modules/onnxruntime-web/dist/';
  const session = await ort.InferenceSession.create(graph, { executionProviders: ['wasm'] });
  const answers = [];
  for (const batch of batches) {
    const feeds = Object.entries(batch).map(([name, { dims, data }]) =>
      [name, new ort.Tensor('int64', BigInt64Array.from(data, BigInt), dims)]);
    const { logits } = await session.run(Object.fromEntries(feeds), ['logits']);
    answers.push({ dims: logits.dims, data: Array.from(logits.data) });
  }
  return answers;
}"""


@pytest.mark.parametrize("kind", CASES)
def test_onnxruntime_web_answers_batches_as_onnx_runtime_does_in_python(
    made: dict[str, Made], site: Site, kind: str
) -> None:
    source, folder, graph = made[kind]
    site.put(folder)
    trials = [texts for size in BATCHES for texts in batched(pairs(11), size)]
    fed = [as_lists(tokens(source, texts)) for texts in trials]
    page = site.open(bypass_csp=True)  # the test's own function is evaluated in it
    found = page.evaluate(RUN_IN_PAGE, [f"/model/onnx/{graph.name}", fed])
    for texts, one in zip(trials, found, strict=True):
        same_answers(kind, tensor(one), expected(source, texts))
    assert [site.messages, site.strangers] == [[], []]


LOADED = "() => performance.getEntriesByType('resource').map(one => one.name)"


def test_of_two_precisions_the_page_takes_integers_unless_its_address_says_otherwise(
    graphs: dict[str, Path], site: Site, tmp_path: Path
) -> None:
    both = deployed(graphs["float32"], tmp_path / "out", "transformersjs", also=graphs["int8"])
    site.put(both)
    asked = list[str]()
    for path, file in (("", "model_quantized.onnx"), ("?dtype=fp32", "model.onnx")):
        page = site.open(path)
        asked += [one for one in page.locator("html").evaluate(LOADED) if one.endswith(".onnx")]
        assert asked[-1].endswith(f"/{file}")
    assert len(asked) == 2 and site.messages == []


def test_a_label_is_shown_as_text_whatever_it_is(graphs: dict[str, Path], site: Site, tmp_path: Path) -> None:
    folder = deployed(graphs["float32"], tmp_path / "out", "transformersjs")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(i): f"<img src=x{i} onerror=alert(1)>" + "long" * 40 for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    site.put(folder)
    page = site.open(size=PHONE)
    _, shares = typed(page, ("<b>A text.</b>", "<script>alert(1)</script>"))
    assert set(shares) == set(config["id2label"].values())
    assert page.locator("img").count() == 0 and site.messages == []
    assert page.locator("html").evaluate("node => node.scrollWidth") == PHONE[0]


def test_without_a_model_the_page_says_what_is_missing(site: Site) -> None:
    page = site.open()
    assert "there is no model/config.json; 'axformer-onnx deploy " in page.locator("#status.error").text_content()
    assert page.locator("button").is_disabled()


def test_in_the_dark_the_page_is_dark(made: dict[str, Made], site: Site) -> None:
    site.put(made["float32"][1])
    grounds = [
        site.open(color_scheme=scheme).locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (np.mean([int(one) for one in ground.removeprefix("rgb(")[:-1].split(",")]) for ground in grounds)
    assert light > 200 and dark < 60

"""report.html and the frontier's other plots: what they say, what they leave out, and that nothing in them acts or is fetched."""

from __future__ import annotations

import html.parser
import io
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from page_reports import ATTACK, POINTS, frontier_report, hostile_report, point
from rich.console import Console
from test_report import report

import axformer_onnx as ax
from axformer_onnx.cli.entry import cli
from axformer_onnx.errors import AxformerError, UsageError
from axformer_onnx.options import OptimizeOptions, make
from axformer_onnx.result.page import frontier_picture, html_page
from axformer_onnx.result.report import Report, command_words, frontier_of, print_report
from axformer_onnx.result.report.build import histogram_record
from axformer_onnx.result.report.terminal_plot import LEAST

LOST = point(2.5, 77.0, reliable=False, why="a neighbour kept it busy")


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, and the texts in them, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self.attributes = Counter[str](), list[str](), list[tuple[str, str | None]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(one: Report, width: int = 100, **terminal: Any) -> str:
    stream = io.StringIO()
    stream_of = io.TextIOWrapper(io.BytesIO(), encoding=terminal.pop("encoding", "utf-8"))
    print_report(one, Console(file=stream_of, width=width, legacy_windows=False, **terminal))
    stream_of.flush()
    stream_of.seek(0)
    stream.write(stream_of.read())
    return stream.getvalue()


def test_the_page_says_what_the_report_says() -> None:
    page = " ".join(" ".join(Elements(html_page(frontier_report())).texts).split())
    for words in (
        "79.25 → 79.08", "1.25x [1.20, 1.30]", "-12.0 %", "frontier/1.50x <- the result", "--max-drop 0.5", "2 of 4", "gone: 1, 3",
        "block removed", "a random plan of equal size (seed 3) scores 70.00", "not significantly different", "1.32.0",
        "2 rows were truncated at 128 tokens", "axformer-onnx optimize run/model.onnx --task mrpc", "speed at 1 x 32 (source = 1x)",
        "a processor", "accuracy, select rows", "38 of them were undisturbed", "judged +0.30", "frontier/1.50x for --max-drop 0.5",
    ):  # fmt: skip
        assert words in page, words


def test_a_walk_is_logged_by_what_it_accepted_and_lists_every_candidate() -> None:
    page = " ".join(Elements(html_page(report())).texts)
    for words in (
        "layer 2 attention block, loss 0.60000: a | b passed",
        "Every candidate (2)",
        "layer 2 head 0",
        "stage 1 of 1",
    ):
        assert words in page, words
    assert "Frontier" not in page


@pytest.mark.parametrize("one", [frontier_report(), hostile_report()], ids=["usual", "hostile"])
def test_nothing_in_the_page_is_fetched_and_nothing_of_the_record_acts(one: Report) -> None:
    page = html_page(one)
    found = Elements(page)
    assert found.tags["script"] == 1 and found.tags["style"] == 1 and not found.tags["img"]
    assert {value for name, value in found.attributes if name in ("src", "href", "srcset", "data", "action")} == {
        "data:,"
    }
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "url(" not in page and "@import" not in page and "\x1b" not in page
    assert len(page) < 200_000
    shown_text = ATTACK.replace("\x1b", "\\x1b")
    assert (shown_text in "".join(found.texts)) == (one.model == ATTACK)


def test_identities_in_the_page_are_unique_and_every_plot_has_a_name_and_a_description() -> None:
    found = Elements(html_page(frontier_report()))
    identities = [value for name, value in found.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    named = [value or "" for name, value in found.attributes if name == "aria-labelledby"]
    assert len(named) == 6 and all(set(value.split()) <= set(identities) for value in named)


def test_the_same_report_gives_the_same_page() -> None:
    assert html_page(frontier_report()) == html_page(frontier_report())


def test_a_module_that_is_missing_is_looked_for_without_a_warning_also_after_a_drawing() -> None:
    program = (
        "from page_reports import frontier_report\n"
        "from axformer_onnx.result.page import html_page\n"
        "html_page(frontier_report())\n"
        "from importlib.util import find_spec\n"
        "assert find_spec('a_module_that_is_not_there') is None\n"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", program], check=True, cwd=Path(__file__).parent)


def test_a_dot_is_placed_by_its_numbers_and_its_area_is_the_size_of_the_file() -> None:
    root = ElementTree.fromstring(frontier_picture(frontier_report()))
    dots = {
        dot[0].text or "": dot
        for dot in root.iter("{http://www.w3.org/2000/svg}circle")
        if "dot" in dot.get("class", "")
    }
    by_name = {words.partition(":")[0].partition(",")[0]: dot for words, dot in dots.items()}
    places = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in by_name.values()]
    values = {"the source": (1.0, 80.0), **{p.folder: (p.speedup.value, p.score) for p in POINTS}}
    expected = [values[name] for name in by_name]
    for axis, sign in (
        (0, 1),
        (1, -1),
    ):  # the axes are linear: pixels are values, scaled and shifted, downwards for scores
        pixels, numbers = np.array(places)[:, axis], np.array(expected)[:, axis]
        slope, intercept = np.polyfit(numbers, pixels, 1)
        assert np.sign(slope) == sign
        np.testing.assert_allclose(slope * numbers + intercept, pixels, atol=0.2)
    source, small = by_name["the source"], by_name["frontier/2.50x"]
    areas = (float(small.get("r", 0)) / float(source.get("r", 0))) ** 2
    assert areas == pytest.approx(POINTS[2].size_bytes / frontier_report().source.size_bytes, abs=0.01)
    assert "result" in by_name["frontier/1.50x"].get("class", "").split()


def test_a_speed_that_was_not_measured_is_drawn_as_a_ring_where_the_table_expects_it_and_says_why() -> None:
    frontier = frontier_of(frontier_report(*POINTS[:2], LOST))
    assert frontier is not None
    last = frontier.points[-1]
    assert (last.kind, last.speed, last.low, last.high) == ("expected", pytest.approx(2.45), None, None)
    assert "speed not measured (a neighbour kept it busy); the latency table expects 2.45x" in last.words
    page = html_page(frontier_report(*POINTS[:2], LOST))
    assert 'class="dot expected"' in page and "2.50x [" not in page
    assert 'class="dot expected"' not in html_page(frontier_report())


def test_a_point_without_any_speed_is_left_out_of_the_plot_and_counted() -> None:
    one = frontier_report(*POINTS[:2], LOST.model_copy(update={"predicted": None}))
    frontier = frontier_of(one)
    assert frontier is not None and (len(frontier.points), frontier.left_out) == (3, 1)
    assert "1 of the points have no speed that holds" in html_page(one)
    assert "1 point" in shown(one, force_terminal=True)


def test_a_result_whose_speed_is_uncertain_stays_marked_as_the_result() -> None:
    one = frontier_report(POINTS[0], point(1.5, 79.9, chosen=True, reliable=False, why="a neighbour"))
    assert 'class="dot result expected"' in html_page(one)
    assert "◇" in shown(one, force_terminal=True)


def test_a_report_of_before_there_were_histograms_has_a_page() -> None:
    old = frontier_report().model_dump(mode="json")
    for latency in old["latency"]:
        del latency["histogram"]
    assert "This report keeps no histograms" in html_page(Report.model_validate(old))


def test_a_histogram_counts_every_round_in_its_bin() -> None:
    times = np.random.default_rng(0).gamma(3.0, 2.0, (2, 500))
    found = histogram_record(tuple(times[0]), tuple(times[1]))
    assert found is not None
    for counts, ms in ((found.source, times[0]), (found.candidate, times[1])):
        edges = found.low_ms + found.bin_ms * np.arange(len(counts))
        expected = [
            int(((ms >= low) & (ms < high)).sum()) for low, high in zip(edges, [*edges[1:], np.inf], strict=True)
        ]
        assert np.abs(np.array(counts) - expected).max() <= 1  # a round on an edge may fall to either side
        assert sum(counts) == 500
    assert histogram_record((), (1.0,)) is None
    same = histogram_record((2.0, 2.0), (2.0, 2.0))
    assert same is not None and sum(same.source) == 2


def test_the_picture_is_a_small_file_of_its_own_that_follows_the_readers_colours() -> None:
    picture = frontier_picture(frontier_report())
    assert len(picture) < 30_000 and "prefers-color-scheme: dark" in picture
    root = ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"source", "the result"} <= set(texts)
    with pytest.raises(AxformerError, match="only a compensated search makes one"):
        frontier_picture(report())


def test_the_command_is_what_a_shell_reads_back_as_the_options_of_the_run() -> None:
    given = make(
        OptimizeOptions, {"model": "a model.onnx", "output": "o", "task": "mnli", "length": [8, 16], "speedup": 2}
    )
    one = report(model="a model.onnx", options={**given.stated(), "data": "it's here", "columns": ["text a", "b"]})
    words = shlex.split(" ".join(command_words(one)))
    assert words[:3] == ["axformer-onnx", "optimize", "a model.onnx"]
    pairs = Counter(zip(words[3::2], words[4::2], strict=True))
    expected = [
        ("--task", "mnli"),
        ("--speedup", "2.0"),
        ("--length", "8"),
        ("--length", "16"),
        ("--data", "it's here"),
    ]
    assert pairs == Counter([*expected, ("--columns", "text a,b")])


@pytest.mark.parametrize(
    ("width", "terminal", "is_plotted"),
    [
        (100, {"force_terminal": True}, True),
        (LEAST, {"force_terminal": True}, True),
        (LEAST - 1, {"force_terminal": True}, False),
        (100, {"force_terminal": False}, False),
        (100, {"force_terminal": True, "encoding": "iso-8859-15"}, False),
    ],
)
def test_the_terminal_shows_the_plot_where_it_is_one_that_can(
    width: int, terminal: dict[str, Any], is_plotted: bool
) -> None:
    text = (
        shown(frontier_report(), width, color_system=None, **terminal)
        if "encoding" not in terminal
        else plain(width, terminal)
    )
    assert ("◆" in text) == is_plotted
    if is_plotted:
        first = text.index("(accuracy) ^")
        assert max(map(len, text[first:].partition("■ source")[0].splitlines())) <= width


def plain(width: int, terminal: dict[str, Any]) -> str:
    """What a console whose encoding lacks the marks is given, without the tables, which it cannot show either."""
    from axformer_onnx.result.report.terminal_plot import fits

    stream = io.TextIOWrapper(io.BytesIO(), encoding=terminal["encoding"])
    return "◆" if fits(Console(file=stream, width=width, force_terminal=True)) else ""


def test_colours_of_the_plot_are_left_out_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(frontier_report(), force_terminal=True, color_system="standard")
    assert "\x1b[34m●" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "●" in shown(frontier_report(), force_terminal=True, color_system="standard")
    assert "\x1b[34m" not in shown(frontier_report(), force_terminal=True, color_system="standard")


def test_the_page_of_a_finished_run_is_written_again_from_its_record_alone(tmp_path: Path) -> None:
    record = tmp_path / "run" / "report.json"
    record.parent.mkdir()
    record.write_text(frontier_report().dumps(), encoding="utf-8")
    done = CliRunner().invoke(cli, ["report", str(record.parent)])
    assert done.exit_code == 0 and "1.50x [1.40, 1.60]" in done.output and "◆" not in done.output
    page = record.with_name("report.html")
    assert page.read_text(encoding="utf-8") == html_page(frontier_report())
    elsewhere = tmp_path / "site" / "nli.html"
    assert ax.report(record, elsewhere) == elsewhere and elsewhere.read_text() == page.read_text()
    assert sorted(path.name for path in record.parent.iterdir()) == ["report.html", "report.json"]
    as_json = CliRunner().invoke(cli, ["report", str(record.parent), "--json"])
    assert Report.model_validate_json(as_json.output) == frontier_report()


def test_a_folder_without_a_report_is_refused_and_an_output_that_is_a_folder_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no report.json; name the output folder of a finished run"):
        ax.report(tmp_path)
    (tmp_path / "report.json").write_text(report().dumps())
    with pytest.raises(UsageError, match=r"is a folder; name a file"):
        ax.report(tmp_path, tmp_path)

"""The page itself: what page.html.jinja is filled with. Every text of the record is escaped by the template engine."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axformer_onnx.errors import printable
from axformer_onnx.result.page.decisions import decisions
from axformer_onnx.result.page.drawing import NARROW, WIDE, Element, Size, as_text
from axformer_onnx.result.page.frontier_chart import frontier_chart
from axformer_onnx.result.page.latency_chart import latency_chart
from axformer_onnx.result.page.picture import style_sheet
from axformer_onnx.result.page.score_chart import score_chart
from axformer_onnx.result.report import (
    FRONTIER_HEADER,
    NOT_MEASURED,
    LayerRecord,
    Report,
    change,
    command_words,
    condition_rows,
    count,
    figure_rows,
    frontier_of,
    frontier_rows,
    head_words,
    headline,
    in_cpu_time,
    integer_words,
    majority_sentence,
    megabytes,
    neuron_words,
    paired,
    speed,
)

if TYPE_CHECKING:
    from markupsafe import Markup

_SHEETS = ("colours.css", "page.css", "plots.css")


@dataclasses.dataclass(frozen=True)
class _Tile:
    """One of the figures on top: what it is, from, to, and what there is to say."""

    name: str
    value: str
    said: str


@dataclasses.dataclass(frozen=True)
class _MapRow:
    """One layer: which heads stay (True), how much of the neurons does (0 to 1, None: there are none), in words, too."""

    layer: int
    heads: Sequence[bool]
    head_words: str
    gone: str
    neurons: float | None
    neuron_words: str
    tags: Sequence[str]


def html_page(report: Report) -> str:
    """The text of report.html: plots, tables, and nothing that is fetched; well below a megabyte."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(_filled(report))


def _filled(report: Report) -> dict[str, Any]:
    from markupsafe import Markup

    script = style_sheet("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    frontier, rows = frontier_of(report), frontier_rows(report)
    return {
        "report": report,
        "headline": _capital(headline(report)),
        "tiles": _tiles(report),
        "styles": Markup("\n".join(map(style_sheet, _SHEETS))),
        "script": Markup(script),
        "script_hash": digest,
        "frontier": frontier,
        "frontier_plots": _plots(lambda size: frontier_chart(frontier, size)) if frontier else "",
        "frontier_header": FRONTIER_HEADER,
        "frontier_rows": [(row[-1].endswith("the result"), row) for row in rows],
        "score_plots": _plots(lambda size: score_chart(report, size)),
        "figures": figure_rows(report),
        "majority": majority_sentence(report),
        "latency_plots": _latency_plots(report),
        "layers": [_map_row(layer) for layer in report.layers],
        "decisions": decisions(report),
        "trials": report.search.trials,
        "command": command_words(report),
        "conditions": condition_rows(report),
        "versions": sorted(report.versions.items()),
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plots(draw: Callable[[Size], Element]) -> Markup:
    """The same for a wide and for a narrow screen, of which the style sheet shows one."""
    from markupsafe import Markup

    return Markup("\n".join(as_text(draw(size)) for size in (WIDE, NARROW)))


def _latency_plots(report: Report) -> list[tuple[Any, Any]]:
    """(record, plots) of each shape whose histogram was kept."""
    found = []
    for i, latency in enumerate(report.latency):
        if latency.histogram is not None:
            histogram = latency.histogram
            found.append((latency, _plots(lambda size, i=i, x=latency, h=histogram: latency_chart(x, h, i, size))))  # type: ignore[misc]
    return found


def _tiles(report: Report) -> list[_Tile]:
    before, after = report.source, report.candidate
    tiles = [_Tile(report.metric, f"{before.score:.2f} → {after.score:.2f}", paired(report.comparison))]
    for latency in report.latency:
        shape = f"speed at {latency.batch} x {latency.length}"
        if latency.reliable:
            said = f"{speed(latency.speedup)}: {latency.source_p50_ms:.2f} → {latency.candidate_p50_ms:.2f} ms"
            tiles.append(_Tile(shape, f"{latency.speedup.value:.2f}x", said))
        else:
            tiles.append(_Tile(shape, NOT_MEASURED, latency.why + in_cpu_time(latency.cpu_speedup)))
    sizes = f"{megabytes(before.size_bytes)} → {megabytes(after.size_bytes)}"
    tiles.append(_Tile("file size", change(before.size_bytes, after.size_bytes), sizes))
    if len(tiles) % 2:  # they stand in pairs on a phone
        said = f"{count(before.parameters)} → {count(after.parameters)}"
        tiles.append(_Tile("parameters", change(before.parameters, after.parameters), said))
    return tiles


def _map_row(layer: LayerRecord) -> _MapRow:
    gone = set(range(layer.heads)) if layer.attention == "removed" else set(layer.heads_removed)
    kept = 0 if layer.feed_forward == "removed" else layer.neurons - layer.neurons_removed
    tags = [f"hard attention {layer.hard_attention}"] if layer.hard_attention else []
    tags += [f"integers: {integer_words(layer)}"] if layer.int8 else []
    return _MapRow(
        layer=layer.layer,
        heads=[head not in gone for head in range(layer.heads)],
        head_words=head_words(layer),
        gone=", ".join(map(str, layer.heads_removed)) if layer.attention == "kept" else "",
        neurons=kept / layer.neurons if layer.neurons else None,
        neuron_words=neuron_words(layer),
        tags=tags,
    )

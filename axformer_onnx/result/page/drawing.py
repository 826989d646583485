"""From a pygal chart to a piece of SVG that takes its colours from the page and says to a screen reader what it shows.

pygal computes the geometry: scales, ticks, paths. Its scripts, style sheets and identities go, so that what is left is small,
the same in every run, and coloured by the classes of page.css, light, dark or on paper.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from axformer_onnx.errors import printable

Element = ElementTree.Element
Place = tuple[float, float]
"""Of a dot: x, y in CSS pixels."""
Mark = Callable[[Place, Sequence[Place]], list[Element]]
"""What is drawn at a place, given the places of all."""
_NOT_DRAWN = ("defs", "style", "script", "title", "desc")
_NUMBERS = re.compile(r"-?\d+\.\d+")
_LETTER = 0.55
"""Mean width of a letter, in font sizes."""
FONT = 13


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a drawing, in CSS pixels; `ticks` at most on an axis. `name` is a class: page.css shows the one that fits the screen."""

    name: str
    width: int
    height: int
    ticks: int


WIDE, NARROW = Size("wide", 860, 400, 9), Size("narrow", 380, 340, 5)


@dataclasses.dataclass(frozen=True)
class Caption:
    """What a drawing is called, and what it shows in a sentence or two; `name` begins its identities in the page."""

    name: str
    title: str
    description: str


def plotting() -> Any:
    """pygal, without the hook for its plug-ins among the interpreter's imports, which Python 3.11 warns of at each later one."""
    import pygal

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__.partition(".")[0] != "pygal"]
    return pygal


def settings(size: Size, **more: Any) -> dict[str, Any]:
    """Keyword arguments of every pygal chart here."""
    style = plotting().style.Style(
        label_font_size=FONT, major_label_font_size=FONT, title_font_size=FONT, value_font_size=FONT
    )
    own = {
        "width": size.width, "height": size.height, "style": style, "js": (), "show_legend": False, "margin": 6, "margin_right": 14,
        "max_scale": size.ticks, "min_scale": 3, "show_x_guides": True, "truncate_label": -1, "no_data_text": "",
    }  # fmt: skip
    return own | more


def drawn(chart: Any, size: Size, caption: Caption, marks: Sequence[Mark] = ()) -> Element:
    """The chart as an <svg> element.

    marks   what is drawn in the place of the dots that `dots` gave to the chart, in their order
    """
    root: Element = chart.render_tree()
    _clean(root)
    _place_marks(root, marks)
    for element in root.iter():
        for name, value in element.attrib.items():
            element.set(name, _NUMBERS.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value))
    name = f"{caption.name}-{size.name}"
    root.attrib = {
        "viewBox": f"0 0 {size.width} {size.height}", "class": f"plot {size.name}", "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
    }  # fmt: skip
    root.insert(0, text_element("desc", caption.description, id=f"{name}-description"))
    root.insert(0, text_element("title", caption.title, id=f"{name}-title"))
    return root


def text_element(tag: str, text: str, **attributes: str) -> Element:
    """An element with a text; underscores in attributes' names are hyphens, one at the end is none."""
    element = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    element.text = printable(text)
    return element


def dots(values: Sequence[Place]) -> list[dict[str, Any]]:
    """Values (x, y) of a series of pygal's whose dots `drawn` replaces."""
    return [{"value": value, "node": {"data-mark": str(i)}} for i, value in enumerate(values)]


def dot_element(place: Place, radius: float, class_: str, words: str) -> Element:
    """A dot with a tooltip."""
    dot = Element("circle", {"cx": str(place[0]), "cy": str(place[1]), "r": str(radius), "class": class_})
    dot.append(text_element("title", words))
    return dot


def as_text(root: Element) -> str:
    """For a page, or for a file of its own."""
    return ElementTree.tostring(root, encoding="unicode")


def text_width(text: str) -> float:
    """About, in CSS pixels."""
    return _LETTER * FONT * len(text)


def _clean(root: Element) -> None:
    """Take out what is no geometry, and containers that nothing is in."""
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag in _NOT_DRAWN or "tooltip" in child.get("class", "").split():
                parent.remove(child)
    root.tail = None
    for element in root.iter():
        element.attrib.pop("style", None)
        element.text = printable(element.text) if element.text else None
        kept = [
            one
            for one in element.get("class", "").split()
            if one not in ("reactive", "tooltip-trigger", "nofill", "major")
        ]
        if kept:
            element.set("class", " ".join(kept))
        else:
            element.attrib.pop("class", None)
    for _ in range(4):
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag == "g" and not len(child):
                    parent.remove(child)


def _place_marks(root: Element, marks: Sequence[Mark]) -> None:
    found = [(parent, child) for parent in root.iter() for child in parent if "data-mark" in child.attrib]
    places = [(float(child.get("cx", 0)), float(child.get("cy", 0))) for _, child in found]
    for (parent, child), place in zip(found, places, strict=True):
        parent.remove(child)
        parent.extend(marks[int(child.get("data-mark", 0))](place, places))

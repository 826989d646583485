"""Which parts of a model compute with integers, and whether it is in half precision: the parts "int8" and "half" of a plan."""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from axformer_passes.errors import PlanError

MOST_BITS, FEWEST_BITS, DEFAULT_BITS = 8, 4, 7
TABLE_BITS = (8, 4)
STORED_BITS = 8
"""Of weights that are multiplied in float32: no product of integers reads them."""
MOST_POWER = 30
"""Of two, by which a channel is moved."""
LEAST_STEP, _LARGEST_STEP = 1e-30, 1e30
"""Of what an activation is rounded to: normal float32 numbers, and their products, too."""
Smooth = Mapping[str, Mapping[int, Mapping[int, int]]]
Scales = Mapping[str, Mapping[int, Mapping[str, float]]]
Activations = Literal["dynamic", "static", "static-uint8"]
STATIC: tuple[Activations, ...] = ("static", "static-uint8")
Kind = Literal["attention", "feed_forward"]
HalfType = Literal["fp16", "bf16"]
_BLOCKS: tuple[Kind, ...] = ("attention", "feed_forward")


@dataclasses.dataclass(frozen=True)
class Int8:
    """The blocks whose projections are products of integers, and how they are rounded.

    attention, feed_forward   layers
    tables                    bits of embeddings: 8, a scale a row; 4, a scale a block of columns; 0: they stay float32
    bits                      of weights of products: 7 gives the same answers on every CPU, 8 needs VNNI, AMX or ARM
    stored                    are the weights of all other products stored in 8 bits, and multiplied in float32?
    smooth                    {"attention", "feed_forward": {layer: {channel of the block's input: k}},
                              "neurons": {layer: {neuron: k}}}: activations are divided by 2^k before they are rounded, and the
                              weights that read them multiplied
    activations               "dynamic": the range is that of each tensor as it comes; "static": it is known beforehand, and the
                              integers are int8 with zero point 0; "static-uint8": the same integers moved by 128
    scales                    {"attention", "feed_forward": {layer: {projection: step of what it reads}}}, of static ones; the
                              projections are query, key, value, output, and up, up2, .., down
    """

    attention: frozenset[int] = frozenset()
    feed_forward: frozenset[int] = frozenset()
    tables: int = 0
    bits: int = DEFAULT_BITS
    stored: bool = False
    smooth: Smooth = dataclasses.field(default_factory=dict)
    activations: Activations = "dynamic"
    scales: Scales = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.attention or self.feed_forward or self.tables or self.stored)

    def has(self, layer: int, kind: Kind) -> bool:
        """Are the projections of this block products of integers?"""
        return layer in (self.attention if kind == "attention" else self.feed_forward)

    def bits_of(self, layer: int, kind: Kind) -> int | None:
        """Of the weights of a block; None: they are float32."""
        return self.bits if self.has(layer, kind) else STORED_BITS if self.stored else None

    def with_blocks(self, blocks: Iterable[tuple[int, Kind]]) -> Int8:
        """The same for other blocks, (layer, kind)."""
        blocks = list(blocks)
        attention, feed_forward = (frozenset(i for i, kind in blocks if kind == one) for one in _BLOCKS)
        return dataclasses.replace(self, attention=attention, feed_forward=feed_forward)

    def without_neurons(self, gone: Mapping[int, Iterable[int]]) -> Int8:
        """The same for a model that lacks these neurons, by layer: those behind them move up."""
        neurons = dict[int, dict[int, int]]()
        for layer, moved in self.smooth.get("neurons", {}).items():
            without = sorted(gone.get(layer, ()))
            kept = {i - bisect.bisect_left(without, i): k for i, k in moved.items() if i not in without}
            neurons |= {layer: kept} if kept else {}
        others = {name: layers for name, layers in self.smooth.items() if name != "neurons"}
        return dataclasses.replace(self, smooth={**others, **({"neurons": neurons} if neurons else {})})

    @property
    def is_static(self) -> bool:
        """Are the ranges of activations known beforehand?"""
        return self.activations in STATIC

    def scale_of(self, layer: int, kind: Kind, projection: str) -> float | None:
        """The step by which what a projection reads is rounded; None: none is known."""
        return self.scales.get(kind, {}).get(layer, {}).get(projection)

    def without_spare_scales(self) -> Int8:
        """The same without scales of blocks that are not integers."""
        scales = {
            kind: own
            for kind, layers in self.scales.items()
            if (own := {i: steps for i, steps in layers.items() if i in getattr(self, kind)})
        }
        return dataclasses.replace(self, scales=scales)

    def products_alone(self) -> Int8:
        """The same with embeddings and the weights of all other products in float32."""
        return dataclasses.replace(self, tables=0, stored=False)

    def to_json(self) -> dict[str, Any]:
        """As `read` takes it."""
        attention, feed_forward = sorted(self.attention), sorted(self.feed_forward)
        return {
            "bits": self.bits, "attention": attention, "feed_forward": feed_forward,
            "tables": self.tables, "stored": self.stored,
            **({"smooth": smooth_as_text(self.smooth)} if self.smooth else {}),
            **({"activations": self.activations, "scales": scales_as_text(self.scales)} if self.is_static else {}),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Half:
    """The graph in half precision.

    type      "fp16" or "bf16"
    float32   nodes that stay float32, by their first output: what they make or read may not fit
    """

    type: HalfType
    float32: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """As `read_half` takes it."""
        return {"type": self.type, "float32": sorted(self.float32)}


def read_half(data: Any, origin: str) -> Half | None:
    """The part of a plan's JSON. Raises: PlanError."""
    if data is None:
        return None
    names = data.get("float32", []) if isinstance(data, dict) else None
    if (
        not isinstance(data, dict)
        or not set(data) <= {"type", "float32"}
        or data.get("type") not in get_args(HalfType)
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
    ):
        raise PlanError(f'{origin}: "half" is {{"type": "fp16" or "bf16", "float32": [names of nodes]}}')
    return Half(data["type"], frozenset(names))


def read(data: Any, origin: str) -> Int8 | None:
    """The part of a plan's JSON. Raises: PlanError."""
    if data is None:
        return None
    where = f'{origin}: "int8"'
    if not isinstance(data, dict) or not set(data) <= {
        "bits",
        "tables",
        "stored",
        "smooth",
        "activations",
        "scales",
        *_BLOCKS,
    }:
        example = '{"bits": 7, "attention": [layers], "feed_forward": [layers], "tables": 8, "stored": true}'
        raise PlanError(f"{where} is {example}")
    bits, tables, stored = data.get("bits", DEFAULT_BITS), data.get("tables", 0), data.get("stored", False)
    if type(bits) is not int or not FEWEST_BITS <= bits <= MOST_BITS:
        raise PlanError(f"{where}: bits is {json.dumps(bits)[:80]}, expected {FEWEST_BITS} to {MOST_BITS}")
    if type(tables) is not int or tables not in (0, *TABLE_BITS):
        raise PlanError(f"{where}: tables is {json.dumps(tables)[:80]}, expected their bits: 8, 4, or 0 for float32")
    if not isinstance(stored, bool):
        raise PlanError(f"{where}: stored is {json.dumps(stored)[:80]}, expected true or false")
    attention, feed_forward = (_layers(data.get(name, []), f"{where}: {name}") for name in _BLOCKS)
    smooth = read_smooth(data.get("smooth", {}), f"{where}: smooth")
    activations, scales = data.get("activations", "dynamic"), read_scales(data.get("scales", {}), f"{where}: scales")
    if activations not in get_args(Activations):
        raise PlanError(
            f"{where}: activations is {json.dumps(activations)[:80]}, expected {' or '.join(get_args(Activations))}"
        )
    if scales and activations not in STATIC:
        raise PlanError(f"{where}: scales go with activations that are {' or '.join(STATIC)}, these are {activations}")
    return Int8(attention, feed_forward, tables, bits, stored, smooth, activations, scales)


def scales_as_text(scales: Scales) -> dict[str, dict[str, dict[str, float]]]:
    """As `read_scales` takes it."""
    return {
        kind: {str(layer): dict(sorted(steps.items())) for layer, steps in sorted(layers.items())}
        for kind, layers in sorted(scales.items())
    }


def read_scales(value: Any, where: str) -> dict[str, dict[int, dict[str, float]]]:
    """The part "scales" of a plan's JSON. Raises: PlanError."""
    example = f'{where} is {json.dumps(value)[:80]}, expected {{"attention": {{"0": {{"query": 0.05}}}}}}: layer, projection, step'
    if not isinstance(value, dict) or not set(value) <= set(_BLOCKS):
        raise PlanError(example)
    found = dict[str, dict[int, dict[str, float]]]()
    for kind, layers in value.items():
        if not isinstance(layers, dict) or not all(isinstance(steps, dict) for steps in layers.values()):
            raise PlanError(example)
        numbers = [step for steps in layers.values() for step in steps.values()]
        if not all(i.isdecimal() for i in layers) or not all(
            type(step) is float and LEAST_STEP <= step <= _LARGEST_STEP for step in numbers
        ):
            raise PlanError(example)
        found[kind] = {int(layer): dict(steps) for layer, steps in layers.items()}
    return found


def smooth_as_text(smooth: Smooth) -> dict[str, dict[str, dict[str, int]]]:
    """As `read_smooth` takes it."""
    return {
        name: {str(layer): {str(i): moved[i] for i in sorted(moved)} for layer, moved in sorted(layers.items())}
        for name, layers in sorted(smooth.items())
    }


def read_smooth(value: Any, where: str) -> dict[str, dict[int, dict[int, int]]]:
    """The part "smooth" of a plan's JSON. Raises: PlanError."""
    example = f'{where} is {json.dumps(value)[:80]}, expected {{"attention": {{"0": {{"99": 2}}}}}}: layer, channel, power of 2'
    if not isinstance(value, dict) or not set(value) <= {*_BLOCKS, "neurons"}:
        raise PlanError(example)
    found = dict[str, dict[int, dict[int, int]]]()
    for name, layers in value.items():
        if not isinstance(layers, dict) or not all(isinstance(moved, dict) for moved in layers.values()):
            raise PlanError(example)
        numbers = [*layers, *(i for moved in layers.values() for i in moved)]
        powers = [k for moved in layers.values() for k in moved.values()]
        if not all(i.isdecimal() for i in numbers) or not all(type(k) is int and 0 < k <= MOST_POWER for k in powers):
            raise PlanError(example)
        found[name] = {int(layer): {int(i): k for i, k in moved.items()} for layer, moved in layers.items()}
    return found


def _layers(value: Any, where: str) -> frozenset[int]:
    if (
        not isinstance(value, list)
        or not all(type(i) is int and i >= 0 for i in value)
        or len(set(value)) != len(value)
    ):
        raise PlanError(f"{where} is {json.dumps(value)[:80]}, expected a list of layers, each once")
    return frozenset(value)


def require_blocks(int8: Int8, has: Iterable[tuple[int, str]]) -> None:
    """Raise PlanError for a block that is not there. `has`: (layer, kind) of all that are."""
    there = set(has)
    for kind in _BLOCKS:
        for layer in sorted(getattr(int8, kind)):
            if (layer, kind) not in there:
                raise PlanError(f'"int8": layer {layer} has no {kind.replace("_", "-")} block')


__all__ = [
    "DEFAULT_BITS",
    "FEWEST_BITS",
    "LEAST_STEP",
    "MOST_BITS",
    "STATIC",
    "STORED_BITS",
    "TABLE_BITS",
    "Activations",
    "Half",
    "HalfType",
    "Int8",
    "read",
    "read_half",
    "read_scales",
    "read_smooth",
    "require_blocks",
    "scales_as_text",
    "smooth_as_text",
]

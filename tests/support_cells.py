"""One row of the support matrix: a file, every operation carried out on it, and what came of each.

    row = checked("bert", "dynamo-23")
    row.cells["heads"]       None (works) or the Refusal

A cell works where the outputs of the graph that was cut, of the gated stages, and of the oracle agree at three batch sizes and
lengths, and the full checker takes the graph. A refusal is an AxformerError, or a block that the operation needs and that was not
recognised; what was recognised beside it is checked all the same. Values that differ raise AssertionError: such a cell is wrong,
and no table has a word for it.

Zoo records and layers of the anatomy are matched by their weights: simplifiers reorder encoder and decoder.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from graph_locate import _weight_of
from graph_oracle import masked_graph, run_as_declared
from surgery import TOLERANCE, clear_sample, gated_outputs
from torch_oracle import random_plan
from unrounded_oracle import without_rounding
from zoo import Feeds, ZooModel, build, onnx_outputs, unwrapped
from zoo_variant_cases import tolerance

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan
from axformer_passes.errors import AxformerError, VerifyError
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.prepare.recipes.registry import RULES as FUSED
from axformer_passes.prepare.unrounded_twin import unrounded
from axformer_passes.prepare.walkable import prepared
from axformer_passes.probe.float32_twin import widened
from axformer_passes.recognise.examination import Examined, examine

Array = npt.NDArray[Any]
SHAPES = ((1, 1), (2, 7), (3, 12))
_LIKE = 0.9  # correlation of a quantised weight with its source; of two others it is near 0


@dataclasses.dataclass(frozen=True, order=True)
class Refusal:
    """What an operation was refused for; node and operator are empty where an error names none."""

    node: str
    operator: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one file. `left`: what was not recognised although every operation works (outside the blocks)."""

    family: str
    exporter: str
    cells: Mapping[str, Refusal | None]
    left: tuple[Refusal, ...] = ()


# -- operations --------------------------------------------------------------------------------------------------------


def _heads(model: ZooModel) -> Plan:
    """The first head of one block, all but the first of the next, one in the middle, and all of the last."""
    return _of_attention(model, lambda i, heads: [[0], heads[1:], heads[len(heads) // 2 :][:1]][i % 3], heads=True)


def _of_attention(model: ZooModel, chosen: Callable[[int, range], Any], heads: bool) -> Plan:
    plan, there = Plan(), [i for i, record in enumerate(model.records) if record.heads]
    for place, index in enumerate(there):
        count = range(model.records[index].heads or 0)
        plan = plan.without_heads(index, count if place and index == there[-1] else chosen(place, count))
    return plan


def _neurons(model: ZooModel) -> Plan:
    """A single one, every second one, all but one, and all of the last block."""
    plan, there = Plan(), [i for i, record in enumerate(model.records) if record.neurons]
    for place, index in enumerate(there):
        neurons = range(model.records[index].neurons or 0)
        some = [neurons[3:4], neurons[::2], neurons[:-1]][place % 3]
        plan = plan.without_neurons(index, neurons if place and index == there[-1] else some)
    return plan


def _blocks(model: ZooModel) -> Plan:
    """Every second attention block, and the feed-forward blocks between."""
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.heads and index % 2:
            plan = plan.without_attention(index)
        if record.neurons and index % 2 == 0:
            plan = plan.without_feed_forward(index)
    return plan


def _layers(model: ZooModel) -> Plan:
    """All that is in one layer in the middle, and in the last one."""
    plan = Plan()
    for index in {len(model.records) // 2 - 1, len(model.records) - 1}:
        record = model.records[index]
        plan = plan.without_attention(index) if record.heads else plan
        plan = plan.without_feed_forward(index) if record.neurons else plan
    return plan


def _hard(model: ZooModel, mode: Any) -> Plan:
    """K of 1, of 3, and of more than the sequence."""
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.heads:
            plan = plan.with_hard_attention(index, (1, 3, 1000)[index % 3], mode)
    return plan


def _everything(model: ZooModel) -> Plan:
    """A plan at random, another one for every file."""
    return random_plan(model, np.random.default_rng(zlib.crc32(f"{model.family} {model.exporter}".encode())))


PLANS: dict[str, Callable[[ZooModel], Plan]] = {
    "heads": _heads,
    "neurons": _neurons,
    "blocks": _blocks,
    "layers": _layers,
    "hard attention, truncated": functools.partial(_hard, mode="truncated"),
    "hard attention, renormalised": functools.partial(_hard, mode="renormalised"),
    "everything": _everything,
}
GATES = "gates"
OPERATIONS = (*PLANS, GATES)


# -- one file ----------------------------------------------------------------------------------------------------------


def checked(family: str, exporter: str, operations: Collection[str] = OPERATIONS) -> Row:
    """Carry out every operation on one file, or some of them, and its gates; there is no cell of others.

    Raises: AssertionError where a graph that was cut, or its gates, answer otherwise than the oracle.
    """
    model = build(family, exporter)
    try:
        examined = examine(model.opened(), run_once)
    except AxformerError as error:
        return Row(family, exporter, dict.fromkeys((*operations, GATES), _said(error)))
    placed = _Placed.of(model, examined)
    subject = _Subject(model, placed)
    cells: dict[str, Refusal | None] = {}
    gates = subject.no_gates
    for operation, drawn in PLANS.items():
        plan = drawn(model)
        if operation in operations:
            cells[operation] = subject.check(plan) or placed.missing(plan)
        gates = gates or placed.missing(plan)
    cells[GATES] = gates
    return Row(family, exporter, cells, () if any(cells.values()) else placed.refused)


class _Subject:
    """One file with its gated stages, which all its plans share. `no_gates`: why there are none."""

    def __init__(self, model: ZooModel, placed: _Placed) -> None:
        self.model, self.placed = model, placed
        self.rounds = tolerance(model.exporter) != 1e-5 or model.exporter.endswith("-int8")
        self.within = within(model.exporter)
        self.source = model.opened()
        self.no_gates: Refusal | None = None
        try:
            source = _sorted(smooth(_bytes(model.path))) if self.rounds else self.source
            self.stages = StageSessions(source, threads=1, optimize=not self.rounds)
        except AxformerError as error:
            self.no_gates = _said(error)

    def check(self, plan: Plan) -> Refusal | None:
        """Removed = gated = oracle for the part of `plan` whose blocks were recognised; None, or what refuses it."""
        there = self.placed.recognised(plan)
        placed = self.placed.numbered(there)
        graph = self._removed(placed)
        for feeds, expected in self._expected(there):
            what = f"{next(iter(feeds.values())).shape}, {there.to_json()}"
            if isinstance(graph, bytes):
                assert_near(self._answer(graph, feeds), expected, self.within, f"removed, {what}")
            if self.no_gates is None:
                assert_near(gated_outputs(self.stages, placed, feeds)[0], expected, self.within, f"gated, {what}")
        return None if isinstance(graph, bytes) else graph

    def _removed(self, plan: Plan) -> bytes | Refusal:
        try:
            graph = serialized(apply_plan(self.source, plan, run_once))
        except VerifyError:
            raise
        except AxformerError as error:
            return _said(error)
        self._check_model(graph)
        return smooth(graph) if self.rounds else graph

    def _expected(self, plan: Plan) -> Iterator[tuple[Feeds, Array]]:
        oracle = without_rounding(masked_graph(self.model, plan)) if self.rounds else None
        for batch, length in SHAPES:
            feeds, expected = clear_sample(self.model, plan, batch, length)
            yield feeds, expected if oracle is None else run_as_declared(oracle, feeds)[0]

    def _answer(self, graph: bytes, feeds: Feeds) -> Array:
        return (run_as_declared if self.rounds else onnx_outputs)(graph, feeds)[0]

    def _check_model(self, graph: bytes) -> None:
        """The full checker, with strict shape inference, as far as it takes the file that the graph was made from."""
        if passes_checker(self.model.path):
            proto = onnx.ModelProto.FromString(graph)
            onnx.checker.check_model(proto, full_check=True)
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


@functools.lru_cache(maxsize=4)
def passes_checker(path: Path) -> bool:
    """Does the full checker take a file? Not where tools write operators of their own in the name of ONNX."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def within(exporter: str) -> float:
    """Largest difference, relative to the largest value. Where a fused attention is spelled out in half precision, the scale of
    its scores is rounded to that precision: 2e-5 in float16, 2e-3 in bfloat16."""
    base, *variants = exporter.split("+")
    fused = base == "dynamo-23" or any(variant.startswith("ort") for variant in variants)
    kind = next((v for v in ("bf16", "fp16") if any(v in variant for variant in variants)), None)
    return {"bf16": 5e-3, "fp16": 5e-4}.get(kind, TOLERANCE) if fused and kind else TOLERANCE


def assert_near(found: Array, expected: Array, tolerance: float, what: str) -> None:
    """Equal shapes, finite, and values within `tolerance` of the output's scale."""
    assert found.shape == expected.shape and np.isfinite(expected).all(), what
    worst = float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / max(float(np.abs(expected).max()), 1e-6)
    assert worst <= tolerance, f"{worst:.1e} of the largest value: {what}"


def smooth(content: bytes) -> bytes:
    """The model in float32 arithmetic, activations not rounded: rounding makes a large difference of a small one."""
    proto = onnx.ModelProto.FromString(content)
    if proto.functions or any(node.domain or node.op_type in FUSED for node in proto.graph.node):
        proto = ir.to_proto(prepared(_sorted(content)))
    return bytes(unrounded(widened(proto)).SerializeToString())


def _sorted(content: bytes) -> ir.Model:
    """The model with its nodes in order: quantisers leave some behind their readers."""
    model = ir.from_proto(onnx.ModelProto.FromString(content))
    model.graph.sort()
    return model


def _bytes(path: Path) -> bytes:
    return bytes(onnx.load(path).SerializeToString())  # weights beside the graph are read in


def _said(error: AxformerError) -> Refusal:
    return Refusal("", "", " ".join(str(error).split()))


# -- zoo records and layers --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Placed:
    """Where each zoo record's blocks are in the anatomy, by record; a block that was not recognised is in none."""

    attention: Mapping[int, int]
    feed_forward: Mapping[int, int]
    refused: tuple[Refusal, ...]

    @classmethod
    def of(cls, model: ZooModel, examined: Examined) -> _Placed:
        """Match by the weights of output and down projections."""
        layers, records = examined.anatomy.layers, model.records
        attention = _matched(
            model,
            {i: record.output for i, record in enumerate(records) if record.heads},
            {x.index: _weight(examined, x.attention.output.output) for x in layers if x.attention},
        )
        feed_forward = _matched(
            model,
            {i: record.down for i, record in enumerate(records) if record.neurons},
            {x.index: _weight(examined, x.feed_forward.down.output) for x in layers if x.feed_forward},
        )
        for record, layer in attention.items():
            assert layers[layer].attention.heads == records[record].heads, f"layer {layer}: heads"  # type: ignore[union-attr]
        for record, layer in feed_forward.items():
            assert layers[layer].feed_forward.neurons == records[record].neurons, f"layer {layer}: neurons"  # type: ignore[union-attr]
        refused = tuple(Refusal(r.node, r.operator, r.reason) for r in examined.anatomy.refused)
        return cls(attention, feed_forward, refused)

    def recognised(self, plan: Plan) -> Plan:
        """`plan` without what names a block that was not recognised."""
        return self._mapped(plan, dict.fromkeys(self.attention), dict.fromkeys(self.feed_forward))

    def numbered(self, plan: Plan) -> Plan:
        """A recognised plan with the layers' numbers instead of the records'."""
        return self._mapped(plan, self.attention, self.feed_forward)

    def missing(self, plan: Plan) -> Refusal | None:
        """Why `plan` cannot be carried out as a whole; None: it can."""
        if self.recognised(plan) == plan:
            return None
        return (
            self.refused[0] if self.refused else Refusal("", "", "a block was not recognised, and no reason is given")
        )

    def _mapped(self, plan: Plan, attention: Mapping[int, int | None], feed_forward: Mapping[int, int | None]) -> Plan:
        def at(where: Mapping[int, int | None], i: int) -> int:
            place = where[i]
            return i if place is None else place

        return dataclasses.replace(
            plan,
            heads={at(attention, i): v for i, v in plan.heads.items() if i in attention},
            neurons={at(feed_forward, i): v for i, v in plan.neurons.items() if i in feed_forward},
            attention_blocks=frozenset(at(attention, i) for i in plan.attention_blocks if i in attention),
            feed_forward_blocks=frozenset(at(feed_forward, i) for i in plan.feed_forward_blocks if i in feed_forward),
            hard_attention={at(attention, i): v for i, v in plan.hard_attention.items() if i in attention},
        )


def _matched(model: ZooModel, wanted: Mapping[int, str], given: Mapping[int, Array]) -> dict[int, int]:
    """Record -> layer. Equal weights (shared ones) are taken in order."""
    found: dict[int, int] = {}
    for record, name in wanted.items():
        weight = _weight_of(unwrapped(model.module).get_submodule(name))
        like = (i for i, other in given.items() if i not in found.values() and _alike(weight, other))
        layer = next(like, None)
        if layer is not None:
            found[record] = layer
    assert len(found) == len(given), f"layers {sorted(set(given) - set(found.values()))} are none of the torch model's"
    return found


def _weight(examined: Examined, output: str) -> Array:
    product = examined.labelling.product_at[output]
    tensor = examined.labelling.model.graph.initializers[str(product.weight)].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy()).astype(np.float32)


def _alike(weight: Array, other: Array) -> bool:
    """Is `other` the weight, whichever way round, perhaps quantised or with heads as an axis of their own?"""
    if weight.size != other.size:
        return False
    turned = (other.reshape(weight.shape), other.reshape(weight.shape[::-1]).T)
    return any(np.corrcoef(weight.reshape(-1), one.reshape(-1))[0, 1] > _LIKE for one in turned)

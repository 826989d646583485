"""Reweight: write given weights (compensation, docs/method.md 2) into the projections of blocks.

Shapes: R rows (input channels of the projection), D columns, K rows (output projections) or columns (inner ones) that a plan keeps.

    y = x @ weight[R, D] (+ bias)   ->   y = x @ given[R, D] + given bias        given: [K, D], zeros at the rows that go
    no bias in the source           ->   an input of the Gemm or Conv, else an Add behind the projection
    an inner projection             ->   the same, given: [R, K]; columns that go are as they were, biases only where there are some
    Transpose, Cast, Identity       ->   stay; the initializer behind them is written in its own layout and type
    DequantizeLinear                ->   refused, at that node: compensate first, then quantise

It comes before the cut, so the graph keeps the source's shapes and `Prune` takes the zeros out; and the same graph through gates
is what the result is compared with. What a weights file may hold is said in `plan.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.anatomy import Anatomy, AttentionBlock, Block, Linear
from axformer_passes.blocks import (
    ROLES,
    BlockKind,
    Projection,
    Role,
    classifier,
    expanded,
    give_bias,
    gone_classes,
    inner_projections,
    kind_of,
    projection,
    shared_groups,
)
from axformer_passes.errors import PlanError, RecogniseError
from axformer_passes.plan import Plan
from axformer_passes.recognise import Examined

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
"""Arrays by `weight_key`: weight [K, D], bias [D]; of inner projections [R, K], [K]."""
ParameterName = Literal["weight", "bias"]
PARTS: tuple[ParameterName, ParameterName] = ("weight", "bias")
WeightSide = Literal["rows", "columns"]
"""On which a plan takes from a projection: rows of output projections, columns of inner ones."""
_KEY = re.compile(
    rf"layers\.(0|[1-9]\d{{0,8}})\.(attention|feed_forward)\.(({'|'.join(ROLES)})\.)?(weight|bias)", re.ASCII
)


def weight_key(layer: int, kind: BlockKind, part: ParameterName, role: Role | None = None) -> str:
    """For example layers.3.feed_forward.weight, of the output projection; layers.3.feed_forward.up.weight of an inner one."""
    return f"layers.{layer}.{kind}.{part}" if role is None else f"layers.{layer}.{kind}.{role}.{part}"


def classifier_key(output: str, part: ParameterName) -> str:
    """For example classifier.logits.weight."""
    return f"classifier.{output}.{part}"


def weight_shapes(plan: Plan, examined: Examined) -> dict[str, tuple[int, ...]]:
    """Shape of everything that a weights file of `plan` may hold: projections of the blocks that stay, classifiers."""
    anatomy = examined.anatomy
    plan = expanded(plan, anatomy)
    shapes = _classifier_shapes(examined)
    for layer in anatomy.layers:
        for block in layer.blocks:
            kind, linear = kind_of(block), _output(block)
            removed = plan.attention_blocks if kind == "attention" else plan.feed_forward_blocks
            if layer.index not in removed:
                shapes[weight_key(layer.index, kind, "weight")] = (_kept_rows(plan, layer.index, block), linear.columns)
                shapes[weight_key(layer.index, kind, "bias")] = (linear.columns,)
                shapes.update(_inner_shapes(examined, plan, layer.index, block))
    return shapes


def _inner_shapes(examined: Examined, plan: Plan, layer: int, block: Block) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    gone, kind = gone_classes(examined, plan, layer, block), kind_of(block)
    for inner in inner_projections(examined, layer, block) if gone is not None else ():
        columns = len(inner.kept(gone or ()))
        shapes[weight_key(layer, kind, "weight", inner.role)] = (inner.place.rows.size, columns)
        if inner.place.bias is not None:
            shapes[weight_key(layer, kind, "bias", inner.role)] = (columns,)
    return shapes


def _classifiers(examined: Examined) -> dict[str, Projection]:
    """By graph output, those that can be written and have a bias."""
    found = {}
    for output in examined.labelling.model.graph.outputs:
        try:
            place = classifier(examined, str(output.name))
        except (RecogniseError, KeyError):
            continue
        if place.bias is not None:
            found[str(output.name)] = place
    return found


def _classifier_shapes(examined: Examined) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for output, place in _classifiers(examined).items():
        shapes[classifier_key(output, "weight")] = (place.rows.size, place.columns.size)
        shapes[classifier_key(output, "bias")] = (place.columns.size,)
    return shapes


def check_weights(weights: Weights, plan: Plan, examined: Examined) -> None:
    """Raise PlanError unless every array belongs to a block that stays, in its shape, and all numbers are finite."""
    shapes = weight_shapes(plan, examined)
    for key, array in weights.items():
        check_entry(key, str(array.dtype), np.shape(array), shapes)
        if not np.isfinite(array).all():
            raise PlanError(f"weights: {key!r} holds numbers that are not finite")


def check_entry(key: str, dtype: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise PlanError unless `shapes` knows an entry of this name, and it has that shape and is float32 or float64."""
    where = f"weights: {key[:80]!r}"
    if key not in shapes:
        known = "is of a block that the plan removes or the model lacks" if _KEY.fullmatch(key) else "is no such name"
        example = next((k for k in shapes if _KEY.fullmatch(k)), weight_key(0, "attention", "weight"))
        raise PlanError(f"{where} {known}; expected names such as {example!r}")
    if dtype not in ("float32", "float64"):
        raise PlanError(f"{where} is {dtype}, expected float32 or float64")
    if shape != shapes[key]:
        raise PlanError(f"{where} has the shape {shape}, but under the plan it is {shapes[key]}")


def expanded_weights(weights: Weights, plan: Plan, anatomy: Anatomy) -> dict[str, Array]:
    """Every layer's own entries written out: where a plan counts shared weights together, one layer's stand for its group.

    Raises: PlanError where two layers of a group bring different ones.
    """
    found = dict(weights)
    groups = shared_groups(anatomy) if plan.shared_weights == "together" else ()
    for group in groups:
        removed = plan.attention_blocks if group.kind == "attention" else plan.feed_forward_blocks
        starts = [f"layers.{i}.{group.kind}." for i in group.layers if i not in removed]
        for rest in sorted({key.removeprefix(start) for key in weights for start in starts if key.startswith(start)}):
            given = [start + rest for start in starts if start + rest in weights]
            if any(not np.array_equal(weights[given[0]], weights[key]) for key in given[1:]):
                raise PlanError(f"weights: {given[0]!r} and {given[1]!r} differ, but these layers share their weights")
            found.update(dict.fromkeys((start + rest for start in starts), weights[given[0]]))
    return found


def reweight(examined: Examined, plan: Plan, weights: Weights) -> bool:
    """Write `weights` into the examined clone, in place; False where there are none. Rows that `plan` removes become 0.

    Raises: PlanError for weights that do not fit, RecogniseError for a projection that cannot be written; before any edit.
    """
    if not weights:
        return False
    check_weights(weights, plan, examined)
    weights = expanded_weights(weights, plan, examined.anatomy)
    plan = expanded(plan, examined.anatomy)
    changes = [
        change
        for layer in examined.anatomy.layers
        for block in layer.blocks
        for change in _changes(examined, plan, layer.index, block, weights)
    ]
    wanted = any(key.startswith("classifier.") for key in weights)
    for output, place in _classifiers(examined).items() if wanted else ():
        parts = [weights.get(classifier_key(output, part)) for part in PARTS]
        if any(part is not None for part in parts):
            changes.append(_Change(place, "rows", np.arange(place.rows.size), *parts))
    done: dict[object, ir.TensorProtocol] = {}
    for change in changes:
        change.write(examined, done)
    return bool(changes)


def _changes(examined: Examined, plan: Plan, layer: int, block: Block, weights: Weights) -> Iterator[_Change]:
    """What one block is given."""
    kind = kind_of(block)
    own = [weights.get(weight_key(layer, kind, part)) for part in PARTS]
    if any(part is not None for part in own):
        place = projection(examined, layer, kind)
        yield _Change(place, "rows", kept_rows(place, plan, layer, kind), *own)
    roles = [r for r in ROLES if any(weight_key(layer, kind, part, r) in weights for part in PARTS)]
    gone = gone_classes(examined, plan, layer, block)
    for inner in inner_projections(examined, layer, block) if roles else ():
        if inner.role in roles:
            given = [weights.get(weight_key(layer, kind, part, inner.role)) for part in PARTS]
            yield _Change(inner.place, "columns", inner.kept(gone or ()), *given)


def kept_rows(place: Projection, plan: Plan, layer: int, kind: BlockKind) -> npt.NDArray[np.int64]:
    """int64[K]: the rows of an output projection that `plan` keeps, ascending."""
    dropped = (plan.heads if kind == "attention" else plan.neurons).get(layer, frozenset())
    rows = [row for unit, own in enumerate(place.positions) if unit not in dropped for row in own]
    return np.array(sorted(rows), dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class _Change:
    """What one projection is given; `kept` int64[K] are the rows (columns) that stay. None: as it was."""

    projection: Projection
    side: WeightSide
    kept: npt.NDArray[np.int64]
    weight: Array | None
    bias: Array | None

    def __post_init__(self) -> None:
        self._require_writable()

    def _require_writable(self) -> None:
        place = self.projection
        if self.bias is not None and place.bias is None and place.why_no_bias is not None:
            raise RecogniseError(f"{place.node.outputs[0].name}: cannot be given a bias: {place.why_no_bias}")
        for what, array, value in (("weight", self.weight, place.weight), ("bias", self.bias, place.bias)):
            if array is not None and value is not None and not np.isfinite(_cast(array, value)).all():
                raise PlanError(f"{value.name}: the given {what} does not fit its type {value.dtype}")

    def write(self, examined: Examined, done: dict[object, ir.TensorProtocol]) -> None:
        """`done`: tensors by what they were made of, so that layers which share their weights go on sharing them."""
        place, rows = self.projection, self.kept.tobytes()
        if self.weight is not None:
            _put(place.weight, self._laid_out, (id(place.weight.const_value), id(self.weight), rows), done)
        if self.bias is not None:
            value = place.bias or give_bias(examined, place)
            _put(value, lambda: self._shaped(value), (id(value.const_value), id(self.bias), rows), done)

    def _laid_out(self) -> FloatArray:
        return self.projection.laid_out(_full_weight(self.projection, self.side, self.kept, self.weight))

    def _shaped(self, value: ir.Value) -> FloatArray:
        full = _full_bias(self.projection, self.side, self.kept, self.bias) / self.projection.beta
        assert value.const_value is not None
        return full.reshape(value.const_value.shape.numpy())


def written(
    place: Projection, side: WeightSide, kept: npt.NDArray[np.int64], weight: Array, bias: Array | None
) -> dict[str, Array]:
    """What the initializers of a projection hold when it is given these weights, by name. It has a bias where one is given."""
    change = _Change(place, side, kept, weight, bias)
    found = {str(place.weight.name): _cast(change._laid_out(), place.weight)}
    if bias is not None and place.bias is not None:
        found[str(place.bias.name)] = _cast(change._shaped(place.bias), place.bias)
    return found


def _full_weight(place: Projection, side: WeightSide, kept: npt.NDArray[np.int64], given: Any) -> FloatArray:
    """float64[R, D]: `given` at the kept rows, zeros at the others; or at the kept columns, the source's at the others."""
    if side == "columns":
        full = place.weight_matrix()
        full[:, kept] = given
    else:
        full = np.zeros((len(place.order), given.shape[1]))
        full[kept] = given
    return full


def _full_bias(place: Projection, side: WeightSide, kept: npt.NDArray[np.int64], given: Any) -> FloatArray:
    """float64[D]: `given`; of an inner projection at the kept columns, the source's at the others."""
    if side == "rows":
        return np.asarray(given, dtype=np.float64)
    full = place.bias_vector()
    assert full is not None
    full[kept] = given
    return full


def _put(value: ir.Value, make: Callable[[], Array], key: object, done: dict[object, ir.TensorProtocol]) -> None:
    if key not in done:
        done[key] = ir.tensor(_cast(make(), value), dtype=value.dtype, name=value.name)
        done[key, "held"] = value.const_value  # type: ignore[assignment]  # its id stays its own
    value.const_value = done[key]


def _cast(array: Array, value: ir.Value) -> Array:
    assert value.const_value is not None
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array.astype(value.const_value.dtype.numpy()))


def _output(block: Block) -> Linear:
    return block.output if isinstance(block, AttentionBlock) else block.down


def _kept_rows(plan: Plan, layer: int, block: Block) -> int:
    if isinstance(block, AttentionBlock):
        units, gone = block.heads, len(plan.heads.get(layer, ()))
    else:
        units, gone = block.neurons, len(plan.neurons.get(layer, ()))
    return _output(block).rows // units * (units - gone)


__all__ = [
    "PARTS",
    "Weights",
    "check_entry",
    "check_weights",
    "classifier_key",
    "expanded_weights",
    "kept_rows",
    "reweight",
    "weight_key",
    "weight_shapes",
    "written",
]

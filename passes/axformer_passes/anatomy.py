"""The anatomy of a transformer graph: frozen records of names and integers.

Every name is the name of a value (tensor) or initializer in the *source* graph, so an Anatomy survives a clone, a
save and a load. After an edit, recognise again.

Shapes in comments: B batch, S tokens, D model width, H heads, F neurons.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Linear:
    """One learned projection `y = x @ weight (+ bias)`.

    input, output   the tensors x[.., rows] and y[.., columns] of the MatMul or Gemm node itself
    weight, bias    initializers (bias None: there is none); after tracing through Transpose, Cast, Identity
    rows, columns   inner and outer width; for a part of a fused projection `columns` counts that part alone
    """

    input: str
    output: str
    weight: str
    bias: str | None
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class AttentionBlock:
    """Query, key, value, scores, softmax, context, output projection of one attention.

    heads       units that can be removed one by one (grouped-query attention: the groups; 1 where a norm across them ties all)
    kv_heads    key/value heads; equals `heads` unless all are tied
    head_size   width of one head's context
    scale       what the scores are multiplied with, 1/sqrt(head_size) for most; None where it was not found
    softmax     output tensor of the Softmax node (of a fused node: of its lowering); `softmax_op` its operator
    branch      the tensor that is added to the residual stream; `residual` the other operand; `sum` the addition's output
    (branch, residual and sum are None where the block cannot be taken out; `why` says what stands in the way)
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float | None
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    softmax: str
    softmax_op: str
    branch: str | None
    residual: str | None
    sum: str | None
    why: str | None = None


@dataclasses.dataclass(frozen=True)
class FeedForwardBlock:
    """Up (and gate) projection, activation, down projection. `up` has two entries for gated forms."""

    neurons: int
    activation: str
    up: tuple[Linear, ...]
    down: Linear
    branch: str | None
    residual: str | None
    sum: str | None
    why: str | None = None


Block = AttentionBlock | FeedForwardBlock


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: at most one attention block and at most one feed-forward block behind it.

    What a configuration calls a layer may be several of these: self-attention, then cross-attention with a feed-forward block
    (decoders), or one with attention and several with a feed-forward block alone (MobileBERT). So one number names one block.
    """

    index: int
    attention: AttentionBlock | None
    feed_forward: FeedForwardBlock | None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that are there, attention first."""
        return tuple(block for block in (self.attention, self.feed_forward) if block is not None)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A part that was not recognised: where, what was found, what was expected.

    part      the kind of block that it would have been; "" where that is not known
    before    index of the first layer behind it; the number of layers where none is
    """

    node: str
    operator: str
    reason: str
    part: Literal["", "attention", "feed-forward"] = ""
    before: int = 0


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What was recognised in one graph.

    width           D of the residual stream (0 if there is none)
    opset           version of the default operator set
    exporter_hint   producer name and version, for the reader only: nothing branches on it
    """

    layers: tuple[Layer, ...]
    width: int
    opset: int
    exporter_hint: str
    refused: tuple[Refusal, ...]

    @property
    def heads(self) -> int:
        """Heads in all layers."""
        return sum(layer.attention.heads for layer in self.layers if layer.attention)

    @property
    def neurons(self) -> int:
        """Neurons in all layers."""
        return sum(layer.feed_forward.neurons for layer in self.layers if layer.feed_forward)

    def to_json(self) -> dict[str, Any]:
        """The records as plain dictionaries and lists."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Anatomy:
        """Inverse of `to_json`."""

        def linear(d: dict[str, Any]) -> Linear:
            return Linear(**d)

        def attention(d: dict[str, Any] | None) -> AttentionBlock | None:
            if d is None:
                return None
            parts = {k: linear(d[k]) for k in ("query", "key", "value", "output")}
            return AttentionBlock(**{**d, **parts})

        def feed_forward(d: dict[str, Any] | None) -> FeedForwardBlock | None:
            if d is None:
                return None
            return FeedForwardBlock(**{**d, "up": tuple(map(linear, d["up"])), "down": linear(d["down"])})

        return cls(
            layers=tuple(
                Layer(x["index"], attention(x["attention"]), feed_forward(x["feed_forward"])) for x in data["layers"]
            ),
            width=data["width"],
            opset=data["opset"],
            exporter_hint=data["exporter_hint"],
            refused=tuple(Refusal(**r) for r in data["refused"]),
        )

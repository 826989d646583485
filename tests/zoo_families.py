"""What a family of the zoo is: a torch module, its inputs, and where its heads and neurons lie in it.

    Family("bert", BertForSequenceClassification, config_of, records_of)

The families themselves: zoo_families_text, _decoders, _seq2seq, _vision, _audio. B batch, S tokens, D model width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from zoo_export import Axes, Interface

from axformer_passes.probe import Recipe

Feeds = dict[str, npt.NDArray[Any]]
FeedsOf = Callable[[np.random.Generator, int, int, bool], Feeds]
"""(generator, batch, length, padded) -> inputs."""

LABELS, VOCAB, POSITIONS, IMAGE, PATCH = 3, 100, 64, 16, 4
TEXT_AXES = {0: "batch_size", 1: "sequence_length"}
BATCH_AXES = {0: "batch_size"}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What can be overridden. Some families have defaults of their own: `Family.sizes`."""

    layers: int = 3
    heads: int = 4
    head_size: int = 8
    neurons: int = 56
    zero_biases: bool = False

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_size


@dataclasses.dataclass(frozen=True)
class Record:
    """What can be removed in one `Layer` of the anatomy, and the torch modules (dotted names) in which it lies.

    heads, width    units that can be removed, and how many columns of the output projection's input each has;
                    grouped-query attention: the groups. None: no attention block
    neurons         None: no feed-forward block
    attention       the module in which the softmax runs
    output, down    output projection and down projection
    call            shared weights: which call of these modules within one forward pass
    behind          norms between these two and the addition, whose shifts go with a whole block (Swin v2); else the two themselves
    """

    heads: int | None = None
    width: int | None = None
    neurons: int | None = None
    attention: str = ""
    output: str = ""
    down: str = ""
    call: int = 0
    behind: tuple[str, str] = ("", "")


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture. `records` are in the order of execution; their names are relative to the unwrapped module.

    head        the class that makes the module from `config(sizes)`
    wrap        puts a module with another output into one that has `.logits`
    put_into    {exporter or its first word: puts a module that the exporter cannot follow into one that it can}
    axes        {input or output: {axis: name}} of the dynamic dimensions
    output      the output's name in our own exports
    task        optimum's word for the purpose
    shapes      sizes of optimum's example inputs, where its own do not fit
    sizes       defaults that differ from those of `Sizes`
    refuses     {exporter or its first word: why it cannot export the family}
    recipe      what its inputs are made of, where random numbers do not do
    """

    name: str
    head: Any
    config: Callable[[Sizes], Any]
    records: Callable[[Sizes], tuple[Record, ...]]
    feeds: FeedsOf
    wrap: Callable[[Any], Any] | None = None
    put_into: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    axes: Axes = dataclasses.field(default_factory=dict)
    output: str = "logits"
    task: str = "text-classification"
    shapes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    @property
    def has_sdpa(self) -> bool:
        """Whether this version of transformers has SDPA attention for the family."""
        return bool(self.head._supports_sdpa)

    def make(self, sizes: Sizes, attention: str) -> Any:
        """The module, eval mode, parameters as transformers draws them. `attention`: eager or sdpa."""
        module = self.head._from_config(self.config(sizes), attn_implementation=attention).eval()
        return self.wrap(module) if self.wrap else module

    @property
    def interface(self) -> Interface:
        """Inputs and outputs of the exports."""
        return Interface(self.axes or None, (self.output,), self.task, self.shapes)

    def exportable(self, module: Any, exporter: str) -> Any:
        """The module in the form in which the exporter can follow it; the same answers."""
        change = self._change(exporter)
        return change(module) if change else module

    def form(self, exporter: str) -> str:
        """Hash of what an export depends on beside the module's configuration and weights."""
        own = [self.head] if self.head.__module__.startswith("zoo") else []
        code = [inspect.getsource(part) for part in (*own, self.wrap, self._change(exporter)) if part]
        return hashlib.sha256(repr((self.interface, code)).encode()).hexdigest()[:6]

    def _change(self, exporter: str) -> Callable[[Any], Any] | None:
        return self.put_into.get(exporter) or self.put_into.get(exporter.split("-")[0])

    def reason(self, exporter: str) -> str | None:
        """Why the exporter cannot export this family; None: it can."""
        kind, *rest = exporter.split("-")
        if kind == "torchscript" and rest[0] == "sdpa" and not self.has_sdpa:
            return f"transformers has only eager attention for {self.name}"
        return self.refuses.get(exporter) or self.refuses.get(kind)


def unwrapped(module: Any) -> Any:
    """The transformers module inside a wrapper; a bare module itself."""
    while hasattr(module, "inner"):
        module = module.inner
    return module


class Wrapper(torch.nn.Module):  # type: ignore[misc]
    """Looks like the module inside, for `forward` of the subclasses to change. `answer`: the output's attribute."""

    def __init__(self, inner: Any, answer: str = "logits") -> None:
        super().__init__()
        self.inner = inner
        self.answer = answer
        self.config = inner.config
        self._supports_sdpa = inner._supports_sdpa
        self.eval()

    def only(self, **inputs: Any) -> SequenceClassifierOutput:
        """The answer alone, under the name that all families share."""
        return SequenceClassifierOutput(logits=getattr(self.inner(**inputs), self.answer))


class TextAnswer(Wrapper):
    """(input_ids, attention_mask) -> logits."""

    def forward(self, input_ids: Any, attention_mask: Any) -> SequenceClassifierOutput:
        return self.only(input_ids=input_ids, attention_mask=attention_mask)


class ImageAnswer(Wrapper):
    """pixel_values -> logits."""

    def forward(self, pixel_values: Any) -> SequenceClassifierOutput:
        return self.only(pixel_values=pixel_values)


class BatchedPositions(Wrapper):
    """Positions [B, S] instead of [1, S]: the operator RotaryEmbedding wants a row of them for every row of the batch."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        positions = torch.arange(input_ids.shape[1])[None].expand(input_ids.shape)
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions)


class FloatMask(Wrapper):
    """The mask as float32: torch.onnx cannot promote `1.0 - int64` by itself."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask.float())


def text_feeds(
    pad: int = 0, types: bool = False, left: bool = False, end: int | None = None, most: int = POSITIONS
) -> FeedsOf:
    """Random ids with real padding masks: half of each row at least is real, one row of several is full.

    types: with token_type_ids. left: padding stands in front. end: id of the last real token. most: padding tokens at most.
    """

    def feeds(rng: np.random.Generator, batch: int, length: int, padded: bool) -> Feeds:
        real = np.full(batch, length)
        if padded:
            real = rng.integers(max(math.ceil(length / 2), length - most), length, size=batch, endpoint=True)
            if batch > 1:
                real[int(rng.integers(batch))] = length
        mask = (np.arange(length) < real[:, None]).astype(np.int64)
        ids = np.where(mask, rng.integers(5, VOCAB, size=(batch, length)), pad).astype(np.int64)
        if end is not None:
            ids[np.arange(batch), real - 1] = end
        found = {"input_ids": ids, "attention_mask": mask}
        if types:
            found["token_type_ids"] = (np.arange(length) >= real[:, None] // 2).astype(np.int64) * mask
        return {name: value[:, ::-1].copy() for name, value in found.items()} if left else found

    return feeds


def layered(
    prefix: str, attention: str, output: str, down: str, groups: Callable[[Sizes], int] = lambda sizes: 1
) -> Callable[[Sizes], tuple[Record, ...]]:
    """Records of plain layers: names relative to `prefix`.<number>. `groups`: query heads that go together."""

    def records(sizes: Sizes) -> tuple[Record, ...]:
        together = groups(sizes)
        return tuple(
            Record(
                sizes.heads // together, sizes.head_size * together, sizes.neurons,
                f"{prefix}.{i}.{attention}", f"{prefix}.{i}.{output}", f"{prefix}.{i}.{down}",
            )
            for i in range(sizes.layers)
        )  # fmt: skip

    return records

"""Plan: what to remove and what to harden, as a small JSON file that a person can read, diff and edit.

    {"format": "axformer-plan/1", "source_sha256": "...",
     "heads": {"0": [1, 3]}, "neurons": {"0": [5, 6]},
     "attention_blocks": [2], "feed_forward_blocks": [3],
     "hard_attention": {"1": {"k": 30, "mode": "renormalised"}}}

All ids count in the source graph. Lists name what is *removed*.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from axformer_passes.anatomy import Anatomy
from axformer_passes.errors import PlanError

FORMAT = "axformer-plan/1"
Mode = Literal["truncated", "renormalised"]
MODES: tuple[Mode, ...] = get_args(Mode)
_KEYS = {
    "format", "source_sha256", "heads", "neurons", "attention_blocks", "feed_forward_blocks", "hard_attention", "weights",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, order=True)
class Hard:
    """Hard attention in one layer: per query row the k largest probabilities stay (METHOD.md 1.1)."""

    k: int
    mode: Mode = "truncated"


@dataclasses.dataclass(frozen=True)
class Plan:
    """An immutable plan. Build one from `Plan()` with the `without_*` and `with_*` methods."""

    source_sha256: str = ""
    heads: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    neurons: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    attention_blocks: frozenset[int] = frozenset()
    feed_forward_blocks: frozenset[int] = frozenset()
    hard_attention: Mapping[int, Hard] = dataclasses.field(default_factory=dict)
    weights: str | None = None

    # -- building ------------------------------------------------------------------------------------------------

    def without_heads(self, layer: int, heads: Iterable[int]) -> Plan:
        """This plan with these heads removed too."""
        return dataclasses.replace(self, heads=_merged(self.heads, layer, heads))

    def without_neurons(self, layer: int, neurons: Iterable[int]) -> Plan:
        """This plan with these neurons removed too."""
        return dataclasses.replace(self, neurons=_merged(self.neurons, layer, neurons))

    def without_attention(self, layer: int) -> Plan:
        """This plan with the whole attention block of `layer` removed; its heads and hard attention are forgotten."""
        return dataclasses.replace(
            self,
            attention_blocks=self.attention_blocks | {layer},
            heads={i: v for i, v in self.heads.items() if i != layer},
            hard_attention={i: v for i, v in self.hard_attention.items() if i != layer},
        )

    def without_feed_forward(self, layer: int) -> Plan:
        """This plan with the whole feed-forward block of `layer` removed; its neurons are forgotten."""
        return dataclasses.replace(
            self,
            feed_forward_blocks=self.feed_forward_blocks | {layer},
            neurons={i: v for i, v in self.neurons.items() if i != layer},
        )

    def with_hard_attention(self, layer: int, k: int, mode: Mode = "truncated") -> Plan:
        """This plan with hard attention in `layer`."""
        return dataclasses.replace(self, hard_attention={**self.hard_attention, layer: Hard(k, mode)})

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Nothing removed, nothing hardened, no weights."""
        return not (
            any(self.heads.values())
            or any(self.neurons.values())
            or self.attention_blocks
            or self.feed_forward_blocks
            or self.hard_attention
            or self.weights
        )

    def validate(self, anatomy: Anatomy) -> None:
        """Raise PlanError unless every id exists in `anatomy` and can be removed there."""
        _validate(self, anatomy)

    # -- JSON ----------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A dictionary in canonical order: sorted ids, empty lists left out."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "source_sha256": self.source_sha256,
            "heads": {str(i): sorted(v) for i, v in sorted(self.heads.items()) if v},
            "neurons": {str(i): sorted(v) for i, v in sorted(self.neurons.items()) if v},
            "attention_blocks": sorted(self.attention_blocks),
            "feed_forward_blocks": sorted(self.feed_forward_blocks),
            "hard_attention": {str(i): {"k": v.k, "mode": v.mode} for i, v in sorted(self.hard_attention.items())},
        }
        if self.weights is not None:
            data["weights"] = self.weights
        return data

    def dumps(self) -> str:
        """The JSON text of the plan, one element kind a line, with a trailing newline."""
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in self.to_json().items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def loads(cls, text: str, origin: str = "plan") -> Plan:
        """Parse and check a plan's JSON text. `origin` names it in error messages.

        Raises: PlanError with the offending key and value.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PlanError(f"{origin}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise PlanError(f"{origin}: expected a JSON object, found {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise PlanError(f'{origin}: "format" is {data.get("format")!r}, expected {FORMAT!r}')
        unknown = sorted(set(data) - _KEYS)
        if unknown:
            raise PlanError(f"{origin}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
        sha, weights = data.get("source_sha256", ""), data.get("weights")
        if not isinstance(sha, str) or not (weights is None or isinstance(weights, str)):
            raise PlanError(f'{origin}: "source_sha256" and "weights" are strings')
        return cls(
            source_sha256=sha,
            heads=_id_lists(data, "heads", origin),
            neurons=_id_lists(data, "neurons", origin),
            attention_blocks=_ids(data.get("attention_blocks", []), '"attention_blocks"', origin),
            feed_forward_blocks=_ids(data.get("feed_forward_blocks", []), '"feed_forward_blocks"', origin),
            hard_attention=_hard(data.get("hard_attention", {}), origin),
            weights=weights,
        )


def _merged(old: Mapping[int, frozenset[int]], layer: int, ids: Iterable[int]) -> Mapping[int, frozenset[int]]:
    return {**old, layer: old.get(layer, frozenset()) | frozenset(ids)}


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(value: object, where: str, origin: str) -> frozenset[int]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise PlanError(f"{origin}: {where} is a list of ids from 0 upwards, found {json.dumps(value)[:80]}")
    if len(set(value)) != len(value):
        raise PlanError(f"{origin}: {where} names an id twice: {json.dumps(value)[:80]}")
    return frozenset(value)


def _layer_key(key: str, where: str, origin: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key):
        raise PlanError(f'{origin}: {where} has the key {key!r}, expected a layer number such as "0"')
    return int(key)


def _mapping(value: object, where: str, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f'{origin}: {where} maps layer numbers, for example {{"0": ...}}')
    return value


def _id_lists(data: dict[str, Any], key: str, origin: str) -> dict[int, frozenset[int]]:
    entries = _mapping(data.get(key, {}), f'"{key}"', origin)
    return {_layer_key(k, f'"{key}"', origin): _ids(v, f'"{key}" of layer {k}', origin) for k, v in entries.items()}


def _hard(value: object, origin: str) -> dict[int, Hard]:
    hard: dict[int, Hard] = {}
    for key, entry in _mapping(value, '"hard_attention"', origin).items():
        layer = _layer_key(key, '"hard_attention"', origin)
        if not isinstance(entry, dict) or not set(entry) <= {"k", "mode"}:
            raise PlanError(f'{origin}: "hard_attention" of layer {key} is {{"k": ..., "mode": ...}}')
        k, mode = entry.get("k"), entry.get("mode", "truncated")
        if not isinstance(k, int) or not _is_id(k) or k == 0:
            raise PlanError(f'{origin}: "hard_attention" of layer {key}: k is {k!r}, expected 1 or more')
        if mode not in MODES:
            raise PlanError(
                f'{origin}: "hard_attention" of layer {key}: mode is {mode!r}, expected {" or ".join(MODES)}'
            )
        hard[layer] = Hard(k, mode)
    return hard


def _validate(plan: Plan, anatomy: Anatomy) -> None:
    count = len(anatomy.layers)

    def layer_of(index: int, what: str) -> Any:
        if index >= count:
            raise PlanError(f"{what} names layer {index}, but the model has {count} layers (0 to {count - 1})")
        return anatomy.layers[index]

    def within(ids: Iterable[int], limit: int, what: str, layer: int) -> None:
        wrong = sorted(i for i in ids if i >= limit)
        if wrong:
            raise PlanError(f"{what} of layer {layer}: id {wrong[0]} does not exist, there are {limit}")

    for index, heads in plan.heads.items():
        attention = layer_of(index, '"heads"').attention
        if attention is None:
            raise PlanError(f'"heads": no attention block was recognised in layer {index}')
        within(heads, attention.heads, '"heads"', index)
    for index, neurons in plan.neurons.items():
        block = layer_of(index, '"neurons"').feed_forward
        if block is None:
            raise PlanError(f'"neurons": layer {index} has not exactly one recognised feed-forward block')
        within(neurons, block.neurons, '"neurons"', index)
    for index in plan.attention_blocks:
        attention = layer_of(index, '"attention_blocks"').attention
        if attention is None or attention.sum is None:
            why = attention.why if attention else "none was recognised"
            raise PlanError(f'"attention_blocks": layer {index} has no removable attention block: {why}')
    for index in plan.feed_forward_blocks:
        block = layer_of(index, '"feed_forward_blocks"').feed_forward
        if block is None or block.sum is None:
            why = block.why if block else "not exactly one was recognised"
            raise PlanError(f'"feed_forward_blocks": layer {index} has no removable feed-forward block: {why}')
    for index in plan.hard_attention:
        if layer_of(index, '"hard_attention"').attention is None:
            raise PlanError(f'"hard_attention": no attention block was recognised in layer {index}')

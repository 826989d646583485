"""Plan: what to remove and what to harden, as a small JSON file that a person can read, diff and edit.

    {"format": "axformer-plan/1", "source_sha256": "...",
     "heads": {"0": [1, 3]}, "neurons": {"0": [5, 6]},
     "attention_blocks": [2], "feed_forward_blocks": [3],
     "hard_attention": {"1": {"k": 30, "mode": "renormalised"}}}

All ids count in the source graph. Lists name what is *removed*. "shared_weights": "together" makes heads and neurons count for
every layer that reads the same weights (`shared.py`); it is left out where it is "separate".

"weights" names a safetensors file beside the plan with new weights of projections (compensation), float32 or float64:

    layers.<layer>.attention.weight      [K, D]   y = x @ weight + bias, x the K inputs that the plan keeps, in their order
    layers.<layer>.attention.bias        [D]      whether or not the source has a bias there
    layers.<layer>.feed_forward.weight, layers.<layer>.feed_forward.bias          likewise, of the down projection

    layers.<layer>.attention.query.weight [R, K], .query.bias [K]       y = x @ weight + bias, y the K outputs that the plan keeps;
    and so .key, .value; layers.<layer>.feed_forward.up, .up2           a bias only where the source has one, up2 in gated forms

    classifier.<output>.weight [R, C], classifier.<output>.bias [C]      of the last linear layer before that graph output

R, K, D rows and columns, however the graph stores its matrix; what is packed in one goes by its first name (`inner.py`).
What the file does not name stays as in the source. A block that is removed has no entries; one whose heads (neurons) are all
listed has K = 0, its bias is what it puts out for every token, and it has no inner entries. Layers and not initializers give
the names, because layers that share an initializer may each be given weights of their own; where "shared_weights" is
"together", one layer's entries stand for its group.

"readout": "narrow" computes what only a picked token needs for that token alone, exactly (`readout.py`), where that is legal; it is
left out where the read-out stays whole. "constants": "folded" computes the same with fewer operators (`constants/`), exact up to
the rounding of sums; it is left out where they are kept. "keys_values": "absorbed" projects neither keys nor values where a narrow
read-out leaves one query (`absorb.py`), exact up to rounding; it is left out where they are projected. "padding": "removed"
computes what works on each token alone for the real tokens of a batch (`padding/`); it is left out where padding is kept.

"int8": {"bits": 7, "attention": [0, 1], "feed_forward": [1], "tables": 8, "stored": true} makes the projections of these blocks
products of integers, with weights of so many bits, embeddings rows of 8 (4) bits, and stores all other weights in 8 bits
(`integers/`); it is left out where all numbers stay as they are. The weights file holds what is rounded, in float32. "activations"
and "scales" are there where ranges are static (`integers/ranges.py`).

"source": "dequantised" carries all of this out on the float32 form of a quantised source (`prepare/dequantising.py`): its weights
are the numbers that its integers stand for, its activations are not rounded; left out where the source is worked on as it is.

"half": {"type": "fp16", "float32": ["/layer.3/Pow_output_0"]} writes the graph in half precision but for these nodes (`halves/`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from axformer_passes import precision
from axformer_passes.anatomy import Anatomy
from axformer_passes.errors import PlanError
from axformer_passes.precision import Half, Int8

FORMAT = "axformer-plan/1"
Mode = Literal["truncated", "renormalised"]
MODES: tuple[Mode, ...] = get_args(Mode)
SharedWeights = Literal["separate", "together"]
"""What happens where several layers read the same weights: a copy for each layer that is cut, or one cut for all of them."""
Readout = Literal["whole", "narrow"]
"""Is what only a picked token needs computed for all tokens, or for that one?"""
Constants = Literal["kept", "folded"]
"""Do factors, biases and sizes stay as they are, or go where they cost least?"""
KeysValues = Literal["projected", "absorbed"]
"""Where there is one query: are keys and values computed for all tokens, or their weights multiplied with it instead?"""
Padding = Literal["kept", "removed"]
"""Is what works on each token alone computed for padded tokens, too?"""
SourceForm = Literal["given", "dequantised"]
"""Is the source worked on as it is, or its float32 form?"""
_CHOICES: dict[str, tuple[str, ...]] = {
    "shared_weights": get_args(SharedWeights),
    "readout": get_args(Readout),
    "constants": get_args(Constants),
    "keys_values": get_args(KeysValues),
    "padding": get_args(Padding),
    "source": get_args(SourceForm),
}
"""Keys that choose; the first value is what a plan without the key means."""
_SHARED = "shared_weights"
_WEIGHTS_NAME = re.compile(r"[^/\\:\x00-\x1f]{1,200}\.safetensors")
_KEYS = {
    "format", "source_sha256", "heads", "neurons", "attention_blocks", "feed_forward_blocks", "hard_attention", "weights",
    "int8", "half", *_CHOICES,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, order=True)
class Hard:
    """Hard attention in one layer: per query row the k largest probabilities stay (docs/method.md 1.1)."""

    k: int
    mode: Mode = "truncated"


@dataclasses.dataclass(frozen=True)
class Plan:
    """An immutable plan. Build one from `Plan()` with the `without_*` and `with_*` methods.

    >>> plan = Plan().without_heads(0, [1, 3]).without_feed_forward(2)
    >>> sorted(plan.heads[0]), Plan.loads(plan.dumps()) == plan
    ([1, 3], True)
    """

    source_sha256: str = ""
    heads: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    neurons: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    attention_blocks: frozenset[int] = frozenset()
    feed_forward_blocks: frozenset[int] = frozenset()
    hard_attention: Mapping[int, Hard] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    shared_weights: SharedWeights = "separate"
    readout: Readout = "whole"
    constants: Constants = "kept"
    keys_values: KeysValues = "projected"
    padding: Padding = "kept"
    source: SourceForm = "given"
    int8: Int8 | None = None
    half: Half | None = None

    # -- building ------------------------------------------------------------------------------------------------

    def without_heads(self, layer: int, heads: Iterable[int]) -> Plan:
        """This plan with these heads removed too."""
        return dataclasses.replace(self, heads=_merged(self.heads, layer, heads))

    def without_neurons(self, layer: int, neurons: Iterable[int]) -> Plan:
        """This plan with these neurons removed too."""
        return dataclasses.replace(self, neurons=_merged(self.neurons, layer, neurons))

    def without_attention(self, layer: int) -> Plan:
        """This plan with the whole attention block of `layer` removed; its heads and hard attention are forgotten.

        Heads that go together stay: they are those of other layers, too.
        """
        return dataclasses.replace(
            self,
            attention_blocks=self.attention_blocks | {layer},
            heads=self._without(self.heads, layer),
            hard_attention={i: v for i, v in self.hard_attention.items() if i != layer},
        )

    def without_feed_forward(self, layer: int) -> Plan:
        """This plan with the whole feed-forward block of `layer` removed; its neurons are forgotten, unless they go together."""
        return dataclasses.replace(
            self,
            feed_forward_blocks=self.feed_forward_blocks | {layer},
            neurons=self._without(self.neurons, layer),
        )

    def with_hard_attention(self, layer: int, k: int, mode: Mode = "truncated") -> Plan:
        """This plan with hard attention in `layer`."""
        return dataclasses.replace(self, hard_attention={**self.hard_attention, layer: Hard(k, mode)})

    def with_nothing_rewritten(self) -> Plan:
        """This plan without exact rewrites: the read-out whole, constants and padding kept, keys and values projected."""
        return dataclasses.replace(self, readout="whole", constants="kept", keys_values="projected", padding="kept")

    def _without(self, ids: Mapping[int, frozenset[int]], layer: int) -> Mapping[int, frozenset[int]]:
        return ids if self.shared_weights == "together" else {i: v for i, v in ids.items() if i != layer}

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Nothing removed, hardened or rounded, no weights, and every choice left at what a plan without its key means."""
        return self.is_exact and all(
            getattr(self, key) == values[0] for key, values in _CHOICES.items() if key != _SHARED
        )

    @property
    def is_exact(self) -> bool:
        """Nothing removed, hardened or rounded, no weights: the graph computes what the source computes, in the form that is
        worked on."""
        return not (
            any(self.heads.values())
            or any(self.neurons.values())
            or self.attention_blocks
            or self.feed_forward_blocks
            or self.hard_attention
            or self.weights
            or self.int8
            or self.half
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
        if self.int8:
            data["int8"] = self.int8.to_json()
        if self.half:
            data["half"] = self.half.to_json()
        data |= {key: getattr(self, key) for key, values in _CHOICES.items() if getattr(self, key) != values[0]}
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
        except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
            raise PlanError(f"{origin}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise PlanError(f"{origin}: expected a JSON object, found {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise PlanError(f'{origin}: "format" is {_shown(data.get("format"))}, expected {FORMAT!r}')
        unknown = sorted(set(data) - _KEYS)
        if unknown:
            raise PlanError(f"{origin}: unknown key {_shown(unknown[0])}; known: {', '.join(sorted(_KEYS))}")
        sha, weights = data.get("source_sha256", ""), data.get("weights")
        if not isinstance(sha, str) or not (weights is None or isinstance(weights, str)):
            raise PlanError(f'{origin}: "source_sha256" and "weights" are strings')
        if weights is not None and not _WEIGHTS_NAME.fullmatch(weights):
            raise PlanError(
                f'{origin}: "weights" is {_shown(weights)}, expected the name of a .safetensors file beside the plan'
            )
        for key, (first, *others) in _CHOICES.items():
            if data.get(key, first) not in (first, *others):
                raise PlanError(f'{origin}: "{key}" is {_shown(data[key])}, expected {" or ".join((first, *others))}')
        return cls(
            source_sha256=sha,
            heads=_id_lists(data, "heads", origin),
            neurons=_id_lists(data, "neurons", origin),
            attention_blocks=_ids(data.get("attention_blocks", []), '"attention_blocks"', origin),
            feed_forward_blocks=_ids(data.get("feed_forward_blocks", []), '"feed_forward_blocks"', origin),
            hard_attention=_hard(data.get("hard_attention", {}), origin),
            weights=weights,
            int8=precision.read(data.get("int8"), origin),
            half=precision.read_half(data.get("half"), origin),
            **{key: data[key] for key in _CHOICES if key in data},
        )


def _shown(value: object) -> str:
    """`value` in at most 80 characters, however long or deep it is."""
    return reprlib.repr(value)[:80]


def _as_json(value: object) -> str:
    """As `_shown`, in the words of the file."""
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return _shown(value)


def _merged(old: Mapping[int, frozenset[int]], layer: int, ids: Iterable[int]) -> Mapping[int, frozenset[int]]:
    return {**old, layer: old.get(layer, frozenset()) | frozenset(ids)}


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(value: object, where: str, origin: str) -> frozenset[int]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        raise PlanError(f"{origin}: {where} is a list of ids from 0 upwards, found {_as_json(value)}")
    if len(set(value)) != len(value):
        raise PlanError(f"{origin}: {where} names an id twice: {_as_json(value)}")
    return frozenset(value)


def _layer_key(key: str, where: str, origin: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key):
        raise PlanError(f'{origin}: {where} has the key {_shown(key)}, expected a layer number such as "0"')
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
        if not isinstance(k, int) or not _is_id(k) or not 0 < k < 2**31:
            raise PlanError(f'{origin}: "hard_attention" of layer {key}: k is {_shown(k)}, expected 1 or more')
        if mode not in MODES:
            raise PlanError(
                f'{origin}: "hard_attention" of layer {key}: mode is {_shown(mode)}, expected {" or ".join(MODES)}'
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
            raise PlanError(f'"neurons": no feed-forward block was recognised in layer {index}')
        within(neurons, block.neurons, '"neurons"', index)
    for index in plan.attention_blocks:
        attention = layer_of(index, '"attention_blocks"').attention
        if attention is None or attention.sum is None:
            why = attention.why if attention else "none was recognised"
            raise PlanError(f'"attention_blocks": layer {index} has no removable attention block: {why}')
    for index in plan.feed_forward_blocks:
        block = layer_of(index, '"feed_forward_blocks"').feed_forward
        if block is None or block.sum is None:
            why = block.why if block else "none was recognised"
            raise PlanError(f'"feed_forward_blocks": layer {index} has no removable feed-forward block: {why}')
    for index in plan.hard_attention:
        if layer_of(index, '"hard_attention"').attention is None:
            raise PlanError(f'"hard_attention": no attention block was recognised in layer {index}')
    if plan.int8:
        blocks = (
            (layer.index, "attention" if layer.attention is block else "feed_forward")
            for layer in anatomy.layers
            for block in layer.blocks
        )
        precision.require_blocks(plan.int8, blocks)

"""config.json true to the graph: labels, sizes, and what is left in every layer under a key of our own.

Transformers' keys say one number for all layers (num_attention_heads, intermediate_size); of a pruned graph they stay those of the
source, since hidden_size / num_attention_heads is the size of a head. `axformer_layers` has the numbers of each layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.errors import AxformerError

if TYPE_CHECKING:
    from axformer_passes.anatomy import Anatomy

LAYERS = "axformer_layers"
_HIDDEN = ("hidden_size", "n_embd", "dim", "d_model")
_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def config_of(contents: Contents, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The source's configuration, with what the graph says. `more`: keys of the target.

    hidden_size         its own or an alias, else the width of the residual stream
    num_hidden_layers   layers of which something is left (a heuristic: where more blocks were recognised than it has layers, as in
                        MobileBERT, the source's number stays)
    id2label, label2id  of a classifier; LABEL_0, ... where the source names none
    """
    config = dict(contents.config)
    anatomy = _anatomy(contents)
    hidden = next((config[name] for name in _HIDDEN if isinstance(config.get(name), int)), None)
    if hidden is not None or (anatomy is not None and anatomy.width):
        config["hidden_size"] = hidden if hidden is not None else anatomy.width if anatomy is not None else 0
    depth = next((config[name] for name in _DEPTH if isinstance(config.get(name), int)), None)
    if anatomy is not None:
        left = len(anatomy.layers)
        config["num_hidden_layers"] = left if depth is None or left < depth else depth
        config[LAYERS] = _layers(anatomy)
    elif depth is not None:
        config["num_hidden_layers"] = depth
    if contents.role in ("classification", "token-classification"):
        config |= _labels(config, contents.width)
    return config | dict(more or {})


def dumped(config: Mapping[str, Any]) -> str:
    """As a file holds it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _anatomy(contents: Contents) -> Anatomy | None:
    """What is in the graph; None where it cannot be told, and the source's numbers stand."""
    from axformer_onnx.probing import at_its_sizes
    from axformer_onnx.runtime import run_once
    from axformer_passes.recognise import recognise

    try:
        return at_its_sizes(contents.model.clone(), lambda model: recognise(model, run_once))
    except AxformerError:
        return None


def _layers(anatomy: Anatomy) -> list[dict[str, int]]:
    """For each layer heads, their size and neurons; 0 heads or neurons: the block is gone."""
    return [
        {
            "heads": layer.attention.heads if layer.attention else 0,
            "head_size": layer.attention.head_size if layer.attention else 0,
            "neurons": layer.feed_forward.neurons if layer.feed_forward else 0,
        }
        for layer in anatomy.layers
    ]


def _labels(config: Mapping[str, Any], columns: int | None) -> dict[str, Any]:
    names = config.get("id2label")
    ids = config.get("label2id")
    if not isinstance(names, Mapping) or not names:
        if isinstance(ids, Mapping) and ids:
            names = {str(number): name for name, number in sorted(ids.items(), key=lambda pair: int(pair[1]))}
        elif columns is not None:
            names = {str(i): f"LABEL_{i}" for i in range(columns)}
        else:
            return {}
    names = {str(number): str(name) for number, name in names.items()}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}

"""The zoo: tiny random transformers, exported in every way that people export them.

    model = build("bert", "dynamo-23")
    model.path                       the .onnx file (cached on disk, shared between test processes)
    model.module                     the torch module (eval mode, eager attention), the tests' ground truth
    model.feeds(2, 7)                {"input_ids": int64[2, 7], "attention_mask": ..., ...}
    model.logits(feeds)              what torch answers

dynamo and optimum export the attention that transformers would choose: sdpa, or eager where a family has no
other (ELECTRA in transformers 4.57; so no `Attention` node there). `onnx_outputs` runs a file with the
optimisations of ONNX Runtime off.

Weights are drawn so that every part matters: attention far from uniform, biases and norm weights random. Real
initialisations (zero biases, unit norms) hide mistakes, and exporters merge equal initializers; `zero_biases`
asks for those. B batch, S tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from zoo_export import EXPORTERS, cached

Feeds = dict[str, npt.NDArray[Any]]

LABELS, VOCAB, POSITIONS, IMAGE, PATCH = 3, 100, 64, 16, 4
FAMILIES = ("bert", "distilbert", "roberta", "electra", "minilm", "vit", "gpt2", "gpt2-tokens")
TEXT_ENCODERS = ("bert", "distilbert", "roberta", "electra", "minilm")
PRE_NORM = ("vit", "gpt2", "gpt2-tokens")

# (family, exporter) pairs which the exporter itself cannot do, with its reason. `build` refuses them.
UNEXPORTABLE: dict[tuple[str, str], str] = {}
if transformers.__version__.startswith("4."):
    for _attention, _opset in itertools.product(("eager", "sdpa"), (14, 17)):
        for _family in ("gpt2", "gpt2-tokens"):
            _reason = "transformers 4 makes the causal mask by vmap, which torch.jit.trace cannot follow"
            UNEXPORTABLE[_family, f"torchscript-{_attention}-{_opset}"] = _reason
if not transformers.ElectraForSequenceClassification._supports_sdpa:
    for _opset in (14, 17):
        UNEXPORTABLE["electra", f"torchscript-sdpa-{_opset}"] = "transformers 4 has only eager attention for ELECTRA"
CASES: list[tuple[str, str]] = [
    (family, exporter) for family in FAMILIES for exporter in EXPORTERS if (family, exporter) not in UNEXPORTABLE
]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What can be overridden. Some families have defaults of their own: `FAMILY_SIZES`."""

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
class ZooModel:
    """One random model and one export of it. `module` is shared: copy it before changing anything."""

    family: str
    exporter: str
    seed: int
    sizes: Sizes
    module: Any
    path: Path

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.sizes.layers

    @property
    def heads(self) -> int:
        """Heads of each layer."""
        return self.sizes.heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.sizes.head_size

    @property
    def neurons(self) -> int:
        """Inner width of each feed-forward block."""
        return self.sizes.neurons

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.sizes.width

    @property
    def default_attention(self) -> str:
        """sdpa, or eager where this version of transformers has nothing else for the family."""
        return "sdpa" if self.module._supports_sdpa else "eager"

    def feeds(self, batch: int, length: int, padded: bool = True, seed: int = 0) -> Feeds:
        """Random inputs. `padded`: rows end in padding; half of each row is real, one of several is full.

        ViT has images of one size: `length` and `padded` are without effect there.
        """
        return feeds_for(self.module.config, self.family, batch, length, padded, seed)

    def logits(self, feeds: Feeds) -> npt.NDArray[Any]:
        """float32[B, labels] (gpt2-tokens: [B, S, labels]) of the torch module itself."""
        with torch.no_grad():
            out = self.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return np.asarray(out.logits.numpy())


def build(family: str, exporter: str, *, seed: int = 0, **overrides: Any) -> ZooModel:
    """The random model `family`, exported by `exporter`. Overrides: the fields of `Sizes`."""
    if (family, exporter) in UNEXPORTABLE:
        raise ValueError(f"{family} by {exporter}: {UNEXPORTABLE[family, exporter]}")
    sizes = Sizes(**{**FAMILY_SIZES.get(family, {}), **overrides})
    module = torch_module(family, sizes, seed)
    key = f"{family}-{exporter}-{seed}-{fingerprint(module)}"

    def fresh(attention: str) -> Any:
        return make_module(family, sizes, seed, attention)

    example = feeds_for(module.config, family, 2, 7, True, 0)
    return ZooModel(family, exporter, seed, sizes, module, cached(key, exporter, fresh, example))


def onnx_outputs(model: Path | bytes, feeds: Feeds, threads: int = 1) -> list[npt.NDArray[Any]]:
    """All outputs of a file (or serialised model) in ONNX Runtime on the CPU, its own optimisations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})]


@functools.lru_cache(maxsize=64)
def torch_module(family: str, sizes: Sizes, seed: int) -> Any:
    """The module with eager attention, in eval mode; one instance per process."""
    return make_module(family, sizes, seed, "eager")


def make_module(family: str, sizes: Sizes, seed: int, attention: str) -> Any:
    """A new module; same arguments, same weights. `attention`: eager, sdpa or default (sdpa if it can)."""
    head, config = _config(family, sizes)
    if attention == "default":
        attention = "sdpa" if head._supports_sdpa else "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = head._from_config(config, attn_implementation=attention).eval()
        _randomise(module, sizes.zero_biases)
    return module


@functools.lru_cache(maxsize=64)
def fingerprint(module: Any) -> str:
    """Hash of a module's configuration and weights: two models with one fingerprint have the same export."""
    digest = hashlib.sha256(module.config.to_json_string().encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def feeds_for(config: Any, family: str, batch: int, length: int, padded: bool, seed: int) -> Feeds:
    """See `ZooModel.feeds`."""
    rng = np.random.default_rng(seed)
    if family == "vit":
        return {"pixel_values": rng.standard_normal((batch, 3, IMAGE, IMAGE)).astype(np.float32)}
    real = np.full(batch, length)
    if padded:
        real = rng.integers(math.ceil(length / 2), length, size=batch, endpoint=True)
        if batch > 1:
            real[int(rng.integers(batch))] = length
    mask = (np.arange(length) < real[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(5, VOCAB, size=(batch, length)), config.pad_token_id)
    feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask}
    if family in ("bert", "minilm", "electra"):
        feeds["token_type_ids"] = (np.arange(length) >= real[:, None] // 2).astype(np.int64) * mask
    return feeds


FAMILY_SIZES: dict[str, dict[str, int]] = {
    "minilm": {"heads": 12, "neurons": 60},
    "electra": {"head_size": 12},
    "distilbert": {"neurons": 64},
    "vit": {"heads": 3, "head_size": 16},
}


def _config(family: str, sizes: Sizes) -> tuple[Any, Any]:
    common = {"num_labels": LABELS, "pad_token_id": 0, "vocab_size": VOCAB}
    encoder = {
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.neurons, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    gpt2 = {
        "n_embd": sizes.width, "n_layer": sizes.layers, "n_head": sizes.heads, "n_inner": sizes.neurons,
        "n_positions": POSITIONS, "bos_token_id": 1, "eos_token_id": 1, "use_cache": False,
    }  # fmt: skip
    t = transformers
    if family in ("bert", "minilm"):
        return t.BertForSequenceClassification, t.BertConfig(**common, **encoder)
    if family == "electra":
        return t.ElectraForSequenceClassification, t.ElectraConfig(**common, **encoder, embedding_size=20)
    if family == "roberta":
        positions = {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
        return t.RobertaForSequenceClassification, t.RobertaConfig(**{**common, **encoder, **positions})
    if family == "distilbert":
        return t.DistilBertForSequenceClassification, t.DistilBertConfig(
            **common, dim=sizes.width, n_layers=sizes.layers, n_heads=sizes.heads, hidden_dim=sizes.neurons,
            max_position_embeddings=POSITIONS,
        )  # fmt: skip
    if family == "vit":
        image = {"image_size": IMAGE, "patch_size": PATCH, "num_labels": LABELS}
        encoder.pop("max_position_embeddings")
        return t.ViTForImageClassification, t.ViTConfig(**encoder, **image)
    if family == "gpt2":
        return t.GPT2ForSequenceClassification, t.GPT2Config(**common, **gpt2)
    if family == "gpt2-tokens":
        return t.GPT2ForTokenClassification, t.GPT2Config(**common, **gpt2)
    raise ValueError(f"unknown family {family!r}, known: {', '.join(FAMILIES)}")


def _randomise(module: Any, zero_biases: bool) -> None:
    """Draw every parameter: deviation 1.5 / sqrt(inputs) for matrices, 1 embeddings, 0.3 vectors."""
    linear = (torch.nn.Linear, torch.nn.Conv2d)
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            drawn = torch.randn(value.shape)
            if value.ndim == 1 and zero_biases:
                continue
            if value.ndim == 1:
                value.data = float(name == "weight") + 0.3 * drawn
            elif isinstance(part, linear):
                value.data = drawn * 1.5 / math.sqrt(math.prod(value.shape[1:]))
            elif type(part).__name__ == "Conv1D":
                value.data = drawn * 1.5 / math.sqrt(value.shape[0])
            else:
                value.data = drawn

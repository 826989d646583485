"""The zoo: tiny random transformers, exported in every way that people export them.

    model = build("bert", "dynamo-23")
    model.path                       the .onnx file (exported when asked for, cached on disk, shared between test processes)
    model.module                     the torch module (eval mode, eager attention), the tests' ground truth
    model.feeds(2, 7)                {"input_ids": int64[2, 7], "attention_mask": ..., ...}
    model.logits(feeds)              what torch answers
    model.records                    what can be removed, layer by layer

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
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from zoo_export import EXPORTERS, cached, quiet
from zoo_families import IMAGE, LABELS, PATCH, POSITIONS, VOCAB, Family, Feeds, Record, Sizes, unwrapped

from axformer_passes.io import load_model
from axformer_passes.probe import describe

with quiet():  # DeBERTa's module uses torch.jit.script, which torch calls deprecated
    from zoo_families_audio import AUDIO
    from zoo_families_decoders import DECODERS
    from zoo_families_parallel import PARALLEL
    from zoo_families_seq2seq import SEQ2SEQ
    from zoo_families_text import TEXT
    from zoo_families_vision import VISION

__all__ = [
    "CASES", "FAMILIES", "FAMILY", "FURTHER_CASES", "FURTHER_FAMILIES", "IMAGE", "LABELS", "PATCH", "POSITIONS", "PRE_NORM",
    "TEXT_ENCODERS", "UNEXPORTABLE", "VOCAB", "Family", "Feeds", "Record", "Sizes", "ZooModel", "build", "fingerprint",
    "make_module", "onnx_outputs", "torch_module", "unwrapped",
]  # fmt: skip

FAMILY = {family.name: family for family in (*TEXT, *DECODERS, *PARALLEL, *SEQ2SEQ, *VISION, *AUDIO)}
# The plain ones: every layer has one attention and one feed-forward block, all of one size, and weights of its own.
FAMILIES = ("bert", "distilbert", "roberta", "electra", "minilm", "vit", "gpt2", "gpt2-tokens")
FURTHER_FAMILIES = tuple(name for name in FAMILY if name not in FAMILIES)
TEXT_ENCODERS = ("bert", "distilbert", "roberta", "electra", "minilm")
PRE_NORM = ("vit", "gpt2", "gpt2-tokens")

# (family, exporter) pairs which the exporter itself cannot do, with its reason. `build` refuses them.
UNEXPORTABLE: dict[tuple[str, str], str] = {
    (name, exporter): reason
    for name, family in FAMILY.items()
    for exporter in EXPORTERS
    if (reason := family.reason(exporter))
}
CASES: list[tuple[str, str]] = [(f, e) for f in FAMILIES for e in EXPORTERS if (f, e) not in UNEXPORTABLE]
FURTHER_CASES: list[tuple[str, str]] = [
    (f, e) for f in FURTHER_FAMILIES for e in EXPORTERS if (f, e) not in UNEXPORTABLE
]


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """One random model and one export of it. `module` is shared: copy it before changing anything.

    `file` is the export, or what writes it when the path is asked for first: who asks torch alone need not wait for it.
    """

    family: str
    exporter: str
    seed: int
    sizes: Sizes
    module: Any
    file: Path | Callable[[], Path]

    @property
    def path(self) -> Path:
        """The .onnx file, exported now if it is not there."""
        return self.file if isinstance(self.file, Path) else self.file()

    def opened(self) -> ir.Model:
        """The file as the passes take it, with what its inputs are made of."""
        found = load_model(self.path)
        describe(found, FAMILY[self.family].recipe)
        return found

    @property
    def records(self) -> tuple[Record, ...]:
        """What can be removed in each `Layer` of the anatomy, in order; with the torch modules of the oracle."""
        return FAMILY[self.family].records(self.sizes)

    @property
    def layers(self) -> int:
        """Number of layers as plans count them: records."""
        return len(self.records)

    @property
    def heads(self) -> int:
        """Heads (grouped-query attention: groups) of each attention block."""
        return next(record.heads for record in self.records if record.heads)

    @property
    def head_size(self) -> int:
        """Columns of the output projection's input that one head has."""
        return next(record.width for record in self.records if record.width)

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
        return "sdpa" if FAMILY[self.family].has_sdpa else "eager"

    def feeds(self, batch: int, length: int, padded: bool = True, seed: int = 0) -> Feeds:
        """Random inputs. `padded`: rows are padded; half of each row is real, one of several is full.

        Images and spectrograms have one size: `length` and `padded` are without effect there.
        """
        return FAMILY[self.family].feeds(np.random.default_rng(seed), batch, length, padded)

    def logits(self, feeds: Feeds) -> npt.NDArray[Any]:
        """The first output of the torch module itself, float32: [B, labels], or [B, S, ..] for answers by token."""
        with torch.no_grad():
            out = self.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        return np.asarray(out.logits.numpy())


def build(family: str, exporter: str, *, seed: int = 0, **overrides: Any) -> ZooModel:
    """The random model `family`, exported by `exporter`. Overrides: the fields of `Sizes`."""
    base = exporter.split("+")[0]
    if reason := FAMILY[family].reason(base):
        raise ValueError(f"{family} by {exporter}: {reason}")
    known = FAMILY[family]
    sizes = Sizes(**{**known.sizes, **overrides})
    module = torch_module(family, sizes, seed)
    key = f"{family}-{exporter}-{seed}-{fingerprint(module)}-{known.form(base)}"

    def fresh(attention: str) -> Any:
        return known.exportable(make_module(family, sizes, seed, attention), base)

    @functools.cache
    def file() -> Path:
        return cached(key, exporter, fresh, known.feeds(np.random.default_rng(0), 2, 7, True), known.interface)

    return ZooModel(family, exporter, seed, sizes, module, file)


def onnx_outputs(model: Path | bytes, feeds: Feeds, threads: int = 1) -> list[npt.NDArray[Any]]:
    """All outputs of a file (or serialised model) in ONNX Runtime on the CPU, its own optimisations off."""
    if isinstance(model, bytes):
        session = _session(model, threads)
    else:
        found = Path(model).stat()
        session = _session(str(model), threads, found.st_mtime_ns, found.st_size)
    return [np.asarray(v) for v in session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})]


@functools.lru_cache(maxsize=4)
def _session(source: str | bytes, threads: int, *_state: int) -> Any:
    """Tests ask one graph at several sizes; `_state` tells a file that was written again."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=64)
def torch_module(family: str, sizes: Sizes, seed: int) -> Any:
    """The module with eager attention, in eval mode; one instance per process."""
    return make_module(family, sizes, seed, "eager")


def make_module(family: str, sizes: Sizes, seed: int, attention: str) -> Any:
    """A new module; same arguments, same weights. `attention`: eager, sdpa or default (sdpa if it can)."""
    if attention == "default":
        attention = "sdpa" if FAMILY[family].has_sdpa else "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = FAMILY[family].make(sizes, attention)
        _randomise(module, sizes.zero_biases)
    return module


@functools.lru_cache(maxsize=64)
def fingerprint(module: Any) -> str:
    """Hash of a module's configuration and weights: two models with one fingerprint have the same export."""
    digest = hashlib.sha256(module.config.to_json_string().encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def _randomise(module: Any, zero_biases: bool) -> None:
    """Draw every parameter: deviation 1.5 / sqrt(inputs) for matrices, 1 embeddings, 0.3 vectors."""
    for path, part in module.named_modules():
        for name, value in part.named_parameters(recurse=False):
            if value.ndim == 1 and zero_biases:
                continue
            mean, deviation = _law(part, f"{path}.{name}", value)
            value.data = mean + deviation * torch.randn(value.shape)


def _law(part: Any, path: str, value: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a parameter."""
    kind, name = type(part).__name__, path.rsplit(".", 1)[-1]
    if kind == "NoNorm":  # nothing else keeps MobileBERT's activations from growing
        return 0.4 * (name == "weight"), 0.1
    if "mobilebert" in path and ".intermediate.dense." in path:  # so that no ReLU is shut for all inputs
        return (1.5, 0.3) if value.ndim == 1 else (0.0, 0.4 / math.sqrt(value.shape[1]))
    if value.ndim == 1:
        return float(name == "weight"), 0.3
    if "Attention.q.weight" in path:  # T5 does not scale its scores
        return 0.0, 0.5 / math.sqrt(value.shape[1])
    if isinstance(part, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):
        return 0.0, 1.5 / math.sqrt(math.prod(value.shape[1:]))
    if kind == "Conv1D":  # GPT-2's linear
        return 0.0, 1.5 / math.sqrt(value.shape[0])
    if kind == "XLNetRelativeAttention":
        return 0.0, 0.3 if name.endswith(("bias", "embed")) else 1.5 / math.sqrt(value.shape[0])
    return 0.0, 1.0

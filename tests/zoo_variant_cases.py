"""Which variants of which exports are worth testing, and how near each is to the export that it was made from.

VARIANT_CASES            (family, "exporter+variant"): every variant of BERT, the important ones of five more families
FURTHER_VARIANT_CASES    the important ones of all other families but those of the same blocks
UNVARIABLE               what the tools themselves cannot do, with the reason: their file does not run, or there is none
"""

from __future__ import annotations

from collections.abc import Iterable

from zoo import FAMILIES, FURTHER_FAMILIES, UNEXPORTABLE
from zoo_export import HAS_OPTIMUM

IMPORTANT = ("onnxslim", "onnxsim", "ort", "ortfusions", "int8", "qdq", "fp16")
_BERT = (
    *("torchscript-eager-17+" + variant for variant in (
        *IMPORTANT[:3], "ort-mha", "ortbasic", "ortext", "int8", "int8c", "qdq", "qdqc", "qdqm", "fp16", "fp16io", "bf16", "wfp16",
        "external", "constants", "transposed", "functions", "metadata", "ort+int8", "ort+fp16", "ort-mha+int8", "int8+ortext",
        "onnxslim+int8", "transposed+wfp16+external",
    )),
    "torchscript-eager-13+int8", "torchscript-sdpa-17+ort", "optimum+ort", "optimum+int8",
    *("dynamo-20+" + variant for variant in ("ortfusions", "int8", "fp16", "functions", "ortfusions+int8", "ortfusions+fp16")),
    *("dynamo-23+" + variant for variant in ("onnxslim", "onnxsim", "ortfusions", "fp16", "bf16", "functions")),
    "dynamo-eager-20+ortfusions",
)  # fmt: skip
_SAME_BLOCKS = (
    "bart-classifier", "mbart-classifier", "t5-classifier", "umt5-classifier",
    "gemma3", "exaone4", "olmo2", "gptj", "phi", "falcon", "falcon-new", "swinv2",
)  # fmt: skip
"""Made of the blocks of families that are varied."""
_CORE = ("distilbert", "roberta", "minilm", "vit", "gpt2")

_ONE_ROW = (
    "the fused RotaryEmbedding or GroupQueryAttention is given positions of one row, so a batch of two does not run"
)
_RELATIVE = "quantises the logarithm of relative positions, so a Gather fails"
_MASKS = "quantises scores with masks added to them, whose huge values leave no steps for the scores; qdqm does not"
UNVARIABLE: dict[tuple[str, str], str] = {
    **{(family, "ort"): _ONE_ROW for family in ("llama", "qwen2", "qwen3", "gemma2")},
    **{(family, "ortfusions"): _ONE_ROW for family in ("llama", "qwen2", "qwen3", "gemma2", "modernbert")},
    **{(family, "ort"): "fuses to RelativePositionBias, which the CPU provider lacks" for family in ("t5", "t5-encoder")},
    **{(family, "qdq"): _RELATIVE for family in ("t5", "t5-encoder", "mpnet")},
    **{(family, "qdq"): _MASKS for family in (
        "gpt2", "gpt2-tokens", "clip-text", "llama", "qwen2", "qwen3", "gemma2", "modernbert", "deberta-v2", "xlnet",
    )},
    **{(family, "ortfusions"): "fuses to a Gemm of three axes, which does not run" for family in ("gpt2", "gpt2-tokens")},
    ("bert", "dynamo-23+int8"): "writes ai.onnx Attention as QAttention, which does not load",
    ("bert", "torchscript-eager-17+ort+qdq"): "finds no scale for what a com.microsoft operator gives to a bias",
}  # fmt: skip


def tolerance(exporter: str) -> float | None:
    """Root mean square of the distance to the unvaried export's outputs, relative to theirs; None: no CPU runs it."""
    _, *variants = exporter.split("+")
    if "bf16" in variants:
        return None
    if "qdqm" in variants:
        return 0.7  # gated activations are products: one static scale from few rows does not fit them
    if any(variant.startswith(("int8", "qdq")) for variant in variants):
        return 0.2
    if any("fp16" in variant for variant in variants):
        return 1e-2
    return 1e-3 if "ort-mha" in variants else 1e-5  # FastGelu is another function than Gelu


def _based(families: Iterable[str], variants: Iterable[str]) -> list[tuple[str, str]]:
    """Each variant on the first exporter that can export the family and that the variant is made for."""
    cases = []
    for family in families:
        for variant in variants:
            tried = ("dynamo-20",) if variant == "ortfusions" else ("torchscript-eager-17", "optimum", "dynamo-20")
            base = next((exporter for exporter in tried if _exportable(family, exporter)), None)
            if variant == "qdq" and (family, "qdq") in UNVARIABLE:
                variant = "qdqm"
            if base is not None and (family, variant) not in UNVARIABLE:
                cases.append((family, f"{base}+{variant}"))
    return cases


def _exportable(family: str, exporter: str) -> bool:
    return (family, exporter) not in UNEXPORTABLE and (exporter != "optimum" or HAS_OPTIMUM)


VARIANT_CASES: list[tuple[str, str]] = [
    *(("bert", exporter) for exporter in _BERT if _exportable("bert", exporter.split("+")[0])),
    *_based(_CORE, IMPORTANT),
]
FURTHER_VARIANT_CASES: list[tuple[str, str]] = _based(
    [family for family in (*FAMILIES, *FURTHER_FAMILIES) if family not in ("bert", *_CORE, *_SAME_BLOCKS)], IMPORTANT
)

"""What the support matrix calls things, for readers of docs/support.md; its test demands a word for everything in the zoo."""

from __future__ import annotations

TRANSFORMERS_5 = "tf5"

ARCHITECTURES = {
    "bert": "post-norm; the reference",
    "distilbert": "no token types",
    "roberta": "positions counted from the padding; XLM-R is the same code",
    "electra": "embeddings narrower than the stream",
    "minilm": "12 heads of 4, an attention narrower than usual",
    "camembert": "XLM-R's code",
    "mpnet": "relative position bias, one table for all layers",
    "albert": "all layers share one set of weights: removed in one layer (a copy) or in all, as the plan says",
    "deberta": "disentangled attention: content and position scores",
    "deberta-v2": "as DeBERTa v3: shared projections for positions, logarithmic buckets",
    "xlnet": "two-stream code, relative positions, weights with heads as an axis",
    "mobilebert": "bottlenecks, four feed-forwards a layer, no norms",
    "mobilebert-norm": "the same with LayerNorm",
    "modernbert": "pre-norm, fused QKV, rotary, gated feed-forward, local attention in every second layer",
    "nomic": "post-norm, fused QKV without bias, rotary, gated feed-forward",
    "clip-text": "causal, QuickGelu, read at the last token",
    "gpt2": "pre-norm, causal, fused QKV; classifier",
    "gpt2-tokens": "the same, one answer a token",
    "llama": "grouped queries: a head is a key and value head with its query heads; RMSNorm, rotary, gated feed-forward",
    "qwen2": "as Llama, with biases on query, key and value",
    "qwen3": "as Llama, with a norm in each query and key head",
    "gemma2": "as Llama, with a norm behind each block",
    "gemma3": "as Gemma 2, with norms in query and key heads; every other layer looks back a few tokens only",
    "exaone4": "the same without norms before the blocks; rotary only where a layer looks back a few tokens",
    "olmo2": "norms behind the blocks, and one across all queries and all keys: its heads go all at once or not at all",
    "gptj": "attention and feed-forward block in parallel behind one norm; rotary on a part of each head",
    "phi": "the same with biases",
    "falcon": "the same with fused QKV and one key head for all queries, which so are one unit; as the 7B model",
    "falcon-new": "key heads for groups of queries, a norm for each of the two blocks; as the 40B and 180B models",
    "t5-encoder": "relative position bias, gated feed-forward, scores not scaled",
    "t5": "encoder and decoder in one graph; cross-attention is an attention block of its own",
    "bart": "encoder and decoder in one graph; cross-attention is an attention block of its own",
    "bart-classifier": "the answer is read at the last end-of-sequence token of the decoder; PLBart is the same code",
    "mbart-classifier": "the same, pre-norm",
    "t5-classifier": "the same with T5; mT5 is the same code",
    "umt5-classifier": "the same with relative positions in every layer",
    "vit": "pre-norm, images of one size",
    "deit": "ViT with a second token",
    "clip-vision": "QuickGelu",
    "swinv2": "windows, shifted in the second layer; cosine attention with a learned scale a head; norms behind the blocks",
    "whisper": "the encoder, on spectrograms of one size",
    "wav2vec2": "raw audio; convolutions with a group norm before the encoder stay whole",
    "wav2vec2-stable": "the same, pre-norm",
}

MEANINGS = {
    "heads": "heads go in every attention block: one, all but one, one in the middle; in the last block all of them",
    "neurons": "neurons go in every feed-forward block: one, every second, all but one; in the last block all of them",
    "blocks": "every second attention block goes, and the feed-forward blocks between",
    "layers": "all blocks of a layer in the middle go, and those of the last",
    "hard attention, truncated": "k of 1, 3 and more than the sequence: the k largest probabilities stay as they are",
    "hard attention, renormalised": "the same k: only the k largest scores enter the softmax",
    "everything": "all of the above together, drawn at random for each file",
    "gates": "every plan above again through run-time gates, on the uncut graph: what search scores candidates with",
}

EXPORTED = {
    "optimum": "optimum-onnx",
    "torchscript-eager-N": "torch.onnx.export(dynamo=False), eager attention, operator set N",
    "torchscript-sdpa-N": "the same with scaled dot-product attention",
    "dynamo-N": "torch.onnx.export(dynamo=True), operator set N; from 23 on with the operator Attention",
    "dynamo-eager-N": "the same with eager attention",
    f"{TRANSFORMERS_5}/...": "the same with transformers 5; all others are of transformers 4",
    f"{TRANSFORMERS_5}/transformers": "the exporter of transformers 5; -23: operator set 23; -fused, -int8: by itself",
}

VARIED = {
    "onnxslim": "onnxslim",
    "onnxsim": "onnxsim (onnx-simplifier)",
    "ortbasic": "saved by ONNX Runtime after its basic optimisations",
    "ortext": "saved by ONNX Runtime after its extended optimisations: FusedMatMul, BiasGelu, DynamicQuantizeMatMul",
    "ort": "onnxruntime.transformers.optimizer: Attention, SkipLayerNormalization, EmbedLayerNormalization, BiasGelu",
    "ort-mha": "the same with MultiHeadAttention and FastGelu",
    "ortfusions": "onnxscript.rewriter.ort_fusions, the like for dynamo exports",
    "int8": "quantize_dynamic: MatMulInteger; after a fusion QAttention",
    "int8c": "the same, a scale a channel",
    "qdq": "quantize_static: QuantizeLinear and DequantizeLinear around every operator",
    "qdqc": "the same, a scale a channel",
    "qdqm": "the same around products alone",
    "fp16": "convert_float_to_float16, float32 inputs and outputs",
    "fp16io": "the same, inputs and outputs too",
    "bf16": "weights and arithmetic in bfloat16; ONNX Runtime has no CPU kernels, so its float32 twin is measured",
    "wfp16": "weights stored in float16 behind a Cast",
    "external": "weights in a file beside the graph",
    "constants": "initializers as Constant nodes",
    "transposed": "weights stored transposed",
    "functions": "functions in the model",
    "metadata": "metadata_props on every node",
}

_LAST_DECIDES = {
    "simplified": ("onnxslim", "onnxsim", "ortbasic"),
    "fused": ("ort", "ort-mha", "ortfusions", "ortext"),
    "half": ("fp16", "fp16io", "bf16"),
    "spelled otherwise": ("wfp16", "external", "constants", "transposed", "functions", "metadata"),
}
GROUPS = (
    "optimum",
    "torchscript",
    "dynamo",
    "dynamo 23",
    "transformers 5",
    "simplified",
    "fused",
    "int8",
    "QDQ",
    "half",
    "spelled otherwise",
)


def group_of(exporter: str) -> str:
    """The column of the summary that a file belongs to."""
    base, *variants = exporter.split("+")
    if base.startswith(f"{TRANSFORMERS_5}/"):
        return "transformers 5"
    if not variants:
        return "dynamo 23" if base == "dynamo-23" else base.split("-")[0]
    if any(variant.startswith("qdq") for variant in variants):
        return "QDQ"
    if any(variant.startswith("int8") for variant in variants):
        return "int8"
    return next(group for group, members in _LAST_DECIDES.items() if variants[-1] in members)

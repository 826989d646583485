"""Hugging Face's text-embeddings-inference: classifiers and embedders behind its HTTP interface, with its ONNX Runtime backend."""

from __future__ import annotations

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.interface import TEXT_INPUTS, Interface
from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import (
    architecture,
    pooling_file,
    require_keys,
    require_texts,
    write_config,
    write_tokenizer,
)
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS

_START = """    docker run --rm -p 8080:80 -v $PWD:/model ghcr.io/huggingface/text-embeddings-inference:cpu-1.9 \\
        --model-id /model --dtype float32
    curl localhost:8080/{route} -H 'Content-Type: application/json' -d '{{"inputs": "A text."}}'

Started without docker it is `text-embeddings-router --model-id FOLDER --dtype float32`. Its ONNX Runtime backend has
float32 outputs alone, and feeds {fed}."""


class TextEmbeddingsInference(Target):
    """`backends/ort/src/lib.rs` and `router/src/lib.rs` of version 1.9.3 say what is read."""

    name = "tei"
    title = "text-embeddings-inference"
    help = "text-embeddings-inference of Hugging Face"
    reads = onnx_runtime(
        "1.22", "text-embeddings-inference 1.9.3, Cargo.lock: ort 2.0.0-rc.10, which is ONNX Runtime 1.22"
    )
    interface = Interface(
        named=True,
        always=("input_ids", "attention_mask"),
        inputs=TEXT_INPUTS,
        answers={
            "classification": ("logits",),
            "embedding": ("sentence_embedding", "last_hidden_state", "token_embeddings"),
        },
        floats=True,
    )
    roles = ("classification", "embedding")
    hard = "yes: seen in the Python package of ONNX Runtime 1.22, not in the server"
    int8 = "yes, with its dtype float32: seen in the Python package of ONNX Runtime 1.22, not in the server"

    def require(self, contents: Contents) -> None:
        """Beside the output: what its router reads of config.json, and a pooling that it has."""
        super().require(contents)
        require_texts(contents, self.name)
        require_keys(contents, ("architectures", "model_type"), self.name)
        if contents.role == "embedding" and contents.pooling == "max":
            raise UsageError(
                f"{contents.settings}: --for {self.name} pools the first, last or mean token, and the folder asks for max"
            )
        name = architecture(contents)
        if (contents.role == "classification") != name.endswith("Classification"):
            raise UsageError(
                f"{contents.settings / 'config.json'}: architectures names {name}, and the graph is of {contents.role}: "
                f"--for {self.name} goes by that name; correct it"
            )

    def place(self, job: Job) -> list[str]:
        """config.json, tokenizer, and for embedders the pooling."""
        config = write_config(job)
        encoder = write_tokenizer(job)
        assert encoder is not None, "`require` saw a tokenizer"
        job.write(
            {"sentence_bert_config.json": f'{{"max_seq_length": {encoder.max_length}, "do_lower_case": false}}\n'}
        )
        if job.contents.role == "embedding":
            mode = job.contents.pooling
            job.write(
                {"1_Pooling/config.json": pooling_file("first" if mode == "row" else mode, config.get("hidden_size"))}
            )
        return []

    def start(self, job: Job) -> str:
        """The container."""
        embedding = job.contents.role == "embedding"
        return _START.format(route="embed" if embedding else "predict", fed=", ".join(job.inputs))


TEI = TARGETS.add(TextEmbeddingsInference())

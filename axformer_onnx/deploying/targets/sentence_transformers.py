"""sentence-transformers with `backend="onnx"`: embedders. It pools by itself, so a graph that pools hands it one token a text."""

from __future__ import annotations

import json

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.interface import TEXT_INPUTS, Interface
from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import (
    pooling_file,
    require_keys,
    require_texts,
    write_config,
    write_tokenizer,
)
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS

_START = """    pip install 'sentence-transformers[onnx]'

    from sentence_transformers import SentenceTransformer

    settings = {{"file_name": "model.onnx", "provider": "CPUExecutionProvider"}}
    model = SentenceTransformer("{folder}", backend="onnx", model_kwargs=settings)
    model.encode(["A text.", "Another one."])
{pooled}"""
_POOLED = """
The graph pools by itself. sentence-transformers reads `last_hidden_state` and pools that: here it is one token a text, the
embedding, and the pooling takes the first token."""
_KINDS = "sentence_transformers.models"


class SentenceTransformers(Target):
    """optimum's ORTModelForFeatureExtraction, which sentence-transformers loads, reads `last_hidden_state` alone."""

    name = "sentence-transformers"
    title = "sentence-transformers"
    graph_place = "onnx/model.onnx"
    help = "sentence-transformers with backend=onnx"
    reads = onnx_runtime("1.18", "optimum-onnx 0.1.0, its requirement: onnxruntime>=1.18.0")
    interface = Interface(
        named=True,
        always=("input_ids",),
        inputs=TEXT_INPUTS,
        answers={"embedding": ("last_hidden_state",)},
        as_tokens=True,
        floats=True,
    )
    roles = ("embedding",)
    hard = "yes: seen"
    int8 = "yes: seen"

    def require(self, contents: Contents) -> None:
        """Beside the output: a model type, and no module behind the pooling that is not in the graph."""
        super().require(contents)
        require_texts(contents, self.name)
        require_keys(contents, ("model_type",), self.name)
        path = contents.settings / "modules.json"
        if contents.pooling != "row" and path.is_file() and "Dense" in path.read_text(encoding="utf-8"):
            raise UsageError(
                f"{path}: names a Dense module, which is not in the graph; `axformer-onnx export` of the sentence-transformers "
                "folder writes it into the graph"
            )

    def place(self, job: Job) -> list[str]:
        """config.json, tokenizer, and the modules: transformer, pooling, perhaps the normalisation."""
        contents = job.contents
        config, encoder = write_config(job), write_tokenizer(job)
        assert encoder is not None, "`require` saw a tokenizer"
        mode, width = contents.pooling, contents.width or config.get("hidden_size")
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        if mode != "row" and contents.normalises:
            modules.append(("2_Normalize", "Normalize"))
            (job.folder / "2_Normalize").mkdir()
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"{_KINDS}.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ]
        job.write(
            {
                "modules.json": json.dumps(listed, indent=2) + "\n",
                "1_Pooling/config.json": pooling_file("first" if mode == "row" else mode, width),
                "sentence_bert_config.json": f'{{"max_seq_length": {encoder.max_length}, "do_lower_case": false}}\n',
            }
        )
        return []

    def start(self, job: Job) -> str:
        """Loading it."""
        return _START.format(folder=job.options.output, pooled=_POOLED if job.contents.pooling == "row" else "")


SENTENCE_TRANSFORMERS = TARGETS.add(SentenceTransformers())

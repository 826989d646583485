"""optimum's ORTModel classes: the graph at the root of a transformers folder."""

from __future__ import annotations

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.interface import TEXT_INPUTS, Interface
from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import (
    require_keys,
    require_texts,
    write_config,
    write_tokenizer,
)
from axformer_onnx.options import TARGETS

_CLASSES = {
    "classification": ("SequenceClassification", "logits"),
    "token-classification": ("TokenClassification", "logits"),
    "question-answering": ("QuestionAnswering", "start_logits"),
    "embedding": ("FeatureExtraction", "last_hidden_state"),
}
_START = """    pip install 'optimum-onnx[onnxruntime]'

    from optimum.onnxruntime import ORTModelFor{kind}
    from transformers import AutoTokenizer

    model = ORTModelFor{kind}.from_pretrained("{folder}")
    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    model(**tokenizer(["A text.", "Another one."], padding=True, truncation=True, return_tensors="pt")).{output}{more}"""


class Optimum(Target):
    """`optimum/onnxruntime/modeling.py` names the outputs that each class reads."""

    name = "optimum"
    title = "optimum"
    help = "optimum's ORTModel classes"
    reads = onnx_runtime("1.18", "optimum-onnx 0.1.0, its requirement: onnxruntime>=1.18.0")
    interface = Interface(
        named=True,
        always=("input_ids",),
        inputs=TEXT_INPUTS,
        answers={
            "classification": ("logits",),
            "token-classification": ("logits",),
            "question-answering": ("start_logits",),
            "embedding": ("last_hidden_state",),
        },
        as_tokens=True,
        floats=True,
    )
    roles = ("classification", "token-classification", "question-answering", "embedding")
    hard = "yes: seen"
    int8 = "yes: seen"

    def require(self, contents: Contents) -> None:
        """Beside the outputs: a model type."""
        super().require(contents)
        require_texts(contents, self.name)
        require_keys(contents, ("model_type",), self.name)

    def place(self, job: Job) -> list[str]:
        """config.json and the tokenizer."""
        write_config(job)
        write_tokenizer(job)
        return []

    def start(self, job: Job) -> str:
        """Loading it."""
        kind, output = _CLASSES[job.contents.role]
        pooled = job.contents.role == "embedding" and job.contents.pooling == "row"
        return _START.format(
            kind=kind, output=output, folder=job.options.output, more="[:, 0]  # the embedding" if pooled else ""
        )


OPTIMUM = TARGETS.add(Optimum())

"""Qdrant's FastEmbed: embedders, added as a model of one's own."""

from __future__ import annotations

from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.interface import TEXT_INPUTS, Interface
from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import require_texts, write_config, write_tokenizer
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS

_POOLING = {"row": "DISABLED", "mean": "MEAN", "first": "CLS"}
_READ = ("sentence_embedding", "last_hidden_state", "token_embeddings")
_START = """    pip install fastembed

    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        "{name}", pooling=PoolingType.{pooling}, normalization={normalisation}, sources=ModelSource(url="file://"),
        dim={width}, model_file="model.onnx", output_name="{output}",
    )
    model = TextEmbedding("{name}", specific_model_path="{folder}")
    list(model.embed(["A text.", "Another one."]))

`sources` is never asked: `specific_model_path` is the folder."""


class FastEmbed(Target):
    """Its custom models pool the first token or the mean, or take what the graph pools."""

    name = "fastembed"
    title = "FastEmbed"
    help = "FastEmbed's custom models"
    reads = onnx_runtime(
        "1.18", "FastEmbed 0.9.1, its requirement: onnxruntime>=1.17.0; 1.18 is the oldest that is tested"
    )
    interface = Interface(
        named=True, always=("input_ids",), inputs=TEXT_INPUTS[:3], answers={"embedding": _READ}, floats=True
    )
    roles = ("embedding",)
    hard = "yes: seen"
    int8 = "yes: seen"

    def require(self, contents: Contents) -> None:
        """Beside the output: a pooling that it has, and padding."""
        super().require(contents)
        require_texts(contents, self.name)
        if contents.pooling not in _POOLING:
            raise UsageError(
                f"{contents.settings}: --for {self.name} pools the first token or the mean, and the folder asks for "
                f"{contents.pooling}"
            )

    def place(self, job: Job) -> list[str]:
        """config.json and the tokenizer."""
        write_config(job)
        write_tokenizer(job)
        return []

    def start(self, job: Job) -> str:
        """Adding and loading it."""
        contents = job.contents
        output = next(name for name in _READ if name in job.outputs)
        return _START.format(
            name=f"axformer/{contents.name}",
            pooling=_POOLING[contents.pooling],
            normalisation=contents.pooling != "row" and contents.normalises,
            width=contents.width,
            output=output,
            folder=job.options.output,
        )


FASTEMBED = TARGETS.add(FastEmbed())

"""transformers.js, in Node and in browsers: one file a precision, under the names that its `dtype` chooses."""

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
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS, DeployOptions

_FILES = {
    "float32": ("model.onnx", "fp32"),
    "fp16": ("model_fp16.onnx", "fp16"),
    "int8": ("model_quantized.onnx", "q8"),
}
_PIPELINES = {
    "classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
_START = """    import {{ env, {imported} }} from '@huggingface/transformers';

    env.allowRemoteModels = false;
    env.allowLocalModels = true;                   // browsers have it off
    env.localModelPath = '..';                     // the folder above this one
{lines}

`dtype` chooses the file: {files}. Left out, it is {default}. docs/browser.md has a page that classifies what is typed into it."""
_PIPELINE = """    const answer = await pipeline('{task}', '{name}', {{ dtype: '{dtype}' }});
    console.log(await answer({asked}));"""
_EMBED = """    const tokenizer = await AutoTokenizer.from_pretrained('{name}');
    const model = await AutoModel.from_pretrained('{name}', {{ dtype: '{dtype}' }});
    const {{ {output} }} = await model(await tokenizer(['A text.'], {{ padding: true, truncation: true }}));
    console.log({output}.tolist());"""


class TransformersJs(Target):
    """`src/utils/dtypes.js` of versions 4.2.0 and 4.3.2 has the names of the files."""

    name = "transformersjs"
    title = "transformers.js"
    graph_place = "onnx/model.onnx"
    help = "transformers.js in Node and browsers"
    knows = ("also",)
    reads = onnx_runtime(
        "1.24",
        "transformers.js, package.json: 4.2.0 has onnxruntime-node 1.24.3 and onnxruntime-web 1.26.0-dev, 4.3.2 has 1.30.0 and "
        "1.31.0-dev (20260914)",
    )
    interface = Interface(
        named=True, always=("input_ids",), inputs=TEXT_INPUTS, answers={"classification": ("logits",)}, floats=True
    )
    roles = ("classification", "token-classification", "question-answering", "embedding")
    single_file = True
    hard = "yes: seen in Node and in Chromium with 4.3.2"
    int8 = "yes, as model_quantized.onnx: seen in Node and in Chromium with 4.3.2"

    def require(self, contents: Contents) -> None:
        """Beside the outputs: keys that it chooses a class by, and a precision that it has a name for."""
        super().require(contents)
        require_texts(contents, self.name)
        require_keys(contents, ("model_type",), self.name)
        if contents.precision not in _FILES:
            raise UsageError(
                f"{contents.path}: --for {self.name} has names for {', '.join(_FILES)}, and the graph is in {contents.precision}"
            )

    def graph(self, contents: Contents, options: DeployOptions) -> str:
        """By its precision."""
        return f"onnx/{_FILES[contents.precision][0]}"

    def place(self, job: Job) -> list[str]:
        """config.json that names the precision where the default of Node (fp32) or of browsers (q8) is not there; the tokenizer."""
        named = self._named(job)
        write_config(job, {"transformers.js_config": {"dtype": named}} if named else {})
        write_tokenizer(job)
        return []

    def start(self, job: Job) -> str:
        """A pipeline, or the model itself for embeddings."""
        dtype, name = self._there(job)[0], job.options.output.resolve().name
        if job.contents.role == "embedding":
            output = "sentence_embedding" if "sentence_embedding" in job.outputs else job.outputs[0]
            lines, imported = _EMBED.format(name=name, dtype=dtype, output=output), "AutoModel, AutoTokenizer"
        else:
            asked = "'Who wrote it?', 'She wrote it.'" if job.contents.role == "question-answering" else "'A text.'"
            lines = _PIPELINE.format(task=_PIPELINES[job.contents.role], name=name, dtype=dtype, asked=asked)
            imported = "pipeline"
        files = ", ".join(f"{dtype} is onnx/{file}" for file, dtype in _FILES.values() if dtype in self._there(job))
        default = self._named(job) or "fp32 in Node, q8 in browsers"
        return _START.format(imported=imported, lines=lines, files=files, default=default)

    def _named(self, job: Job) -> str:
        """The dtype that config.json states; empty: each default has its file."""
        there = self._there(job)
        if {"fp32", "q8"} <= {*there}:
            return ""
        return "fp32" if "fp32" in there else there[0]

    def _there(self, job: Job) -> list[str]:
        """The dtypes of the graphs that were written, the first of them that of the model."""
        own = _FILES[job.contents.precision][1]
        others = [dtype for file, dtype in _FILES.values() if (job.folder / "onnx" / file).is_file() and dtype != own]
        return [own, *others]


TRANSFORMERSJS = TARGETS.add(TransformersJs())

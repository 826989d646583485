"""Triton Inference Server with its ONNX Runtime backend: a model repository, on request with an ensemble that takes texts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from axformer_onnx.deploying.interface import TEXT_INPUTS
from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.targets.triton_config import Faces, Tensor, ensemble_config, faces_of, model_config
from axformer_onnx.deploying.transformers_folder import require_texts, write_config, write_tokenizer
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS

_START = """    docker run --rm {gpus}-p 8000:8000 -v $PWD:/models nvcr.io/nvidia/tritonserver:26.07-py3 \\
        tritonserver --model-repository=/models

The model is `{name}`: POST localhost:8000/v2/models/{name}/infer.{batching}{texts}"""
_TEXTS = """

`{name}_text` takes texts: TEXT, a string a row, or two for a pair.

    curl localhost:8000/v2/models/{name}_text/infer -H 'Content-Type: application/json' \\
        -d '{{"inputs": [{{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["A text."]}}]}}'

Its tokenizer runs in the Python backend, which needs the package: `pip install tokenizers` in the container."""
_UNBATCHED = " The graph's first axes are not all open, so that the server puts no requests together."
_BATCHED = " The server puts up to {batch} rows of one length together."


class Triton(Target):
    """`build.py` of the server names the ONNX Runtime that a release ships; older releases have older ones (--target-opset)."""

    name = "triton"
    title = "Triton Inference Server"
    graph_place = "NAME/1/model.onnx"
    help = "Triton's model repository, for its ONNX Runtime backend"
    knows = ("name", "max_batch", "instances", "device", "accelerator", "tokenizer")
    reads = onnx_runtime("1.27", "Triton's build.py for 2.73 (26.07 and later): ort_version 1.27.0")
    hard = "yes: seen in the Python package of ONNX Runtime 1.27, not in the server"
    int8 = "yes: seen in the Python package of ONNX Runtime 1.27, not in the server"

    def place(self, job: Job) -> list[str]:
        """config.pbtxt, a row to warm up with, config.json beside them; the ensemble where it is asked for."""
        name, faces = job.contents.name, faces_of(job.model)
        write_config(job, place=f"{name}/")
        dims = _write_row(job, faces)
        job.write({f"{name}/config.pbtxt": model_config(name, faces, job.options, warm_up=dims)})
        if job.options.tokenizer:
            _write_texts(job, faces)
        return []

    def start(self, job: Job) -> str:
        """The container."""
        name = job.contents.name
        batching = _BATCHED.format(batch=job.options.max_batch) if faces_of(job.model).batched else _UNBATCHED
        return _START.format(
            gpus="--gpus all " if job.options.device == "gpu" else "",
            name=name,
            batching=batching,
            texts=_TEXTS.format(name=name) if job.options.tokenizer else "",
        )


def _write_row(job: Job, faces: Faces) -> Mapping[str, tuple[int, ...]]:
    """Write the values of one row for each input as warmup/NAME; returns their dims."""
    import numpy as np

    from axformer_passes.probe import probe_feeds, usual_tokens

    model = job.contents.model
    feeds = probe_feeds(model, 1, usual_tokens(model))
    folder = job.folder / job.contents.name / "warmup"
    folder.mkdir(parents=True)
    dims: dict[str, tuple[int, ...]] = {}
    for value, given, one in zip(job.model.graph.inputs, model.graph.inputs, faces.inputs, strict=True):
        assert value.dtype is not None, "`faces_of` saw a type"
        array = np.ascontiguousarray(feeds[str(given.name)]).astype(value.dtype.numpy())
        (folder / one.name).write_bytes(array.tobytes())
        dims[one.name] = array.shape[1:] if faces.batched else array.shape
    return dims


def _write_texts(job: Job, faces: Faces) -> None:
    """The tokenizer as a model of the Python backend, and the ensemble of it and the graph."""
    contents, name = job.contents, job.contents.name
    require_texts(contents, "triton --tokenizer")
    foreign = [one for one in job.inputs if one not in TEXT_INPUTS]
    if foreign or not faces.batched:
        why = f"the graph takes {foreign[0]}" if foreign else "the graph's first axes are not all open"
        raise UsageError(
            f"{contents.path}: --tokenizer makes {', '.join(TEXT_INPUTS)} of any number of rows, and {why}"
        )
    place = f"{name}_tokenizer/1/"
    encoder = write_tokenizer(job, place)
    assert encoder is not None, "`require_texts` saw a tokenizer"
    if encoder.padding.id is None:
        raise UsageError(
            f"{contents.settings}: the model has no padding, so that rows of a request could not be put together; leave "
            "--tokenizer out"
        )
    source = Path(__file__).with_name("triton_tokenizer.py")
    shutil.copyfile(source, job.folder / place / "model.py")
    texts = Tensor("TEXT", "TYPE_STRING", (-1,))
    first = Faces((texts,), tuple(Tensor(one.name, "TYPE_INT64", one.dims) for one in faces.inputs), True)
    settings = {
        "max_length": str(encoder.max_length),
        "truncation_side": encoder.truncation_side,
        "pad_id": str(encoder.padding.id),
        "pad_type_id": str(encoder.padding.type_id),
        "padding_side": encoder.padding.side,
    }
    (job.folder / f"{name}_text" / "1").mkdir(parents=True)
    job.write(
        {
            f"{name}_tokenizer/config.pbtxt": model_config(
                f"{name}_tokenizer", first, job.options, backend="python", parameters=settings
            ),
            f"{name}_text/config.pbtxt": ensemble_config(
                f"{name}_text", texts, faces, job.options, [(f"{name}_tokenizer", first), (name, faces)]
            ),
            f"{name}_text/1/README.md": "An ensemble has no files of its own; Triton wants the folder of its version.\n",
        }
    )


TRITON = TARGETS.add(Triton())

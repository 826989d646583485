"""Coverage-guided fuzzing of the loader and of the walk of labels: only AxformerError comes out.

    python fuzz_load.py [options of libFuzzer] CORPUS

No session is made: the values of the probe are arrays of the shapes that ONNX infers.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import onnx

with atheris.instrument_imports(include=["axformer_passes", "onnx_ir"]):
    from axformer_passes.errors import AxformerError, ModelError
    from axformer_passes.io.files import load_model
    from axformer_passes.io.lean_model import Detached
    from axformer_passes.prepare.walkable import prepared
    from axformer_passes.recognise.labelling import label

from mutate import mutated

FOLDER = Path(tempfile.mkdtemp(prefix="axformer-fuzz-"))
(FOLDER / "w.data").write_bytes(bytes(64))
OPEN, MOST = 3, 2**16  # size of open axes; elements of one value: a few hundred of them stay far below the memory limit


def shaped(model: Detached, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The runner of recognition: zeros in the inferred shapes. Raises: ModelError where nothing is inferred."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model.proto, data_prop=True)
    except Exception as error:
        raise ModelError(f"no shapes: {error}") from None
    known = {v.name: v.type.tensor_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    return {output.name: _zeros(known[output.name]) for output in model.proto.graph.output}


def _zeros(kind: onnx.TypeProto.Tensor) -> Any:
    shape = [d.dim_value if d.HasField("dim_value") else OPEN for d in kind.shape.dim]
    if (
        not kind.HasField("shape")
        or not kind.elem_type
        or min(shape, default=1) < 0
        or np.prod(shape, dtype=float) > MOST
    ):
        raise ModelError("no shape")
    try:
        return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise ModelError(f"no element type {kind.elem_type}") from None


def read(data: bytes) -> None:
    """One input."""
    path = FOLDER / "model.onnx"
    path.write_bytes(data)
    try:
        label(prepared(load_model(path)), shaped)
    except AxformerError as error:
        assert "\n" not in str(error), str(error)


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's custom mutator."""
    return mutated(bytes(data), most, seed, atheris.Mutate)


if __name__ == "__main__":
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    atheris.Setup(sys.argv, read, custom_mutator=mutate)
    atheris.Fuzz()

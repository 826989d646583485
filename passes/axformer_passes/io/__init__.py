"""Files: paths to checked models and back, external weights, and what a file is that is no model.

Takes a path and gives an `onnx_ir.Model` whose weights stay mapped from their files; takes a model and writes it whole, by rename.
"""

from __future__ import annotations

from axformer_passes.io.file_size import parameters_and_size
from axformer_passes.io.files import (
    SINGLE_FILE_LIMIT,
    external_files,
    load_model,
    save_model,
    serialized,
    sha256_of,
    write_text,
)
from axformer_passes.io.layout import graph_files, is_checkpoint, model_path, settings_folder
from axformer_passes.io.lean_model import Detached, detached
from axformer_passes.io.reading import first_line, read_regular

__all__ = [
    "SINGLE_FILE_LIMIT",
    "Detached",
    "detached",
    "external_files",
    "first_line",
    "graph_files",
    "is_checkpoint",
    "load_model",
    "model_path",
    "parameters_and_size",
    "read_regular",
    "save_model",
    "serialized",
    "settings_folder",
    "sha256_of",
    "write_text",
]

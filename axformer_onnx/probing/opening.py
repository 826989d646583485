"""The door through which models come in: loaded, and told what their inputs are made of."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from axformer_onnx.probing.sample import read_sample
from axformer_onnx.probing.texts import recipe_in
from axformer_passes.io import load_model, model_path, settings_folder
from axformer_passes.probe import Recipe, describe


def open_model(path: str | Path, sample: Path | None = None, *, folder: Path | None = None) -> ir.Model:
    """The model at `path`, probed on the arrays of `sample` (an .npz file), else on rows that look like its folder's texts.

    folder   where its tokenizer and config.json are, if they are not beside it

    Raises: ModelError; UsageError for a sample that does not fit.
    """
    path = model_path(path)
    model = load_model(path)
    given = Recipe(sample=read_sample(sample, model)) if sample is not None else None
    describe(model, given or recipe_in(folder or settings_folder(path)))
    return model


__all__ = ["open_model"]

"""Does the exported graph answer what torch answers? B batch, S tokens."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import AxformerError, ModelError, VerifyError
from axformer_onnx.exporting.quiet import one_line, quiet

if TYPE_CHECKING:
    from axformer_onnx.exporting.checkpoint import Checkpoint

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest output (at least 1). Sums are taken in another order:
1e-6 is usual, deep models with large activations reach 1e-5; a wrong graph is wrong by more than 1e-2."""

SHAPES = ((1, 1), (1, 8), (2, 5), (3, 33))
"""(rows, tokens) that are compared, each with and without padding; tokens are cut to the model's limit."""


def random_inputs(checkpoint: Checkpoint, batch: int, length: int, *, padded: bool, seed: int) -> Arrays:
    """Random inputs: int64[B, S] ids, mask and types, or float32 images of the size that the model expects.

    `padded`: rows end in padding; one of several rows is full. Encoder-decoder classifiers read their answer at the end-of-sequence
    token: there it ends every row, and stands nowhere else.
    """
    config, rng = checkpoint.config, np.random.default_rng(seed)
    if "pixel_values" in checkpoint.inputs:
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": rng.standard_normal(shape).astype(np.float32)}
    real = rng.integers(1, length, size=batch, endpoint=True) if padded else np.full(batch, length)
    if batch > 1:
        real[-1] = length
    mask = (np.arange(length) < real[:, None]).astype(np.int64)
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    ids = rng.integers(0, config.vocab_size - 1, size=(batch, length))
    ids += ids >= pad  # padding inside a sentence would move RoBERTa's positions
    end = config.eos_token_id if getattr(config, "is_encoder_decoder", False) else None
    if isinstance(end, int):
        ids[ids == end] = next(i for i in range(config.vocab_size) if i not in (pad, end))
        ids[np.arange(batch), real - 1] = end
    feeds = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}
    if "token_type_ids" in checkpoint.inputs:
        feeds["token_type_ids"] = rng.integers(0, config.type_vocab_size, size=(batch, length)) * mask
    return {name: value.astype(np.int64) for name, value in feeds.items()}


def torch_outputs(checkpoint: Checkpoint, feeds: Arrays) -> Arrays:
    """What the torch model answers, by output name. Raises: ModelError where it cannot."""
    import torch

    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
    try:
        with quiet(), torch.no_grad():
            outputs = checkpoint.module(**inputs)
    except Exception as error:  # whatever the model's own code raises
        raise ModelError(f"{checkpoint.name}: the model cannot answer: {one_line(error)}") from None
    return {name: v.numpy() for name, v in outputs.items() if isinstance(v, torch.Tensor)}


def check_graph(path: Path) -> None:
    """ONNX's full checker with strict shape inference. Raises: VerifyError."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # checker and shape inference share no base class
        raise VerifyError(f"the exported graph does not pass ONNX's checker: {one_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):  # shape inference of large models leaves this beside the file
            path.with_name(path.stem + "-inferred.onnx").unlink()


def worst_difference(checkpoint: Checkpoint, path: Path) -> float:
    """Largest absolute difference between the graph (ONNX Runtime, its own optimisations off) and torch over SHAPES.

    Raises: VerifyError beyond TOLERANCE, with the shape.
    """
    from axformer_onnx.runtime import make_session, run_session

    try:
        session = make_session(path, optimize=False)
    except AxformerError as error:
        raise VerifyError(f"the exported graph does not load: {error}") from None
    worst, fits = 0.0, [(b, min(s, checkpoint.longest)) for b, s in SHAPES]
    for seed, (shape, padded) in enumerate((s, p) for s in fits for p in (False, True)):
        feeds = random_inputs(checkpoint, *shape, padded=padded, seed=seed)
        where = f"{shape[0]} rows x {shape[1]} tokens"
        try:
            found = run_session(session, feeds)
        except AxformerError as error:
            raise VerifyError(f"{where}: {error}; nothing was written") from None
        worst = max(worst, _compared(torch_outputs(checkpoint, feeds), found, where))
    return worst


def _compared(expected: Arrays, found: Arrays, where: str) -> float:
    worst = 0.0
    for name, value in found.items():
        reference = expected.get(name)
        if reference is None or reference.shape != value.shape:
            wanted = None if reference is None else reference.shape
            raise VerifyError(f"{where}: output {name!r} is {value.shape}, torch gives {wanted}; nothing was written")
        difference = float(np.abs(reference.astype(np.float64) - value).max(initial=0))
        allowed = TOLERANCE * max(1.0, float(np.abs(reference).max(initial=0)))
        if not difference <= allowed:  # a NaN is not either
            raise VerifyError(
                f"{where}: {name} differs from torch by {difference:.2g}, allowed {allowed:.2g}; nothing was written. "
                "Another --exporter or --opset may do"
            )
        worst = max(worst, difference)
    return worst

"""The output folder of a run: what may be in it, and how files get there.

The journal lives in the folder from the start, so that a killed run can go on. Everything else is built in a
folder `.writing-*` inside it and renamed when it is complete, the model last.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from axformer_onnx.errors import RuntimeFailure, UsageError

MODEL = "model.onnx"
RUNTIME_MODEL = "model.runtime.onnx"
"""The same in the form that one runtime computes fastest, where that is another."""
JOURNAL = "journal.jsonl"
REPORT = "report.json"
PAGE = "report.html"
FRONTIER = "frontier"
"""Folder of the operating points: a folder with plan.json and plan.safetensors for each."""
OWN = (
    MODEL, f"{MODEL}.data", RUNTIME_MODEL, f"{RUNTIME_MODEL}.data", "plan.json", "plan.safetensors", REPORT, "report.md",
    PAGE,
)  # fmt: skip
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
"""Files of a model folder that travel with the model."""

_WRITING = ".writing-"


def claim(output: Path, source: Path, *, overwrite: bool) -> None:
    """Create `output`, or accept it if it is empty or holds an earlier run.

    Raises: UsageError where it holds the source or files of something else, RuntimeFailure where it cannot be
    made.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a folder; name a folder with -o")
    if output.resolve() == source.resolve().parent:
        raise UsageError(f"{output}: holds the model to optimize; the input is never modified. Use another -o")
    found = [path.name for path in output.iterdir()] if output.is_dir() else []
    if found and JOURNAL not in found and not overwrite:
        raise UsageError(
            f"{output}: the folder is not empty and holds no earlier run ({min(found)}). Use another -o, or --overwrite"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"{output}: cannot be created: {error.strerror}") from None


def sweep(output: Path) -> None:
    """Remove what a killed run was building. Call it while holding the journal's lock: no other run is alive."""
    for left in output.glob(f"{_WRITING}*"):
        shutil.rmtree(left, ignore_errors=True)


def clear(output: Path) -> None:
    """Remove the results of an earlier run; files of others stay."""
    for name in OWN:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / FRONTIER, ignore_errors=True)


def copy_companions(folder: Path, target: Path) -> None:
    """Copy tokenizer and config files of a model folder."""
    for name in COMPANIONS:
        if (folder / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, target / name)


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder to build in; its files are renamed into `output` if the block ends well, else they vanish."""
    with tempfile.TemporaryDirectory(dir=output, prefix=_WRITING) as name:
        folder = Path(name)
        yield folder
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MODEL):
            if path.is_dir():
                shutil.rmtree(output / path.name, ignore_errors=True)
            path.replace(output / path.name)

"""Where a model lies: its graph in a folder, tokenizer and configuration beside it or one folder up, as on the Hugging Face hub.

FOLDER/model.onnx, FOLDER/config.json, FOLDER/tokenizer.json
FOLDER/onnx/model.onnx, FOLDER/onnx/model_fp16.onnx, FOLDER/config.json, FOLDER/tokenizer.json
"""

from __future__ import annotations

from pathlib import Path

from axformer_passes.errors import ModelError

_GRAPHS = ("model.onnx", "onnx/model.onnx")
_SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def model_path(path: str | Path) -> Path:
    """The graph that `path` names: itself; in a folder model.onnx, onnx/model.onnx, or the only .onnx file there.

    Raises: ModelError where there is none, or several and none of these names.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            path.stat()
            return path
        return _in_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{path}: no such file; give an .onnx file or a folder that holds model.onnx") from None
    except (OSError, ValueError) as error:  # not permitted, a loop of links, a name too long; a null byte in it
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def settings_folder(graph: Path) -> Path:
    """The folder of a graph's tokenizer and configuration: its own, or the one above where that alone has any."""
    own = graph.parent
    above = own.resolve().parent if own.name in ("", "..") else own.parent
    return above if has_settings(above) and not has_settings(own) else own


def has_settings(folder: Path) -> bool:
    """Does it hold a tokenizer or a configuration?"""
    return any((folder / name).is_file() for name in _SETTINGS)


def is_checkpoint(folder: Path) -> bool:
    """Is it a folder with a transformers checkpoint, its weights in files of torch?"""
    try:
        return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
    except (OSError, ValueError):  # a name too long, a null byte in it: `model_path` says so
        return False


def graph_files(folder: Path) -> list[Path]:
    """The .onnx files of a folder, by name: its own, else those of its folder onnx/."""
    return sorted(folder.glob("*.onnx")) or sorted(folder.glob("onnx/*.onnx"))


def _in_folder(folder: Path) -> Path:
    for name in _GRAPHS:
        found = folder / name
        if found.exists():
            return found
    graphs = graph_files(folder)
    if len(graphs) == 1:
        return graphs[0]
    if graphs:
        names = ", ".join(str(graph.relative_to(folder)) for graph in graphs)
        raise ModelError(f"{folder}: no model.onnx, but {names}; name one of them")
    if is_checkpoint(folder):
        raise ModelError(
            f"{folder}: a checkpoint without model.onnx; write it first: axformer-onnx export {folder} OUT"
        )
    raise ModelError(f"{folder}: a folder without model.onnx; give an .onnx file or a folder that holds model.onnx")

"""Writes the screens of the documentation: `make screens` runs every command that stands on one, and adds what it says.

A screen is an indented block of lines; `$ axformer-onnx ...` is a command, what follows up to the next one its output. The commands
are run in this process, in a folder with the models and rows that the pages speak of (`stage`); long lines are broken, and paths
in the user's cache are told as below ~. `test_screens.py` holds the pages to the commands that take no export.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "bring-your-model.md", ROOT / "docs" / "tutorial.md")
EXAMPLE = ROOT / "models" / "nli-mini"
CHECKPOINT = "finetuned"
WIDTH = 120
_INDENT = "    "
_COMMAND = f"{_INDENT}$ "


def retold(page: str, said: Callable[[str, str], str]) -> str:
    """The page with the output of every command put in anew. `said`: (command, its output on the page) -> its output."""
    lines, written = page.split("\n"), list[str]()
    place = 0
    while place < len(lines):
        line = lines[place]
        written.append(line)
        place += 1
        if not line.startswith(_COMMAND):
            continue
        end = place
        while end < len(lines) and lines[end].startswith(_INDENT) and not lines[end].startswith(_COMMAND):
            end += 1
        old = "\n".join(each.removeprefix(_INDENT) for each in lines[place:end])
        new = said(line.removeprefix(_COMMAND), old)
        written += [f"{_INDENT}{each}" for each in new.split("\n") if new]
        place = end
    return "\n".join(written)


def shown(command: str) -> str:
    """What a command prints, stdout and stderr in order; run within `stage`."""
    from axformer_onnx import cli

    printed, (program, *arguments) = io.StringIO(), shlex.split(command)
    assert program == "axformer-onnx", command
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(
            "axformer_onnx.cli.console._WIDTH", 1000
        )  # long lines are broken below, when paths are as on the page
        with contextlib.suppress(SystemExit):
            cli.main()
    return _normalised(printed.getvalue())


def masked(page: str) -> str:
    """The page without what differs from run to run: how long a search would take."""
    return re.sub(rf"(?m)^{_INDENT}time +.*$", f"{_INDENT}time", page)


@contextlib.contextmanager
def stage(root: Path, *, exports: bool) -> Iterator[None]:
    """The folder that the pages' commands are run in. `exports`: with a checkpoint, which takes torch and transformers."""
    from huggingface_hub import constants

    (root / "models").mkdir()
    (root / "models" / "nli-mini").symlink_to(EXAMPLE, target_is_directory=True)
    _hub_layout(root / "nli")
    _hub_layout(root / "cache" / "huggingface" / "hub" / "models--someone--nli" / "snapshots" / "8a54c7d")
    refs = root / "cache" / "huggingface" / "hub" / "models--someone--nli" / "refs"
    refs.mkdir()
    (refs / "main").write_text("8a54c7d")
    rows = [json.loads(line) for line in (EXAMPLE / "data" / "search.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [{name: row[name] for name in ("premise", "hypothesis")} for row in rows]
    (root / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in texts), encoding="utf-8")
    shutil.copytree(root / "nli" / "onnx", root / "bare")
    for name in ("two/a.onnx", "two/b.onnx"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(EXAMPLE / "model.onnx", root / name)
    (root / "empty").mkdir()
    (root / "note.onnx").write_text("hello\n")
    if exports:
        from test_export import checkpoint

        checkpoint(root / CHECKPOINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(constants, "HF_HUB_CACHE", str(root / "cache" / "huggingface" / "hub"))
        yield


def _hub_layout(folder: Path) -> None:
    """The example model as the hub has models: the graph in onnx/, all else one folder up."""
    shutil.copytree(EXAMPLE, folder)
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")


def _normalised(printed: str) -> str:
    text = printed.replace(str(Path.cwd() / "cache"), "~/.cache")
    text = re.sub(rf"{CHECKPOINT}-[0-9a-f]{{8}}", f"{CHECKPOINT}-5f0524d1", text)  # of where it is
    lines = [line.rstrip() for line in text.strip("\n").split("\n")]
    return "\n".join(
        "\n".join(textwrap.wrap(line, WIDTH, break_on_hyphens=False)) if len(line) > WIDTH else line for line in lines
    )


def main() -> None:
    """Write the pages, or those that are named."""
    for path in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as folder, stage(Path(folder).resolve(), exports=True):
            page = retold(path.read_text(encoding="utf-8"), lambda command, old: shown(command))
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

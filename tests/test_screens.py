"""The screens of the documentation are what the commands say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="a screen names a model of the hub")
import screens


@pytest.mark.parametrize("path", screens.PAGES, ids=lambda path: path.stem)
def test_the_screens_are_what_the_commands_say_today(tmp_path: Path, path: Path) -> None:
    """But for the ones of a checkpoint, whose export takes longer: `make screens` writes these, too."""
    page, run = path.read_text(encoding="utf-8"), []

    def said(command: str, old: str) -> str:
        if screens.CHECKPOINT in command:
            return old
        run.append(command)
        return screens.shown(command)

    with screens.stage(tmp_path, exports=False):
        told = screens.retold(page, said)
    assert screens.masked(told) == screens.masked(page), "write them again: make screens"
    assert len(run) == len(re.findall(r"(?m)^    \$ ", page)) - page.count(f" {screens.CHECKPOINT}\n") >= 2
    assert re.search(r"(?m)^    time +\d+ \w+ to \d+ \w+$", told)


def test_the_output_of_a_command_is_put_behind_it_and_all_else_is_left() -> None:
    page = "words\n\n    $ first\n    old\n      older\n    $ second\n\nmore\n\n    no screen\n"
    told = {"first": "new\n  newer", "second": "said"}
    seen: list[tuple[str, str]] = []

    def said(command: str, old: str) -> str:
        seen.append((command, old))
        return told[command]

    expected = "words\n\n    $ first\n    new\n      newer\n    $ second\n    said\n\nmore\n\n    no screen\n"
    assert screens.retold(page, said) == expected
    assert seen == [("first", "old\n  older"), ("second", "")]

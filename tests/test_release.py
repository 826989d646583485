"""The check of a release fails where something is wrong, and says what."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import release


def test_a_step_that_fails_ends_a_try_with_its_last_line(tmp_path: Path) -> None:
    one = release.Try("3.11", "wheel")
    assert one.step("first", [sys.executable, "-c", "pass"], tmp_path)
    wrong = "import sys; print('so far'); sys.stderr.write('reading\\nerror: no such thing\\n'); sys.exit(3)"
    assert not one.step("second", [sys.executable, "-c", wrong], tmp_path)
    assert not one.step("third", [sys.executable, "-c", "raise SystemExit(0)"], tmp_path)
    assert list(one.seconds) == ["first", "second"]
    assert one.failed == "second: exit code 3: error: no such thing"
    assert release.table([one]).splitlines()[1].endswith(one.failed)


def test_a_step_does_not_import_from_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(release.ROOT))
    one = release.Try("3.11", "wheel")
    assert one.step("path", [sys.executable, "-c", "import os; assert 'PYTHONPATH' not in os.environ"], tmp_path), (
        one.failed
    )


def test_a_file_that_the_wheel_lacks_is_named(tmp_path: Path) -> None:
    every = release._not_in_wheel(_wheel(tmp_path / "empty.whl", []))
    assert {"axformer_onnx/py.typed", "axformer_onnx/__init__.pyi", "axformer_passes/plan.py"} <= set(every)
    assert release._not_in_wheel(_wheel(tmp_path / "one.whl", every[1:])) == every[:1]


def _wheel(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_an_interpreter_is_found_once_by_its_version() -> None:
    found = release.interpreters([sys.executable, "no-such-python"])
    version = "{}.{}".format(*sys.version_info[:2])
    assert found[version] == Path(sys.executable) and list(found) == sorted(found, key=release.SUPPORTED.index)

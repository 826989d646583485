"""What a report of a bug says about an installation."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from getpass import getuser
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import axformer_onnx as ax
from axformer_onnx import installation


def test_versions_are_those_of_the_packages_that_are_imported() -> None:
    found = ax.environment()
    assert found["axformer-onnx"] == ax.__version__
    assert found["packages"]["onnxruntime"] == onnxruntime.__version__ == found["runtime"]["onnxruntime"]
    assert found["packages"]["numpy"] == sys.modules["numpy"].__version__
    assert found["machine"]["python"] == platform.python_version()
    assert found["runtime"]["providers"] == onnxruntime.get_available_providers()


def test_what_is_told_is_json_and_names_neither_paths_nor_the_user() -> None:
    told = json.dumps(ax.environment())
    assert str(Path.home()) not in told and f"/{getuser()}" not in told and str(Path.cwd()) not in told


def test_an_extra_says_what_it_has_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        def get_all(self, name: str) -> list[str]:
            wanted = ["numpy>=1", "torch>=2; extra == 'export'", "no-such-package; extra == 'export'"]
            elsewhere = ["old-python-only; python_version<'3' and extra == 'hub'", "another; extra == 'ray'"]
            return {"Requires-Dist": wanted + elsewhere, "Provides-Extra": ["export", "hub", "ray"]}[name]

    versions = {"numpy": "2.0", "torch": "2.6"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(installation.metadata, "metadata", lambda name: Metadata())
    monkeypatch.setattr(installation.metadata, "version", version)
    found = installation.environment()
    assert found["packages"] == {"numpy": "2.0"}
    assert found["extras"] == {"export": {"torch": "2.6", "no-such-package": None}, "hub": {}, "ray": {"another": None}}
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in installation.environment_lines()}
    assert lines["[export]"] == "torch 2.6; without no-such-package"
    assert (lines["[hub]"], lines["[ray]"], lines["numpy"]) == ("nothing is needed here", "not installed", "2.0")


def test_a_runtime_that_does_not_start_is_told_beside_the_rest(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = call("--version", "--verbose")
    assert code == 0
    assert "ONNX Runtime does not start: ModuleNotFoundError" in out and "numpy" in out and "instructions" in out


def test_the_version_is_one_line_and_verbose_is_for_it_alone(call: Any) -> None:
    assert call("--version")[:2] == (0, f"axformer-onnx, version {ax.__version__}\n")
    assert call("--verbose", "--version")[1] == call("--version", "--verbose")[1]
    code, _, err = call("--verbose", "inspect", "model.onnx")
    assert code == 2 and "--verbose goes with --version" in err
    code, _, err = call("--")
    assert code == 2 and "No command was given" in err

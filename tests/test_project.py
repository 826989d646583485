"""Promises about the repository itself: what it names, what it imports, what the wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "transformers", "optimum", "onnxruntime", "scipy", "pyarrow", "tokenizers", "datasets",
    "jinja2", "pygal", "plotille",
)  # fmt: skip
TEXT = {
    "",
    ".py",
    ".md",
    ".toml",
    ".json",
    ".txt",
    ".cfg",
    ".yml",
    ".yaml",
    ".sh",
    ".js",
    ".html",
    ".css",
    ".jinja",
    ".svg",
}


def tracked_texts() -> dict[str, str]:
    """Contents of the text files under version control, by path; generated rows and settings left out."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in paths
        if path.is_file() and path.suffix in TEXT and "nli-mini" not in path.parts
    }


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_importing_the_tool_loads_nothing_heavy() -> None:
    assert not imported_by("import axformer_onnx").intersection(HEAVY)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert not imported_by("import axformer_onnx.cli").intersection(HEAVY)


def test_passes_import_neither_the_tool_nor_a_session() -> None:
    top = ROOT / "passes"
    files = sorted(path.relative_to(top).with_suffix("") for path in (top / "axformer_passes").rglob("[a-z]*.py"))
    loaded = imported_by("import " + ", ".join(".".join(file.parts) for file in files))
    assert not loaded.intersection({*HEAVY, "axformer_onnx"})


def test_repository_names_no_package_hosts_and_no_machine_paths() -> None:
    # spelled in pieces, so that this file does not name them either
    hosts = ("py" + "pi.org", "files.python" + "hosted", "download." + "pytorch", "conda." + "anaconda")
    paths = ("/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "/Us" + "ers/", "C:" + "\\")
    found = [
        f"{name}: {needle}" for name, text in tracked_texts().items() for needle in hosts + paths if needle in text
    ]
    assert not found


def test_every_source_file_stays_readable_in_one_sitting() -> None:
    long = {
        name: count
        for name, text in tracked_texts().items()
        if name.endswith(".py") and not name.startswith("tests/") and (count := text.count("\n")) > 400
    }
    assert not long


def test_example_model_folder_is_under_eight_megabytes() -> None:
    folder = ROOT / "models" / "nli-mini"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8_000_000


def test_commands_that_the_readme_shows_exist() -> None:
    from click.testing import CliRunner

    from axformer_onnx.cli.entry import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"(?:^ {4}|`)axformer-onnx ([a-z]+)\b", text, re.MULTILINE))
    assert {"optimize", "apply", "score", "inspect", "export"} <= shown
    for name in sorted(shown):
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, f"{name}: {result.output}"
        for option in options_shown(text, name):
            assert option in result.output, f"axformer-onnx {name} has no {option}"


def options_shown(text: str, command: str) -> set[str]:
    """The long options in the README's lines that call `command`."""
    lines = re.findall(rf"axformer-onnx {command}\b([^\n`]*)", text)
    return {option for line in lines for option in re.findall(r"--[a-z][a-z-]+", line)}


def test_make_targets_that_the_documents_show_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", makefile, re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        code = re.findall(r"^ {4}(?:bash )?make ([a-z0-9-]+)|`make ([a-z0-9-]+)`", text, re.MULTILINE)
        shown = {target for pair in code for target in pair if target}
        assert shown, name
        assert shown <= targets, name


def test_changelog_has_a_dated_entry_for_the_version_below_one_for_what_comes_next() -> None:
    from axformer_onnx import __version__

    versions = re.findall(r"(?m)^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == __version__ and re.fullmatch(r" - \d{4}-\d{2}-\d{2}", versions[1][1])


def test_readme_is_read_in_one_sitting() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_wheel_would_hold_both_packages_and_the_command() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["axformer_onnx", "passes/axformer_passes"]' in text
    assert 'axformer-onnx = "axformer_onnx.cli:main"' in text
    for package in ("axformer_onnx", "passes/axformer_passes"):
        assert (ROOT / package / "py.typed").is_file()


def test_built_wheel_holds_both_packages() -> None:
    wheels = sorted((ROOT / "dist").glob("axformer_onnx-*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist/ (make wheel builds one)")
    names = zipfile.ZipFile(wheels[-1]).namelist()
    assert {name.split("/")[0] for name in names if name.endswith("py.typed")} == {
        "axformer_onnx",
        "axformer_passes",
    }

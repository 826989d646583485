"""Builds sdist and wheel, and uses each on every Python that is here, as a user would: `make release-check`.

    python tests/release.py [--dist DIST] [--with PYTHON]...

The wheel is built from the sdist, so that the sdist holds all that it needs. Each is installed into a clean environment of every
interpreter (`python3.N` on the path, and those of pyenv and uv) and run from an empty folder: help, versions, inspect, optimize,
apply, and the functions of `import axformer_onnx`. On the oldest Python the wheel is used once more, with the oldest of each
dependency that pyproject.toml allows. Ends with a table; the exit code is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "models" / "nli-mini"
SUPPORTED = tuple(f"3.{minor}" for minor in range(10, 15))
SEARCH = {
    "wheel": ("--effort", "low", "--max-search-rows", "200"),
    "sdist": ("--search", "axformer", "--max-search-rows", "60", "--length", "16"),
    "oldest": ("--search", "axformer", "--max-search-rows", "60", "--length", "16"),
}
"""All hold the same code, so that the shorter of two searches is enough for the others."""
IN_PYTHON = """
import sys, axformer_onnx as ax
found = ax.inspect(sys.argv[1])
assert len(found.anatomy.layers) == 6, found
path = ax.apply(ax.Plan().without_heads(0, [1]), sys.argv[1], "without-a-head")
import onnxruntime
onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""


@dataclasses.dataclass
class Try:
    """One artefact on one interpreter: seconds of each step; `failed` holds the step and what it said last."""

    python: str
    artefact: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: str = ""

    def step(self, name: str, command: Sequence[str | Path], folder: Path) -> bool:
        """Run a command in `folder`; False where it, or an earlier step, failed."""
        if self.failed:
            return False
        before = time.monotonic()
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=_clean(), capture_output=True, text=True, check=False
        )
        self.seconds[name] = time.monotonic() - before
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
            self.failed = f"{name}: exit code {done.returncode}: {said[-1]}"
        return not self.failed


def _clean() -> dict[str, str]:
    """The environment without what makes this folder importable, or another Python start."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYENV_VERSION")
    } | {"PYTHONWARNINGS": "error::SyntaxWarning"}


def interpreters(more: Sequence[str] = ()) -> dict[str, Path]:
    """Version -> interpreter, one each: `more` first, then those on the path, of pyenv, of uv."""
    found: dict[str, Path] = {}
    for path in (*map(Path, more), *_candidates()):
        try:
            shown = subprocess.run(
                [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True, text=True, check=True, env=_clean(),
            ).stdout.strip()  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            continue  # a shim of pyenv without that version
        if shown in SUPPORTED:
            found.setdefault(shown, path)
    return dict(sorted(found.items(), key=lambda pair: SUPPORTED.index(pair[0])))


def _candidates() -> Iterator[Path]:
    for version in SUPPORTED:
        path = shutil.which(f"python{version}")
        if path and "shims" not in Path(path).parts:  # pyenv's, which start what is behind them
            yield Path(path).resolve() if ".venv" not in path else Path(path)
    for variable, default, below in (
        ("PYENV_ROOT", "~/.pyenv", "versions"),
        ("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python", ""),
    ):
        folder = Path(os.environ.get(variable, default)).expanduser() / below
        yield from sorted(folder.glob("*3.*/bin/python3"), reverse=True)


def build(dist: Path) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel built from the sdist; both held to what an index asks of them."""
    shutil.rmtree(dist, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", dist, ROOT)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    _run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    _run(sys.executable, "-m", "check_wheel_contents", wheel)
    for line in _not_in_wheel(wheel):
        raise SystemExit(f"{wheel.name}: {line} is not in it")
    return sdist, wheel


def _not_in_wheel(wheel: Path) -> list[str]:
    """Files of both packages that the wheel lacks."""
    names = set(zipfile.ZipFile(wheel).namelist())
    here = [
        path.relative_to(top).as_posix()
        for top, package in ((ROOT, "axformer_onnx"), (ROOT / "passes", "axformer_passes"))
        for path in (top / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted(set(here) - names)


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT)


def used(version: str, python: Path, artefact: Path, kind: str) -> Try:
    """Install an artefact into a clean environment, and use it; kind: wheel | sdist | oldest (dependencies)."""
    done = Try(version, kind)
    with tempfile.TemporaryDirectory(prefix="release-") as scratch:
        folder, environment = Path(scratch) / "work", Path(scratch) / "venv"
        folder.mkdir()
        inside, program = environment / "bin" / "python", environment / "bin" / "axformer-onnx"
        optimize = (
            "optimize",
            EXAMPLE,
            "--task",
            "mnli",
            *SEARCH[done.artefact],
            "--threads",
            "1",
            "--wait-for-quiet",
            "0",
        )
        done.step("venv", [python, "-m", "venv", environment], folder)
        if kind == "oldest":
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", inside]
            done.step("uv", [*uv, "--resolution", "lowest-direct", "-r", ROOT / "pyproject.toml"], folder)
        done.step("install", [inside, "-m", "pip", "install", "--quiet", artefact], folder)
        done.step("pip check", [inside, "-m", "pip", "check"], folder)
        done.step("--help", [program, "--help"], folder)
        done.step("--version", [program, "--version", "--verbose"], folder)
        done.step("inspect", [program, "inspect", EXAMPLE], folder)
        done.step("optimize", [program, *optimize, "-o", "small"], folder)
        score = ("score", EXAMPLE, "small", "--task", "mnli", "--threads", "1", "--wait-for-quiet", "0")
        done.step("score", [program, *score], folder)
        done.step("python", [inside, "-W", "error", "-c", IN_PYTHON, EXAMPLE / "model.onnx"], folder)
        if done.artefact == "wheel" and version == "{}.{}".format(*sys.version_info[:2]):
            user = shutil.copyfile(ROOT / "tests" / "typed_user.py", folder / "typed_user.py")
            checker = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--python-executable", inside]
            done.step("types", [*checker, "--follow-imports", "silent", user], folder)
    return done


def table(tries: Sequence[Try]) -> str:
    """A line a try: seconds of each step, then what failed."""
    steps = list(dict.fromkeys(name for one in tries for name in one.seconds))
    rows = [["python", "artefact", *steps, ""]]
    for one in tries:
        cells = [f"{one.seconds[name]:.1f}" if name in one.seconds else "" for name in steps]
        rows.append([one.python, one.artefact, *cells, one.failed or "good"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    """Build, check, use, tell."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--dist", type=Path, default=ROOT / "dist")
    asked.add_argument("--with", dest="more", action="append", default=[], metavar="PYTHON")
    given = asked.parse_args()
    sdist, wheel = build(given.dist.resolve())
    found = interpreters(given.more)
    print(f"interpreters: {', '.join(f'{version} ({path})' for version, path in found.items())}")
    print(f"not here: {', '.join(version for version in SUPPORTED if version not in found) or 'none'}", flush=True)
    tries = []
    for version, python in found.items():
        oldest = [(wheel, "oldest")] if version == next(iter(found)) else []
        for artefact, kind in ((wheel, "wheel"), (sdist, "sdist"), *oldest):
            tries.append(used(version, python, artefact, kind))
            print(f"{version} {tries[-1].artefact}: {tries[-1].failed or 'good'}", flush=True)
    print(table(tries))
    sys.exit(any(one.failed for one in tries) or not found)


if __name__ == "__main__":
    main()

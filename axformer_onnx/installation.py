"""What a report of a bug needs to say about the installation: `axformer-onnx --version --verbose`, `ax.environment()`."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from axformer_onnx.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAME = "axformer-onnx"


def environment() -> dict[str, Any]:
    """Versions, machine, providers and extras of this installation, for a report of a bug; plain numbers, texts and lists.

    >>> import axformer_onnx as ax
    >>> found = ax.environment()
    >>> found["axformer-onnx"] == ax.__version__, sorted(found)
    (True, ['axformer-onnx', 'extras', 'machine', 'packages', 'runtime'])

    packages   version of each package that is always needed; None where it is not installed
    extras     by name: version of each package that it adds; None where that is not installed
    machine    processor, instruction sets, cores, memory in bytes, system, Python
    runtime    ONNX Runtime's version and providers, and the GPU; "error" where it does not start

    It names no path and no user.
    """
    from axformer_onnx.runtime import describe_hardware, describe_machine

    machine = describe_machine()
    try:
        runtime = {name: value for name, value in describe_hardware().items() if name not in machine}
    except Exception as error:  # whatever keeps ONNX Runtime from starting is what the report is about
        runtime = {"error": f"{type(error).__name__}: {error}"}
    needed, extras = _requirements()
    return {
        _NAME: __version__,
        "machine": machine,
        "runtime": runtime,
        "packages": {one.name: _installed(one.name) for one in needed},
        "extras": {extra: {one.name: _installed(one.name) for one in found} for extra, found in extras.items()},
    }


def environment_lines() -> list[str]:
    """`environment` in words, an item a line."""
    found = environment()
    machine, runtime = found["machine"], found["runtime"]
    memory = machine["memory_bytes"]
    said = {
        _NAME: found[_NAME],
        "python": machine["python"],
        "system": machine["system"],
        "processor": machine["cpu"],
        "instructions": ", ".join(machine["instructions"]) or "not told by this system",
        "cores": f"{machine['cores']}, of which {machine['cores_usable']} usable",
        "memory": f"{memory / 1e9:.1f} GB" if memory else "not told by this system",
        **({"gpu": runtime["gpu"]} if "gpu" in runtime else {}),
        "providers": ", ".join(runtime.get("providers", ())) or f"ONNX Runtime does not start: {runtime.get('error')}",
        **{name: version or "not installed" for name, version in found["packages"].items()},
        **{f"[{extra}]": _extra_in_words(packages) for extra, packages in found["extras"].items()},
    }
    width = max(map(len, said))
    return [f"{name:<{width}}  {value}" for name, value in said.items()]


def _extra_in_words(packages: dict[str, str | None]) -> str:
    """Whether an extra can be used, and what it consists of."""
    if not packages:
        return "nothing is needed here"
    missing = [name for name, version in packages.items() if version is None]
    present = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if not missing:
        return present
    return f"{present}; without {', '.join(missing)}" if present else "not installed"


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What is always needed, and what each extra adds, as the installed package states it, for this Python and system."""
    from packaging.requirements import Requirement

    try:
        stated = metadata.metadata(_NAME)
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return [], {}
    found = [Requirement(text) for text in stated.get_all("Requires-Dist") or ()]
    needed = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    extras = {
        extra: [one for one in found if one not in needed and one.marker and one.marker.evaluate({"extra": extra})]
        for extra in stated.get_all("Provides-Extra") or ()
    }
    return needed, extras


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

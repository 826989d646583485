"""Run the command line over the whole corpus in one process that watches every file it opens; called by test_hostile.py.

python hostile_run.py FOLDER  ->  JSON lines {"case", "command", "code", "err"}, then {"opened": [...]}
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import hostile_graphs  # noqa: F401  (adds its cases)
import hostile_names  # noqa: F401
from hostile_files import CANARY, CASES

from axformer_onnx import cli

PLAN = '{"format": "axformer-plan/1", "feed_forward_blocks": [0]}'
MEMORY_BYTES = 16 * 2**30  # address space: ONNX Runtime reserves generously


def run(arguments: list[str]) -> tuple[int, str]:
    """(exit code, stderr) of the command line."""
    sys.argv = ["axformer-onnx", *arguments]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), err.getvalue()
    return 0, err.getvalue()


def main(root: Path) -> None:
    """Build every case in a folder of its own, run `inspect` and `apply` on it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    opened: set[str] = set()

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str | bytes):
            opened.add(os.path.realpath(os.fsdecode(details[0])))

    sys.addaudithook(watch)
    for case in CASES:
        folder = root / case.name
        (folder / "inner").mkdir(parents=True)
        (folder / CANARY).write_bytes(b"secret" * 100)
        (folder / "plan.json").write_text(PLAN)
        path = str(case.build(folder / "inner"))
        opened.clear()
        before = os.stat(folder / CANARY).st_atime_ns
        out = folder / "out"
        for command in (["inspect", path], ["apply", str(folder / "plan.json"), path, "-o", str(out / "m.onnx")]):
            code, err = run(command)
            own = {str(folder / "plan.json")} | {o for o in opened if o.startswith((str(folder / "inner"), str(out)))}
            print(json.dumps({
                "case": case.name, "command": command[0], "code": code, "err": err,
                "outside": sorted(o for o in opened - own if o.startswith(str(root)) or o in ("/dev/zero", "/etc/passwd")),
                "read": os.stat(folder / CANARY).st_atime_ns != before,
            }))  # fmt: skip
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

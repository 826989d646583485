"""Run the fuzzers side by side for a bounded time on fresh seeds: python tests/fuzz/run.py SECONDS

Without atheris (there are wheels for some interpreters on Linux only) it says so and ends well. What a fuzzer finds is kept in
run/fuzz; `python tests/fuzz/fuzz_load.py run/fuzz/crash-...` shows it again.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from seeds import write_models, write_plans

HERE = Path(__file__).parent
FOUND = HERE.parent.parent / "run" / "fuzz"
LONGEST = {"fuzz_load": 20_000, "fuzz_plan": 4096}
"""Bytes of one input."""


def main(seconds: int) -> int:
    """The number of fuzzers that found something."""
    if importlib.util.find_spec("atheris") is None:
        print(f"not fuzzed: atheris has no wheel for Python {sys.version.split()[0]} on {sys.platform}")
        return 0
    with concurrent.futures.ThreadPoolExecutor(len(LONGEST)) as pool:
        return sum(pool.map(lambda name: _fuzz(name, seconds) != 0, LONGEST))


def _fuzz(name: str, seconds: int) -> int:
    corpus = FOUND / name
    corpus.mkdir(parents=True, exist_ok=True)
    if name == "fuzz_plan":
        write_plans(corpus)
    else:
        write_models(corpus, LONGEST[name])
    options = {
        "max_total_time": seconds,
        "timeout": 60,  # seconds of one input
        "rss_limit_mb": 3000,
        "max_len": LONGEST[name],
        "artifact_prefix": f"{FOUND}/{name}-",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    arguments = [f"-{key}={value}" for key, value in options.items()]
    with tempfile.TemporaryDirectory() as scratch:  # libFuzzer leaves without cleaning up
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments, str(corpus)]
        return subprocess.run(command, check=False, env={**os.environ, "TMPDIR": scratch}).returncode


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]))))

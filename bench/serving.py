"""Does the speed-up of a result arrive at a client of a server?

    python bench/serving.py [SOURCE RESULT] [--task T] [--data FOLDER] [--clients 1 16] [--rows 1] [--rounds 8] [--seconds 10]
                            [--threads N] [--json FILE]

`axformer-onnx serve` runs both, one process each. wrk (https://github.com/wg/wrk, Debian's package wrk) asks them in turns of
`--seconds`, over so many connections that each wait for their answer before they ask again; who comes first changes from round to
round. What is asked are the task's report rows, `--rows` in a request, in the same order for both. Figures are medians over the
rounds; a ratio is the median of the rounds' own, with the smallest and the largest of them. An error ends it.

`graph alone`: the same two graphs in sessions of this process, one row of the median length, interleaved (`axformer-onnx score`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import stamped, write

import axformer_onnx as ax
from axformer_onnx.data import resolve_report
from axformer_onnx.tasks import get_task

EXAMPLE = Path(__file__).parents[1] / "models" / "nli-mini"
UPPER_HALF = frozenset({3, 4, 5})
_NAMES = ("source", "result")
_FIGURES = ("p50_ms", "p99_ms", "requests_per_s")
_WRK = """
local bodies, at = {}, 0
for line in io.lines("BODIES") do
  bodies[#bodies + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, line)
end
function request()
  at = at % #bodies + 1
  return bodies[at]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "microseconds": %d, "errors": %d, "p50": %f, "p99": %f}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@contextlib.contextmanager
def served(model: Path, threads: int | None) -> Iterator[str]:
    """Where requests go, while it runs."""
    words = [sys.executable, "-m", "axformer_onnx", "serve", str(model), "--port", "0", "--json"]
    words += ["--threads", str(threads)] if threads else []
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise SystemExit(f"{model}: the server did not start")
        yield str(json.loads(line)["infer"])
    finally:
        server.terminate()
        server.wait(60)


def bodies(task: str, data: Path | None, model: Path, rows: int) -> list[str]:
    """Requests that ask about every report row once."""
    folder = model if model.is_dir() else model.parent
    texts = resolve_report(get_task(task), model_dir=folder, data=str(data) if data else None).texts
    found = []
    for start in range(0, len(texts) - rows + 1, rows):
        columns = zip(*texts[start : start + rows], strict=True)
        named = zip(("text", "text_pair"), columns, strict=False)
        inputs = [{"name": name, "datatype": "BYTES", "shape": [rows], "data": list(column)} for name, column in named]
        found.append(json.dumps({"inputs": inputs}))
    return found


def asked(url: str, script: Path, clients: int, seconds: float) -> dict[str, float]:
    """One turn of wrk: milliseconds and requests a second. Ends the program at the first error."""
    words = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        str(clients),
        "--duration",
        f"{seconds:.0f}s",
        "--timeout",
        "60s",
    ]
    said = subprocess.run([*words, "--script", str(script), url], capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    if found["errors"] or not found["requests"]:
        raise SystemExit(f"{url}: {found['errors']} errors among {found['requests']} requests")
    return {
        "p50_ms": found["p50"] / 1e3,
        "p99_ms": found["p99"] / 1e3,
        "requests_per_s": found["requests"] / found["microseconds"] * 1e6,
        "requests": found["requests"],
    }


def under_load(urls: dict[str, str], script: Path, clients: int, a: argparse.Namespace) -> dict[str, Any]:
    """Figures of both at so many clients, and how many times as fast the result is."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for url in urls.values():
        asked(url, script, clients, 2)
    for turn in range(a.rounds):
        for name in _NAMES if turn % 2 else reversed(_NAMES):
            turns[name].append(asked(urls[name], script, clients, a.seconds))
    found: dict[str, Any] = {
        name: {figure: round(statistics.median(one[figure] for one in some), 3) for figure in _FIGURES}
        for name, some in turns.items()
    }
    found["requests"] = {name: round(sum(one["requests"] for one in some)) for name, some in turns.items()}
    for figure in _FIGURES:
        pairs = zip(turns["source"], turns["result"], strict=True)
        ratios = [a[figure] / b[figure] if figure.endswith("_ms") else b[figure] / a[figure] for a, b in pairs]
        found[f"times as fast, {figure}"] = [round(n, 2) for n in (statistics.median(ratios), min(ratios), max(ratios))]
    return found


def graph_alone(a: argparse.Namespace) -> dict[str, Any]:
    """Median latency of both and their ratio, without a server."""
    result = ax.score(a.source, a.result, task=a.task, data=a.data, threads=a.threads)
    first, second = result.latency[:2]
    ratio = second.ratio
    return {
        "shape": f"{first.batch} x {first.length}",
        "p50_ms": [round(first.p50_ms, 3), round(second.p50_ms, 3)],
        "times as fast": ratio and [round(n, 2) for n in (ratio.value, ratio.low, ratio.high)],
        "why not": second.why,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("result", nargs="?", type=Path, help="default: the example without its upper half")
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not here: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        if a.result is None:
            a.result = Path(folder) / "result"
            ax.apply(ax.Plan(attention_blocks=UPPER_HALF, feed_forward_blocks=UPPER_HALF), a.source, a.result)
        measure(a)


def measure(a: argparse.Namespace) -> None:
    """The graphs alone, then both under every load."""
    found: dict[str, Any] = {"graph alone": graph_alone(a)}
    print(f"graph alone: {found['graph alone']}")
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        served(a.source, a.threads) as source,
        served(a.result, a.threads) as result,
    ):
        script, lines = Path(folder) / "ask.lua", Path(folder) / "bodies"
        lines.write_text("\n".join(bodies(a.task, a.data, a.source, a.rows)) + "\n", encoding="utf-8")
        script.write_text(_WRK.replace("BODIES", lines.as_posix()), encoding="utf-8")
        for clients in a.clients:
            figures = under_load(dict(zip(_NAMES, (source, result), strict=True)), script, clients, a)
            found[f"{clients} clients"] = figures
            print(f"{clients} clients")
            for name, value in figures.items():
                print(f"  {name:<32} {value}")
    print(f"{time.monotonic() - begun:.0f} s under load")
    wrk = (
        subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout.split(" [")[0].strip()
    )
    result = stamped({"threads": a.threads, "rows": a.rows, **found})
    result["versions"]["wrk"] = wrk
    write(a.json, result)


if __name__ == "__main__":
    main()

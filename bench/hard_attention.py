"""What does hard attention cost, form by form, beside the same attention without it?

    python bench/hard_attention.py [--rounds 15] [--json FILE]

Each form is a way to keep the K largest of every row in standard operators, inside one attention block of 12 heads of 64:

    scores[B,H,S,T] = q @ k * scale + mask -> Softmax -> (form) -> @ v[B,H,T,64]

`speed` is the median time of the plain block over that of the block with the form: 1 is as fast, 0.5 takes twice as long. One
process, one thread, ONNX Runtime's default optimisations. Times are of the processor, so that other work on the machine does not
count. Every form is timed once in each round, in another order, on the same input, right after it ran on another one: the
branches of TopK are predicted too well on rows that it has just seen. Before it is timed, every exact form must give what the
oracle (a stable sort) says, on scores with many ties. docs/hard-attention.md reads the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from record import stamped, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from hard_forms import FORMS, HEADS, KS, WIDTH, Array, scalar
from small_graphs import Sketch

from axformer_passes.cut.hard_attention import harden
from axformer_passes.plan import Hard, Mode

SHAPES = [(b, t, t) for b in (1, 8) for t in (16, 32, 64, 128, 256)] + [(1, 1, 128), (8, 1, 128)]
INPUTS = 8
"""Different inputs that the rounds take in turn."""


def block(name: str | None, k: int, mode: Mode) -> bytes:
    """The attention block, plain (None) or with one form."""
    g = Sketch(17)
    product = g("MatMul", "q", "k")
    scores = g("Add", g("Mul", product, scalar(g, WIDTH**-0.5)), "mask")
    handmade = name not in (None, "chosen")
    assert name is None or name in FORMS
    if name in ("hardmax_alone", "softmax_of_k", "around", "divided"):
        p = FORMS[str(name)].draw(g, scores, k, 0)
    else:
        before = handmade and mode == "renormalised"
        p = g("Softmax", FORMS[str(name)].draw(g, scores, k, -np.inf) if before else scores, axis=-1)
        p = FORMS[str(name)].draw(g, p, k, 0) if handmade and mode == "truncated" else p
    context = p if name == "gathered_values" else g("MatMul", p, "v")
    sizes: dict[str, list[Any]] = {"q": ["B", HEADS, "S", WIDTH], "k": ["B", HEADS, WIDTH, "T"],
                                   "v": ["B", HEADS, "T", WIDTH], "mask": ["B", 1, 1, "T"]}  # fmt: skip
    proto = g.model(sizes, context, ["B", HEADS, "S", WIDTH])
    if name != "chosen":
        return bytes(proto.SerializeToString())
    model = ir.from_proto(proto)
    harden(model.graph, str(p), Hard(k, mode), np.dtype(np.float32))
    return bytes(ir.to_proto(model).SerializeToString())


def feeds(seed: int, batch: int, queries: int, tokens: int, tied: bool = False) -> dict[str, Array]:
    """Scores of a standard deviation of about 2; rows of a larger batch end in padding."""
    rng = np.random.default_rng(seed)
    q, k = (rng.standard_normal((batch, HEADS, n, WIDTH)).astype(np.float32) * 1.4 for n in (queries, tokens))
    if tied:  # halves of few directions: sums are exact
        q, k = (np.where(np.arange(WIDTH) < 2, np.round(x), 0).astype(np.float32) for x in (q, k))
    real = tokens - rng.integers(0, tokens // 2, batch) if batch > 1 else np.full(1, tokens)
    mask = np.where(np.arange(tokens) < real[:, None, None, None], 0, -10_000.0).astype(np.float32)
    v = rng.standard_normal((batch, HEADS, tokens, WIDTH)).astype(np.float32)
    return {"q": q, "k": k.swapaxes(2, 3).copy(), "v": v, "mask": mask}


def expected(given: dict[str, Array], k: int, mode: Mode) -> Array:
    """float64: by a stable sort."""
    q, keys, v, mask = (given[n].astype(np.float64) for n in ("q", "k", "v", "mask"))
    s = q @ keys * WIDTH**-0.5 + mask
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-(p.astype(np.float32) if mode == "truncated" else s), axis=-1, kind="stable")[..., :k]
    kept = np.zeros_like(p)
    np.put_along_axis(kept, order, np.take_along_axis(p, order, -1), -1)
    if mode == "renormalised":
        kept /= kept.sum(-1, keepdims=True)
    return np.asarray(kept @ v)


# -- timing -----------------------------------------------------------------------------------------------------------


def _session(model: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _sessions(k: int, mode: Mode) -> dict[str, Any]:
    names = [n for n, form in FORMS.items() if k in form.ks and mode in form.modes]
    found = {"plain": _session(block(None, k, mode)), **{n: _session(block(n, k, mode)) for n in names}}
    given = feeds(99, 2, 40, 40, tied=True)
    for name in names:
        if FORMS[name].always:
            out = found[name].run(None, given)[0]
            np.testing.assert_allclose(
                out, expected(given, k, mode), rtol=1e-4, atol=1e-5, err_msg=f"{name} {k} {mode}"
            )
    return found


def _timed(sessions: dict[str, Any], shape: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Median milliseconds of each session."""
    inputs, order = [feeds(seed, *shape) for seed in range(INPUTS)], np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(rounds + 1):
        sessions["plain"].run(None, inputs[i % INPUTS])  # or the first to be timed would be the first to read it
        for name in order.permutation(list(sessions)):
            session = sessions[name]
            session.run(None, inputs[(i + INPUTS // 2) % INPUTS])
            start = time.process_time()
            session.run(None, inputs[i % INPUTS])
            if i:
                taken[name].append((time.process_time() - start) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the figures here")
    a = parser.parse_args()
    rows = []
    modes: tuple[Mode, ...] = ("truncated", "renormalised")
    for mode in modes:
        for k in KS:
            sessions = _sessions(k, mode)
            for shape in SHAPES:
                slow = shape[0] * shape[1] * shape[2] > 100_000
                times = _timed(sessions, shape, max(4, a.rounds // 3) if slow else a.rounds)
                speeds = {name: round(times["plain"] / ms, 3) for name, ms in times.items() if name != "plain"}
                sizes = dict(zip(("batch", "queries", "tokens"), shape, strict=True))
                rows.append({"mode": mode, "k": k, **sizes, "plain_ms": round(times["plain"], 4), "speed": speeds})
                print(f"{mode:12} K {k:<3} {shape[0]}x{shape[1]}x{shape[2]:<4} {times['plain']:8.3f} ms  "
                      + "  ".join(f"{n} {s:.2f}" for n, s in speeds.items()), flush=True)  # fmt: skip
    write(a.json, stamped({"heads": HEADS, "head_size": WIDTH, "rounds": a.rounds, "rows": rows}))


if __name__ == "__main__":
    main()

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
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from small_graphs import Sketch

from axformer_onnx.runtime import describe_hardware, versions
from axformer_passes.harden import harden
from axformer_passes.plan import Hard, Mode

Array = npt.NDArray[Any]
HEADS, WIDTH = 12, 64
SHAPES = [(b, t, t) for b in (1, 8) for t in (16, 32, 64, 128, 256)] + [(1, 1, 128), (8, 1, 128)]
KS = (1, 2, 4, 8, 16, 32)
INPUTS = 8
"""Different inputs that the rounds take in turn."""


@dataclasses.dataclass(frozen=True)
class Form:
    """draw(g, x, k, fill) -> the masked tensor; `always`: it keeps exactly the K largest, ties and all."""

    draw: Callable[[Sketch, str, int, float], str]
    ks: tuple[int, ...] = KS
    modes: tuple[Mode, ...] = ("truncated", "renormalised")
    always: bool = True


class Branch(Sketch):
    """One side of an If; its names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def weight(self, array: Any, name: str | None = None) -> str:
        """A new initializer."""
        return super().weight(array, f"{self.prefix}_w{len(self.initializers)}")

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"{self.prefix}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def graph(self, output: str) -> onnx.GraphProto:
        """The branch, with one output."""
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(self.nodes, self.prefix, [], [out], self.initializers)


# -- parts ------------------------------------------------------------------------------------------------------------


def _tokens(g: Sketch, x: str) -> str:
    return str(g("Shape", x, start=-1))


def _topk(g: Sketch, x: str, k: int, more: int = 0, in_order: int = 1) -> tuple[str, str]:
    clamped = g("Min", g.weight(np.array([k + more])), _tokens(g, x))
    values, indices = g("TopK", x, clamped, outputs=2, axis=-1, sorted=in_order)
    return values, indices


def _full(g: Sketch, x: str, fill: float) -> str:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [fill])
    return str(g("ConstantOfShape", g("Shape", x), value=value))


def _at(g: Sketch, x: str, start: int, end: int) -> str:
    """x[.., start:end]."""
    return str(g("Slice", x, *(g.weight(np.array([i])) for i in (start, end, -1))))


def _scalar(g: Sketch, value: float) -> str:
    return g.weight(np.array(value, np.float32))


# -- forms ------------------------------------------------------------------------------------------------------------


def scattered(g: Sketch, x: str, k: int, fill: float) -> str:
    """Survivors into a constant tensor: what the project wrote before."""
    values, indices = _topk(g, x, k)
    return str(g("ScatterElements", _full(g, x, fill), indices, values, axis=-1))


def unsorted(g: Sketch, x: str, k: int, fill: float) -> str:
    """The same without an order: nothing promises that ties go to the lower index."""
    values, indices = _topk(g, x, k, in_order=0)
    return str(g("ScatterElements", _full(g, x, fill), indices, values, axis=-1))


def minimum(g: Sketch, x: str, k: int, fill: float) -> str:
    """Min(x, fill) in place of the constant tensor."""
    values, indices = _topk(g, x, k)
    return str(g("ScatterElements", g("Min", x, _scalar(g, fill)), indices, values, axis=-1))


def one_hot(g: Sketch, x: str, k: int, fill: float) -> str:
    """One-hot rows of the survivors, added up and multiplied."""
    _, indices = _topk(g, x, k)
    ones = g("OneHot", indices, _tokens(g, x), g.weight(np.array([0, 1], np.float32)), axis=-1)
    return str(g("Mul", x, g("ReduceSum", ones, g.weight(np.array([-2])), keepdims=0)))


def scatter_nd(g: Sketch, x: str, k: int, fill: float) -> str:
    """ScatterND into rows laid flat: place = row * T + index."""
    values, indices = _topk(g, x, k)
    tokens, minus = _tokens(g, x), g.weight(np.array([-1]))
    rows = g("Concat", minus, g("Shape", values, start=-1), axis=0)
    flat, picked = g("Reshape", indices, rows), g("Reshape", values, minus)
    count = g("Squeeze", g("Shape", flat, start=0, end=1))
    starts = g("Mul", g("Range", g.weight(np.array(0)), count, g.weight(np.array(1))), tokens)
    place = g("Reshape", g("Add", flat, g("Unsqueeze", starts, minus)), g.weight(np.array([-1, 1])))
    out = g("ScatterND", g("Reshape", _full(g, x, fill), minus), place, picked)
    return str(g("Reshape", out, g("Shape", x)))


def threshold(g: Sketch, x: str, k: int, fill: float) -> str:
    """x > t, or x = t no further right than the last survivor."""
    values, indices = _topk(g, x, k)
    t, last = _at(g, values, -1, 2**31), _at(g, indices, -1, 2**31)
    every = g("Range", g.weight(np.array(0)), g("Squeeze", _tokens(g, x)), g.weight(np.array(1)))
    tied = g("And", g("Equal", x, t), g("LessOrEqual", every, last))
    return str(g("Where", g("Or", g("Greater", x, t), tied), x, _scalar(g, fill)))


def threshold_alone(g: Sketch, x: str, k: int, fill: float) -> str:
    """x >= t: too many survive a tie."""
    values, _ = _topk(g, x, k)
    return str(g("Where", g("GreaterOrEqual", x, _at(g, values, -1, 2**31)), x, _scalar(g, fill)))


def threshold_if(g: Sketch, x: str, k: int, fill: float) -> str:
    """x >= t, unless the K-th and the next value of some row are equal: then as `scattered`."""
    values, indices = _topk(g, x, k, more=1)
    t, after = _at(g, values, k - 1, k), _at(g, values, k, k + 1)  # `after` is empty, as is any tie, where K >= T
    tied = g("And", g("Equal", t, after), g("Greater", t, _scalar(g, max(fill, -1e30))))
    pad = g("Concat", g("Reshape", g("Cast", tied, to=TensorProto.FLOAT), g.weight(np.array([-1]))), g.weight(
        np.zeros(1, np.float32)), axis=0)  # fmt: skip
    some = g("Greater", g("ReduceMax", pad, keepdims=0), _scalar(g, 0))
    slow, fast = Branch("slow"), Branch("fast")
    kept = [_at(slow, value, 0, k) for value in (values, indices)]
    exact = slow("ScatterElements", _full(slow, x, fill), kept[1], kept[0], axis=-1)
    low = _at(fast, values, 0, k)
    quick = fast("Where", fast("GreaterOrEqual", x, _at(fast, low, -1, 2**31)), x, _scalar(fast, fill))
    return str(g("If", some, then_branch=slow.graph(exact), else_branch=fast.graph(quick)))


def skipped(g: Sketch, x: str, k: int, fill: float) -> str:
    """`scattered` behind If K < T."""
    fewer = g("Squeeze", g("Less", g.weight(np.array([k])), _tokens(g, x)))
    hard, soft = Branch("hard"), Branch("soft")
    kept, same = scattered(hard, x, k, fill), soft("Identity", x)
    return str(g("If", fewer, then_branch=hard.graph(kept), else_branch=soft.graph(same)))


def wider(g: Sketch, x: str, k: int, fill: float) -> str:
    """TopK of two more, and the first K of them: it reaches another algorithm in ONNX Runtime at T = 128."""
    values, indices = (_at(g, v, 0, k) for v in _topk(g, x, k, more=2))
    return str(g("ScatterElements", _full(g, x, fill), indices, values, axis=-1))


def smallest(g: Sketch, x: str, k: int, fill: float) -> str:
    """The T - K smallest are overwritten: of equal ones the first go, and the last stay."""
    count = g("Max", g("Sub", _tokens(g, x), g.weight(np.array([k]))), g.weight(np.array([0])))
    values, indices = g("TopK", x, count, outputs=2, axis=-1, sorted=0, largest=0)
    return str(g("ScatterElements", x, indices, g("Min", values, _scalar(g, fill)), axis=-1))


def hardmax(g: Sketch, x: str, k: int, fill: float) -> str:
    """Probabilities: K times the first maximum less 1, which is below all others; then what is below 0 survives."""
    if k == 1:
        return str(g("Mul", x, g("Hardmax", x, axis=-1)))
    left = x
    for _ in range(k):
        left = str(g("Sub", left, g("Hardmax", left, axis=-1)))
    return str(g("Sub", x, g("Relu", left)))


def arg_max(g: Sketch, x: str, k: int, fill: float) -> str:
    """One hot row at the first maximum."""
    ones = g(
        "OneHot", g("ArgMax", x, axis=-1, keepdims=0), _tokens(g, x), g.weight(np.array([0, 1], np.float32)), axis=-1
    )
    return str(g("Mul", x, ones))


def equal_range(g: Sketch, x: str, k: int, fill: float) -> str:
    """Positions that are the first maximum's."""
    every = g("Range", g.weight(np.array(0)), g("Squeeze", _tokens(g, x)), g.weight(np.array(1)))
    here = g("Equal", every, g("ArgMax", x, axis=-1, keepdims=1))
    return str(g("Where", here, x, _scalar(g, fill)))


def chosen(g: Sketch, x: str, k: int, fill: float) -> str:
    """What `axformer_passes.harden` writes; `block` puts it in."""
    raise AssertionError


FORMS = {
    "chosen": Form(chosen),
    "scattered": Form(scattered),
    "minimum": Form(minimum),
    "skipped": Form(skipped),
    "threshold": Form(threshold),
    "threshold_if": Form(threshold_if),
    "unsorted": Form(unsorted, always=False),
    "threshold_alone": Form(threshold_alone, always=False),
    "wider": Form(wider, (32,)),
    "smallest": Form(smallest, (32,), always=False),
    "scatter_nd": Form(scatter_nd, (1, 8), ("truncated",)),
    "one_hot": Form(one_hot, (1, 2, 4), ("truncated",)),
    "hardmax": Form(hardmax, (1, 2, 4, 8), ("truncated",)),
    "arg_max": Form(arg_max, (1,), ("truncated",)),
    "equal_range": Form(equal_range, (1,)),
    "hardmax_alone": Form(lambda g, x, k, fill: str(g("Hardmax", x, axis=-1)), (1,), ("renormalised",)),
    "softmax_of_k": Form(lambda g, x, k, fill: _softmax_of_k(g, x, k), modes=("renormalised",)),
    "around": Form(lambda g, x, k, fill: _around(g, x, k), modes=("renormalised",)),
    "divided": Form(lambda g, x, k, fill: _divided(g, x, k), modes=("renormalised",)),
    "gathered_values": Form(lambda g, x, k, fill: _gathered_values(g, x, k), (1, 2, 4), ("truncated",)),
}


def _softmax_of_k(g: Sketch, x: str, k: int) -> str:
    """Softmax of the survivors alone, scattered into zeros."""
    values, indices = _topk(g, x, k)
    return str(g("ScatterElements", _full(g, x, 0), indices, g("Softmax", values, axis=-1), axis=-1))


def _around(g: Sketch, x: str, k: int) -> str:
    """As `softmax_of_k`; where K >= T it takes the scores in their own order."""
    tokens, inf = _tokens(g, x), np.full(1, np.inf, np.float32)
    fewer = g("Less", g.weight(np.array([k])), tokens)
    key = g("Min", x, g("Where", fewer, g.weight(inf), g.weight(-inf)))
    _, indices = g("TopK", key, g("Where", fewer, g.weight(np.array([k])), tokens), outputs=2, axis=-1, sorted=1)
    zero, largest = _scalar(g, 0), g("GatherElements", x, indices, axis=-1)
    return str(g("ScatterElements", g("Clip", x, zero, zero), indices, g("Softmax", largest, axis=-1), axis=-1))


def _divided(g: Sketch, x: str, k: int) -> str:
    """The survivors' probabilities over their sum; where K >= T the softmax as it is."""
    fewer = g("Less", g.weight(np.array([k])), _tokens(g, x))
    count = g("Where", fewer, g.weight(np.array([k])), g.weight(np.array([1])))
    least = g("Where", fewer, g.weight(np.array([0], np.float32)), g.weight(np.array([np.inf], np.float32)))
    p = g("Softmax", x, axis=-1)
    _, indices = g("TopK", x, count, outputs=2, axis=-1, sorted=1)
    picked = g("GatherElements", p, indices, axis=-1)
    total = g("Where", fewer, g("ReduceSum", picked, g.weight(np.array([-1]))), _scalar(g, 1))
    return str(g("ScatterElements", g("Min", p, least), indices, g("Div", picked, total), axis=-1))


def _gathered_values(g: Sketch, x: str, k: int) -> str:
    """The context from K rows of v[B,H,T,E] a query, without the product over T."""
    values, indices = _topk(g, x, k)  # [B,H,S,K]
    rows = g("GatherND", "v", g("Unsqueeze", indices, g.weight(np.array([-1]))), batch_dims=2)  # [B,H,S,K,E]
    if k == 1:
        return str(g("Mul", values, g("Squeeze", rows, g.weight(np.array([-2])))))
    return str(
        g("Squeeze", g("MatMul", g("Unsqueeze", values, g.weight(np.array([-2]))), rows), g.weight(np.array([-2])))
    )


# -- the block --------------------------------------------------------------------------------------------------------


def block(name: str | None, k: int, mode: Mode) -> bytes:
    """The attention block, plain (None) or with one form."""
    g = Sketch(17)
    product = g("MatMul", "q", "k")
    scores = g("Add", g("Mul", product, _scalar(g, WIDTH**-0.5)), "mask")
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
    if a.json:
        found = {"heads": HEADS, "head_size": WIDTH, "rounds": a.rounds, "rows": rows}
        found |= {"hardware": describe_hardware(), "versions": versions()}
        Path(a.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

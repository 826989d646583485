"""The forms of hard attention that `hard_attention.py` compares, each drawn as a small graph; imported, not run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from small_graphs import Sketch

from axformer_passes.plan import Mode

Array = npt.NDArray[Any]
HEADS, WIDTH = 12, 64
KS = (1, 2, 4, 8, 16, 32)


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


def scalar(g: Sketch, value: float) -> str:
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
    return str(g("ScatterElements", g("Min", x, scalar(g, fill)), indices, values, axis=-1))


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
    return str(g("Where", g("Or", g("Greater", x, t), tied), x, scalar(g, fill)))


def threshold_alone(g: Sketch, x: str, k: int, fill: float) -> str:
    """x >= t: too many survive a tie."""
    values, _ = _topk(g, x, k)
    return str(g("Where", g("GreaterOrEqual", x, _at(g, values, -1, 2**31)), x, scalar(g, fill)))


def threshold_if(g: Sketch, x: str, k: int, fill: float) -> str:
    """x >= t, unless the K-th and the next value of some row are equal: then as `scattered`."""
    values, indices = _topk(g, x, k, more=1)
    t, after = _at(g, values, k - 1, k), _at(g, values, k, k + 1)  # `after` is empty, as is any tie, where K >= T
    tied = g("And", g("Equal", t, after), g("Greater", t, scalar(g, max(fill, -1e30))))
    pad = g("Concat", g("Reshape", g("Cast", tied, to=TensorProto.FLOAT), g.weight(np.array([-1]))), g.weight(
        np.zeros(1, np.float32)), axis=0)  # fmt: skip
    some = g("Greater", g("ReduceMax", pad, keepdims=0), scalar(g, 0))
    slow, fast = Branch("slow"), Branch("fast")
    kept = [_at(slow, value, 0, k) for value in (values, indices)]
    exact = slow("ScatterElements", _full(slow, x, fill), kept[1], kept[0], axis=-1)
    low = _at(fast, values, 0, k)
    quick = fast("Where", fast("GreaterOrEqual", x, _at(fast, low, -1, 2**31)), x, scalar(fast, fill))
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
    return str(g("ScatterElements", x, indices, g("Min", values, scalar(g, fill)), axis=-1))


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
    return str(g("Where", here, x, scalar(g, fill)))


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
    zero, largest = scalar(g, 0), g("GatherElements", x, indices, axis=-1)
    return str(g("ScatterElements", g("Clip", x, zero, zero), indices, g("Softmax", largest, axis=-1), axis=-1))


def _divided(g: Sketch, x: str, k: int) -> str:
    """The survivors' probabilities over their sum; where K >= T the softmax as it is."""
    fewer = g("Less", g.weight(np.array([k])), _tokens(g, x))
    count = g("Where", fewer, g.weight(np.array([k])), g.weight(np.array([1])))
    least = g("Where", fewer, g.weight(np.array([0], np.float32)), g.weight(np.array([np.inf], np.float32)))
    p = g("Softmax", x, axis=-1)
    _, indices = g("TopK", x, count, outputs=2, axis=-1, sorted=1)
    picked = g("GatherElements", p, indices, axis=-1)
    total = g("Where", fewer, g("ReduceSum", picked, g.weight(np.array([-1]))), scalar(g, 1))
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

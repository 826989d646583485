"""Graphs that name their axes but run at one size alone: a trace writes what Python computed of shapes as a number.

    Reshape(x, Concat([7], batch * heads, head size))   ->   the axis `sequence` of the inputs is 7

torch.nn.TransformerEncoder is written so by torchscript. The numbers that stand in the targets of Reshapes and Expands, and in the
bounds of Slices, are tried for the open axes of the inputs; a sample says them by itself. Axes at which the graph runs at other
sizes, too, stay open; the others are fixed in the model, so that what is made of it states the sizes it takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from axformer_onnx.errors import AxformerError, ProbeError, RuntimeFailure
from axformer_onnx.runtime import make_session, run_session
from axformer_passes.io import detached
from axformer_passes.probe import TokenSequence, convolved, describe, probe_feeds, recipe_of

Answer = TypeVar("Answer")
Sizes = dict[str, int]
"""Size of each open axis of the inputs, by its name."""
MOST_TRIED, MOST_SECONDS = 300, 30.0
"""Sizes that are tried, and how long, before a graph is given up."""
_TARGETS = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2)}
"""Inputs of operators that state sizes."""
_PASSED_ON = frozenset({"Cast", "Concat", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Unsqueeze", "Where"})
_LARGEST = 2**16


def at_its_sizes(model: ir.Model, use: Callable[[ir.Model], Answer]) -> Answer:
    """What `use` makes of `model`. Where that fails, and the graph runs at one size alone, its inputs are fixed to that, in place,
    and `use` is asked once more.

    Raises: what `use` raises.
    """
    if recipe_of(model).sample:  # it runs on that, whatever it is about other sizes
        _fix(model, _found(model))
    try:
        return use(model)
    except (ProbeError, RuntimeFailure):
        sizes = _found(model)
        if not sizes:
            raise
    _fix(model, sizes)
    return use(model)


def size_note(model: ir.Model) -> str:
    """A sentence on the axes that were fixed; empty where none were."""
    fixed = recipe_of(model).fixed
    if not fixed:
        return ""
    axes = ", ".join(f"{name} = {size}" for name, size in fixed.items())
    return (
        f"the graph declares open axes but runs at one size alone, that of its export ({axes}); it is worked on at that size, and "
        "what is written states it. Export it with these axes dynamic for other sizes"
    )


def text_sizes(model: ir.Model) -> tuple[int | None, int | None]:
    """(rows, tokens) that a model of texts takes alone; None: any number."""
    texts = [v.shape for v in model.graph.inputs if v.shape is not None and len(v.shape) == 2 and v.dtype is not None]
    sizes = [tuple(n if isinstance(n, int) else None for n in shape) for shape in texts]
    return sizes[0] if sizes else (None, None)  # type: ignore[return-value]


# -- what is tried ----------------------------------------------------------------------------------------------------


def _found(model: ir.Model) -> Sizes:
    """The axes that have one size alone, with it; empty where no size was found at which the graph runs."""
    names = list(_open_axes(model))
    if not names:
        return {}
    try:
        trial = _Trial(model)
    except AxformerError:
        return {}
    until = time.monotonic() + MOST_SECONDS
    tried = itertools.takewhile(lambda _: time.monotonic() < until, _tried(model, names))
    sizes = next((sizes for sizes in itertools.islice(tried, MOST_TRIED) if trial.runs(sizes)), None)
    if sizes is None:
        return {}
    return {name: n for name, n in sizes.items() if not any(trial.runs({**sizes, name: m}) for m in (n + 1, 2 * n + 3))}


def _open_axes(model: ir.Model) -> dict[str, list[tuple[ir.Value, int]]]:
    """Where each open axis of the inputs stands, by its name; those without a name by their input's. Not sides of images."""
    found: dict[str, list[tuple[ir.Value, int]]] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and axis not in convolved(value, 1):
                found.setdefault(size.value or f"{value.name}[{axis}]", []).append((value, axis))
    return found


def _tried(model: ir.Model, names: list[str]) -> Iterator[Sizes]:
    """Sizes in the order in which they are tried: the sample's alone; else one axis after the other, then all together."""
    axes, sample = _open_axes(model), recipe_of(model).sample
    if sample:
        yield {name: sample[str(value.name)].shape[axis] for name, ((value, axis), *_) in axes.items()}
        return
    usual = probe_feeds(model)
    start = {name: usual[str(value.name)].shape[axis] for name, ((value, axis), *_) in axes.items()}
    numbers = _numbers(model)
    choices = [[1, *numbers] if axes[name][0][1] == 0 else numbers for name in names]  # one row is a usual example
    for name, some in reversed([*zip(names, choices, strict=True)]):  # the last of them most often counts tokens
        yield from ({**start, name: n} for n in some)
    for together in itertools.product(*choices):
        yield dict(zip(names, together, strict=True))


def _numbers(model: ir.Model) -> list[int]:
    """Numbers above 1 that stand where sizes are stated, the most frequent first; then their divisors."""
    counts: dict[int, int] = {}
    for node in model.graph:
        for slot in _TARGETS.get(node.op_type, ()):
            for number in _constants(node.inputs[slot] if len(node.inputs) > slot else None):
                counts[number] = counts.get(number, 0) + 1
    stated = sorted(counts, key=lambda n: (-counts[n], n))
    divisors = sorted({d for n in stated for d in range(2, min(n, 1024)) if n % d == 0} - set(stated))
    return [*stated, *divisors]


def _constants(value: ir.Value | None) -> set[int]:
    """Numbers above 1 that a computed target is put together of."""
    queue, seen, found = [value], set[int](), set[int]()
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        array, node = _array(one), one.producer()
        if array is not None:
            found |= {int(n) for n in array.reshape(-1)[:8] if 1 < n < _LARGEST} if array.dtype.kind == "i" else set()
        elif node is not None and node.op_type in _PASSED_ON:
            queue.extend(node.inputs)
    return found


def _array(value: ir.Value) -> Any:
    """The numbers of a constant; None for what is computed."""
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


class _Trial:
    """Does the graph run with axes of these sizes, and are its outputs then as large as it declares?

    Where nothing is known of its tokens they are all the same: then no answer hangs on which tokens happen to be drawn.
    """

    def __init__(self, model: ir.Model) -> None:
        self._inputs = model.clone()
        self._axes, told, one = _open_axes(self._inputs), recipe_of(model), TokenSequence(words=(3,))
        describe(self._inputs, dataclasses.replace(told, ids=told.ids or one, decoder_ids=told.decoder_ids or one))
        self._session = make_session(detached(model), threads=1, optimize=False, prepack=False)
        self._declared = {str(v.name): [*v.shape] if v.shape is not None else None for v in model.graph.outputs}

    def runs(self, sizes: Mapping[str, int]) -> bool:
        """One run."""
        for name, places in self._axes.items():
            for value, axis in places:
                _set(value, axis, sizes[name])
        try:
            found = run_session(self._session, probe_feeds(self._inputs))
        except AxformerError:
            return False
        return all(self._as_declared(found[name].shape, dims, sizes) for name, dims in self._declared.items() if dims)

    @staticmethod
    def _as_declared(shape: tuple[int, ...], dims: list[Any], sizes: Mapping[str, int]) -> bool:
        wanted = [size if isinstance(size, int) else sizes.get(size.value or "") for size in dims]
        return len(shape) == len(wanted) and all(w is None or w == n for w, n in zip(wanted, shape, strict=True))


# -- what is done -----------------------------------------------------------------------------------------------------


def _fix(model: ir.Model, sizes: Sizes) -> None:
    """State these sizes wherever the model names their axes."""
    if not sizes:
        return
    for name, places in _open_axes(model).items():
        for value, axis in places if name in sizes else ():
            _set(value, axis, sizes[name])
    for value in (*model.graph.outputs, *(v for node in model.graph for v in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value in sizes:
                _set(value, axis, sizes[size.value])
    describe(model, dataclasses.replace(recipe_of(model), fixed=sizes))


def _set(value: ir.Value, axis: int, size: int) -> None:
    dims = [*(value.shape or ())]
    dims[axis] = size
    value.shape = ir.Shape(dims)


__all__ = ["at_its_sizes", "size_note", "text_sizes"]

"""What a plan means, said by torch: the original model with the same activations zeroed (docs/method.md 1.1).

Independent of the passes: forward hooks on the torch module, nothing of the graph. Shared is one record, Plan.

head             its slice of the output projection's input is zero
neuron           its entry of the down projection's input is zero
block            the output of its last projection, bias included, is zero; the addition and its norms stay. Of a LayerNorm
                 between the two, whose shift would be left, the output (`Record.behind`)
hard attention   the softmax inside the attention module keeps exactly k entries of a row; ties: the lower index wins

Plans count layers as `ZooModel.records` does. A module that several layers share counts its calls within one forward pass,
so that each has a plan of its own. B batch, S tokens, D model width.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode
from zoo import Feeds, Record, ZooModel, unwrapped

from axformer_passes.plan import Hard, Mode, Plan


def masked_outputs(model: ZooModel, feeds: Feeds, plan: Plan, *, double: bool = False) -> npt.NDArray[Any]:
    """Logits of the torch model under `plan`, float32, or float64 where `double`."""
    module = _double(model.module) if double else model.module
    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
    if double:
        inputs = {name: v.double() if v.is_floating_point() else v for name, v in inputs.items()}
    with torch.no_grad(), _under(module, model.records, plan):
        return np.asarray(module(**inputs).logits.numpy())


def hard_softmax(scores: torch.Tensor, rule: Hard) -> torch.Tensor:
    """Softmax over the last axis of scores[.., S] with exactly min(k, S) survivors.

    truncated: the others' probabilities become 0. renormalised: the others never enter the softmax.
    """
    soft = scores.softmax(dim=-1)
    ranked = soft if rule.mode == "truncated" else scores
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., : rule.k], True)
    if rule.mode == "truncated":
        return torch.where(kept, soft, torch.zeros_like(soft))
    return scores.masked_fill(~kept, -torch.inf).softmax(dim=-1)


def random_plan(model: ZooModel, rng: np.random.Generator) -> Plan:
    """A plan that touches most blocks in some way; where heads or neurons go, at least one stays."""
    plan = Plan()
    for layer, record in enumerate(model.records):
        if record.heads:
            plan = _random_attention(plan, layer, record.heads, rng)
        if record.neurons:
            match rng.integers(4):
                case 0:
                    plan = plan.without_feed_forward(layer)
                case 1 | 2:
                    plan = plan.without_neurons(layer, _some(record.neurons, rng))
    return plan


def _random_attention(plan: Plan, layer: int, heads: int, rng: np.random.Generator) -> Plan:
    match rng.integers(4):
        case 0:
            plan = plan.without_attention(layer)
        case 1 | 2:
            plan = plan.without_heads(layer, _some(heads, rng))
    if layer not in plan.attention_blocks and rng.random() < 0.5:
        mode: Mode = "truncated" if rng.random() < 0.5 else "renormalised"
        plan = plan.with_hard_attention(layer, int(rng.integers(1, 6)), mode)
    return plan


def _some(count: int, rng: np.random.Generator) -> list[int]:
    if count == 1:
        return []
    gone = rng.choice(count, size=int(rng.integers(1, count)), replace=False)
    return [int(i) for i in gone]


@functools.lru_cache(maxsize=16)
def _double(module: Any) -> Any:
    return copy.deepcopy(module).double()


@contextlib.contextmanager
def _under(module: Any, records: tuple[Record, ...], plan: Plan) -> Iterator[None]:
    assert plan.weights is None, "the oracle replays removals, not weights"
    told = {*plan.heads, *plan.neurons, *plan.attention_blocks, *plan.feed_forward_blocks, *plan.hard_attention}
    assert told <= set(range(len(records))), f"the plan names layers {sorted(told)} of {len(records)}"
    inner = unwrapped(module)
    with contextlib.ExitStack() as stack:
        for index, record in enumerate(records):
            if record.heads and record.width:
                gone = plan.heads.get(index, frozenset())
                columns = [h * record.width + i for h in sorted(gone) for i in range(record.width)]
                named = (record.output, record.behind[0])
                _mask_block(stack, inner, named, columns, index in plan.attention_blocks, record)
            else:
                assert index not in {*plan.heads, *plan.attention_blocks, *plan.hard_attention}, f"no heads in {index}"
            if record.neurons:
                columns = sorted(plan.neurons.get(index, ()))
                named = (record.down, record.behind[1])
                _mask_block(stack, inner, named, columns, index in plan.feed_forward_blocks, record)
            else:
                assert index not in {*plan.neurons, *plan.feed_forward_blocks}, f"no neurons in {index}"
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(next(inner.parameters()).dtype)
        stack.enter_context(_Arithmetic(stack, inner, records, plan.hard_attention))
        yield


def _mask_block(
    stack: contextlib.ExitStack, inner: Any, named: tuple[str, str], columns: list[int], whole: bool, record: Record
) -> None:
    """Columns of the projection's input; where `whole`, the output of the norm behind it, if there is one. `named`: these two."""
    projection, behind = named
    _mask(stack, inner.get_submodule(projection), columns, whole and not behind, record)
    if whole and behind:
        _mask(stack, inner.get_submodule(behind), [], True, record)


def _mask(stack: contextlib.ExitStack, projection: Any, columns: list[int], whole: bool, record: Record) -> None:
    """In the `record.call`-th call: zero these columns of the projection's input, or where `whole` all of its output."""
    if not columns and not whole:
        return None
    if hasattr(projection, "post_attention"):  # XLNet: a product with a weight of three axes, no module of its own
        assert record.heads and record.width
        heads = range(record.heads) if whole else [c // record.width for c in columns[:: record.width]]
        return _mask_heads(stack, projection, list(heads))
    calls = _Calls(stack, projection)

    def entering(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if calls.current != record.call:
            return None
        x = inputs[0].clone()
        x[..., columns] = 0
        return (x, *inputs[1:])

    def leaving(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(output) if whole and calls.current == record.call else None

    stack.callback(projection.register_forward_pre_hook(entering).remove)
    stack.callback(projection.register_forward_hook(leaving).remove)
    return None


def _mask_heads(stack: contextlib.ExitStack, attention: Any, heads: list[int]) -> None:
    """XLNet's `post_attention(h, context[S, B, H, E], ...)` sees zeros for these heads. It adds no bias."""
    plain = attention.post_attention

    def masked(h: torch.Tensor, context: torch.Tensor, *rest: Any, **more: Any) -> Any:
        context = context.clone()
        context[:, :, heads] = 0
        return plain(h, context, *rest, **more)

    attention.post_attention = masked
    stack.callback(delattr, attention, "post_attention")


class _Calls:
    """`current`: how often a module has been entered before, while hooks that come later run."""

    def __init__(self, stack: contextlib.ExitStack, module: Any) -> None:
        self.current = -1
        stack.callback(module.register_forward_pre_hook(self._count).remove)

    def _count(self, *_: Any) -> None:
        self.current += 1


class _Arithmetic(TorchFunctionMode):  # type: ignore[misc]
    """Replaces the softmax inside a hardened attention; hooks on its entry and exit say which runs.

    `double`: the module stays in float64 where its code says float32.
    """

    def __init__(
        self, stack: contextlib.ExitStack, inner: Any, records: tuple[Record, ...], rules: Mapping[int, Hard]
    ) -> None:
        super().__init__()
        self.rule: Hard | None = None
        self.double = any(value.dtype == torch.float64 for value in inner.parameters())
        for index, rule in rules.items():
            attention = inner.get_submodule(records[index].attention)
            enter = functools.partial(self._enter, rule, _Calls(stack, attention), records[index].call)
            stack.callback(attention.register_forward_pre_hook(enter).remove)
            stack.callback(attention.register_forward_hook(self._leave).remove)

    def _enter(self, rule: Hard, calls: _Calls, call: int, *_: Any) -> None:
        if calls.current == call:
            self.rule = rule

    def _leave(self, *_: Any) -> None:
        self.rule = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        assert self.rule is None or name != "scaled_dot_product_attention", "the oracle needs eager attention"
        if self.double:
            func = torch.Tensor.double if name == "float" else func
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        if self.rule is not None and name == "softmax":
            return hard_softmax(args[0], self.rule)
        return func(*args, **kwargs)

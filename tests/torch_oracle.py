"""What a plan means, said by torch: the original model with the same activations zeroed (METHOD.md 1.1).

Independent of the passes: forward hooks on the torch module, nothing of the graph. Shared is one record, Plan.

head             its slice of the output projection's input is zero
neuron           its entry of the down projection's input is zero
block            the output of its last projection, bias included, is zero; the addition and its norms stay
hard attention   every softmax inside the layer keeps exactly k entries of a row; ties: the lower index wins

B batch, S tokens, D model width.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode
from zoo import Feeds, ZooModel

from axformer_passes.plan import Hard, Mode, Plan

_LAYERS = ("encoder.layer", "transformer.layer", "h", "layers")
_ATTENTION_OUT = ("attention.output.dense", "attention.out_lin", "attention.o_proj", "attn.c_proj")
_DOWN = ("output.dense", "ffn.lin2", "mlp.fc2", "mlp.c_proj")


def masked_outputs(model: ZooModel, feeds: Feeds, plan: Plan, *, double: bool = False) -> npt.NDArray[Any]:
    """Logits of the torch model under `plan`, float32, or float64 where `double`."""
    module = _double(model.module) if double else model.module
    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
    if double:
        inputs = {name: v.double() if v.is_floating_point() else v for name, v in inputs.items()}
    with torch.no_grad(), _under(module, model.head_size, plan):
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
    for layer in range(model.layers):
        match rng.integers(4):
            case 0:
                plan = plan.without_attention(layer)
            case 1 | 2:
                gone = rng.choice(model.heads, size=int(rng.integers(1, model.heads)), replace=False)
                plan = plan.without_heads(layer, map(int, gone))
        if layer not in plan.attention_blocks and rng.random() < 0.5:
            mode: Mode = "truncated" if rng.random() < 0.5 else "renormalised"
            plan = plan.with_hard_attention(layer, int(rng.integers(1, 6)), mode)
        match rng.integers(4):
            case 0:
                plan = plan.without_feed_forward(layer)
            case 1 | 2:
                gone = rng.choice(model.neurons, size=int(rng.integers(1, model.neurons)), replace=False)
                plan = plan.without_neurons(layer, map(int, gone))
    return plan


@dataclasses.dataclass(frozen=True)
class TorchLayer:
    """The three modules of a layer that are hooked: the layer, its output and its down projection."""

    whole: Any
    attention_out: Any
    down: Any


def torch_layers(module: Any) -> list[TorchLayer]:
    """The layers of a transformers model, in order."""
    layers = _first(module.base_model, _LAYERS)
    return [TorchLayer(layer, _first(layer, _ATTENTION_OUT), _first(layer, _DOWN)) for layer in layers]


def _first(module: Any, paths: tuple[str, ...]) -> Any:
    for path in paths:
        with contextlib.suppress(AttributeError):
            return module.get_submodule(path)
    raise AssertionError(f"{type(module).__name__} has none of {', '.join(paths)}")


@functools.lru_cache(maxsize=16)
def _double(module: Any) -> Any:
    return copy.deepcopy(module).double()


@contextlib.contextmanager
def _under(module: Any, head_size: int, plan: Plan) -> Iterator[None]:
    assert plan.weights is None, "the oracle replays removals, not weights"
    layers = torch_layers(module)
    named = {
        *plan.heads,
        *plan.neurons,
        *plan.attention_blocks,
        *plan.feed_forward_blocks,
        *plan.hard_attention,
    }
    assert named <= set(range(len(layers))), f"the plan names layers {sorted(named)} of {len(layers)}"
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(layers):
            columns = [h * head_size + i for h in plan.heads.get(index, ()) for i in range(head_size)]
            _zero_input(stack, layer.attention_out, columns)
            _zero_input(stack, layer.down, sorted(plan.neurons.get(index, ())))
            if index in plan.attention_blocks:
                _zero_output(stack, layer.attention_out)
            if index in plan.feed_forward_blocks:
                _zero_output(stack, layer.down)
        if plan.hard_attention:
            stack.enter_context(_HardSoftmax(stack, layers, plan.hard_attention))
        yield


def _zero_input(stack: contextlib.ExitStack, linear: Any, columns: list[int]) -> None:
    def zeroed(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0].clone()
        x[..., columns] = 0
        return (x, *inputs[1:])

    if columns:
        stack.callback(linear.register_forward_pre_hook(zeroed).remove)


def _zero_output(stack: contextlib.ExitStack, linear: Any) -> None:
    stack.callback(linear.register_forward_hook(lambda _, __, y: torch.zeros_like(y)).remove)


class _HardSoftmax(TorchFunctionMode):  # type: ignore[misc]
    """Replaces the softmax inside a hardened layer; hooks on the layers' entry and exit say which runs."""

    def __init__(self, stack: contextlib.ExitStack, layers: list[TorchLayer], rules: Mapping[int, Hard]) -> None:
        super().__init__()
        self.rule: Hard | None = None
        for index, layer in enumerate(layers):
            rule = rules.get(index)
            stack.callback(layer.whole.register_forward_pre_hook(functools.partial(self._enter, rule)).remove)
            stack.callback(layer.whole.register_forward_hook(self._leave).remove)

    def _enter(self, rule: Hard | None, *_: Any) -> None:
        self.rule = rule

    def _leave(self, *_: Any) -> None:
        self.rule = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert self.rule is None or name != "scaled_dot_product_attention", "the oracle needs eager attention"
        if self.rule is not None and name == "softmax":
            return hard_softmax(args[0], self.rule)
        return func(*args, **(kwargs or {}))

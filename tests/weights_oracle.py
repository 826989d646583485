"""What new weights of output projections mean, said by torch: the module's own projection answers with them instead.

    drawn(model, plan, rng)                 weights of a plan, at random, with every block that stays
    weighted_outputs(model, ...)            logits of the torch module with these weights, under the plan

A hook on the projection puts x @ weight + bias in place of what it computed, so a module that several layers share may be
given other weights in each of its calls. Rows that the plan removes are drawn, too: the plan must make them count for nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from inner_oracle import PLACES, holding
from torch_oracle import masked_outputs
from zoo import Feeds, Record, ZooModel, unwrapped

from axformer_passes.plan import Plan

Array = npt.NDArray[Any]


def drawn(model: ZooModel, plan: Plan, seed: int, *, bias: bool = True) -> dict[str, Array]:
    """float32 weights and biases for every block that `plan` leaves, as a weights file names them."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for index, record in enumerate(model.records):
        for kind, rows in kept(record, index, plan).items():
            columns = width_of(model, record, kind)
            deviation = 1.5 / np.sqrt(max(1, len(rows)))
            found[f"layers.{index}.{kind}.weight"] = rng.normal(0, deviation, (len(rows), columns)).astype(np.float32)
            if bias:
                found[f"layers.{index}.{kind}.bias"] = rng.normal(0, 0.5, columns).astype(np.float32)
    return found


def kept(record: Record, index: int, plan: Plan) -> dict[str, list[int]]:
    """{kind of block: rows of its output projection that the plan keeps}, for the blocks that stay."""
    found = {}
    if record.heads and record.width and index not in plan.attention_blocks:
        gone = plan.heads.get(index, frozenset())
        found["attention"] = [
            h * record.width + i for h in range(record.heads) if h not in gone for i in range(record.width)
        ]
    if record.neurons and index not in plan.feed_forward_blocks:
        gone = plan.neurons.get(index, frozenset())
        found["feed_forward"] = [i for i in range(record.neurons) if i not in gone]
    return found


def width_of(model: ZooModel, record: Record, kind: str) -> int:
    """Columns of a block's output projection."""
    part = unwrapped(model.module).get_submodule(record.output if kind == "attention" else record.down)
    if hasattr(part, "o"):  # XLNet: [D, heads, head size]
        return int(part.o.shape[0])
    return int(part.nf if hasattr(part, "nf") else part.out_features)  # nf: GPT-2's Conv1D


def weighted_outputs(model: ZooModel, feeds: Feeds, plan: Plan, weights: Mapping[str, Array]) -> Array:
    """Logits of torch under `plan` with these weights, float32."""
    with contextlib.ExitStack() as stack:
        if model.family in PLACES:
            stack.enter_context(holding(model, plan, weights))
        for index, record in enumerate(model.records):
            for kind, rows in kept(record, index, plan).items():
                given = [weights.get(f"layers.{index}.{kind}.{part}") for part in ("weight", "bias")]
                name = record.output if kind == "attention" else record.down
                _answer(stack, unwrapped(model.module).get_submodule(name), record, rows, *given)
        return masked_outputs(model, feeds, dataclasses.replace(plan, weights=None))


def _answer(
    stack: contextlib.ExitStack, part: Any, record: Record, rows: list[int], weight: Array | None, bias: Array | None
) -> None:
    if hasattr(part, "post_attention"):
        return _answer_xlnet(stack, part, rows, weight)
    own = part.weight.detach() if hasattr(part, "nf") else part.weight.detach().T  # Conv1D holds [rows, columns]
    full = own.clone()
    if weight is not None:
        full = torch.full_like(own, 7.0)  # what the plan removes must not count
        full[rows] = torch.from_numpy(weight)
    constant = torch.from_numpy(bias) if bias is not None else part.bias
    calls = [0]

    def leaving(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> torch.Tensor | None:
        calls[0] += 1
        if calls[0] - 1 != record.call:
            return None
        product = inputs[0] @ full
        return product if constant is None else product + constant

    stack.callback(part.register_forward_hook(leaving).remove)
    return None


def _answer_xlnet(stack: contextlib.ExitStack, part: Any, rows: list[int], weight: Array | None) -> None:
    """A product with a weight [D, heads, head size] and no bias."""
    own = part.o.data
    if weight is not None:
        full = torch.full_like(own, 7.0).reshape(len(own), -1)
        full[:, rows] = torch.from_numpy(weight).T
        part.o.data = full.reshape(own.shape)
        stack.callback(setattr, part.o, "data", own)

"""What new weights of inner projections mean, said by torch: the module's own layer holds them while it runs.

inner_parts(model, index)                 {kind.role: dotted name of the torch layer}
drawn_inner(model, plan, seed)            such weights for every block that `plan` leaves, at random
holding(model, plan, weights)             a context in which the torch layers hold them
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from zoo import ZooModel, unwrapped

from axformer_passes.plan import Plan

Array = npt.NDArray[Any]
_BERT = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"}
_LLAMA = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
_T5 = {name: f"layer.0.SelfAttention.{name[0]}" for name in ("query", "key", "value")}
_DISTIL = {name: f"attention.{name[0]}_lin" for name in ("query", "key", "value")}
# family: where layer i is, attention's and feed-forward's layers by role; packed ones by the first of their roles
PLACES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "bert": ("bert.encoder.layer", _BERT, {"up": "intermediate.dense"}),
    "distilbert": ("distilbert.transformer.layer", _DISTIL, {"up": "ffn.lin1"}),
    "gpt2": ("transformer.h", {"query": "attn.c_attn"}, {"up": "mlp.c_fc"}),
    "llama": ("model.layers", _LLAMA, {"up": "mlp.gate_proj", "up2": "mlp.up_proj"}),
    "t5-encoder": ("encoder.block", _T5, {"up": "layer.1.DenseReluDense.wi_0", "up2": "layer.1.DenseReluDense.wi_1"}),
}


def inner_parts(model: ZooModel, index: int) -> dict[tuple[str, str], str]:
    """{(kind, role): name of the torch layer}."""
    base, attention, feed_forward = PLACES[model.family]
    found = {("attention", role): f"{base}.{index}.{name}" for role, name in attention.items()}
    return {**found, **{("feed_forward", role): f"{base}.{index}.{name}" for role, name in feed_forward.items()}}


def columns_of(model: ZooModel, plan: Plan, index: int, kind: str, total: int) -> list[int]:
    """Columns that `plan` keeps of a layer with `total`: whole parts of query, key, value if they are packed."""
    record = model.records[index]
    if kind == "feed_forward":
        gone = plan.neurons.get(index, frozenset())
        return [i for i in range(total) if i not in gone]
    lost, parts = plan.heads.get(index, frozenset()), 3 if model.family == "gpt2" else 1
    assert record.heads
    size = total // parts // record.heads  # llama's queries: a group's heads side by side
    return [i for i in range(total) if i // size % record.heads not in lost]


def drawn_inner(model: ZooModel, plan: Plan, seed: int) -> dict[str, Array]:
    """float32 weights, and biases where the source has some."""
    rng, found = np.random.default_rng(seed), dict[str, Array]()
    for index, kind, role, part in _left(model, plan):
        weight = _matrix(part)
        columns = len(columns_of(model, plan, index, kind, weight.shape[1]))
        key = f"layers.{index}.{kind}.{role}"
        found[f"{key}.weight"] = rng.normal(0, 1.5 / np.sqrt(len(weight)), (len(weight), columns)).astype(np.float32)
        if part.bias is not None:
            found[f"{key}.bias"] = rng.normal(0, 0.5, columns).astype(np.float32)
    return found


@contextlib.contextmanager
def holding(model: ZooModel, plan: Plan, weights: Mapping[str, Array]) -> Iterator[None]:
    """The torch layers hold `weights` at the columns that stay, and sevens elsewhere: what goes must not count."""
    with contextlib.ExitStack() as stack:
        for index, kind, role, part in _left(model, plan):
            given = weights.get(f"layers.{index}.{kind}.{role}.weight")
            bias = weights.get(f"layers.{index}.{kind}.{role}.bias")
            columns = columns_of(model, plan, index, kind, _matrix(part).shape[1])
            for name, array in (("weight", given), ("bias", bias)):
                if array is not None:
                    tensor = getattr(part, name)
                    stack.callback(setattr, tensor, "data", tensor.data)
                    tensor.data = _full(tensor.data, array, columns, transposed=name == "weight" and not _packed(part))
        yield


def _left(model: ZooModel, plan: Plan) -> Iterator[tuple[int, str, str, Any]]:
    for index, record in enumerate(model.records):
        for (kind, role), name in inner_parts(model, index).items():
            units = record.heads if kind == "attention" else record.neurons
            removed = plan.attention_blocks if kind == "attention" else plan.feed_forward_blocks
            gone = plan.heads if kind == "attention" else plan.neurons
            if index not in removed and len(gone.get(index, ())) < (units or 0):
                yield index, kind, role, unwrapped(model.module).get_submodule(name)


def _packed(part: Any) -> bool:
    """GPT-2's Conv1D holds [rows, columns]."""
    return hasattr(part, "nf")


def _matrix(part: Any) -> Array:
    own = part.weight.detach().numpy()
    return own if _packed(part) else own.T


def _full(own: torch.Tensor, given: Array, columns: list[int], *, transposed: bool) -> torch.Tensor:
    full = torch.full_like(own, 7.0)
    if transposed:
        full[columns] = torch.from_numpy(given.T.copy())
    else:
        full[..., columns] = torch.from_numpy(given)
    return full

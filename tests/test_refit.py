"""Refit against torch: the same walk with hooks on the module and lstsq over all tokens."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from inner_oracle import columns_of, inner_parts
from test_calibrate import real_tokens
from weights_oracle import drawn, kept, weighted_outputs
from zoo import ZooModel, build, onnx_outputs, unwrapped

from axformer_onnx.compensate.moments import Sample
from axformer_onnx.compensate.refit_inner import shapes_of
from axformer_onnx.compensate.refit_outputs import Teacher, refit_from, refit_weights
from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine

Array = npt.NDArray[Any]
RIDGE = 1e-2


def samples_of(model: ZooModel, count: int = 6) -> list[Sample]:
    found = []
    for seed in range(count):
        feeds = model.feeds(5, 9, seed=seed)
        found.append(Sample(feeds, real_tokens(feeds)))
    return found


def ends(model: ZooModel, name: str, sample: Sample, plan: Plan, weights: Mapping[str, Array]) -> list[Array]:
    """What a module of BERT is called with, real tokens alone: what a projection reads; where it adds, the residual beside it."""
    noted: list[Array] = []
    part = unwrapped(model.module).get_submodule(name)

    def note(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        noted.extend(x.detach().numpy()[sample.real].astype(np.float64) for x in inputs)

    with contextlib.ExitStack() as stack:
        stack.callback(part.register_forward_pre_hook(note).remove)
        weighted_outputs(model, dict(sample.feeds), plan, weights)
    return noted


def torch_refit(model: ZooModel, plan: Plan, weights: Mapping[str, Array], samples: list[Sample]) -> dict[str, Array]:
    """Bottom to top, target: the source's output and the difference of the residual streams."""
    found = dict(weights)
    for index, record in enumerate(model.records):
        for kind, rows in kept(record, index, plan).items():
            found.update(torch_refit_inner(model, plan, index, kind, found, samples))
            name = record.output if kind == "attention" else record.down
            dense = unwrapped(model.module).get_submodule(name)
            own, bias = dense.weight.detach().numpy().T.astype(np.float64), dense.bias.detach().numpy()
            z, target = [], []
            for sample in samples:
                before, residual = ends(model, name.removesuffix(".dense"), sample, Plan(), {})
                after, moved = ends(model, name.removesuffix(".dense"), sample, plan, found)
                z.append(after[:, rows])
                target.append(before @ own + bias + residual - moved)
            keys = [f"layers.{index}.{kind}.{part}" for part in ("weight", "bias")]
            solved = ridge_towards(np.vstack(z), np.vstack(target), found[keys[0]])
            found.update((k, x.astype(np.float32)) for k, x in zip(keys, solved, strict=True))
    return found


def torch_refit_inner(
    model: ZooModel, plan: Plan, index: int, kind: str, weights: Mapping[str, Array], samples: list[Sample]
) -> dict[str, Array]:
    """Target: the source's own outputs at the columns that stay; nothing where what it reads is as it was."""
    found = {}
    for (own, role), name in inner_parts(model, index).items():
        if own == kind:
            part = unwrapped(model.module).get_submodule(name)
            weight, bias = part.weight.detach().numpy().T.astype(np.float64), part.bias.detach().numpy()
            columns = columns_of(model, plan, index, kind, weight.shape[1])
            x = np.vstack([ends(model, name, sample, Plan(), {})[0] for sample in samples])
            moved = np.vstack([ends(model, name, sample, plan, weights)[0] for sample in samples])
            if columns and np.abs(moved - x).max() > 1e-4:
                keys = [f"layers.{index}.{kind}.{role}.{what}" for what in ("weight", "bias")]
                solved = ridge_towards(moved, (x @ weight + bias)[:, columns], weight[:, columns])
                found.update((k, array.astype(np.float32)) for k, array in zip(keys, solved, strict=True))
    return found


def ridge_towards(z: Array, target: Array, towards: Array) -> tuple[Array, Array]:
    rows = z.shape[1]
    pull = np.sqrt(RIDGE * np.mean(np.sum(z**2, axis=0))) if rows else 0.0
    tall = np.vstack([np.hstack([z, np.ones((len(z), 1))]), np.hstack([pull * np.eye(rows), np.zeros((rows, 1))])])
    solved = np.linalg.lstsq(tall, np.vstack([target, pull * towards]), rcond=None)[0]
    return solved[:-1], solved[-1]


@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "dynamo-20"])
def test_refit_is_the_walk_that_torch_takes(exporter: str) -> None:
    model = build("bert", exporter, layers=2)
    plan = (
        Plan().without_heads(0, [1, 2]).without_neurons(0, range(20)).without_attention(1).without_neurons(1, range(40))
    )
    samples, start = samples_of(model), drawn(model, plan, 0)
    found = refit_weights(load_model(model.path), plan, start, samples, ridge=RIDGE)
    expected = torch_refit(model, plan, start, samples)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], array, rtol=0, atol=2e-4 * np.abs(array).max(), err_msg=key)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "family", ["bert", "gpt2", "llama", "gemma2", "xlnet", "albert", "vit", "mobilebert", "deberta-v2"]
)
def test_nothing_changes_where_nothing_is_removed(family: str) -> None:
    model = build(family, "torchscript-eager-17", layers=2)
    samples = samples_of(model, 3)
    found = refit_weights(load_model(model.path), Plan(), {}, samples)
    feeds = model.feeds(2, 7, seed=50)
    assert (
        np.abs(weighted_outputs(model, feeds, Plan(), found) - model.logits(feeds)).max()
        < 2e-3 * np.abs(model.logits(feeds)).max()
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "albert"])
def test_refit_comes_nearer_to_the_source_on_the_rows_that_it_saw(family: str) -> None:
    model = build(family, "torchscript-eager-17", layers=2)
    plan = Plan().without_heads(0, [1]).without_neurons(0, range(0, model.neurons, 3)).without_neurons(1, range(9))
    samples = samples_of(model, 12)
    found = refit_weights(load_model(model.path), plan, {}, samples, ridge=1e-4)
    distances = []
    for weights in ({}, found):
        outputs = [weighted_outputs(model, dict(s.feeds), plan, weights) - model.logits(dict(s.feeds)) for s in samples]
        distances.append(float(np.mean(np.concatenate([x.reshape(-1) for x in outputs]) ** 2)))
    assert distances[1] < 0.75 * distances[0]  # no theorem: each block alone is at its best


def test_layers_whose_shared_weights_go_together_and_quantised_ones_are_left_as_given() -> None:
    albert, int8 = build("albert", "torchscript-eager-17"), build("bert", "torchscript-eager-17+int8")
    given = {"layers.0.attention.bias": np.ones(32, np.float32)}
    together = Plan(shared_weights="together")
    found = refit_weights(load_model(albert.path), together, given, samples_of(albert, 2))
    np.testing.assert_array_equal(found["layers.2.attention.bias"], np.ones(32))
    assert refit_weights(load_model(int8.path), Plan(), {}, samples_of(int8, 2)) == {}


def test_inner_weights_fit_the_source_where_its_narrowed_read_out_takes_packed_projections_apart() -> None:
    model = build("gpt2", "torchscript-eager-17", layers=2)
    source, samples = load_model(model.path), samples_of(model, 12)
    inner, readout = narrowed(source, run_once)
    assert readout.nodes
    plan = Plan().without_heads(0, [1]).without_neurons(0, range(0, model.neurons, 3)).without_neurons(1, range(9))
    with Teacher(StageSessions(inner, threads=1), samples, known=shapes_of(examine(source, run_once))) as teacher:
        found = refit_from(teacher, plan, {})
    roles = {key.rsplit(".", 1)[0] for key in found if key.count(".") == 4}
    assert roles == {
        "layers.0.feed_forward.up",
        "layers.1.feed_forward.up",
    }  # layer 1's queries are apart from its keys
    written = apply_plan(source, dataclasses.replace(plan, readout="narrow"), run_once, weights=found)
    bare = apply_plan(source, plan, run_once)
    feeds = dict(samples[0].feeds)
    expected = model.logits(feeds)
    far, near = (np.abs(onnx_outputs(serialized(x), feeds)[0] - expected).mean() for x in (bare, written))
    assert near < 0.9 * far

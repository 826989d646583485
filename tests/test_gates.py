"""Gates and stages: the pieces of the source are the source, and every neutral gate leaves it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
import torch
from onnxruntime.quantization import quantize_dynamic
from surgery import assert_close, gated_outputs, serialized, sessions
from torch_oracle import masked_outputs
from zoo import CASES, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import Setting, StageSessions, setting_of
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.io import load_model
from axformer_passes.plan import Plan
from axformer_passes.stages.stages import FORMS, NO_K, Staged

SOME = [(f, e) for f, e in CASES if e in ("optimum", "torchscript-sdpa-17", "dynamo-23")]


def staged(model: ZooModel) -> Staged:
    return sessions(model.path).staged


def neutral(stages: StageSessions, feeds: dict[str, Any]) -> list[Any]:
    """The source's outputs through the gated form of every stage, all gates 1 and every K beyond the sequence."""
    tensors = dict(feeds)
    for stage in stages.stages:
        given = dict(tensors)
        for block in stage.blocks:
            given[block.gate] = np.ones(block.width, block.dtype)
            given |= {name: np.array([NO_K]) for name in block.k.values()}
            given |= {block.on: np.ones(1, block.dtype)} if block.on else {}
        session = stages.session(stage, "gated")
        found = session.run(list(stage.outputs), {i.name: given[i.name] for i in session.get_inputs()})
        tensors.update(zip(stage.outputs, found, strict=True))
    return [tensors[name] for name in stages.staged.graph_outputs]


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_one_stage_a_block_between_prelude_and_readout(family: str, exporter: str) -> None:
    model = build(family, exporter)
    stages = staged(model).stages
    kinds = [tuple((b.layer, b.kind) for b in stage.blocks) for stage in stages]
    blocks = [((layer, kind),) for layer in range(model.layers) for kind in ("attention", "feed_forward")]
    assert kinds in ([(), *blocks], [(), *blocks, ()])
    assert all(stage.can_bypass == (len(stage.blocks) == 1) for stage in stages)
    made: set[str] = set(staged(model).graph_inputs)
    for stage in stages:
        assert set(stage.inputs) <= made, "a stage reads what no earlier one makes"
        made |= set(stage.outputs)
    assert set(staged(model).graph_outputs) <= made


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_every_stage_in_every_form_passes_the_checker(family: str, exporter: str) -> None:
    found = staged(build(family, exporter))
    for stage in found.stages:
        for form in FORMS if stage.can_bypass else FORMS[:2]:
            onnx.checker.check_model(found.serialized(stage, form), full_check=True)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_plain_stages_and_neutral_gates_give_the_sources_outputs(family: str, exporter: str) -> None:
    model = build(family, exporter)
    stages = sessions(model.path)
    for batch, length in ((1, 1), (3, 9)):
        feeds = model.feeds(batch, length)
        expected = onnx_outputs(model.path, feeds)[0]
        assert_close(gated_outputs(stages, Plan(), feeds)[0], expected, "plain")
        assert_close(neutral(stages, feeds)[0], expected, "neutral")


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_a_block_off_by_its_gate_is_the_bypass(family: str, exporter: str) -> None:
    """`on` = 0 in the gated form = the bypass form: what the search may mix freely."""
    model = build(family, exporter)
    stages, feeds = sessions(model.path), model.feeds(2, 7)
    tensors: dict[str, Any] = dict(feeds)
    for stage in stages.stages:
        if stage.can_bypass:
            block = stage.blocks[0]
            assert block.on is not None
            gates: dict[str, Any] = {block.gate: np.ones(block.width, block.dtype), block.on: np.zeros(1, block.dtype)}
            gates |= {name: np.array([NO_K]) for name in block.k.values()}
            found = [_run(stages, stage, form, {**tensors, **gates}) for form in ("gated", "bypass")]
            for a, b in zip(*found, strict=True):
                np.testing.assert_array_equal(a, b)
        tensors.update(zip(stage.outputs, _run(stages, stage, "plain", tensors), strict=True))


def _run(stages: StageSessions, stage: Any, form: Any, given: dict[str, Any]) -> list[Any]:
    session = stages.session(stage, form)
    return list(session.run(list(stage.outputs), {i.name: given[i.name] for i in session.get_inputs()}))


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_a_fractional_gate_scales_a_head(value: float) -> None:
    """Gates are numbers, not switches: half a gate is half the context. Torch: columns of the output projection's input, scaled."""
    model = build("bert", "torchscript-eager-17")
    stages, feeds = sessions(model.path), model.feeds(2, 7)
    scaled = next(s for s in stages.stages if s.blocks and s.blocks[0].kind == "attention")
    block = scaled.blocks[0]
    gate = np.ones(block.width, np.float32)
    gate[list(block.positions[1])] = value
    gates = {
        block.gate: gate,
        str(block.on): np.ones(1, np.float32),
        **{name: np.array([NO_K]) for name in block.k.values()},
    }
    tensors: dict[str, Any] = dict(feeds)
    for stage in stages.stages:
        found = (
            _run(stages, stage, "gated", {**tensors, **gates})
            if stage is scaled
            else _run(stages, stage, "plain", tensors)
        )
        tensors.update(zip(stage.outputs, found, strict=True))

    def scale(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        context = inputs[0].clone()
        context[..., model.head_size : 2 * model.head_size] *= value
        return (context,)

    with model.module.get_submodule(model.records[0].output).register_forward_pre_hook(scale):
        expected = model.logits(feeds)
    assert np.abs(expected - model.logits(feeds)).max() > 1e-2
    assert_close(tensors[stages.staged.graph_outputs[0]], expected, f"gate {value}")


def test_integers_that_are_picked_behind_their_quantisation_are_gated_to_their_zero_point(tmp_path: Path) -> None:
    """A narrow read-out picks a token of what DynamicQuantizeLinear gives, whose range is of all tokens. Gated is what a cut gives,
    but for that range, which keeps the channels that are gone."""
    model = build("bert", "torchscript-eager-17")
    quantize_dynamic(model.path, tmp_path / "int8.onnx")
    narrow, found = narrowed(load_model(tmp_path / "int8.onnx"), run_once)
    assert found.nodes
    stages = StageSessions(narrow, threads=1)
    last = stages.stages[-2].blocks[0] if stages.stages[-1].blocks == () else stages.stages[-1].blocks[0]
    assert last.kind == "feed_forward"
    feeds = model.feeds(3, 9)
    whole = gated_outputs(stages, Plan(), feeds)[0]
    assert_close(whole, onnx_outputs(tmp_path / "int8.onnx", feeds)[0])
    half = Plan().without_neurons(last.layer, range(len(last.positions) // 2))
    gated, cut = (
        gated_outputs(stages, half, feeds)[0],
        onnx_outputs(serialized(apply_plan(narrow, half, run_once)), feeds)[0],
    )
    assert np.abs(gated - whole).max() > 1e-3
    assert np.abs(gated - cut).max() < 0.2 * np.abs(gated - whole).max()


@pytest.mark.parametrize(("family", "exporter"), [("bert", "dynamo-20"), ("gpt2", "dynamo-23")])
def test_positions_of_a_head_are_its_rows_of_the_output_projection(family: str, exporter: str) -> None:
    model = build(family, exporter)
    for stage in staged(model).stages:
        for block in stage.blocks:
            size = model.head_size if block.kind == "attention" else 1
            count = model.heads if block.kind == "attention" else model.neurons
            assert block.positions == tuple(tuple(range(i * size, (i + 1) * size)) for i in range(count))


def test_parallel_branches_are_switched_by_their_gates() -> None:
    """Attention and feed-forward in parallel (GPT-J, Falcon): one residual, two branches."""
    w = draw.weights()
    g = draw.Sketch()
    attended = draw.attend(g, w, draw.separate(g, w, "x"))
    total = g("Add", g("Add", "x", attended), draw.plain(g, w, "x"))
    proto = g.model({"x": ["b", "s", draw.D]}, draw.norm(g, total), ["b", "s", draw.D])
    model = ir.from_proto(proto)
    stages = StageSessions(model, threads=1)
    anatomy = stages.staged.examined.anatomy
    assert [(layer.attention is not None, layer.feed_forward is not None) for layer in anatomy.layers] == [(True, True)]
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, draw.D)).astype(np.float32)}
    for plan in (
        Plan().without_attention(0),
        Plan().without_feed_forward(0),
        Plan().without_attention(0).without_feed_forward(0),
        Plan().without_heads(0, [2]).without_neurons(0, [1]),
    ):
        cut = ir.to_proto(apply_plan(model, plan, run_once)).SerializeToString()
        assert_close(gated_outputs(stages, plan, feeds)[0], onnx_outputs(cut, feeds)[0], str(plan.to_json()))


def test_settings_are_equal_where_plans_are_equal_for_a_stage() -> None:
    stages = staged(build("bert", "dynamo-20")).stages
    plan = Plan().without_heads(1, [0])
    same = [setting_of(stage, plan).digest == setting_of(stage, Plan()).digest for stage in stages]
    assert same.count(False) == 1
    changed = stages[same.index(False)]
    assert (changed.blocks[0].layer, changed.blocks[0].kind) == (1, "attention")
    digests = {
        setting_of(changed, p).digest
        for p in (
            Plan(), plan, Plan().without_heads(1, [1]), Plan().without_attention(1), plan.without_heads(1, [2]),
            Plan().with_hard_attention(1, 3), Plan().with_hard_attention(1, 3, "renormalised"),
            Plan().with_hard_attention(1, 4),
        )
    }  # fmt: skip
    assert len(digests) == 8
    assert Setting("plain", {}).digest != Setting("bypass", {}).digest


def test_a_projection_that_reads_channels_elsewhere_than_last_is_gated_there() -> None:
    """weight @ x: the channels are the second last axis."""
    w = draw.weights()

    def flipped(g: draw.Sketch, w: draw.Weights, z: str) -> str:
        inner = g("Relu", draw.linear(g, z, w["up"], w["bu"]))
        product = g("MatMul", g.weight(w["down"].T.copy()), g.transpose(inner, 0, 2, 1))
        return str(g("Add", g.transpose(product, 0, 2, 1), g.weight(w["bd"])))

    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), flipped, w)
    stages, x = StageSessions(ir.from_proto(proto), threads=1), np.random.default_rng(0).normal(size=(2, 5, draw.D))
    found = gated_outputs(stages, Plan().without_neurons(0, [1, 4]), {"x": x.astype(np.float32)})
    assert_close(found[0], w.answer(x.astype(np.float32), neurons=[1, 4]))


def test_gated_hard_attention_equals_torch_for_every_k_on_one_set_of_sessions() -> None:
    model = build("distilbert", "dynamo-23")
    stages, feeds = sessions(model.path), model.feeds(2, 6)
    for k in (1, 2, 5, 6, 7, 1000):
        for mode in ("truncated", "renormalised"):
            plan = Plan().with_hard_attention(1, k, mode)
            assert_close(gated_outputs(stages, plan, feeds)[0], masked_outputs(model, feeds, plan), f"{k} {mode}")
    assert {form for (_, form) in stages._sessions} <= {"plain", "gated", "bypass"}

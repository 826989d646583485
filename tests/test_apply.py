"""What a plan's graph keeps of its source, what it holds no more, and that the same plan gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from surgery import assert_close, removed
from torch_oracle import masked_outputs, random_plan
from zoo import CASES, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.errors import PlanError, VerifyError
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.probe.tracing import trace
from axformer_passes.recognise.examination import examine, recognise

SOME = [(f, e) for f, e in CASES if e in ("optimum", "torchscript-sdpa-14", "dynamo-23")]


def planned(model: ZooModel) -> Plan:
    """Something of every kind."""
    plan = Plan().without_heads(0, [1]).without_neurons(0, range(0, model.neurons, 3)).without_attention(1)
    return plan.without_feed_forward(2).with_hard_attention(2, 4).with_hard_attention(0, 3, "renormalised")


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_result_keeps_the_face_of_the_source(family: str, exporter: str) -> None:
    model = build(family, exporter)
    source = load_model(model.path)
    source.metadata_props["task"] = "mnli"
    source.graph.metadata_props["note"] = "kept"
    before, after = onnx.load(model.path), ir.to_proto(apply_plan(source, planned(model), run_once))
    assert list(after.graph.input) == list(before.graph.input)  # names, types and dynamic axes
    assert list(after.graph.output) == list(before.graph.output)
    assert after.ir_version == before.ir_version
    assert [(o.domain, o.version) for o in after.opset_import] == [(o.domain, o.version) for o in before.opset_import]
    assert (after.producer_name, after.producer_version) == (before.producer_name, before.producer_version)
    assert {p.key: p.value for p in after.metadata_props}["task"] == "mnli"
    assert {p.key: p.value for p in after.graph.metadata_props}["note"] == "kept"
    assert after.graph.name == before.graph.name
    assert {node.domain for node in after.graph.node} == {""}


@pytest.mark.parametrize(
    "exporter",
    [
        "torchscript-eager-17+metadata",
        "torchscript-eager-17+ort+metadata",
        "torchscript-eager-17+metadata+external",
        "dynamo-23",
    ],
)
def test_what_a_node_says_of_itself_is_kept(exporter: str) -> None:
    """metadata_props and doc strings; a fused operator that is spelled out hands them to its steps."""
    model = build("bert", exporter)
    before = {node.name: node for node in onnx.load(model.path).graph.node if node.name}
    result = apply_plan(load_model(model.path), planned(model), run_once)
    after = onnx.load_from_string(serialized(result)).graph.node
    kept = [node for node in after if node.name in before]
    assert len(kept) > 10
    for node in kept:
        source = before[node.name]
        assert (_noted(node), node.doc_string) == (_noted(source), source.doc_string), node.name
    assert any(map(_noted, kept))


def _noted(node: onnx.NodeProto) -> dict[str, str]:
    return {prop.key: prop.value for prop in node.metadata_props}


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_result_holds_nothing_that_nothing_reads(family: str, exporter: str) -> None:
    proto = ir.to_proto(removed(build(family, exporter), planned(build(family, exporter))))
    outputs = {o.name for o in proto.graph.output}
    read = {name for node in proto.graph.node for name in node.input} | outputs
    assert [t.name for t in proto.graph.initializer if t.name not in read] == []
    assert [n.op_type for n in proto.graph.node if not read & set(n.output)] == []
    contents = [(t.data_type, tuple(t.dims), onnx.numpy_helper.to_array(t).tobytes()) for t in proto.graph.initializer]
    large = [c for c in contents if len(c[2]) > 64]
    before = onnx.load(build(family, exporter).path).graph.initializer
    twice_before = len(before) - len({onnx.numpy_helper.to_array(t).tobytes() for t in before})
    assert len(large) - len(set(large)) <= twice_before, "an un-shared weight was written twice"


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_shapes_that_the_result_states_are_the_shapes_of_a_run(family: str, exporter: str) -> None:
    model = build(family, exporter)
    result = removed(model, planned(model))
    proto = onnx.load_from_string(serialized(result))
    values = trace(result, run_once, model.feeds(2, 9))
    constants = {t.name for t in proto.graph.initializer}
    assert [info.name for info in proto.graph.value_info if info.name in constants] == []
    sizes: dict[str, int] = {}
    for info in proto.graph.value_info:
        if info.name not in values or not info.type.tensor_type.HasField("shape"):
            continue
        dims = info.type.tensor_type.shape.dim
        assert len(dims) == values[info.name].ndim, info.name
        for dim, size in zip(dims, values[info.name].shape, strict=True):
            assert not dim.HasField("dim_value") or dim.dim_value == size, info.name
            if dim.HasField("dim_param"):
                assert sizes.setdefault(dim.dim_param, size) == size, info.name


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_file_is_smaller_by_what_was_removed(family: str, exporter: str, tmp_path: Path) -> None:
    model = build(family, exporter)
    width, plan = model.width, Plan().without_heads(0, [0, 2]).without_neurons(1, range(20)).without_feed_forward(2)
    floats = 2 * model.head_size * (4 * width + 3) + 20 * (2 * width + 1) + model.neurons * (2 * width + 1) + width
    save_model(removed(model, plan), tmp_path / "small.onnx")
    save_model(removed(model, Plan()), tmp_path / "same.onnx")
    small, same = ((tmp_path / name).stat().st_size for name in ("small.onnx", "same.onnx"))
    bookkeeping = 4096  # new reshape targets of a few integers each
    assert same - small >= 4 * floats - bookkeeping
    assert same <= model.path.stat().st_size + 16  # onnx-ir writes out an empty domain that torch leaves out


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_empty_plan_computes_the_same_bits(family: str, exporter: str) -> None:
    model = build(family, exporter)
    graph = serialized(removed(model, Plan(heads={0: frozenset()})))
    feeds = model.feeds(3, 8)
    np.testing.assert_array_equal(onnx_outputs(graph, feeds)[0], onnx_outputs(model.path, feeds)[0])


_REPLAY = """
import hashlib, sys
from axformer_onnx.runtime import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io import load_model, serialized
from axformer_passes.plan import Plan
print(hashlib.sha256(serialized(apply_plan(load_model(sys.argv[1]), Plan.loads(sys.argv[2]), run_once))).hexdigest())
"""


@pytest.mark.parametrize(("family", "exporter"), [("bert", "torchscript-sdpa-17"), ("gpt2", "dynamo-23")])
def test_same_plan_and_source_give_the_same_bytes(family: str, exporter: str) -> None:
    model = build(family, exporter)
    plan = random_plan(model, np.random.default_rng(3)).with_hard_attention(0, 2)
    digests = {
        hashlib.sha256(serialized(apply_plan(load_model(model.path), plan, run_once))).hexdigest() for _ in range(2)
    }
    for seed in ("1", "2"):
        command = [sys.executable, "-c", _REPLAY, str(model.path), plan.dumps()]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_source_object_and_file_are_untouched(family: str, exporter: str) -> None:
    model = build(family, exporter)
    file = model.path.read_bytes()
    proto = onnx.load(model.path)
    content = proto.SerializeToString(deterministic=True)
    source = ir.from_proto(proto)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    apply_plan(source, planned(model), run_once)
    assert proto.SerializeToString(deterministic=True) == content
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before
    assert model.path.read_bytes() == file


def test_shared_biases_are_cut_apart_and_written_once_where_they_stay() -> None:
    """With zero biases the exporter writes one initializer for many uses."""
    model = build("bert", "torchscript-eager-17", zero_biases=True)
    plan = Plan().without_heads(0, [1, 2]).without_neurons(1, [0, 5])
    result = removed(model, plan)
    feeds = model.feeds(2, 9)
    assert_close(onnx_outputs(serialized(result), feeds)[0], masked_outputs(model, feeds, plan))
    zeros = [
        v for v in result.graph.initializers.values() if v.shape == [model.width] and not v.const_value.numpy().any()
    ]
    assert len(zeros) == 1, "the biases that stayed alike are written apart"


def albert(path: Path) -> Any:
    """Three layers that share one set of weights, as a torchscript file."""
    import warnings

    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=50, embedding_size=12, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=40, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    module = AlbertForSequenceClassification._from_config(config, attn_implementation="eager").eval()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    inputs = {"input_ids": torch.randint(5, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (inputs,), str(path), dynamo=False, opset_version=17, input_names=list(inputs),
            output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
    return module


def test_tied_layers_lose_different_heads_and_the_others_stay_tied(tmp_path: Path) -> None:
    module = albert(tmp_path / "albert.onnx")
    source = load_model(tmp_path / "albert.onnx")
    anatomy = recognise(source, run_once)
    assert [(x.attention.heads, x.feed_forward.neurons) for x in anatomy.layers if x.attention and x.feed_forward] == [
        (4, 40)
    ] * 3
    gone = {0: [1], 2: [0, 3]}
    plan = Plan().without_heads(0, gone[0]).without_heads(2, gone[2]).without_neurons(1, [4, 5])
    result = serialized(apply_plan(source, plan, run_once))
    onnx.checker.check_model(result, full_check=True)
    inputs = {"input_ids": torch.randint(5, 50, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    inputs["attention_mask"][0, 6:] = 0
    layer, calls = module.albert.encoder.albert_layer_groups[0].albert_layers[0], {"heads": 0, "neurons": 0}

    def heads(_: Any, args: Any) -> Any:
        x = args[0].clone()
        for head in gone.get(calls["heads"], ()):
            x[..., head * 8 : head * 8 + 8] = 0
        calls["heads"] += 1
        return (x,)

    def neurons(_: Any, args: Any) -> Any:
        x = args[0].clone()
        if calls["neurons"] == 1:
            x[..., [4, 5]] = 0
        calls["neurons"] += 1
        return (x,)

    layer.attention.dense.register_forward_pre_hook(heads)
    layer.ffn_output.register_forward_pre_hook(neurons)
    with torch.no_grad():
        expected = module(**inputs).logits.numpy()
    assert calls == {"heads": 3, "neurons": 3}
    assert_close(onnx_outputs(result, {n: v.numpy() for n, v in inputs.items()})[0], expected)
    untouched = serialized(apply_plan(source, Plan().with_hard_attention(0, 3), run_once))
    assert len(untouched) < (tmp_path / "albert.onnx").stat().st_size + 4096, "tied weights were written apart"


def test_plan_for_another_model_is_refused_before_anything_is_edited() -> None:
    source = load_model(build("bert", "dynamo-20").path)
    for plan, message in (
        (Plan().without_heads(7, [0]), '"heads" names layer 7, but the model has 3 layers'),
        (Plan().without_heads(0, [4]), '"heads" of layer 0: id 4 does not exist, there are 4'),
        (Plan().without_neurons(1, [56]), '"neurons" of layer 1: id 56 does not exist, there are 56'),
        (Plan().without_attention(3), '"attention_blocks" names layer 3'),
        (Plan().without_feed_forward(3), '"feed_forward_blocks" names layer 3'),
        (Plan().with_hard_attention(3, 1), '"hard_attention" names layer 3'),
    ):
        with pytest.raises(PlanError, match=message):
            apply_plan(source, plan, run_once)


def test_result_that_does_not_run_is_an_error_and_no_model() -> None:
    def broken(model: bytes, feeds: Any) -> Any:
        raise RuntimeError("out of order")

    source = load_model(build("bert", "dynamo-20").path)
    examined = examine(source, run_once)
    with pytest.raises(VerifyError, match="does not run: out of order"):
        apply_plan(source, Plan().without_heads(0, [1]), broken, examined=examined)


ONCE = [
    ("bert", "torchscript-sdpa-17"), ("bert", "torchscript-eager-17+ort"), ("gpt2", "torchscript-eager-17"),
    ("albert", "dynamo-20"), ("bert", "torchscript-eager-17+int8"), ("llama", "dynamo-20"),
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("family", "exporter"), ONCE)
def test_plans_of_a_model_that_was_examined_once_are_the_bytes_of_examining_it_anew(family: str, exporter: str) -> None:
    model = build(family, exporter)
    source = load_model(model.path)
    examined = examine(source, run_once)
    before, labels = serialized(examined.labelling.model), {n: a.copy() for n, a in examined.labelling.of.items()}
    hard = planned(model) if "int8" not in exporter else Plan().without_heads(0, [1]).without_neurons(1, [0, 2])
    exact = Plan(readout="narrow", constants="folded", keys_values="absorbed")
    for plan in (hard, exact, Plan().without_heads(1, [0]), hard):
        anew = serialized(apply_plan(load_model(model.path), plan, run_once))
        assert serialized(apply_plan(source, plan, run_once, examined=examined)) == anew
    assert serialized(examined.labelling.model) == before
    assert all((examined.labelling.of[name] == array).all() for name, array in labels.items())

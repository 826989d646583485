"""Given weights in inner projections: applied = through gates = torch with those weights; and what may be given."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from inner_oracle import PLACES, drawn_inner
from surgery import assert_close, gated_outputs
from test_reweight import assert_weights_count, plan_of
from weights_oracle import drawn, weighted_outputs
from zoo import FAMILY, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan, reweighted
from axformer_passes.blocks.inner import inner_projections
from axformer_passes.cut.new_weights import weight_shapes
from axformer_passes.errors import PlanError
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine

EXPORTERS = ("torchscript-eager-17", "dynamo-20", "optimum")


@pytest.mark.matrix
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", sorted(PLACES))
def test_applied_equals_gated_equals_torch_with_inner_weights(family: str, exporter: str) -> None:
    if FAMILY[family].reason(exporter):
        pytest.skip(str(FAMILY[family].reason(exporter)))
    model = build(family, exporter)
    for seed in range(2):
        plan = plan_of(model, seed)
        inner = drawn_inner(model, plan, seed)
        assert_weights_count(model, plan, {**drawn(model, plan, seed), **inner})
        assert_weights_count(model, plan, inner)


def test_single_inner_weights_can_be_given() -> None:
    model = build("bert", "torchscript-eager-17")
    plan = plan_of(model)
    every = drawn_inner(model, plan, 3)
    for part in ("query.weight", "value.bias", "feed_forward.up"):
        some = {k: v for k, v in every.items() if part in k}
        assert some
        assert_weights_count(model, plan, some)


def test_they_fit_whatever_the_readout_and_constants_become() -> None:
    model = build("bert", "torchscript-eager-17")
    plan = plan_of(model, 1)
    weights = {**drawn(model, plan, 5), **drawn_inner(model, plan, 5)}
    written = dataclasses.replace(plan, readout="narrow", constants="folded")
    result = apply_plan(load_model(model.path), written, run_once, weights=weights)
    feeds = model.feeds(2, 7)
    assert_close(onnx_outputs(serialized(result), feeds)[0], weighted_outputs(model, feeds, plan, weights), "narrowed")


def test_a_fused_node_is_given_its_packed_weights_as_one() -> None:
    model = build("bert", "torchscript-eager-17+ort")
    examined = examine(load_model(model.path), run_once)
    shapes = weight_shapes(Plan(), examined)
    assert shapes["layers.0.attention.query.weight"] == (model.width, 3 * model.width)
    rng = np.random.default_rng(0)
    weights = {k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in shapes.items() if ".query." in k or ".up." in k}
    result = apply_plan(load_model(model.path), Plan(), run_once, weights=weights)
    onnx.checker.check_model(onnx.load_from_string(serialized(result)))
    sessions = StageSessions(reweighted(load_model(model.path), Plan(), weights, run_once), threads=1)
    feeds = model.feeds(2, 7)
    found = onnx_outputs(serialized(result), feeds)[0]
    assert_close(gated_outputs(sessions, Plan(), feeds)[0], found, "gated")
    split = _split_in_three(model, weights)
    assert_close(found, weighted_outputs(build("bert", "torchscript-eager-17"), feeds, Plan(), split), "torch")


def _split_in_three(model: ZooModel, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for key, array in weights.items():
        for i, role in enumerate(("query", "key", "value") if ".query." in key else ()):
            found[key.replace("query", role)] = array[..., i * model.width : (i + 1) * model.width]
        if ".query." not in key:
            found[key] = array
    return found


def test_what_does_not_fit_is_refused() -> None:
    model = build("bert", "torchscript-eager-17")
    plan = Plan().without_heads(0, [1]).without_heads(1, range(model.heads)).without_feed_forward(0)
    every = weight_shapes(plan, examine(load_model(model.path), run_once))
    assert every["layers.0.attention.value.weight"] == (model.width, model.width - model.head_size)
    assert not {k for k in every if k.startswith(("layers.1.attention.query", "layers.0.feed_forward.up"))}
    for key, shape in (
        ("layers.0.attention.query.weight", (model.width, model.width)),
        ("layers.0.attention.query.bias", (model.width,)),
        ("layers.1.attention.query.weight", (model.width, 0)),
        ("layers.0.feed_forward.up.weight", (model.width, model.neurons)),
        ("layers.2.feed_forward.up2.weight", (model.width, model.neurons)),
    ):
        with pytest.raises(PlanError, match=key.replace(".", r"\.")):
            apply_plan(load_model(model.path), plan, run_once, weights={key: np.zeros(shape, np.float32)})


def test_projections_without_a_bias_are_offered_none_and_quantised_ones_are_passed_over() -> None:
    llama = examine(load_model(build("llama", "torchscript-eager-17").path), run_once)
    assert not [k for k in weight_shapes(Plan(), llama) if k.endswith(("query.bias", "up.bias", "up2.bias"))]
    int8 = examine(load_model(build("bert", "torchscript-eager-17+int8").path), run_once)
    for layer in int8.anatomy.layers:
        assert not [one for block in layer.blocks for one in inner_projections(int8, layer.index, block)]

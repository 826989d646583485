"""What `inspect` shows of what was not recognised, where, and that `optimize` goes on with the rest and says what it left."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_graphs as draw
from onnx import helper, numpy_helper
from small_graphs import D, Sketch, Weights, Writer
from test_labels import normed_neurons, read_by_two, unknown_between, unknown_in_context
from zoo import build

from axformer_onnx import cli
from axformer_onnx.commands.inspection import inspect_model
from axformer_onnx.inputs.given import open_source
from axformer_onnx.inputs.refusals import placed, where
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.tasks import get_task
from axformer_passes.errors import RecogniseError, RuntimeFailure
from axformer_passes.io.files import load_model
from axformer_passes.recognise.examination import recognise

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")


def attend(g: Sketch, w: Weights, x: str) -> str:
    return draw.attend(g, w, draw.separate(g, w, x))


LAYERS: list[tuple[Writer, Writer]] = [
    (attend, draw.plain), (unknown_in_context, draw.plain), (attend, unknown_between), (attend, normed_neurons),
    (unknown_in_context, read_by_two), (attend, draw.plain),
]  # fmt: skip


def saved(path: Path, layers: list[tuple[Writer, Writer]]) -> Path:
    g, w, x = Sketch(), draw.weights(), "x"
    for attention, feed_forward in layers:
        z = draw.norm(g, g("Add", x, attention(g, w, x)))
        x = draw.norm(g, g("Add", z, feed_forward(g, w, z)))
    onnx.save(g.model({"x": ["batch", "tokens", D]}, x, ["batch", "tokens", D]), path)
    return path


def perceptron(path: Path) -> Path:
    g, w = Sketch(), draw.weights()
    onnx.save(g.model({"x": ["batch", D]}, draw.plain(g, w, "x"), ["batch", D]), path)
    return path


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """shown("inspect", path) -> stdout of a run that ends well."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["axformer-onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        assert not done.value.code, err
        return out

    return run


def test_what_was_not_recognised_is_marked_in_its_layer(shown: Any, tmp_path: Path) -> None:
    rows = [line.split() for line in shown("inspect", saved(tmp_path / "m.onnx", LAYERS)).splitlines()]
    marks = [(row[0], row[1], row[-5 if "relu" in row else -4]) for row in rows if len(row) > 5 and row[0].isdigit()]
    assert marks == [("0", "4", "10"), ("1", "?", "10"), ("2", "4", "?"), ("3", "4", "?"), ("4", "4", "10")]
    lost = [i for i, row in enumerate(rows) if row == ["?", "?", "?"]]
    assert len(lost) == 1 and rows[lost[0] + 1][0] == "4", "a layer of which nothing is left, in its place"


def test_reasons_stand_in_the_order_of_the_graph_with_their_layers(tmp_path: Path) -> None:
    anatomy = recognise(load_model(saved(tmp_path / "m.onnx", LAYERS)), run_once)
    assert [(where(x, anatomy), x.refusal.operator) for x in placed(anatomy)] == [
        ("layer 1, heads", "Softmax"),
        ("layer 1, heads", "ReverseSequence"),
        ("layer 2, neurons", "ReverseSequence"),
        ("layer 3, neurons", "MatMul"),
        ("between layers 3 and 4", "Softmax"),
        ("between layers 3 and 4", "ReverseSequence"),
        ("between layers 3 and 4", "MatMul"),
        ("between layers 3 and 4", "MatMul"),
    ]


def fused_of_computed(g: Sketch, w: Weights, x: str) -> str:
    """An attention in one node whose weights are computed: it cannot be spelled out, and labels cannot pass it."""
    weights = g("Mul", g.weight(w.fused("wq", "wk", "wv")), g.weight(np.float32(1)))
    bias = g.weight(w.fused("bq", "bk", "bv"))
    context = g("Attention", x, weights, bias, domain="com.microsoft", num_heads=draw.H)
    return draw.linear(g, context, w["wo"], w["bo"])


def test_what_labels_never_reach_is_marked_too(shown: Any, tmp_path: Path) -> None:
    """Nothing before the first layer has labels that such a node could stop."""
    out = shown("inspect", saved(tmp_path / "m.onnx", [(fused_of_computed, draw.plain)] * 2))
    marks = [row[:3] for row in map(str.split, out.splitlines()) if "relu" in row]
    assert marks == [["0", "?", "10"], ["1", "?", "10"]]
    words = " ".join(out.split())  # lines are as wide as the terminal
    for layer in range(2):
        assert re.search(
            rf"layer {layer}, heads: \w+ \(Attention\): no rule for operator com.microsoft::Attention: input 1", words
        )


def test_a_graph_in_which_nothing_is_recognised_says_so(shown: Any, tmp_path: Path) -> None:
    out = " ".join(shown("inspect", perceptron(tmp_path / "mlp.onnx")).split())
    assert "Nothing was recognised that could be removed" in out and "Is it a transformer?" in out


def test_optimize_refuses_a_graph_in_which_nothing_is_recognised(tmp_path: Path) -> None:
    options = OptimizeOptions(model=perceptron(tmp_path / "mlp.onnx"), task=get_task("mnli"), output=tmp_path / "out")
    with pytest.raises(RecogniseError, match=r"mlp\.onnx: nothing was recognised that could be removed"):
        open_source(options)


def test_lengths_that_the_model_does_not_take_are_passed_over_unless_asked_for() -> None:
    """DeBERTa has 64 positions, and no configuration beside the file says so."""
    path = build("deberta", "torchscript-eager-17").path
    assert inspect_model(path).length == 64
    with pytest.raises(RuntimeFailure, match="does not run with 65 tokens; try another number with --length"):
        inspect_model(path, 65)


def test_optimize_goes_on_with_what_is_recognised_and_says_what_it_left(shown: Any, tmp_path: Path) -> None:
    folder = tiny_folder.make_folder(tmp_path / "model")
    _break_feed_forward(folder / "model.onnx", layer=1)
    out = tmp_path / "out"
    shown("optimize", folder, "--task", "mnli", "-o", out, "--threads", 1, "--length", 8, "--search", "axformer")
    report = json.loads((out / "report.json").read_text())
    assert [
        note for note in report["notes"] if "left as it is: layer 1, neurons:" in note and "ReverseSequence" in note
    ]


def _break_feed_forward(path: Path, layer: int) -> None:
    """An operator without a rule before the down projection; with lengths of 1 it changes nothing."""
    block = recognise(load_model(path), run_once).layers[layer].feed_forward
    assert block is not None
    model = onnx.load(path)
    zero, one = (numpy_helper.from_array(np.array([i]), f"broken{i}") for i in (0, 1))
    model.graph.initializer.extend([zero, one])
    place = next(i for i, node in enumerate(model.graph.node) if block.down.output in node.output)
    down = model.graph.node[place]
    down.input[list(down.input).index(block.down.input)] = "broken"
    nodes = [
        helper.make_node("Shape", [block.down.input], ["broken_shape"]),
        helper.make_node("Gather", ["broken_shape", "broken0"], ["broken_batch"]),
        helper.make_node("Expand", ["broken1", "broken_batch"], ["broken_lengths"]),
        helper.make_node(
            "ReverseSequence", [block.down.input, "broken_lengths"], ["broken"], time_axis=1, batch_axis=0
        ),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(place, node)
    onnx.save(model, path)

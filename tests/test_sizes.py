"""Graphs that run at one size alone: the size is found, said, worked at and written; and rows are scored at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from axformer_onnx.commands import apply, inspect_model, optimize, score
from axformer_onnx.data import Encoded, batches
from axformer_onnx.data.tokenizer_files import Padding
from axformer_onnx.errors import DataError, ProbeError
from axformer_onnx.options import OptimizeOptions, ScoreOptions, make
from axformer_onnx.probing import at_its_sizes, open_model, size_note, text_sizes
from axformer_onnx.runtime import run_once
from axformer_passes.plan import Plan
from axformer_passes.probe import probed

traced = pytest.importorskip("traced", reason="needs the [export] extra (torch, transformers)")
tiny_folder = pytest.importorskip("tiny_folder")

from zoo import onnx_outputs  # noqa: E402

HEADS, NEURONS = {0: [1], 1: [0, 3]}, {0: [*range(9)], 1: [2, 30]}
PLAN = Plan(heads={i: frozenset(h) for i, h in HEADS.items()}, neurons={i: frozenset(n) for i, n in NEURONS.items()})


@pytest.fixture(scope="module")
def made() -> Any:
    return traced.module()


@pytest.fixture(scope="module")
def folder(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tokenizer, config.json and rows that the model labelled."""
    found = tmp_path_factory.mktemp("traced") / "model"
    found.mkdir()
    traced.export(made, found / "model.onnx")
    tiny_folder._tokenizer().save(str(found / "tokenizer.json"))
    config = {"id2label": dict(enumerate(tiny_folder.NAMES)), "vocab_size": 100, "pad_token_id": 0}
    (found / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    for role, count in (("search", 40), ("validation", 30)):
        rows = [
            {
                "premise": " ".join(f"w{i}" for i in rng.integers(5, 100, rng.integers(1, 9))), "hypothesis": "w7",
                "label": tiny_folder.NAMES[int(rng.integers(3))],
            }
            for _ in range(count)
        ]  # fmt: skip
        (found / "data").mkdir(exist_ok=True)
        (found / "data" / f"{role}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return found


def dims(path: Path) -> list[Any]:
    return [d.dim_value or d.dim_param for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]


def close(found: Any, expected: Any) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


# -- the size of a trace ----------------------------------------------------------------------------------------------


def test_a_traced_encoder_is_recognised_at_its_size_and_inspect_says_so(folder: Path) -> None:
    found = inspect_model(folder)
    assert [(x.attention.heads, x.feed_forward.neurons) for x in found.anatomy.layers] == [(4, 40)] * 2  # type: ignore[union-attr]
    assert found.length == traced.TOKENS
    assert "runs at one size alone, that of its export (sequence = 7)" in found.notes[0]


@pytest.mark.parametrize("tokens", [3, 11, 8, 16])
def test_the_size_is_found_whatever_it_is(tokens: int, made: Any, tmp_path: Path) -> None:
    """8 is also the size of a head, 16 divides the width."""
    model = open_model(traced.export(made, tmp_path / "m.onnx", tokens))
    at_its_sizes(model, lambda model: probed(model, run_once))
    assert text_sizes(model) == (None, tokens)


def test_a_pruned_trace_answers_as_torch_does_and_states_its_size(
    made: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = apply(PLAN, folder, tmp_path / "out.onnx")
    assert dims(path) == ["batch", traced.TOKENS] and dims(folder / "model.onnx") == ["batch", "sequence"]
    assert "sequence = 7" in caplog.text
    for batch in (1, 2, 5):
        feeds = traced.feeds_of(batch)
        assert close(onnx_outputs(path, feeds)[0], made.masked(feeds, HEADS, NEURONS))
    assert not close(onnx_outputs(path, feeds)[0], made.masked(feeds, {}, {}))


def test_a_sample_says_the_size_and_a_norm_may_come_first(tmp_path: Path) -> None:
    made = traced.module(norm_first=True)
    path = traced.export(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "sample.npz", **traced.feeds_of(3))
    cut, feeds = apply(PLAN, path, tmp_path / "out.onnx", sample=tmp_path / "sample.npz"), traced.feeds_of(4)
    assert dims(cut) == ["batch", traced.TOKENS]
    assert close(onnx_outputs(cut, feeds)[0], made.masked(feeds, HEADS, NEURONS))


def test_what_is_not_of_one_size_is_left_open(tmp_path: Path) -> None:
    from zoo import build

    model = open_model(build("bert", "torchscript-eager-17").path)
    at_its_sizes(model, lambda model: probed(model, run_once))
    assert text_sizes(model) == (None, None) and size_note(model) == ""


def test_a_graph_that_runs_at_no_size_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    target = numpy_helper.from_array(np.array([7, 3]), "target")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    nodes = [helper.make_node("Reshape", ["x", "target"], ["z"]), helper.make_node("Identity", ["z"], ["y"])]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [target])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx")
    with pytest.raises(ProbeError, match="does not run on a small probe input"):
        at_its_sizes(model, lambda model: probed(model, run_once))
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["n", "4"]


# -- rows at one size -------------------------------------------------------------------------------------------------


def encoded(lengths: list[int], sizes: tuple[int | None, int | None]) -> Encoded:
    ids = np.concatenate([np.full(n, 20 + i) for i, n in enumerate(lengths)])
    offsets = np.cumsum([0, *lengths])
    return Encoded(ids, np.zeros_like(ids), offsets, 0, 64, Padding(9), sizes=sizes)


def test_batches_are_filled_up_to_the_sizes_that_a_graph_takes() -> None:
    found = batches(encoded([2, 4, 1, 3, 2], (2, 6)), ["input_ids", "attention_mask"])
    assert [part.feeds["input_ids"].shape for part in found] == [(2, 6)] * 3
    assert sorted({int(row) for part in found for row in part.rows}) == [0, 1, 2, 3, 4]
    for part in found:
        for row, ids, mask in zip(part.rows, part.feeds["input_ids"], part.feeds["attention_mask"], strict=True):
            count = [2, 4, 1, 3, 2][row]
            assert ids.tolist() == [20 + row] * count + [9] * (6 - count) and mask.sum() == count


def test_batches_of_a_graph_that_takes_any_are_as_long_as_their_longest_row() -> None:
    found = batches(encoded([2, 4, 1], (None, None)), ["input_ids"], batch_size=2)
    assert [part.feeds["input_ids"].shape for part in found] == [(2, 2), (1, 4)]


def test_a_model_without_padding_cannot_take_rows_of_one_size_alone(folder: Path) -> None:
    from axformer_onnx.data import Encoder

    encoder = Encoder.from_folder(folder)
    assert encoder.at((None, 7)).max_length == 7
    with pytest.raises(DataError, match="takes 7 tokens alone, and the model knows no padding"):
        Encoder(encoder.tokenizer, 64, Padding(None)).at((None, 7))


def test_a_traced_model_is_scored_and_optimized_at_its_size(folder: Path, made: Any, tmp_path: Path) -> None:
    options = {"task": "mnli", "search": "robust", "output": tmp_path / "out", "max_search_rows": 30, "threads": 1}
    result = optimize(make(OptimizeOptions, {"model": folder, **options}))
    assert any("runs at one size alone" in note for note in result.report.notes)
    assert dims(result.path) == ["batch", traced.TOKENS] and result.report.macs_shape == "1 x 7"
    scored = score(make(ScoreOptions, {"models": (folder, result.path), "task": "mnli", "threads": 1}))
    figures = [model.score for model in scored.models.values()]
    assert figures == [result.report.source.score, result.report.candidate.score]
    assert scored.macs_shape == "1 x 7" and any("runs at one size alone" in note for note in scored.notes)
    assert np.isclose(figures[0], 100 * accuracy(folder, made))


def accuracy(folder: Path, made: Any) -> float:
    """Of torch on the validation rows, cut and padded by hand."""
    rows = [json.loads(line) for line in (folder / "data" / "validation.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        first, second = ([int(word[1:]) for word in row[part].split()] for part in ("premise", "hypothesis"))
        while len(first) + len(second) + 3 > traced.TOKENS:
            first = first[:-1]
        ids = [2, *first, 3, *second, 3]
        feeds = {
            "input_ids": np.array([ids + [0] * (traced.TOKENS - len(ids))]),
            "attention_mask": np.array([[1] * len(ids) + [0] * (traced.TOKENS - len(ids))]),
        }
        right += tiny_folder.NAMES[int(made.masked(feeds, {}, {}).argmax())] == row["label"]
    return right / len(rows)

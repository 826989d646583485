"""What a model is tried on: texts by its tokenizer, special tokens by its config.json, or a sample; and what they make possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from axformer_onnx.commands import apply, inspect_model, optimize
from axformer_onnx.errors import ModelError, UsageError
from axformer_onnx.options import OptimizeOptions, make
from axformer_onnx.probing import open_model, recipe_in, spoken
from axformer_onnx.runtime import make_feeds, run_once
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.plan import Plan
from axformer_passes.probe import Recipe, TokenSequence, describe, probe_feeds, probed, recipe_of

tiny_seq2seq = pytest.importorskip("tiny_seq2seq", reason="needs the [export] extra (torch, transformers)")
tiny_folder = pytest.importorskip("tiny_folder")

from surgery import assert_close  # noqa: E402
from torch_oracle import masked_outputs  # noqa: E402
from zoo import ZooModel, build, onnx_outputs  # noqa: E402

END = 2
PLAN = Plan().without_heads(0, [1]).without_attention(1).without_neurons(2, range(20)).with_hard_attention(2, 2)


@pytest.fixture(scope="module")
def bart() -> ZooModel:
    return build("bart-classifier", "torchscript-eager-17", layers=1)


@pytest.fixture(scope="module")
def folder(bart: ZooModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_seq2seq.make_folder(tmp_path_factory.mktemp("seq2seq") / "model", bart))


@pytest.fixture
def bare(bart: ZooModel, tmp_path: Path) -> Path:
    """The graph alone: neither tokenizer nor config.json."""
    (tmp_path / "bare.onnx").write_bytes(bart.path.read_bytes())
    return tmp_path / "bare.onnx"


def sample_of(model: ZooModel, path: Path, batch: int = 3, length: int = 6, **changes: Any) -> Path:
    arrays: dict[str, Any] = {**model.feeds(batch, length, padded=False), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def assert_as_torch(bart: ZooModel, graph: Path, plan: Plan) -> None:
    for batch, length in ((1, 3), (3, 9)):
        feeds = bart.feeds(batch, length)
        assert_close(onnx_outputs(graph, feeds)[0], masked_outputs(bart, feeds, plan))


# -- rows of tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, 9))
def test_a_row_of_tokens_ends_as_a_text_does_however_short_it_is(length: int) -> None:
    sequence = TokenSequence(first=(0, 9), words=(5, 6, 7), last=(8, END))
    rows = sequence.rows(4, length, np.random.default_rng(0))
    assert rows.shape == (4, length)
    for row in rows.tolist():
        assert row[-2:] == [8, END][-length:]
        assert row[: max(length - 2, 0)][:2] == [0, 9][: max(length - 2, 0)]
        assert set(row[2:-2]) <= {5, 6, 7}


def test_a_tokenizer_says_how_texts_begin_and_end(folder: Path) -> None:
    found = recipe_in(folder)
    assert found.ids is not None and (found.ids.first, found.ids.last) == ((0,), (END,))
    assert len(found.ids.words) > 8 and not {0, 1, END} & set(found.ids.words)
    assert found.decoder_ids is not None and (found.decoder_ids.first, found.decoder_ids.last) == ((END,), ())


def test_without_a_tokenizer_config_json_says_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_seq2seq.CONFIG))
    found = recipe_in(tmp_path)
    assert found.ids is not None and (found.ids.first, found.ids.last) == ((0,), (END,))
    assert len(found.ids.words) > 3 and not {0, 1, END} & set(found.ids.words)


@pytest.mark.parametrize(
    "config", ["{}", "no json", '{"pad_token_id": 0}', '{"eos_token_id": 2, "vocab_size": 2}', '{"eos_token_id": "x"}']
)
def test_a_folder_that_says_nothing_gives_nothing(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert recipe_in(tmp_path) == Recipe()


def test_tokens_of_another_models_tokenizer_are_left_out(tmp_path: Path) -> None:
    tiny_seq2seq.tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 3}')
    assert recipe_in(tmp_path) == Recipe()


def test_every_row_of_a_probe_and_of_latency_inputs_has_the_tokens_of_a_text(folder: Path) -> None:
    model = open_model(folder)
    given = [probe_feeds(model, batch, tokens)["input_ids"] for batch, tokens in ((2, 5), (1, 1), (3, 40))]
    given.append(make_feeds(["input_ids"], 4, 16, tokens=spoken(recipe_of(model), 100))["input_ids"])
    for ids in given:
        assert ((ids == END).sum(axis=1) == 1).all() and (ids[:, -1] == END).all()
        assert ids.shape[1] == 1 or (ids[:, 0] == 0).all()
    assert len(np.unique(given[-1])) > 20


# -- models that need it ----------------------------------------------------------------------------------------------


def test_a_sequence_to_sequence_classifier_goes_through_inspect_and_apply(
    folder: Path, bart: ZooModel, tmp_path: Path
) -> None:
    found = inspect_model(folder)
    assert [layer.attention is not None for layer in found.anatomy.layers] == [True] * 3 and not found.anatomy.refused
    assert_as_torch(bart, apply(PLAN, folder, tmp_path / "out.onnx"), PLAN)


def test_what_a_model_is_made_into_is_probed_in_the_same_way(folder: Path) -> None:
    model = open_model(folder)
    for made in (model.clone(), apply_plan(model, PLAN, run_once), narrowed(model, run_once)[0]):
        feeds, _ = probed(made, run_once)
        assert (feeds["input_ids"] == END).sum(axis=1).tolist() == [1, 1]


def test_without_tokenizer_and_config_a_refusal_says_what_to_give(bare: Path) -> None:
    with pytest.raises(
        ModelError, match=r"does not run on a small probe input: .*; give inputs .*: --sample FILE\.npz"
    ):
        inspect_model(bare)


@pytest.mark.slow
@pytest.mark.usefixtures("latency_cache")
def test_a_sequence_to_sequence_classifier_goes_through_a_compensated_search(
    folder: Path, bart: ZooModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"task": "mnli", "effort": "low", "size": 0.9, "length": 8, "threads": 1, "max_search_rows": 60}
    result = optimize(make(OptimizeOptions, {"model": folder, "output": tmp_path / "out", **asked}))
    assert result.report.candidate.parameters < result.report.source.parameters
    assert not inspect_model(result.output).anatomy.refused


# -- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_is_what_a_model_is_tried_on(bare: Path, bart: ZooModel, tmp_path: Path) -> None:
    sample = sample_of(bart, tmp_path / "sample.npz")
    assert len(inspect_model(bare, sample=sample).anatomy.layers) == 3
    given = np.load(sample)
    assert probed(open_model(bare, sample), run_once)[0]["input_ids"].tolist() == given["input_ids"][:2].tolist()
    assert_as_torch(bart, apply(PLAN, bare, tmp_path / "out.onnx", sample=sample), PLAN)


def test_a_sample_grows_and_shrinks_in_the_middle(bare: Path, bart: ZooModel, tmp_path: Path) -> None:
    ids = np.array([[0, 5, 6, 7, 8, END], [0, 9, 9, 9, 9, END]])
    model = open_model(bare, sample_of(bart, tmp_path / "sample.npz", 2, 6, input_ids=ids))
    for tokens, row in ((9, [0, 5, 6, 7, 7, 7, 7, 8, END]), (3, [0, 5, END])):
        feeds = probe_feeds(model, 3, tokens)
        assert feeds["input_ids"].tolist() == [row] * 3 and feeds["attention_mask"].shape == (3, tokens)
    assert probe_feeds(model, 3, 6)["input_ids"].tolist() == [*ids.tolist(), ids[0].tolist()]


def test_images_of_a_sample_grow_by_their_strides(tmp_path: Path) -> None:
    pixels = np.ones((1, 3, 16, 16), np.float32)
    np.savez(tmp_path / "sample.npz", pixel_values=pixels)
    model = open_model(build("vit", "torchscript-eager-17").path, tmp_path / "sample.npz")
    feeds, _ = probed(model, run_once)
    assert feeds["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_mask": None}, "no array for input 'attention_mask'; found 'input_ids', expected input_ids int64"),
        ({"mask": np.ones(2)}, "'mask' is no input of the graph; found"),
        ({"input_ids": np.ones((2, 7), np.float32)}, r"'input_ids' is float32\[2, 7\], expected int64\[batch_size, "),
        (
            {"input_ids": np.ones(7, np.int64)},
            r"'input_ids' is int64\[7\], expected int64\[batch_size, sequence_length\]",
        ),
        ({"input_ids": np.ones((0, 7), np.int64)}, "'input_ids' is an empty array"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(
    changes: dict[str, Any], reason: str, bare: Path, bart: ZooModel, tmp_path: Path
) -> None:
    path = sample_of(bart, tmp_path / "sample.npz", **changes)
    with pytest.raises(UsageError, match=reason) as caught:
        open_model(bare, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_sample_is_refused(bare: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("input_ids")
    np.savez(tmp_path / "objects.npz", input_ids=np.array([{}], dtype=object), attention_mask=np.ones((1, 1), np.int64))
    for name, reason in {
        "none.npz": "no such file", "one.npy": "one array, expected an .npz", "text.npz": "not an .npz file",
        "objects.npz": "not an .npz file that can be read", ".": "not an .npz file",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=reason):
            open_model(bare, tmp_path / name)


def test_numbers_of_a_sample_take_the_types_of_the_graph(bare: Path, bart: ZooModel, tmp_path: Path) -> None:
    ids: npt.NDArray[Any] = bart.feeds(2, 5, padded=False)["input_ids"]
    model = open_model(bare, sample_of(bart, tmp_path / "sample.npz", 2, 5, input_ids=ids.astype(np.int32)))
    assert probe_feeds(model)["input_ids"].dtype == np.int64


def test_a_model_keeps_what_it_was_told() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)
    assert recipe_of(model) == Recipe()
    described = Recipe(ids=TokenSequence(last=(END,)))
    describe(model, described)
    assert recipe_of(model.clone()) == described

"""Export: what leaves torch is what ONNX Runtime answers, and nothing else gets the name model.onnx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from zoo import build, onnx_outputs, torch_module, unwrapped
from zoo_export import HAS_OPTIMUM
from zoo_export_transformers import HAS_TRANSFORMERS_EXPORTER

from axformer_onnx.errors import ModelError, RuntimeFailure, UsageError, VerifyError
from axformer_onnx.exporting import ExportResult, check, exporters, run
from axformer_onnx.exporting import export as export_model

SHARED = Path(__file__).parents[2] / "shared"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(95))]
EXPORTERS = [
    *([("optimum", 14), ("optimum", 18)] if HAS_OPTIMUM else []),
    ("torchscript", 14), ("torchscript", 17), ("dynamo", 18), ("dynamo", 23),
    *([("transformers", 18), ("transformers", 20)] if HAS_TRANSFORMERS_EXPORTER else []),
]  # fmt: skip
TRANSFORMERS = ["transformers"] if HAS_TRANSFORMERS_EXPORTER else []


def checkpoint(folder: Path, family: str = "bert", tokenizer: bool = True, **overrides: Any) -> Path:
    """A checkpoint folder of one of the zoo's models, with a slow BERT tokenizer."""
    model = build(family, "dynamo-23", **overrides)
    model.module.save_pretrained(folder)
    if tokenizer:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}')
    return folder


def assert_answers(result: ExportResult, family: str, **overrides: Any) -> None:
    model = build(family, "dynamo-23", **overrides)
    for batch, length in ((1, 1), (3, 11), (2, 40)):
        feeds = model.feeds(batch, length)
        (logits,) = onnx_outputs(result.path, feeds)
        np.testing.assert_allclose(logits, model.logits(feeds), rtol=1e-5, atol=1e-5)


def assert_nothing_written(folder: Path, *expected: str) -> None:
    assert sorted(os.listdir(folder)) == sorted(expected)


@pytest.mark.parametrize(("exporter", "opset"), EXPORTERS)
def test_export_answers_what_torch_answers(tmp_path: Path, exporter: Any, opset: int) -> None:
    result = export_model(checkpoint(tmp_path / "in", layers=1), tmp_path / "out", exporter=exporter, opset=opset)
    assert (result.path, result.exporter, result.opset) == (tmp_path / "out" / "model.onnx", exporter, opset)
    assert result.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert result.outputs == ("logits",)
    assert result.worst_difference is not None and result.worst_difference < 1e-5
    assert_answers(result, "bert", layers=1)
    graph = onnx.load(result.path)
    assert [node.op_type for node in graph.graph.node].count("Attention") == (1 if opset == 23 else 0)
    onnx.checker.check_model(graph, full_check=True)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.input]
    assert axes == [["batch_size", "sequence_length"]] * 3
    assert [d.dim_param or d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim] == ["batch_size", 3]


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "vit", "gpt2", "gpt2-tokens"])
def test_auto_exports_every_family(tmp_path: Path, family: str) -> None:
    result = export_model(checkpoint(tmp_path / "in", family, tokenizer=False, layers=1), tmp_path / "out")
    assert result.exporter == ("optimum" if HAS_OPTIMUM else "dynamo")
    assert_answers(result, family, layers=1)
    inputs = tuple(build(family, "dynamo-23").feeds(1, 2))
    assert result.inputs == inputs
    dims = onnx.load(result.path).graph.output[0].type.tensor_type.shape.dim
    tokens = ["sequence_length"] if family == "gpt2-tokens" else []
    assert [d.dim_param or d.dim_value for d in dims] == ["batch_size", *tokens, 3]


@pytest.mark.parametrize("family", ["bart-classifier", "t5-classifier"])
def test_a_classifier_that_reads_the_end_of_sequence_token_is_exported(tmp_path: Path, family: str) -> None:
    model = build(family, "torchscript-eager-17", layers=1)
    unwrapped(model.module).save_pretrained(tmp_path / "in")
    result = export_model(tmp_path / "in", tmp_path / "out")
    assert result.inputs == ("input_ids", "attention_mask") and result.outputs[0] == "logits"
    for batch, length in ((1, 1), (3, 11)):
        feeds = model.feeds(batch, length)
        np.testing.assert_allclose(onnx_outputs(result.path, feeds)[0], model.logits(feeds), rtol=1e-5, atol=1e-5)


def test_eager_attention_is_written_out_even_at_opset_23(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "in", layers=1)
    result = export_model(folder, tmp_path / "out", exporter="dynamo", opset=23, attention="eager")
    operators = [node.op_type for node in onnx.load(result.path).graph.node]
    assert (operators.count("Attention"), operators.count("Softmax")) == (0, 1)


def test_config_is_copied_and_a_slow_tokenizer_converted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = checkpoint(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes", "2": "maybe"}
    (folder / "config.json").write_text(json.dumps(config))
    result = export_model(folder, tmp_path / "out", exporter="torchscript")
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    ids = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("word0 word7").ids
    assert ids == [2, 5, 12, 3]
    assert result.notes == ("the tokenizer was converted to tokenizer.json",)


def test_checkpoint_without_tokenizer_is_said(tmp_path: Path) -> None:
    result = export_model(checkpoint(tmp_path / "in", tokenizer=False), tmp_path / "out", exporter="torchscript")
    assert "no tokenizer" in result.notes[0]


def test_sharded_half_precision_checkpoint_with_a_shared_file_becomes_float32(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder, common = checkpoint(tmp_path / "task", tokenizer=False), tmp_path / "common"
    common.mkdir()
    (folder / "model.safetensors").unlink()
    state = {name: value.half().contiguous() for name, value in torch_module("bert", *_same()).state_dict().items()}
    shared = {name: value for name, value in state.items() if "word_embeddings" in name}
    own = {name: value for name, value in state.items() if name not in shared}
    save_file(shared, common / "embeddings.safetensors", metadata={"format": "pt"})
    save_file(own, folder / "encoder.safetensors", metadata={"format": "pt"})
    where = {name: "../common/embeddings.safetensors" if name in shared else "encoder.safetensors" for name in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    result = export_model(folder, tmp_path / "out", exporter="torchscript")
    halves = np.concatenate([v.float().numpy().ravel() for v in state.values()])
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer]
    assert {w.dtype for w in weights} <= {np.dtype(np.float32), np.dtype(np.int64)}
    large = np.concatenate([w.ravel() for w in weights if w.dtype == np.float32 and w.size > 100])
    assert np.isin(large, halves).mean() > 0.99


def _same() -> tuple[Any, int]:
    model = build("bert", "dynamo-23")
    return model.sizes, model.seed


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", *TRANSFORMERS])
def test_weights_above_the_limit_go_to_one_file_beside_the_graph(tmp_path: Path, exporter: Any) -> None:
    folder = checkpoint(tmp_path / "in", tokenizer=False, layers=1)
    result = export_model(folder, tmp_path / "out", exporter=exporter, single_file_limit=10_000)
    assert_nothing_written(tmp_path / "out", "config.json", "model.onnx", "model.onnx.data")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 40_000
    assert_answers(result, "bert", layers=1)


def test_same_export_again_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    folder, out = checkpoint(tmp_path / "in"), tmp_path / "out"
    first = export_model(folder, out, exporter="torchscript")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    again = export_model(folder, out, exporter="torchscript")
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    assert (again.exporter, again.opset, again.inputs) == (first.exporter, first.opset, first.inputs)
    assert "already holds this export" in again.notes[0]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", *TRANSFORMERS])
def test_same_checkpoint_gives_the_same_bytes(tmp_path: Path, exporter: Any) -> None:
    folder = checkpoint(tmp_path / "in", layers=1)
    first, second = (export_model(folder, tmp_path / name, exporter=exporter).path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_folder_with_another_model_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(checkpoint(tmp_path / "one"), out, exporter="torchscript")
    before = (out / "model.onnx").read_bytes()
    with pytest.raises(UsageError, match="holds another model"):
        export_model(checkpoint(tmp_path / "two", seed=1), out, exporter="torchscript")
    with pytest.raises(UsageError, match="holds another model"):
        export_model(tmp_path / "one", out, exporter="torchscript", opset=14)
    assert (out / "model.onnx").read_bytes() == before


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export_model(checkpoint(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(UsageError, match="a file"):
        export_model(tmp_path / "in", tmp_path / "out" / "notes.txt")
    assert_nothing_written(tmp_path / "out", "notes.txt")


def test_graph_that_differs_from_torch_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = build("bert", "torchscript-eager-17", seed=1).path
    monkeypatch.setattr(run, "write_raw", lambda *_: other)
    with pytest.raises(VerifyError, match=r"logits differs from torch by .* allowed .*; nothing was written"):
        export_model(checkpoint(tmp_path / "in"), tmp_path / "out")
    assert_nothing_written(tmp_path, "in")


def test_graph_that_knows_one_length_only_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "_axes", lambda value: {0: "batch_size"})
    with pytest.raises(VerifyError, match=r"1 rows x 1 tokens: .*nothing was written"):
        export_model(checkpoint(tmp_path / "in", layers=1), tmp_path / "out", exporter="dynamo")
    assert_nothing_written(tmp_path, "in")


def test_difference_of_one_bias_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporters.write_raw

    def edited(*arguments: Any) -> Path:
        path = write(*arguments)
        model = onnx.load(path)
        (bias,) = (t for t in model.graph.initializer if t.name.endswith("layer.1.attention.self.value.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += 0.05
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(run, "write_raw", edited)
    with pytest.raises(VerifyError, match="differs from torch"):
        export_model(checkpoint(tmp_path / "in"), tmp_path / "out", exporter="torchscript")


def _broken(*_: Any) -> Path:
    raise RuntimeError("unordered_map::at\nand a page of hints")


def test_auto_says_which_exporter_failed_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [exporters.Attempt("dynamo", 18), exporters.Attempt("torchscript", 17)]
    monkeypatch.setattr(run, "attempts", lambda *_: tries)
    monkeypatch.setattr(exporters, "_by_dynamo", _broken)
    result = export_model(checkpoint(tmp_path / "in"), tmp_path / "out")
    assert result.exporter == "torchscript"
    assert (
        "dynamo cannot export BertForSequenceClassification to operator set 18: unordered_map::at." in result.notes[0]
    )


def test_exporter_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "_by_dynamo", _broken)
    with pytest.raises(
        ModelError, match=r"unordered_map::at\. Other exporters: optimum, torchscript, transf"
    ) as caught:
        export_model(checkpoint(tmp_path / "in"), tmp_path / "out", exporter="dynamo")
    assert "hints" not in str(caught.value)
    assert_nothing_written(tmp_path, "in")


def test_nothing_is_printed_and_no_path_of_this_machine_stays(tmp_path: Path, capfd: Any) -> None:
    folder = checkpoint(tmp_path / "in", layers=1)
    capfd.readouterr()
    result = export_model(folder, tmp_path / "out", exporter="dynamo")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    content = result.path.read_bytes()
    for path in (Path(torch.__file__).parent, tmp_path):
        assert str(path).encode() not in content


def test_provenance_is_in_the_graph(tmp_path: Path) -> None:
    result = export_model(checkpoint(tmp_path / "in"), tmp_path / "out", task="mnli", exporter="torchscript")
    found = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    assert found["axformer.task"] == "mnli"
    assert found["axformer.checkpoint"] == "in"
    assert found["axformer.exporter"] == "torchscript"
    assert len(found["axformer.checkpoint_sha256"]) == 64


def test_task_with_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 labels, but task sst2 needs a? ?sequence classif.* with 2"):
        export_model(checkpoint(tmp_path / "in"), tmp_path / "out", task="sst2")
    assert_nothing_written(tmp_path, "in")


def test_checkpoint_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "in")
    config = (folder / "config.json").read_text()
    build("bert", "dynamo-23").module.base_model.save_pretrained(folder)
    with pytest.raises(UsageError, match="names BertModel, expected one that ends in ForSequenceClassification"):
        export_model(folder, tmp_path / "out")
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"no weights for classifier.bias \(2 missing\).*not a fine-tuned"):
        export_model(folder, tmp_path / "out")


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "in")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="transformers cannot load it"):
        export_model(folder, tmp_path / "out")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="transformers cannot load it"):
        export_model(folder, tmp_path / "out")
    assert_nothing_written(tmp_path, "in")


def test_decoder_without_padding_token_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "in", "gpt2", tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no padding token"):
        export_model(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("./nowhere", UsageError, "no such folder"),
        (Path("nowhere"), UsageError, "no such folder"),
        (Path(__file__), UsageError, "a file"),
        (Path(__file__).parent, ModelError, "no config.json"),
        ("nobody/nothing", RuntimeFailure, "hub did not give it.*give a local checkpoint folder"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, source: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        export_model(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("exporter", "opset", "match"),
    [
        ("dynamo", 17, "possible: dynamo 18 to 23"),
        ("torchscript", 23, "possible: torchscript 14 to 20"),
        ("auto", 9, "operator set 9"),
        ("magic", None, "unknown exporter 'magic'"),
    ],
)
def test_impossible_option_is_refused(tmp_path: Path, exporter: Any, opset: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        export_model(tmp_path, tmp_path / "out", exporter=exporter, opset=opset)


def test_auto_takes_the_exporter_that_writes_the_opset() -> None:
    assert [a.exporter for a in exporters.attempts("auto", 23)] == ["dynamo", *TRANSFORMERS]
    assert exporters.attempts("auto", 17)[-1].exporter == "torchscript"


def test_missing_optimum_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters, "has_optimum", lambda: False)
    with pytest.raises(RuntimeFailure, match=r"--exporter dynamo, or pip install 'axformer-onnx\[export\]'"):
        export_model(tmp_path, tmp_path / "out", exporter="optimum")
    assert [a.exporter for a in exporters.attempts("auto", None)] == ["dynamo", "torchscript", *TRANSFORMERS]


def test_transformers_without_an_exporter_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporters.by_transformers, "has_transformers_exporter", lambda: False)
    monkeypatch.setattr(exporters.by_transformers, "installed_version", lambda: "4.57.6")
    message = "transformers 4.57.6 has no exporter, expected version 5 or later: --exporter dynamo, or, .* pip install 'transf"
    with pytest.raises(RuntimeFailure, match=message):
        export_model(tmp_path, tmp_path / "out", exporter="transformers")
    assert "transformers" not in [a.exporter for a in exporters.attempts("auto", None)]


@pytest.mark.skipif(not HAS_TRANSFORMERS_EXPORTER, reason="this transformers has no exporter of its own: 5 and later")
@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra", "vit", "gpt2", "gpt2-tokens"])
def test_transformers_own_exporter_exports_every_family(tmp_path: Path, family: str) -> None:
    folder = checkpoint(tmp_path / "in", family, tokenizer=False, layers=1)
    result = export_model(folder, tmp_path / "out", exporter="transformers")
    assert (result.exporter, result.opset) == ("transformers", 18)
    assert_answers(result, family, layers=1)
    graph = onnx.load(result.path).graph
    stated = {
        d.dim_param for v in (*graph.input, *graph.output, *graph.value_info) for d in v.type.tensor_type.shape.dim
    }
    known = {"", "batch_size", "sequence_length"}
    assert not {name for name in stated - known if name.isidentifier()}, "dimensions are named, not numbered"


def test_missing_torch_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'axformer-onnx\[export\]'"):
        export_model(folder, tmp_path / "out", exporter="dynamo")


def test_importing_export_does_not_import_torch() -> None:
    code = "import sys, axformer_onnx.exporting; print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_real_checkpoint_is_exported(tmp_path: Path) -> None:
    source = SHARED / "checkpoints" / "mnli"
    if not source.is_dir():
        pytest.skip("shared/checkpoints/mnli is not beside the repository")
    result = export_model(source, tmp_path / "out", task="mnli", exporter="torchscript")
    assert result.worst_difference is not None and result.worst_difference < check.TOLERANCE / 10
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["0"] == "entailment"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()

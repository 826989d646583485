"""`deploy`: what a folder holds, what is written anew and compared, what is refused, and that nothing is half written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from deploy_graphs import CONFIG, classifier, folder_of
from onnx import TensorProto, helper

import axformer_onnx as ax
from axformer_onnx.cli import cli
from axformer_onnx.errors import UsageError, VerifyError
from axformer_onnx.options import TARGETS
from axformer_onnx.runtime import make_session, run_session

EXAMPLE = Path(__file__).parents[1] / "models" / "nli-mini"
CLASSIFIERS = [target.name for target in TARGETS if not target.roles or "classification" in target.roles]  # type: ignore[attr-defined]
EMBEDDERS = [target.name for target in TARGETS if not target.roles or "embedding" in target.roles]  # type: ignore[attr-defined]
FEEDS = {
    "input_ids": np.array([[2, 9, 17, 3], [2, 40, 3, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]]),
}
EMBEDDING = {**CONFIG, "architectures": ["BertModel"]}


def answers(path: Path, feeds: dict[str, Any] = FEEDS) -> dict[str, np.ndarray]:
    return run_session(make_session(path, threads=1, optimize=False), feeds)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("target", CLASSIFIERS)
def test_a_classifier_goes_to_each_target_as_it_is_with_a_readme(tmp_path: Path, target: str) -> None:
    source = folder_of(tmp_path / "in", classifier())
    before = contents(source)
    found = ax.deploy(source, tmp_path / "out", for_=target)
    assert found.graph.read_bytes() == (source / "model.onnx").read_bytes() and not found.rewritten
    assert contents(source) == before
    readme = (found.path / "README.md").read_text()
    title, _, first = readme.split("\n")[:3]
    assert title.startswith("# in, for ") and first.startswith("    "), "the first lines are code"
    assert "{" + "}" not in readme and "input_ids, attention_mask" in readme
    record = json.loads((found.path / "deployed.json").read_text())
    assert sorted(record["files"]) == sorted(contents(found.path)) and record["for"] == target


@pytest.mark.parametrize("target", EMBEDDERS)
@pytest.mark.parametrize("name", ["sentence_embedding", "token_embeddings"])
def test_an_embedders_answers_stay_what_they_are_under_the_name_that_is_read(
    tmp_path: Path, target: str, name: str
) -> None:
    tokens = name == "token_embeddings"
    axes = ("batch", "sequence") if tokens else ("batch",)
    source = folder_of(tmp_path / "in", classifier(output=name, axes=axes, tokens=tokens), EMBEDDING)
    found = ax.deploy(source, tmp_path / "out", for_=target)
    given, now = answers(source / "model.onnx")[name], answers(found.graph)
    only_tokens = target in ("sentence-transformers", "optimum")
    assert list(now) == ["last_hidden_state" if only_tokens else name]
    if only_tokens and not tokens:
        assert next(iter(now.values())).shape == (2, 1, 3), "one token a text"
    np.testing.assert_array_equal(next(iter(now.values())).reshape(given.shape), given)
    onnx.checker.check_model(str(found.graph), full_check=True)


def test_old_names_and_types_become_those_that_are_fed(tmp_path: Path) -> None:
    model = classifier(
        inputs=("input_ids", "input_mask"),
        output="probabilities",
        id_type=TensorProto.INT32,
        float_type=TensorProto.FLOAT16,
    )
    source = folder_of(tmp_path / "in", model)
    found = ax.deploy(source, tmp_path / "out", for_="tei")
    session = make_session(found.graph)
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    assert [(one.name, one.type) for one in session.get_outputs()] == [("logits", "tensor(float)")]
    before = answers(source / "model.onnx", {"input_ids": FEEDS["input_ids"], "input_mask": FEEDS["attention_mask"]})
    np.testing.assert_array_equal(answers(found.graph)["logits"], before["probabilities"].astype(np.float32))
    assert found.rewritten and found.worst_difference == 0


def test_axes_of_outputs_get_the_names_of_the_inputs_axes_that_they_are_as_long_as(tmp_path: Path) -> None:
    model = classifier(output="token_embeddings", axes=("unk__7", "unk__8"), tokens=True)
    found = ax.deploy(folder_of(tmp_path / "in", model, EMBEDDING), tmp_path / "out", for_="plain")
    shape = onnx.load(found.graph).graph.output[0].type.tensor_type.shape
    assert [axis.dim_param or axis.dim_value for axis in shape.dim] == ["batch", "sequence", 3]


def test_a_graph_without_the_inputs_that_are_always_fed_is_refused(tmp_path: Path) -> None:
    model = classifier(inputs=("input_ids", "keep"))
    source = folder_of(tmp_path / "in", model)
    with pytest.raises(
        UsageError, match="always feeds input_ids and attention_mask, and the graph takes input_ids, keep"
    ):
        ax.deploy(source, tmp_path / "out", for_="tei")
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_input_that_is_never_fed_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier(inputs=("input_ids", "attention_mask", "past_key")))
    with pytest.raises(UsageError, match="also takes past_key"):
        ax.deploy(source, tmp_path / "out", for_="optimum")


@pytest.mark.parametrize(
    ("config", "target", "message"),
    [
        ({**CONFIG, "architectures": []}, "tei", "has no architectures, which for_='tei' reads"),
        (
            {**CONFIG, "architectures": ["BertModel"]},
            "tei",
            "architectures names BertModel, and the graph is of classification",
        ),
        ({"id2label": {"0": "a"}}, "optimum", "has no model_type"),
    ],
)
def test_a_configuration_that_the_target_cannot_go_by_is_refused(
    tmp_path: Path, config: dict[str, Any], target: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ax.deploy(folder_of(tmp_path / "in", classifier(), config), tmp_path / "out", for_=target)


def test_a_target_says_which_answers_it_serves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for_='fastembed' serves embedding; the graph answers logits"):
        ax.deploy(folder_of(tmp_path / "in", classifier()), tmp_path / "out", for_="fastembed")


def test_a_pooling_that_the_target_has_not_is_refused(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path / "in", classifier(output="last_hidden_state", axes=("batch", "sequence"), tokens=True), EMBEDDING
    )
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    for target in ("tei", "fastembed"):
        with pytest.raises(UsageError, match="asks for max"):
            ax.deploy(source, tmp_path / "out", for_=target)


def test_config_json_is_true_to_the_pruned_graph(tmp_path: Path) -> None:
    plan = (
        ax.Plan().without_heads(0, [1, 3]).without_attention(2).without_feed_forward(2).without_neurons(4, range(100))
    )
    graph = ax.apply(plan, EXAMPLE, tmp_path / "pruned")
    found = ax.deploy(graph.parent, tmp_path / "out", for_="tei")
    config = json.loads((found.path / "config.json").read_text())
    assert config["num_hidden_layers"] == 5 and config["hidden_size"] == 128
    assert [layer["heads"] for layer in config["axformer_layers"]] == [6, 8, 8, 8, 8]
    assert [layer["neurons"] for layer in config["axformer_layers"]] == [640, 640, 640, 540, 640]
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"]["2"] == "contradiction" and config["label2id"]["contradiction"] == 2


def test_labels_are_invented_where_none_are_stated(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "id2label"}
    found = ax.deploy(folder_of(tmp_path / "in", classifier(), config), tmp_path / "out", for_="tei")
    written = json.loads((found.path / "config.json").read_text())
    assert (
        written["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} and written["label2id"]["LABEL_2"] == 2
    )


def test_the_tokenizer_is_written_as_this_tool_reads_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    source = folder_of(tmp_path / "in", classifier())
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    found = ax.deploy(source, tmp_path / "out", for_="tei")
    written = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    assert written.encode("W5 w6").ids == [2, 5, 6, 3] and tokenizer.encode("W5 w6").ids == [2, 1, 6, 3]
    assert json.loads((found.path / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_mlserver_is_sent_texts_which_need_a_tokenizer(tmp_path: Path) -> None:
    ax.deploy(EXAMPLE, tmp_path / "out", for_="mlserver")
    (request,) = re.findall(r"-d '(.*)'", (tmp_path / "out" / "README.md").read_text())
    assert [one["name"] for one in json.loads(request)["inputs"]] == ["text"]
    shutil.copytree(EXAMPLE, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(UsageError, match="needs the model's tokenizer there"):
        ax.deploy(tmp_path / "bare", tmp_path / "none", for_="mlserver")
    assert not (tmp_path / "none").exists()


# -- operator sets and formats -------------------------------------------------------------------------------------------


def test_a_newer_graph_is_written_in_the_operator_set_and_format_of_the_target(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier(opset=24, ir=11))
    found = ax.deploy(source, tmp_path / "out", for_="tei")
    assert (found.opset, found.ir) == (22, 10)
    assert any("24 was converted to 22 (ONNX Runtime 1.22 reads no later one)" in note for note in found.notes)
    np.testing.assert_array_equal(answers(found.graph)["logits"], answers(source / "model.onnx")["logits"])
    stays = ax.deploy(source, tmp_path / "triton", for_="triton")
    assert (stays.opset, stays.ir) == (24, 11) and not stays.rewritten


def test_a_changed_operator_is_rewritten_by_the_converter(tmp_path: Path) -> None:
    """ReduceMean took its axes as an attribute up to operator set 17, as an input from 18 on."""
    mean = helper.make_node("ReduceMean", ["mean"], ["centre"], axes=[1], keepdims=1)
    centred = helper.make_node("Sub", ["mean", "centre"], ["centred"])
    source = folder_of(tmp_path / "in", classifier(extra=(mean, centred)))
    found = ax.deploy(source, tmp_path / "out", for_="plain", target_opset=18)
    (node,) = (node for node in onnx.load(found.graph).graph.node if node.op_type == "ReduceMean")
    assert len(node.input) == 2
    np.testing.assert_allclose(answers(found.graph)["logits"], answers(source / "model.onnx")["logits"], atol=1e-6)


def test_an_operator_that_came_later_is_refused_with_its_node(tmp_path: Path) -> None:
    gelu = helper.make_node("Gelu", ["mean"], ["activated"], name="the_gelu")
    source = folder_of(tmp_path / "in", classifier(extra=(gelu,), opset=20, ir=9))
    with pytest.raises(
        UsageError, match=r"node 'the_gelu' is Gelu, which came with operator set 20.*Choose 20 or later"
    ):
        ax.deploy(source, tmp_path / "out", for_="plain", target_opset=17)
    assert not (tmp_path / "out").exists()


def test_what_the_converter_cannot_rewrite_is_refused_with_its_node(tmp_path: Path) -> None:
    """CastLike of 19 has the attribute saturate; ONNX's converter has no way back from Resize 18."""
    resize = helper.make_node(
        "Resize",
        ["mean", "", "", "sizes"],
        ["sized"],
        name="the_resize",
        keep_aspect_ratio_policy="stretch",
        axes=[0, 1],
    )
    shape = helper.make_node("Shape", ["mean"], ["sizes"])
    source = folder_of(tmp_path / "in", classifier(extra=(shape, resize), opset=18, ir=8))
    with pytest.raises(UsageError, match="node 'the_resize': Resize has another definition in operator set 13"):
        ax.deploy(source, tmp_path / "out", for_="plain", target_opset=13)


@pytest.mark.parametrize("version", [4, 7, 10])
def test_a_format_is_lowered_where_nothing_newer_is_used(tmp_path: Path, version: int) -> None:
    found = ax.deploy(folder_of(tmp_path / "in", classifier(ir=11)), tmp_path / "out", for_="plain", target_ir=version)
    assert found.ir == version == onnx.load(found.graph).ir_version


def test_a_format_is_not_lowered_below_a_type_that_is_used(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["mean"], ["eighth"], to=TensorProto.FLOAT8E4M3FN, name="to_eight_bits"),
        helper.make_node("Cast", ["eighth"], ["back"], to=TensorProto.FLOAT),
    ]
    source = folder_of(tmp_path / "in", classifier(extra=nodes, opset=19, ir=9))
    with pytest.raises(UsageError, match="FLOAT8E4M3FN, which node 'to_eight_bits' makes, came with IR version 9"):
        ax.deploy(source, tmp_path / "out", for_="plain", target_ir=8)


def test_a_rewritten_graph_that_answers_something_else_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from axformer_onnx.deploying import deployment

    def wrong(model: Any, opset: int) -> Any:
        found = model.clone()
        found.graph.opset_imports[""] = opset
        table = found.graph.initializers["table"]
        import onnx_ir as ir

        table.const_value = ir.tensor(table.const_value.numpy() * np.float32(1.001), name="table")
        return found

    monkeypatch.setattr(deployment, "at_opset", wrong)
    with pytest.raises(VerifyError, match=r"output 'logits' differs from the graph that it was made of by 1\.0e-03"):
        ax.deploy(folder_of(tmp_path / "in", classifier()), tmp_path / "out", for_="plain", target_opset=18)
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["in"]


def test_operators_of_another_domain_are_refused_where_they_are_not_known(tmp_path: Path) -> None:
    gelu = helper.make_node("Gelu", ["mean"], ["activated"], name="fused_gelu", domain="com.microsoft")
    model = classifier(extra=(gelu,))
    source = folder_of(tmp_path / "in", model)
    assert ax.deploy(source, tmp_path / "tei", for_="tei").graph.is_file()
    with pytest.raises(
        UsageError, match=r"OpenVINO 2026.4 has no operators of com.microsoft, and node 'fused_gelu' is its Gelu"
    ):
        ax.deploy(source, tmp_path / "openvino", for_="openvino")


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_there_is_refused_and_with_overwrite_only_an_earlier_deployment_goes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier())
    first = ax.deploy(source, tmp_path / "out", for_="transformersjs")
    (first.path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match=r"exists and is not empty. Name another folder, or give overwrite=True"):
        ax.deploy(source, tmp_path / "out", for_="tei")
    second = ax.deploy(source, tmp_path / "out", for_="tei", overwrite=True)
    assert (second.path / "mine.txt").read_text() == "kept" and second.graph == second.path / "model.onnx"
    assert not (second.path / "onnx").exists(), "the earlier graph is gone"
    assert sorted(json.loads((second.path / "deployed.json").read_text())["files"]) == sorted(
        {*contents(second.path)} - {"mine.txt"}
    )


def test_the_folder_of_the_model_itself_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier())
    for output in (source, tmp_path):
        with pytest.raises(UsageError, match="the input is never modified"):
            ax.deploy(source, output, for_="tei", overwrite=True)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axformer_onnx.deploying.targets import TEI

    source = folder_of(tmp_path / "in", classifier())
    ax.deploy(source, tmp_path / "out", for_="tei")
    before = contents(tmp_path / "out")

    def fails(job: Any) -> list[str]:
        (job.folder / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(TEI, "place", fails)
    with pytest.raises(KeyboardInterrupt):
        ax.deploy(source, tmp_path / "out", for_="tei", overwrite=True)
    assert contents(tmp_path / "out") == before and sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_weights_in_a_file_of_their_own_travel_with_the_graph(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier())
    onnx.save(
        onnx.load(source / "model.onnx"),
        source / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1000,
    )
    found = ax.deploy(source, tmp_path / "out", for_="tei")
    assert (found.path / "weights.bin").read_bytes() == (source / "weights.bin").read_bytes()
    one_file = ax.deploy(source, tmp_path / "js", for_="transformersjs")
    assert [path.name for path in one_file.graph.parent.iterdir()] == ["model.onnx"]
    for graph in (found.graph, one_file.graph):
        np.testing.assert_array_equal(answers(graph)["logits"], answers(source / "model.onnx")["logits"])


def test_several_precisions_of_one_model_lie_beside_each_other_for_transformers_js(tmp_path: Path) -> None:
    rounded = [
        helper.make_node("DynamicQuantizeLinear", ["mean"], ["integers", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["back"]),
    ]
    whole = folder_of(tmp_path / "float", classifier())
    int8 = folder_of(tmp_path / "int8", classifier(extra=rounded))
    both = ax.deploy(whole, tmp_path / "both", for_="transformersjs", also=int8)
    assert sorted(path.name for path in both.graph.parent.iterdir()) == ["model.onnx", "model_quantized.onnx"]
    alone = ax.deploy(int8, tmp_path / "alone", for_="transformersjs")
    assert alone.graph.name == "model_quantized.onnx"
    assert json.loads((alone.path / "config.json").read_text())["transformers.js_config"] == {"dtype": "q8"}
    with pytest.raises(UsageError, match=r"is in int8, as another graph is that goes to onnx/model_quantized.onnx"):
        ax.deploy(int8, tmp_path / "twice", for_="transformersjs", also=int8)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"for_": "tie"}, "unknown target 'tie'. Did you mean tei?"),
        ({"for_": "tei", "instances": 2}, "instances is for for_='triton'; for_='tei' has no such setting"),
        ({"for_": "triton", "name": "a/b"}, "name is 'a/b': expected letters"),
        ({"for_": "triton", "accelerator": "tensorrt"}, "accelerator='tensorrt' goes with device='gpu'"),
        ({"for_": "plain", "form": "runtime"}, "holds no model.runtime.onnx"),
        ({}, "for_ is missing"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_the_words_of_python(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = folder_of(tmp_path / "in", classifier())
    with pytest.raises(UsageError) as caught:
        ax.deploy(source, tmp_path / "out", **options)
    assert message in str(caught.value)


def test_the_command_line_writes_the_same_and_says_how_it_is_started(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier())
    shown = CliRunner().invoke(cli, ["deploy", str(source), str(tmp_path / "a"), "--for", "tei"])
    assert shown.exit_code == 0 and "operator set 17, IR version 8, as it was given" in shown.output
    machine = CliRunner().invoke(cli, ["deploy", str(source), str(tmp_path / "b"), "--for", "tei", "--json"])
    assert json.loads(machine.stdout)["graph"] == str(tmp_path / "b" / "model.onnx")
    assert (
        contents(tmp_path / "a")
        == contents(tmp_path / "b")
        == contents(ax.deploy(source, tmp_path / "c", for_="tei").path)
    )


def test_the_runtime_form_of_a_run_goes_where_its_operators_are_known(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", classifier())
    attention = helper.make_node(
        "MultiHeadAttention", ["q", "q", "q"], ["attended"], name="fused", domain="com.microsoft", num_heads=1
    )
    model = classifier(
        extra=(
            helper.make_node("Unsqueeze", ["mean", "first"], ["q"]),
            attention,
            helper.make_node("Squeeze", ["attended", "first"], ["flat"]),
        )
    )
    onnx.save(model, source / "model.runtime.onnx")
    portable = ax.deploy(source, tmp_path / "portable", for_="tei")
    assert any("also holds model.runtime.onnx" in note for note in portable.notes)
    fused = ax.deploy(source, tmp_path / "runtime", for_="tei", form="runtime")
    assert fused.graph.read_bytes() == (source / "model.runtime.onnx").read_bytes()
    with pytest.raises(
        UsageError,
        match=r"node 'fused' is MultiHeadAttention, which ONNX Runtime computes rightly from 1.21 on, and 1.18",
    ):
        ax.deploy(source, tmp_path / "optimum", for_="optimum", form="runtime")


def test_the_documents_table_is_what_the_targets_state() -> None:
    from axformer_onnx.deploying.support_table import written_into

    text = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text()
    assert written_into(text) == text, "run python -m axformer_onnx.deploying.support_table"
    assert all(f"| `{name}` |" in text for name in TARGETS.names)

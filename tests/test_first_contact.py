"""What a user meets first: layouts of models, tasks that models state, what is missing and the command that goes on."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import transformers
from test_export import checkpoint
from tiny_folder import make_folder, write_rows

import axformer_onnx as ax
from axformer_onnx.inputs.located import likely_tasks, locate, stated_task
from axformer_passes.io import sha256_of
from axformer_passes.io.layout import model_path, settings_folder
from axformer_passes.plan import Plan


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete folder, model.onnx and all beside it; the working directory is the one above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_folder(tmp_path / "tiny")


@pytest.fixture
def hub_layout(tiny: Path) -> Path:
    """The same as the hub has it: the graph in onnx/, the rest one folder up."""
    (tiny / "onnx").mkdir()
    (tiny / "model.onnx").rename(tiny / "onnx" / "model.onnx")
    return tiny


@pytest.mark.parametrize("asked", ["tiny", "tiny/onnx", "tiny/onnx/model.onnx"])
def test_the_layout_of_the_hub_is_read_however_it_is_named(hub_layout: Path, asked: str) -> None:
    seen = ax.preview(asked, task="mnli")
    assert seen.problem is None and seen.given is not None
    assert seen.source.path == Path(
        asked if asked.endswith(".onnx") else f"{asked.removesuffix('/onnx')}/onnx/model.onnx"
    )
    assert len(seen.given.rows["report"]) == 60 and seen.options.output == Path("tiny-optimized")
    scored = ax.score(asked, task="mnli", threads=1, length=8)
    assert scored.rows == 60


def test_a_run_on_the_hub_s_layout_takes_the_tokenizer_along(hub_layout: Path) -> None:
    result = ax.optimize("tiny", task="mnli", search="axformer", length=8, threads=1, output="smaller")
    assert {"tokenizer.json", "config.json"} <= {path.name for path in result.output.iterdir()}
    assert ax.apply(result.output, "tiny/onnx", "again.onnx").read_bytes() == result.path.read_bytes()


def test_from_within_the_folder_of_the_graph(hub_layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub_layout / "onnx")
    assert settings_folder(Path("model.onnx")) == hub_layout
    assert ax.preview("model.onnx", task="mnli").problem is None


def test_settings_beside_the_graph_win_over_those_above(hub_layout: Path) -> None:
    shutil.copyfile(hub_layout / "tokenizer.json", hub_layout / "onnx" / "tokenizer.json")
    assert settings_folder(hub_layout / "onnx" / "model.onnx") == hub_layout / "onnx"
    assert settings_folder(Path("nowhere/at/all.onnx")) == Path("nowhere/at")


def test_the_only_graph_of_a_folder_is_taken_and_of_several_none(tiny: Path) -> None:
    (tiny / "model.onnx").rename(tiny / "model_quantized.onnx")
    assert model_path(tiny) == tiny / "model_quantized.onnx"
    shutil.copyfile(tiny / "model_quantized.onnx", tiny / "model_fp16.onnx")
    with pytest.raises(
        ax.ModelError, match=r"no model.onnx, but model_fp16.onnx, model_quantized.onnx; name one of them"
    ):
        model_path(tiny)


def test_a_checkpoint_is_exported_beside_the_output_and_its_task_read_from_its_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "finetuned")
    config = json.loads((folder / "config.json").read_text())
    names = ("entailment", "neutral", "contradiction")
    config |= {
        "finetuning_task": "MNLI",
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_rows(make_folder(tmp_path / "tiny"), tmp_path / "rows" / "validation.jsonl", 40, seed=3)
    before = sorted(path.name for path in folder.iterdir())
    seen = ax.preview(folder, data=tmp_path / "rows", output=tmp_path / "out" / "smaller")
    assert seen.source.path == tmp_path / "out" / "finetuned-onnx" / "model.onnx"
    assert seen.problem is None and seen.options.task.name == "mnli"
    assert any("finetuning_task" in note for note in seen.notes) and any(
        "was exported to" in note for note in seen.notes
    )
    assert sorted(path.name for path in folder.iterdir()) == before and not seen.options.output.exists()
    again = ax.preview(folder, data=tmp_path / "rows", output=tmp_path / "out" / "smaller")
    assert again.source.sha256 == seen.source.sha256


def test_a_checkpoint_is_exported_into_the_cache_by_commands_without_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint(tmp_path / "finetuned")
    write_rows(make_folder(tmp_path / "tiny"), tmp_path / "rows" / "validation.jsonl", 40, seed=3)
    found = ax.inspect("finetuned")
    assert found.path.is_relative_to(tmp_path / "cache" / "axformer-onnx" / "exports")
    assert len(found.anatomy.layers) == 3 and found.notes[0].startswith("the checkpoint finetuned was exported to ")
    scored = ax.score("finetuned", "tiny", task="mnli", data="rows", threads=1, length=8)
    assert list(scored.models) == ["finetuned", "tiny/model.onnx"]
    assert any("already holds this export" in note for note in scored.notes)
    code, out, err = call("apply", plan_file(tmp_path / "plan.json"), "finetuned", "-o", "smaller")
    assert code == 0 and f"exporting finetuned to {found.path.parent}" in err and "verified against finetuned" in out
    assert (tmp_path / "smaller" / "tokenizer.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "finetuned", "plan.json", "rows", "smaller", "tiny"}
    checkpoint(tmp_path / "finetuned", layers=2)
    assert len(ax.inspect("finetuned").anatomy.layers) == 2
    assert [path.name for path in found.path.parents[1].iterdir()] == [found.path.parent.name]


def test_apply_takes_the_graph_that_the_plan_was_made_for_where_optimize_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint(tmp_path / "finetuned")
    left = ax.export("finetuned", "finetuned-onnx", task="mnli").path
    (tmp_path / "finetuned-optimized").mkdir()
    plan_file(tmp_path / "finetuned-optimized" / "plan.json", sha256_of(left))
    assert ax.apply("finetuned-optimized", "finetuned", tmp_path / "elsewhere" / "a.onnx").is_file()
    assert not (tmp_path / "cache").exists()
    left.unlink()
    with pytest.raises(
        ax.PlanError, match=r"a plan for another model .* the export which optimize left beside its output"
    ):
        ax.apply("finetuned-optimized", "finetuned", "b.onnx")


def test_a_cache_that_cannot_be_written_says_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ax.RuntimeFailure, match=r"cannot be written: .* would be exported there. Export it elsewhere"):
        ax.inspect(checkpoint(tmp_path / "finetuned"))


def plan_file(path: Path, sha256: str = "") -> Path:
    path.write_text(Plan(source_sha256=sha256).without_heads(0, [1]).dumps())
    return path


def test_a_checkpoint_without_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "finetuned")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ax.RuntimeFailure, match=r"needs torch.*pip install 'axformer-onnx\[export\]'"):
        ax.preview(folder, task="mnli", output=tmp_path / "out")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """cached(folder, name) puts a folder into an empty cache of the hub as the model of that name; returns its snapshot."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if hasattr(transformers.utils.hub, "TRANSFORMERS_CACHE"):  # version 4 reads it once
        monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"))

    def cached(folder: Path, name: str) -> Path:
        snapshot = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abc"
        shutil.copytree(folder, snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
        return snapshot

    return cached


@pytest.mark.parametrize("name", ["someone/tiny-nli", "tiny-nli"])
def test_a_name_on_the_hub_is_found_in_its_cache_without_a_network(
    hub_layout: Path, tmp_path: Path, hub_cache: Any, name: str
) -> None:
    snapshot = hub_cache(hub_layout, name)
    found = locate(Path(name), tmp_path / "out", "mnli")
    assert (found.path, found.name) == (snapshot / "onnx" / "model.onnx", name)
    seen = ax.preview(name, task="mnli")
    assert seen.problem is None and seen.options.output == Path("tiny-nli-optimized")
    scored = ax.score(name, task="mnli", threads=1, length=8)
    assert list(scored.models) == [name] and scored.rows == 60
    assert ax.inspect(name).path == snapshot / "onnx" / "model.onnx"
    assert ax.apply(Plan().without_heads(0, [1]), name, "smaller.onnx").is_file()


def test_a_checkpoint_in_the_cache_of_the_hub_is_exported_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub_cache(checkpoint(tmp_path / "finetuned"), "tiny-uncased")
    found = ax.inspect("tiny-uncased")
    assert found.path.parent.name.startswith("tiny-uncased-") and "the checkpoint tiny-uncased" in found.notes[0]


def test_a_name_that_is_nowhere_is_said_to_be_neither_here_nor_on_the_hub(
    tiny: Path, hub_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = "no such file or folder here.*, and the Hugging Face hub did not give it .*check the name and the network"
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(ax.RuntimeFailure, match=f"^{name}: {both}"):  # the tests are offline
            ax.preview(name, task="mnli")
    for command in (ax.inspect, ax.score, lambda name: ax.apply(Plan(), name, "out.onnx")):
        with pytest.raises(
            ax.RuntimeFailure, match=r"^tinny: no such file or folder here \(did you mean tiny\?\), and"
        ):
            command("tinny")
    with pytest.raises(ax.ModelError, match=r"^tiny/modle\.onnx: no such file; give an \.onnx file"):
        ax.inspect("tiny/modle.onnx")

    def unknown(*_: Any, **__: Any) -> None:
        raise errors.HFValidationError("no such thing")

    errors = pytest.importorskip("huggingface_hub.errors")
    monkeypatch.setattr("huggingface_hub.model_info", unknown)
    with pytest.raises(ax.ModelError, match=f"^nothing: {both}"):
        ax.inspect("nothing")


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        ({"finetuning_task": "mnli"}, "mnli"),
        ({"finetuning_task": "SST-2"}, "sst2"),
        ({"finetuning_task": "my own"}, None),
        ({"finetuning_task": 3}, None),
        ({}, None),
    ],
)
def test_a_task_is_stated_by_the_config_when_it_is_one_of_glue(tmp_path: Path, config: Any, stated: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = stated_task({}, tmp_path)
    assert (found.name if found else None) == stated


def test_a_task_is_stated_by_the_graph_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"finetuning_task": "mnli"}')
    found = stated_task({"axformer.task": "rte"}, tmp_path)
    assert found is not None and (found.name, found.where) == ("rte", "the graph's metadata")
    found = stated_task({"axformer.embedding": "mean of tokens"}, tmp_path)
    assert found is not None and found.name == "embedding"
    (tmp_path / "config.json").unlink()
    (tmp_path / "modules.json").write_text("[]")
    found = stated_task({}, tmp_path)
    assert found is not None and found.name == "embedding"


@pytest.mark.parametrize(
    ("names", "likely"),
    [
        (["ENTAILMENT", "neutral", "Contradiction"], ("mnli", "mnli-mm")),
        (["NEGATIVE", "POSITIVE"], ("sst2",)),
        (["joy", "anger"], ("custom",)),
        (["LABEL_0", "LABEL_1"], ()),
    ],
)
def test_names_of_labels_speak_for_tasks(tmp_path: Path, names: list[str], likely: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    assert likely_tasks(tmp_path) == likely


def test_without_a_task_it_says_what_was_found_and_a_command_that_works(tiny: Path, call: Any) -> None:
    code, out, err = call("optimize", "tiny")
    assert code == 2 and out == ""
    assert "nothing in it says what task it was fine-tuned for; its labels are those of mnli" in err
    assert "tiny/tokenizer.json" in err and "layers of" in err
    (command,) = [line.strip() for line in err.splitlines() if line.strip().startswith("axformer-onnx optimize")]
    assert command == "axformer-onnx optimize tiny --task mnli"
    assert not Path("tiny-optimized").exists()
    code, out, _ = call(*shlex.split(command)[1:], "--dry-run")
    assert code == 0 and "60 of tiny/data/validation.jsonl" in out and "time" in out
    assert not Path("tiny-optimized").exists()


def test_without_rows_the_command_asks_for_them(tiny: Path, call: Any) -> None:
    shutil.rmtree(tiny / "data")
    code, _, err = call("optimize", "tiny", "--max-drop", "1", "--task", "mnli")
    assert code == 2 and "axformer-onnx optimize tiny --task mnli --max-drop 1.0 --data ROWS.jsonl" in err
    assert err.strip().splitlines()[-1].startswith("error: no data for task mnli")


def test_without_labels_the_command_compares_with_the_source(tiny: Path, call: Any) -> None:
    rows = [json.loads(line) for line in (tiny / "data" / "search.jsonl").read_text().splitlines()]
    texts = "".join(json.dumps({name: row[name] for name in ("premise", "hypothesis")}) + "\n" for row in rows)
    Path("texts.jsonl").write_text(texts)
    code, _, err = call("optimize", "tiny", "--task", "mnli", "--data", "texts.jsonl")
    assert code == 2 and "no column 'label'" in err
    (command,) = [line.strip() for line in err.splitlines() if line.strip().startswith("axformer-onnx optimize")]
    assert command == "axformer-onnx optimize tiny --task mnli --data texts.jsonl --metric agreement"
    code, out, _ = call(*shlex.split(command)[1:], "--dry-run")
    assert code == 0 and "fidelity, not accuracy" in out


def test_where_no_option_helps_no_command_is_named(tiny: Path, call: Any) -> None:
    (tiny / "tokenizer.json").unlink()
    code, _, err = call("optimize", "tiny", "--task", "mnli", "--data", tiny / "data")
    assert code == 2 and "no tokenizer.json" in err and "To go on" not in err


def test_a_dry_run_for_machines(tiny: Path, call: Any) -> None:
    code, out, _ = call("optimize", "tiny", "--task", "mnli", "--speedup", "2", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["format"] == "axformer-preview/1" and told["problem"] is None
    assert told["rows"] == {"search": 60, "select": 30, "report": 60} and told["goal"] == "--speedup 2"
    assert 0 < told["seconds"][0] < told["seconds"][1]


def test_score_reads_the_task_that_a_graph_states(tiny: Path) -> None:
    model = onnx.load(tiny / "model.onnx")
    onnx.helper.set_model_props(model, {"axformer.task": "mnli"})
    onnx.save(model, tiny / "model.onnx")
    assert ax.score("tiny", threads=1, length=8).task == "mnli"
    (tiny / "named").mkdir()
    shutil.copyfile(tiny / "config.json", tiny / "named" / "config.json")
    onnx.helper.set_model_props(model, {})
    onnx.save(model, tiny / "named" / "model.onnx")
    with pytest.raises(ax.UsageError, match="its labels are those of mnli and mnli-mm: give task"):
        ax.score(tiny / "named")

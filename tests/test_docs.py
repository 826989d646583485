"""The documentation holds: links lead somewhere, commands are accepted, examples run and print what stands below them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import random
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import axformer_onnx as ax
from axformer_onnx.cli import cli, generated
from axformer_onnx.options import OptimizeOptions, make

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "bench/results/*.md", "models/*/README.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)")


@functools.cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its code, which may have brackets of its own."""
    lines = _FENCE.sub("", text_of(page)).splitlines()
    return "\n".join(re.sub(r"`[^`]*`", "`code`", line) for line in lines if not line.startswith("    "))


def anchors(page: str) -> set[str]:
    """The headings of a page as links name them: small letters, hyphens, no other signs."""
    headings = re.findall(r"(?m)^#{1,4} (.+)$", _FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_to_a_heading_of_it(page: str) -> None:
    lost = []
    for target in _LINK.findall(prose(page)):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), target
            continue
        path = ((ROOT / page).parent / address.path).resolve() if address.path else ROOT / page
        inside = path.exists() and path.is_relative_to(ROOT)
        if not inside or (address.fragment and address.fragment not in anchors(path.relative_to(ROOT).as_posix())):
            lost.append(target)
    assert lost == []


def test_links_are_found_where_there_are_some() -> None:
    assert sum(len(_LINK.findall(prose(page))) for page in PAGES) > 100


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page; `whole`: a line of code, else words between backquotes."""

    page: str
    line: str
    whole: bool


def commands() -> Iterator[Command]:
    """Each command line of each page."""
    for page in PAGES:
        text = text_of(page)
        code = "\n".join([*re.findall(r"(?m)^    (.*)$", text), *(block[2] for block in _FENCE.finditer(text))])
        for line in re.findall(r"(?m)^(?:\$ )?(axformer-onnx .*)$", code):
            yield Command(page, line, True)
        for line in re.findall(r"(?<!`)`(axformer-onnx [^`\n]+)`", text):
            yield Command(page, line, False)


class Accepted(Exception):
    """The options were good; nothing is run."""


@pytest.fixture
def only_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(model: Any, values: Any) -> Any:
        make(model, values)
        raise Accepted

    monkeypatch.setattr(generated, "make", accept)


@pytest.mark.usefixtures("only_accept")
@pytest.mark.parametrize("page", sorted({command.page for command in commands()}))
def test_commands_are_accepted_as_they_stand(page: str) -> None:
    for command in (one for one in commands() if one.page == page):
        line = command.line.removeprefix("axformer-onnx ").replace("--task T", "--task mnli")
        words = shlex.split(line, comments=True)
        if words[0].startswith("--"):
            continue
        verb = cli.get_command(None, words[0])  # type: ignore[arg-type]
        assert verb is not None, command
        known = {name for parameter in verb.params for name in parameter.opts}
        assert {word for word in words if re.fullmatch("--[a-z-]+", word)} <= known, command
        if command.whole:
            with pytest.raises(Accepted):
                cli.main(words, standalone_mode=False)


OF_OTHERS = {"--adapter", "--dtype", "--file"}
"""Options of Bencher and of Text Embeddings Inference that pages name."""


def test_every_option_that_a_page_speaks_of_exists() -> None:
    """Between backquotes, with or without a command before it."""
    every = {name for verb in cli.list_commands(None) for p in cli.get_command(None, verb).params for name in p.opts}  # type: ignore[arg-type, union-attr]
    every |= {name for parameter in cli.params for name in parameter.opts} | {"--help", "--whole-matrix"}
    scripts = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "bench").glob("*.py"))
    scripts += (ROOT / "models" / "build_nli_mini.py").read_text(encoding="utf-8")
    spoken = {
        (page, option)
        for page in PAGES
        for code in re.findall(r"(?<!`)`([^`\n]+)`", text_of(page))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)
    }
    assert {(page, one) for page, one in spoken if one not in every | OF_OTHERS and one not in scripts} == set()
    assert len(spoken) > 60


def examples() -> list[tuple[str, str, str]]:
    """(page, code, what it prints), of code that a block of output follows."""
    found = []
    for page in PAGES:
        blocks = list(_FENCE.finditer(text_of(page)))
        for code, output in itertools.pairwise(blocks):
            between = text_of(page)[code.end() : output.start()]
            if code[1] == "python" and output[1] == "text" and not between.strip():
                found.append((page, code[2], output[2]))
    return found


@pytest.mark.parametrize(("page", "code", "printed"), examples(), ids=lambda value: "" if "\n" in value else value)
def test_an_example_prints_what_stands_below_it(
    page: str, code: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, page, "exec"), {"__name__": "example"})
    assert said.getvalue() == printed


def test_python_of_all_pages_compiles_and_some_is_run() -> None:
    pages = [page for page in PAGES if page != "docs/adding-an-operator.md"]  # it quotes parts of functions
    codes = [(page, block[2]) for page in pages for block in _FENCE.finditer(text_of(page)) if block[1] == "python"]
    for page, code in codes:
        compile(code, page, "exec")
    assert len(examples()) >= 4


# -- how-to by task --------------------------------------------------------------------------------------------------


def _of_pairs(folder: Path) -> Path:
    folder.symlink_to(ROOT / "models" / "nli-mini", target_is_directory=True)
    return folder


def _tiny(folder: Path, labels: int, problem: str) -> Path:
    import tiny_folder
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from axformer_onnx.exporting import export

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, num_labels=labels, problem_type=problem or None,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(folder / "checkpoint")
    tiny_folder._tokenizer().save(str(folder / "checkpoint" / "tokenizer.json"))
    export(folder / "checkpoint", folder / "model", exporter="torchscript")
    return folder / "model"


def _renamed(model: Path, names: list[str]) -> Path:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))
    return model


def _sentences(folder: Path) -> Path:
    import tiny_tasks

    from axformer_onnx.exporting import export

    export(tiny_tasks.sentence_checkpoint(folder / "checkpoint"), folder / "model", exporter="torchscript")
    return folder / "model"


MODELS = {
    "pairs": _of_pairs,
    "sentiment": lambda folder: _renamed(_tiny(folder, 2, ""), ["negative", "positive"]),
    "regression": lambda folder: _tiny(folder, 1, "regression"),
    "multilabel": lambda folder: _renamed(_tiny(folder, 3, "multi_label_classification"), ["joy", "anger", "fear"]),
    "embedding": _sentences,
    "own-data": lambda folder: _tiny(folder, 2, ""),
}


def test_each_page_of_a_task_has_a_model_here() -> None:
    assert set(MODELS) == {path.stem for path in (ROOT / "docs" / "tasks").glob("*.md")}


@pytest.mark.parametrize("name", MODELS)
def test_rows_and_command_of_a_page_fit_each_other_and_a_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "pairs":
        pytest.importorskip("transformers", reason="tiny models are made by the extra [export]")
    page = text_of(f"docs/tasks/{name}.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [json.loads(line) for block in _FENCE.finditer(page) if block[1] == "json" for line in block[2].splitlines()]
    command = next(line for line in re.findall(r"(?m)^    axformer-onnx (optimize .*)$", page) if "--data rows" in line)
    labels = {shlex.split(command)[i + 1] for i, word in enumerate(shlex.split(command)) if word == "--label"} or {
        "label"
    }
    _write_like(tmp_path / "rows", rows, labels)
    model = MODELS[name](tmp_path / "given")
    values = _options(command) | {"model": str(model), "threads": 1, "length": 8}
    seen = ax.preview(**values)
    assert seen.problem is None, seen.problem
    found = {role: len(of) for role, of in seen.given.rows.items()} if seen.given else {}
    assert found == {"search": 40, "select": 20, "report": 30}


def _options(command: str) -> dict[str, Any]:
    """The options of a command as Python takes them."""
    context = cli.get_command(None, "optimize").make_context("optimize", shlex.split(command)[1:])  # type: ignore[arg-type, union-attr]
    fields = set(OptimizeOptions.model_fields)
    given = {key: value for key, value in context.params.items() if key in fields and value not in (None, (), False)}
    stated = {word.removeprefix("--").replace("-", "_") for word in shlex.split(command) if word.startswith("--")}
    return {key: value for key, value in given.items() if key in stated}


def _write_like(folder: Path, rows: list[dict[str, Any]], labels: set[str]) -> None:
    """Rows with the columns and the labels of a page's, and random words in place of their texts."""
    draw, columns = random.Random(1), rows[0].keys()
    assert all(row.keys() == columns for row in rows) and len(rows) >= 2
    folder.mkdir()
    for role, count in (("search", 60), ("validation", 30)):
        made = [
            {
                key: row[key]
                if key in labels or key == "labels"
                else " ".join(f"w{draw.randint(5, 99)}" for _ in range(6))
                for key in columns
            }
            for row in (rows[i % len(rows)] for i in range(count))
        ]
        (folder / f"{role}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in made))


# -- the reference, made from the code -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_code() -> Any:
    spec = importlib.util.spec_from_file_location("from_code", ROOT / "docs" / "from_code.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["from_code"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name() -> None:
    written = set(re.findall(r"auto(?:function|class|exception):: (\w+)", text_of("docs/reference/python.md")))
    assert written == set(ax.__all__) - {"__version__"}


def test_names_in_two_columns_become_definitions(from_code: Any) -> None:
    lines = [
        "What it is.",
        "",
        "path         the graph,",
        "             of any size",
        "score, drop  points",
        "",
        "End of  it.",
    ]
    assert from_code.with_definitions(lines) == [
        "What it is.", "", "", "``path``", "    the graph,", "    of any size", "``score, drop``", "    points", "", "End of  it.",
    ]  # fmt: skip
    example = [">>> found", "one  two", "", "name  words"]
    assert from_code.with_definitions(example) == [*example[:3], "", "``name``", "    words"]


def test_links_to_pages_of_the_repository_lead_to_those_that_include_them(from_code: Any) -> None:
    said = "[a](../bench/results/budget.md), [b](../../CHANGELOG.md#top), [c](int8.md), [d](../bench/results/cuda.json)"
    assert from_code.inside(said) == (
        "[a](/results.md), [b](/changelog.md#top), [c](int8.md), [d](../bench/results/cuda.json)"
    )
    for outside, page in from_code.ELSEWHERE.items():
        assert (ROOT / outside).is_file() and outside.rpartition("/")[2] in text_of(f"docs{page}"), outside


def test_signatures_are_those_of_the_stub(from_code: Any) -> None:
    arguments, returned = from_code.stub_signatures()["optimize"]
    assert "speedup: float | None=None" in arguments and returned == "OptimizeResult"

"""Rows from every file format, their refusals, and roles that never overlap."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from axformer_onnx.data.roles import resolve, resolve_report
from axformer_onnx.data.rows import Rows, read_rows
from axformer_onnx.errors import DataError, MissingLabels
from axformer_onnx.tasks.definitions import Task, custom_task, get_task

SHARED = Path(__file__).parents[2] / "shared"
SST2, MNLI, STSB = get_task("sst2"), get_task("mnli"), get_task("stsb")
ROWS: list[dict[str, Any]] = [
    {"premise": 'He said "no".', "hypothesis": "He, at once, refused.", "label": 0},
    {"premise": "A stray \" quote, and 'others'", "hypothesis": "Überraschung – 日本語", "label": 2},
    {"premise": "NA", "hypothesis": "null", "label": 1},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows in the format of the extension, written by json, csv and pyarrow directly."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sentences(count: int, prefix: str = "row") -> list[dict[str, Any]]:
    return [{"sentence": f"{prefix} {i}", "label": i % 2} for i in range(count)]


def texts(rows: Rows) -> set[tuple[str, ...]]:
    return set(rows.content_keys())


@pytest.mark.parametrize("extension", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, extension: str) -> None:
    rows = read_rows(write(tmp_path / f"rows.{extension}", ROWS), MNLI)
    assert rows.texts == tuple((row["premise"], row["hypothesis"]) for row in ROWS)
    assert rows.labels.tolist() == [0, 2, 1]
    assert rows.labels.dtype == np.int64
    assert rows.sha256 == read_rows(write(tmp_path / "again.jsonl", ROWS), MNLI).sha256
    assert len(rows) == 3


def test_label_names_in_the_data_are_matched_with_the_tasks(tmp_path: Path) -> None:
    rows = [row | {"label": name} for row, name in zip(ROWS, ["Contradiction", "neutral", "entails"], strict=True)]
    for extension in ("jsonl", "csv", "tsv", "parquet"):
        assert read_rows(write(tmp_path / f"rows.{extension}", rows), MNLI).labels.tolist() == [2, 1, 0]


def test_label_names_of_a_custom_task_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "joy"}, {"text": "b", "label": "anger"}, {"text": "c", "label": "joy"}]
    found = read_rows(write(tmp_path / "rows.jsonl", rows), custom_task(["text"]))
    assert found.labels.tolist() == [1, 0, 1]
    assert found.label_names == ("anger", "joy")


def test_regression_labels_are_floats(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": 2.5}, {"sentence1": "c", "sentence2": "d", "label": 4}]
    for extension in ("jsonl", "csv", "parquet"):
        found = read_rows(write(tmp_path / f"rows.{extension}", rows), STSB)
        assert found.labels.tolist() == [2.5, 4.0]
        assert found.labels.dtype == np.float64


def test_unlabelled_rows_can_be_read_where_labels_are_not_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"sentence": "a"}, {"sentence": "b"}])
    assert read_rows(path, SST2, labelled=False).labels.tolist() == [-1, -1]


def test_a_separator_that_unicode_calls_a_line_end_stays_in_the_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"sentence": "a\u2028b\x85c", "label": 1}, ensure_ascii=False), encoding="utf-8")
    assert read_rows(path, SST2).texts == (("a\u2028b\x85c",),)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in (("a.csv", "sentence,label\nx,1\n"), ("a.jsonl", '{"sentence": "x", "label": 1}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_rows(tmp_path / name, SST2).texts == (("x",),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.csv", b"\n \n", "the file is empty"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"sentence,label\n", "no rows"),
        ("a.doc", b"x", "the extension is '.doc', expected .jsonl"),
        ("a.parquet", b"no parquet", "not a Parquet file"),
        ("a.jsonl", b'{"sentence": "x", "label": 1}\n{"sentence": \n', "line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1: expected an object \{...\}, found list"),
        ("a.json", b'[{"sentence": "x", "label": 1}, 3]', "row 2: expected an object"),
        ("a.jsonl", b'{"text": "x", "label": 1}', "no column 'sentence'; found: text, label.*--columns"),
        ("a.csv", b"sentence\nx\n", "no column 'label'; found: sentence"),
        ("a.csv", b"sentence,label,label\nx,1,1\n", "2 columns are called 'label'"),
        ("a.csv", b"sentence,label\nx,1\ny,1,z\n", "Expected 2 columns, got 3"),
        ("a.csv", b"sentence,label\nx,1\nna\xefve,1\n", "line 3: byte 0xef is not UTF-8"),
        ("a.jsonl", b"\xff\xfe{\x00", "UTF-16"),
        ("a.jsonl", b'{"sentence": "x", "label": 2}', "line 1: label 2 is out of range; expected 0 negative"),
        ("a.csv", b"sentence,label\nx,1\ny,-1\n", "row 2: the label is -1, .* without a published label"),
        ("a.csv", b"sentence,label\nx,\n", "row 1: the label is missing"),
        ("a.jsonl", b'{"sentence": "x", "label": null}', "line 1: the label is missing"),
        ("a.jsonl", b'{"sentence": "x", "label": 0.5}', "line 1: label 0.5 is not a label"),
        ("a.jsonl", b'{"sentence": "x", "label": "joy"}', "line 1: label 'joy' is not a label of task sst2"),
        ("a.jsonl", b'{"sentence": "x", "label": [1]}', r"line 1: the label is list \[1\]"),
        ("a.jsonl", b'{"sentence": 7, "label": 1}', "line 1: 'sentence' is int 7, expected text"),
        ("a.jsonl", b'{"sentence": "x", "label": 1}\n\n{"label": 1}', "line 3: 'sentence' is missing"),
        ("a.jsonl", b'{"sentence": "\\ud83d", "label": 1}', "line 1: 'sentence' has half a surrogate pair"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name, SST2)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": "much"}]
    with pytest.raises(DataError, match="line 1: the label is 'much', expected a number"):
        read_rows(write(tmp_path / "rows.jsonl", rows), STSB)


@pytest.mark.parametrize(
    ("task", "row", "none"),
    [
        (SST2, {"sentence": "x", "label": None}, True), (SST2, {"sentence": "x", "label": -1}, True),
        (SST2, {"sentence": "x"}, True), (SST2, {"sentence": "x", "label": 2}, False),
        (SST2, {"label": 1}, False), (STSB, {"sentence1": "a", "sentence2": "b", "label": ""}, True),
    ],
)  # fmt: skip
def test_rows_that_lack_labels_and_nothing_else_are_told_apart(
    tmp_path: Path, task: Task, row: dict[str, Any], none: bool
) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path / "rows.jsonl", [row]), task)
    assert isinstance(caught.value, MissingLabels) is none
    assert ("--metric agreement" in str(caught.value)) is none


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "rows.jsonl", SST2)


def test_take_keeps_texts_and_labels_together(tmp_path: Path) -> None:
    taken = read_rows(write(tmp_path / "rows.jsonl", ROWS), MNLI).take([2, 0])
    assert taken.texts[0] == ("NA", "null")
    assert taken.labels.tolist() == [1, 0]
    assert taken.sha256 == read_rows(write(tmp_path / "two.jsonl", [ROWS[2], ROWS[0]]), MNLI).sha256


def test_a_folder_gives_every_role(tmp_path: Path) -> None:
    write(tmp_path / "search.csv", sentences(30, "search"))
    write(tmp_path / "dev.parquet", sentences(10, "dev"))
    write(tmp_path / "calibration.jsonl", [{"sentence": "c 1"}, {"sentence": "dev 3"}])
    found = resolve(SST2, model_dir=tmp_path / "none", data=tmp_path)
    assert (len(found.search), len(found.select), len(found.report)) == (20, 10, 10)
    assert found.calibration is not None
    assert found.calibration.texts == (("c 1",),)
    assert any("1 calibration row" in note for note in found.notes)
    assert resolve_report(SST2, model_dir=tmp_path, data=tmp_path).sha256 == found.report.sha256


def test_the_models_own_folder_is_used_without_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "search.jsonl", sentences(9))
    write(tmp_path / "data" / "validation.jsonl", sentences(4, "report"))
    assert len(resolve(SST2, model_dir=tmp_path).report) == 4
    assert len(resolve_report(SST2, model_dir=tmp_path)) == 4


def test_search_data_overrides_one_role_and_a_file_of_data_is_the_report(tmp_path: Path) -> None:
    report = write(tmp_path / "report.jsonl", sentences(5, "report"))
    search = write(tmp_path / "mine.tsv", sentences(12, "mine"))
    found = resolve(SST2, model_dir=tmp_path, data=report, search_data=search)
    assert (len(found.search), len(found.select), len(found.report)) == (8, 4, 5)
    assert found.notes == ()


def test_report_rows_are_dropped_from_search_whatever_their_spaces_and_format(tmp_path: Path) -> None:
    report = write(tmp_path / "report.jsonl", sentences(5))
    search = write(tmp_path / "search.csv", [{"sentence": " row  3 ", "label": 0}, *sentences(9, "own")])
    found = resolve(SST2, model_dir=tmp_path, data=report, search_data=search)
    assert len(found.search) + len(found.select) == 9
    assert any("1 search rows were left out" in note for note in found.notes)


def test_search_rows_that_are_all_report_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", sentences(5))
    with pytest.raises(DataError, match="all 5 rows are among the report rows"):
        resolve(SST2, model_dir=tmp_path, data=path, search_data=path)


def test_without_report_rows_a_disjoint_part_is_held_out_and_said(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sentences(90))
    found = resolve(SST2, model_dir=tmp_path, data=tmp_path)
    assert len(found.report) == 30
    assert len(found.search) + len(found.select) == 60
    assert any("held out" in note for note in found.notes)
    assert any("may have been trained on them" in note for note in found.notes)


def test_validation_rows_alone_serve_all_roles_in_disjoint_parts(tmp_path: Path) -> None:
    found = resolve(SST2, model_dir=tmp_path, data=write(tmp_path / "only.jsonl", sentences(90)))
    assert [len(rows) for rows in (found.search, found.select, found.report)] == [40, 20, 30]
    assert any("serve all roles" in note for note in found.notes)


def test_beyond_what_a_search_looks_at_all_rows_decide_between_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axformer_onnx.data.separate.MOST_SEARCH", 25)
    rows = [{"sentence": f"text {i}", "label": i % 2} for i in range(90)]
    write(tmp_path / "search.jsonl", rows[:60])
    write(tmp_path / "validation.jsonl", rows[60:])
    found = resolve(SST2, model_dir=tmp_path, data=tmp_path)
    assert [len(rows) for rows in (found.search, found.select, found.report)] == [25, 35, 30]


def test_test_rows_are_the_report_where_there_is_no_validation_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path / "search.jsonl", sentences(9))
    write(tmp_path / "test.jsonl", sentences(4, "test"))
    found = resolve(SST2, model_dir=tmp_path, data=tmp_path)
    assert len(found.report) == 4
    assert any("test rows are the report rows" in note for note in found.notes)


def test_label_names_are_numbered_alike_in_every_role(tmp_path: Path) -> None:
    write(tmp_path / "search.jsonl", [{"text": f"s{i}", "label": "bc"[i % 2]} for i in range(9)])
    write(tmp_path / "validation.jsonl", [{"text": f"v{i}", "label": "ac"[i % 2]} for i in range(4)])
    found = resolve(custom_task(["text"]), model_dir=tmp_path, data=tmp_path)
    assert found.report.labels.tolist() == [0, 2, 0, 2]
    assert set(found.search.labels.tolist()) <= {1, 2}
    assert any("0 a, 1 b, 2 c" in note for note in found.notes)


def test_label_names_of_a_custom_task_follow_the_models_id2label(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "c", "1": "a", "2": "b"}}))
    path = write(tmp_path / "report.jsonl", [{"text": name, "label": name} for name in "abc"])
    assert resolve_report(custom_task(["text"]), model_dir=tmp_path, data=path).labels.tolist() == [1, 2, 0]


def test_shards_of_one_split_are_read_in_order(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"validation-0000{i}-of-00002.parquet", sentences(3, f"part {i}"))
    rows = resolve_report(SST2, model_dir=tmp_path, data=tmp_path)
    assert [row[0] for row in rows.texts] == [f"part {i} {j}" for i in range(2) for j in range(3)]


def test_mismatched_mnli_reads_its_own_rows(tmp_path: Path) -> None:
    write(tmp_path / "validation_matched.jsonl", ROWS[:1])
    write(tmp_path / "validation_mismatched.jsonl", ROWS[1:])
    assert len(resolve_report(MNLI, model_dir=tmp_path, data=tmp_path)) == 1
    assert len(resolve_report(get_task("mnli-mm"), model_dir=tmp_path, data=tmp_path)) == 2


def test_two_files_for_one_role_are_refused(tmp_path: Path) -> None:
    for extension in ("jsonl", "csv"):
        write(tmp_path / f"validation.{extension}", sentences(3))
    with pytest.raises(DataError, match="play the same role"):
        resolve_report(SST2, model_dir=tmp_path, data=tmp_path)


def test_a_folder_without_role_names_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "mydata.jsonl", sentences(3))
    with pytest.raises(DataError, match="no file is named after a role"):
        resolve_report(SST2, model_dir=tmp_path, data=tmp_path)


def test_a_folder_with_nothing_to_score_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sentences(3))
    with pytest.raises(DataError, match="found rows for train, but none to score"):
        resolve_report(SST2, model_dir=tmp_path, data=tmp_path)


def test_without_any_data_the_three_ways_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"--data FILE_OR_FOLDER; .*data/ beside model.onnx; .*\[hub\]"):
        resolve(SST2, model_dir=tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        resolve(SST2, model_dir=tmp_path, data="owner/absent")
    with pytest.raises(DataError, match="no such file or folder"):
        resolve(SST2, model_dir=tmp_path, data=tmp_path / "absent")


class FakeSplit:
    """What roles.py uses of a datasets.Dataset."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = {"label": types.SimpleNamespace(int2str=lambda i: ("negative", "positive")[i])}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def test_the_hub_gives_rows_where_datasets_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None) -> dict[str, FakeSplit]:
        asked.append((name, config))
        return {
            "train": FakeSplit(sentences(30)),
            "validation": FakeSplit(sentences(6, "dev")),
            "test": FakeSplit([{"sentence": "t", "label": -1}]),
        }

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = resolve(SST2, model_dir=tmp_path)
    assert asked == [("nyu-mll/glue", "sst2")]
    assert (len(found.search), len(found.select), len(found.report)) == (20, 10, 6)
    assert found.report.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(resolve_report(custom_task(["sentence"]), model_dir=tmp_path, data="owner/name")) == 6


def test_a_hub_that_does_not_answer_is_one_of_the_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="cannot be had: no route"):
        resolve(SST2, model_dir=tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    search=st.lists(st.integers(0, 40), min_size=12, max_size=80),
    report=st.lists(st.integers(30, 60), min_size=1, max_size=20),
    seed=st.integers(0, 2**32 - 1),
    most=st.none() | st.integers(6, 60),
)
def test_roles_never_share_a_text(
    tmp_path_factory: pytest.TempPathFactory, search: list[int], report: list[int], seed: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("roles")
    kept = {f"t {i}" for i in search} - {f"t {i}" for i in report}
    for name, numbers in (("search", search), ("validation", report)):
        write(folder / f"{name}.jsonl", [{"sentence": f"t {i}", "label": i % 2} for i in numbers])
    assume(len(kept) >= 12)
    first, again = (resolve(SST2, model_dir=folder, data=folder, seed=seed, max_search_rows=None) for _ in "ab")
    parts = [texts(rows) for rows in (first.search, first.select, first.report)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert {text for part in parts[:2] for (text,) in part} == kept
    assert abs(len(parts[0]) - 2 * len(parts[1])) <= 2
    assert (first.search.sha256, first.select.sha256) == (again.search.sha256, again.select.sha256)
    if most is not None:
        limited = resolve(SST2, model_dir=folder, data=folder, seed=seed, max_search_rows=most + 20)
        assert len(limited.search) + len(limited.select) <= most + 20


def test_another_seed_splits_differently(tmp_path: Path) -> None:
    write(tmp_path / "search.jsonl", sentences(60))
    write(tmp_path / "validation.jsonl", sentences(4, "report"))
    one, two = (resolve(SST2, model_dir=tmp_path, data=tmp_path, seed=seed) for seed in (0, 1))
    assert one.search.sha256 != two.search.sha256
    assert one.report.sha256 == two.report.sha256


@pytest.mark.parametrize(("name", "rows"), [("mnli", 9815), ("sst2", 872), ("mrpc", 408), ("cola", 1043)])
def test_the_real_files_are_read_whole(name: str, rows: int) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} with the real data is absent")
    task: Task = get_task(name)
    found = resolve(
        task,
        model_dir=SHARED / "checkpoints" / name,
        data=SHARED / "data" / name,
        search_data=SHARED / "checkpoints" / name / "search.jsonl",
    )
    assert len(found.report) == rows
    assert not texts(found.report) & (texts(found.search) | texts(found.select))

"""Rows without labels: what agreement says of answers that are known, of every kind, and how such rows are read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle
from test_text import save_tokenizer
from tiny_classifier import save_classifier

from axformer_onnx.commands import score
from axformer_onnx.commands.scores import ScoreResult
from axformer_onnx.data.role_files import find_roles
from axformer_onnx.data.rows import read_rows
from axformer_onnx.errors import DataError, UsageError
from axformer_onnx.options import ScoreOptions, in_python, make
from axformer_onnx.options.shared import resolved_task
from axformer_onnx.records import Scores
from axformer_onnx.scoring import drop_of
from axformer_onnx.scoring.comparison import compare
from axformer_onnx.scoring.evaluation import score_warnings
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.statistics import exact_proportion, most_unseen
from axformer_onnx.tasks import LabelMap, Task, by_agreement, get_task, match_labels, own_task

CLASSES = by_agreement(own_task("classification"))
SETS = by_agreement(own_task("multilabel"))
NUMBERS = by_agreement(own_task("regression"))
VECTORS = by_agreement(own_task("embedding"))


def columns(count: int) -> LabelMap:
    return LabelMap(tuple(range(count)), tuple(map(str, range(count))), "")


def both(task: Task, a: Any, b: Any, label_map: LabelMap | None = None) -> tuple[Scores, Scores, Any]:
    """Source, other, and their comparison."""
    label_map, none = label_map or columns(a.shape[-1]), np.full(len(a), -1)
    source, found = evaluate(a, none, task, label_map), evaluate(b, none, task, label_map, a)
    return source, found, compare(source, found, none, task, label_map)


# -- the share and its interval --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rows"), [(0, 500), (1, 500), (6, 500), (40, 60), (60, 60)])
def test_ends_of_the_interval_are_the_shares_under_which_such_a_count_is_just_not_surprising(
    count: int, rows: int
) -> None:
    found = exact_proportion(count, rows)
    assert found.value == count / rows and found.low <= found.value <= found.high
    assert stats.binom.sf(count - 1, rows, found.low) == pytest.approx(0.025 if count else 1.0)
    assert stats.binom.cdf(count, rows, found.high) == pytest.approx(0.025 if count < rows else 1.0)


def test_none_of_five_hundred_means_at_most_six_in_a_thousand() -> None:
    assert most_unseen(500) == pytest.approx(0.00597, abs=1e-5)
    assert stats.binom.pmf(0, 500, most_unseen(500)) == pytest.approx(0.05)


def test_a_model_agrees_with_itself_and_the_interval_says_how_few_rows_there_were() -> None:
    a = np.random.default_rng(0).normal(size=(500, 3))
    source, found, compared = both(CLASSES, a, a)
    assert source.metrics == found.metrics == {"agreement": 100.0, "macro-agreement": 100.0}
    assert (found.divergence, compared.outcome, compared.mcnemar) == (0.0, "no significant difference", None)
    assert compared.difference.value == compared.difference.high == 0
    assert compared.difference.low == pytest.approx(-100 * (1 - 0.025 ** (1 / 500)))
    assert compared.words == "0 of 500 answers changed: at most 0.60 % with 95 % confidence"


# -- the kinds -------------------------------------------------------------------------------------------------------


def test_flipped_answers_are_counted_and_labels_are_no_part_of_it() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(200, 3))
    b = a.copy()
    flipped = rng.permutation(200)[:14]
    b[flipped, (a[flipped].argmax(axis=1) + 1) % 3] = 10
    source, found, compared = both(CLASSES, a, b)
    assert (source.value, found.value) == (100.0, pytest.approx(93.0))
    assert compared.words.startswith("14 of 200 answers changed: 7.00 % [") and compared.outcome == "worse"
    exact = stats.binomtest(14, 200).proportion_ci(0.95, "exact")
    assert [compared.difference.low, compared.difference.high] == pytest.approx([-100 * exact.high, -100 * exact.low])
    recall = oracle.recall_score(a.argmax(axis=1), b.argmax(axis=1), average="macro")
    assert found.metrics["macro-agreement"] == pytest.approx(100 * recall)
    kl = stats.entropy(np.exp(a), np.exp(b), axis=1)
    assert found.divergence == pytest.approx(kl.mean())
    for labels in (rng.integers(3, size=200), np.full(200, 99)):
        assert evaluate(b, labels, CLASSES, columns(3), a).metrics == found.metrics


def test_a_search_is_told_what_was_measured_since_nothing_else_can_be_expected() -> None:
    a = np.random.default_rng(2).normal(size=(100, 2))
    b = np.where(np.arange(100)[:, None] < 3, -a, a)
    source, found, _ = both(CLASSES, a, b)
    drop = drop_of(source, found, np.full(100, -1), CLASSES, columns(2))
    assert drop.judged == drop.measured == pytest.approx(3.0) and 1.0 < drop.noise < 3.0
    assert drop_of(source, source, np.full(100, -1), CLASSES, columns(2)).noise > 0  # a hundred rows prove no zero


def test_label_sets_count_as_wholes_and_by_decision() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(80, 4))
    b = a.copy()
    b[:5, 0] *= -1
    b[3:5, 1] *= -1
    _, found, compared = both(SETS, a, b)
    assert found.metrics["agreement"] == pytest.approx(100 * oracle.accuracy_score(a > 0, b > 0)) == 93.75
    assert found.metrics["decisions"] == pytest.approx(100 * (1 - oracle.hamming_loss(a > 0, b > 0)))
    assert compared.words.startswith("5 of 80 label sets changed: 6.25 % [")


def test_numbers_agree_as_far_as_they_follow_the_sources() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(size=(150, 1))
    b = a + 0.2 * rng.normal(size=a.shape)
    source, found, compared = both(NUMBERS, a, b)
    pearson, spearman = (f(a[:, 0], b[:, 0]).statistic for f in (stats.pearsonr, stats.spearmanr))
    assert source.value == 100 and found.divergence == pytest.approx(((a - b) ** 2).mean())
    assert found.metrics == pytest.approx(
        {"agreement": 50 * (pearson + spearman), "pearson": 100 * pearson, "spearman": 100 * spearman}
    )
    drawn = []
    for rows in rng.integers(150, size=(400, 150)):
        x, y = a[rows, 0], b[rows, 0]
        drawn.append(50 * (stats.pearsonr(x, y).statistic + stats.spearmanr(x, y).statistic) - 100)
    assert [compared.difference.low, compared.difference.high] == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]), abs=0.4
    )
    assert compared.words is None and compared.interval == "interval of the paired bootstrap"


def test_a_source_that_answers_one_number_agrees_with_that_number_alone() -> None:
    same = np.full((20, 1), 0.7)
    other = same + np.linspace(0, 1, 20)[:, None]
    assert both(NUMBERS, same, same)[1].value == 100
    _, found, compared = both(NUMBERS, same, other)
    assert found.value == 0 and compared.difference.value == compared.difference.low == -100


def test_embeddings_agree_by_cosine_and_those_of_pairs_by_their_similarities_too() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=(60, 2, 8))
    b = a + 0.4 * rng.normal(size=a.shape)
    none = LabelMap((), (), "")

    def cosines(x: Any, y: Any) -> Any:
        return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)

    _, found, _ = both(VECTORS, a, b, none)
    similar = [cosines(x[:, 0], x[:, 1]) for x in (a, b)]
    expected = {"agreement": 100 * cosines(a, b).mean(), "spearman": 100 * stats.spearmanr(*similar).statistic}
    assert found.metrics == pytest.approx(expected)
    source, single, _ = both(VECTORS, a[:, :1], b[:, :1], none)
    assert source.metrics == {"agreement": 100.0}
    assert single.metrics == pytest.approx({"agreement": 100 * cosines(a[:, :1], b[:, :1]).mean()})


def test_answers_that_hardly_differ_are_said_to_tell_little() -> None:
    constant, mostly = np.tile([[1.0, 0.0]], (40, 1)), np.where(np.arange(40)[:, None] < 4, [[0, 1]], [[1, 0]])
    assert "gives every row the class '0'" in score_warnings(both(CLASSES, constant, constant)[0], "the source")[0]
    _, found, _ = both(CLASSES, mostly * 1.0, constant)
    assert found.majority_rate == 90 and found.value == 90
    assert "scores 90.00 % in agreement, no more than" in score_warnings(found, "the result")[1]


def test_a_model_with_other_columns_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="puts out 2 numbers a row, the source 3"):
        evaluate(np.zeros((4, 2)), np.full(4, -1), CLASSES, LabelMap((0, 1), ("0", "1"), ""), np.zeros((4, 3)))


# -- names of labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (None, 2),
        ({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, 2),
        ({"id2label": {0: "no", 1: "yes"}}, 2),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, 2),
        ({"id2label": {0: "1", 1: "0"}}, 2),
        (None, 5),
    ],
)
def test_no_name_of_a_label_need_be_known(config: Any, count: int) -> None:
    found = match_labels(by_agreement(get_task("sst2")), config, count)
    assert sorted(found.order) == list(range(count)) and len(found.names) == count


def test_a_model_of_another_kind_is_refused_all_the_same() -> None:
    single = {"problem_type": "single_label_classification"}
    for columns_known in (3, None):
        with pytest.raises(DataError, match="a sigmoid for each label"):
            match_labels(SETS, single, columns_known)
    with pytest.raises(DataError, match="the model has 1 logit"):
        match_labels(CLASSES, None, 1)
    with pytest.raises(DataError, match="is a regression, but the model has 3 logits"):
        match_labels(by_agreement(get_task("stsb")), None, 3)


@pytest.mark.parametrize(
    ("name", "texts", "metrics"),
    [
        ("sst2", None, ("agreement", "macro-agreement")),
        ("custom", ("a", "b"), ("agreement", "macro-agreement")),
        ("stsb", None, ("agreement", "pearson", "spearman")),
        ("regression", ("a",), ("agreement", "pearson", "spearman")),
        ("multilabel", None, ("agreement", "decisions")),
        ("embedding", None, ("agreement", "spearman")),
    ],
)
def test_every_task_has_agreement(name: str, texts: Any, metrics: tuple[str, ...]) -> None:
    task = resolved_task(name, texts, None, "agreement")
    assert (task.metric, task.metrics, task.labels) == ("agreement", metrics, ())
    assert task.kind.fidelity and task.kind.head_loss is None
    with pytest.raises(UsageError, match="agreement"):
        resolved_task(name, texts, None, "agreemnt")


def test_the_kind_travels_to_other_processes() -> None:
    for task in (CLASSES, VECTORS):
        assert pickle.loads(pickle.dumps(task)).kind is task.kind


# -- rows ------------------------------------------------------------------------------------------------------------


def test_the_same_texts_are_the_same_rows_whatever_their_labels_and_format(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts, task = ["a b", " c, d", 'e "f"'], by_agreement(get_task("sst2"))
    files = {
        "none.jsonl": "\n".join(json.dumps({"sentence": t}) for t in texts),
        "wrong.jsonl": "\n".join(json.dumps({"label": ["?"], "sentence": t}) for t in texts),
        "some.json": json.dumps([{"sentence": texts[0], "label": 1}, *({"sentence": t} for t in texts[1:])]),
        "none.csv": 'sentence\na b\n" c, d"\n"e ""f"""\n',
        "labels.tsv": 'label\tsentence\n7\ta b\n\t c, d\nx\te "f"\n',
        "plain.txt": 'a b\r\n\n c, d\ne "f"\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
    parquet.write_table(pa.table({"sentence": texts}), tmp_path / "none.parquet")
    found = {name: read_rows(tmp_path / name, task) for name in (*files, "none.parquet")}
    assert {rows.texts for rows in found.values()} == {tuple((t,) for t in texts)}
    assert len({rows.sha256 for rows in found.values()}) == 1


def test_a_labelled_task_names_the_way_out_where_labels_are_missing(tmp_path: Path) -> None:
    for task, row in (
        (get_task("sst2"), {"sentence": "a"}),
        (get_task("sst2"), {"sentence": "a", "label": None}),
        (get_task("sst2"), {"sentence": "a", "label": -1}),
        (get_task("stsb"), {"sentence1": "a", "sentence2": "b", "label": None}),
        (own_task("multilabel"), {"text": "a", "labels": None}),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        with pytest.raises(DataError, match=r"label.*For rows without labels there is --metric agreement") as refused:
            read_rows(tmp_path / "rows.jsonl", task)
        assert "metric='agreement'" in in_python(str(refused.value))
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(
        DataError, match=r"a text a line and nothing else, but the task reads sentence, label; .*--metric agreement"
    ):
        read_rows(tmp_path / "a.txt", get_task("sst2"))
    with pytest.raises(DataError, match=r"the task reads premise, hypothesis; give \.jsonl.*parquet$"):
        read_rows(tmp_path / "a.txt", by_agreement(get_task("mnli")))


def test_a_text_file_beside_rows_of_the_same_name_is_none_of_them(tmp_path: Path) -> None:
    for name in ("train.txt", "validation.jsonl", "validation.txt"):
        (tmp_path / name).write_text("{}")
    found = {role: [path.name for path in paths] for role, paths in find_roles(tmp_path).items()}
    assert found == {"train": ["train.txt"], "validation": ["validation.jsonl"]}


# -- score -----------------------------------------------------------------------------------------------------------


def folder(path: Path, answers: dict[int, Sequence[float]], config: dict[str, Any] | None = None) -> Path:
    """A model that answers one word by the row of its token: a is 4, b 5, c 6."""
    path.mkdir()
    save_tokenizer(path, config=config)
    table = np.zeros((1000, len(next(iter(answers.values())))), dtype=np.float32)
    for token, logits in answers.items():
        table[token] = logits
    save_classifier(path / "model.onnx", table)
    if config is None:
        (path / "config.json").unlink()
    return path


def scored(models: Sequence[Path], rows: Path, **options: Any) -> ScoreResult:
    given = {"task": "custom", "columns": ("text",), "metric": "agreement", "threads": 1, "length": (3,), **options}
    return score(make(ScoreOptions, {"models": tuple(models), "data": str(rows), **given}))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text("a\n" * 20 + "b\n" * 15 + "c\n" * 5)
    return tmp_path / "texts.txt"


def test_a_text_file_and_two_models_without_configuration_are_enough(tmp_path: Path, texts: Path) -> None:
    one = folder(tmp_path / "one", {4: (3, 0), 5: (0, 3), 6: (0, 3)})
    two = folder(tmp_path / "two", {4: (3, 0), 5: (0, 3), 6: (1, 0)})
    found = scored([one, two], texts)
    assert [model.score for model in found.models.values()] == [100.0, 87.5]
    assert found.comparison is not None and found.comparison.words is not None
    assert found.comparison.words.startswith("5 of 40 answers changed: 12.50 % [")
    assert found.fidelity and "fidelity, not accuracy" in found.notes[0]
    assert found.majority_rate == 50 and found.majority_metric == "agreement"
    assert found.figures()[2][:2] == ("divergence from the source", "") and float(found.figures()[2][2]) > 0


def test_logits_in_another_order_are_matched_by_name(tmp_path: Path, texts: Path) -> None:
    names = [
        {"id2label": dict(enumerate(order)), "vocab_size": 20} for order in (("no", "yes", "?"), ("?", "no", "yes"))
    ]
    one = folder(tmp_path / "one", {4: (3, 0, 0), 5: (0, 3, 1), 6: (0, 1, 3)}, names[0])
    two = folder(tmp_path / "two", {4: (0, 3, 0), 5: (1, 0, 3), 6: (3, 0, 1)}, names[1])
    found = list(scored([one, two], texts).models.values())
    assert found[1].score == 100 and found[1].divergence == pytest.approx(0, abs=1e-9)


def test_one_model_has_nothing_to_agree_with(tmp_path: Path, texts: Path) -> None:
    one = folder(tmp_path / "one", {4: (3, 0)})
    with pytest.raises(UsageError, match="--metric agreement compares the answers of two models"):
        scored([one], texts)


def test_numbers_of_a_regression_are_compared_by_name_of_the_kind(tmp_path: Path, texts: Path) -> None:
    one = folder(tmp_path / "one", {4: (3,), 5: (2,), 6: (-1,)})
    two = folder(tmp_path / "two", {4: (3,), 5: (2,), 6: (2.5,)})
    found = scored([one, two], texts, task="regression")
    a, b = np.repeat([3, 2, -1], [20, 15, 5]), np.repeat([3, 2, 2.5], [20, 15, 5])
    expected = 50 * (stats.pearsonr(a, b).statistic + stats.spearmanr(a, b).statistic)
    assert [model.score for model in found.models.values()] == pytest.approx([100, expected])
    with pytest.raises(DataError, match=r"the model has 1 logit.*--task regression"):
        scored([one, two], texts)


def test_rows_whose_answer_changed_are_shown_the_most_changed_first(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from axformer_onnx.cli.entry import cli

    names = {"id2label": {0: "no", 1: "yes"}, "vocab_size": 20}
    one = folder(tmp_path / "one", {4: (3, 0), 5: (0, 3), 6: (0, 3)}, names)
    two = folder(tmp_path / "two", {4: (0, 1), 5: (0, 2), 6: (9, 0)}, names)
    found = scored([one, two], texts, changed=7).changed
    assert [(row.texts, row.first, row.second) for row in found[4:]] == [
        (("c",), "yes", "no"), (("a",), "no", "yes"), (("a",), "no", "yes"),
    ]  # fmt: skip
    p, q = (
        np.exp(x) / np.exp(x).sum() for x in (np.array([0, 1.0]), np.array([3.0, 0]))
    )  # a third of the logits: [CLS] a [SEP]
    assert found[0].divergence == pytest.approx(stats.entropy(p, q))
    assert scored([one, two], texts, changed=0).changed == ()
    arguments = ["score", str(one), str(two), "--task", "custom", "--columns", "text", "--metric", "agreement"]
    cli.main([*arguments, "--data", str(texts), "--changed", "1", "--length", "3"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "25 of 40 answers changed: 62.50 % [" in printed
    assert printed.count("c: yes -> no (divergence ") == 1 and "a: no -> yes" not in printed


def test_words_for_an_answer_are_those_of_its_kind() -> None:
    sets = LabelMap((1, 0), ("joy", "anger"), "")
    assert SETS.kind.in_words(np.array([[1.0, 1.0], [-1.0, 2.0], [-1.0, -1.0]]), sets) == [
        "joy, anger",
        "joy",
        "no label",
    ]
    assert NUMBERS.kind.in_words(np.array([[0.12345]]), columns(1)) == ["0.123"]
    assert VECTORS.kind.in_words(np.zeros((2, 1, 3)), columns(0)) == ["", ""]

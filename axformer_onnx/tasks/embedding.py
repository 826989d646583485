"""Sentence embeddings: a vector for each text; all that counts are angles.

fed          the texts of a row one by one; a row of search or calibration may have one text or two, and needs no label
loss         = divergence: 1 - cosine to the source's embedding, mean over the texts of a row
metrics      spearman, pearson: correlation of the two texts' cosine with the label (as STS-B). Rows without labels: cosine,
             100 x mean cosine to the source's embeddings, which is 100 for the source itself
read         the output sentence_embedding; else last_hidden_state or token_embeddings, pooled as 1_Pooling/config.json says
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from axformer_onnx.errors import DataError
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks.metrics import Answers, LikenessMetric, NumberMetric, register_metric
from axformer_onnx.tasks.outputs import Output, Positions, columns_of, shown
from axformer_onnx.tasks.protocol import Array, Kind, LabelColumn, LabelMap, Task, register
from axformer_onnx.tasks.regression import numbers_of

TOKENS = ("last_hidden_state", "token_embeddings")
UNLABELLED = (
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
"""Text columns that are read without labels where a file lacks the task's own."""
POOLING_FILE = Path("1_Pooling") / "config.json"
POOLING: Mapping[str, Positions] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
"""sentence-transformers' names. Its mean over the square root of the length differs from the mean by a factor alone."""


class Embedding(Kind):
    """See the module. Labels are float64[N], NaN where there are none; outputs float64[N, T, D] with T texts a row."""

    name = "embedding"
    columns = ("sentence1", "sentence2")
    main_metric = "spearman"
    apart = True
    needs_source = True
    agreement = (LikenessMetric("agreement"), NumberMetric("spearman"))

    def wanted(self, task: Task, *, labelled: bool) -> tuple[str, ...]:
        """The task's own columns, and others that hold texts."""
        return tuple(dict.fromkeys((*task.columns, task.label, *(name for names in UNLABELLED for name in names))))

    def found_columns(self, task: Task, found: Sequence[str], *, labelled: bool) -> tuple[tuple[str, ...], str | None]:
        """The task's own with their label, where the file has one; else others, without."""
        if set(task.columns) <= set(found):
            return task.columns, task.label if labelled and len(task.columns) == 2 and task.label in found else None
        return next((names for names in UNLABELLED if set(names) <= set(found)), task.columns), None

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Array], tuple[str, ...]]:
        """Numbers, or NaN for all rows of a set; a set that has some of its labels is refused."""
        found: list[Array] = []
        for one in sets:
            if one.labels is None or all(value in (None, "") for value in one.labels):
                found.append(np.full(len(one.places), np.nan))
            else:
                found.append(
                    numbers_of(one, f"task {task.name}; without any labels, rows are compared with the source")
                )
        return found, ()

    def output(self, outputs: Sequence[Any], folder: Path | None) -> Output:
        """Raises: DataError where no output is an embedding or the folder asks for a pooling that is not known."""
        by_name = {one.name: one for one in outputs}
        flat = by_name.get("sentence_embedding")
        if flat is not None and len(flat.shape) == 2:
            return Output(flat.name, columns_of(flat), "row", "Embeddings: the output sentence_embedding.")
        name = next((name for name in TOKENS if name in by_name and len(by_name[name].shape) == 3), None)
        if name is None:
            raise DataError(
                f"no output is called sentence_embedding [batch, D] or {' or '.join(TOKENS)} [batch, tokens, D]; the model has "
                f"{shown(outputs)}. Export the sentence-transformers folder with axformer-onnx export"
            )
        positions, how = pooling_of(folder)
        words = {
            "first": "its first token",
            "last": "its last token",
            "mean": "its mean over tokens",
            "max": "its maximum",
        }
        note = f"Embeddings: {name}, {words[positions]} ({how})."
        return Output(name, columns_of(by_name[name]), positions, note)

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        """No labels stand for columns."""
        return LabelMap((), (), "Texts are fed one by one and compared by the cosine of their embeddings.")

    def check(self, outputs: FloatArray, labels: Array, label_map: LabelMap) -> None:
        """Outputs [N, T, D]."""
        if outputs.ndim != 3 or len(outputs) != len(labels):
            raise DataError(f"embeddings have the shape {list(outputs.shape)}, expected [{len(labels)}, texts, width]")

    def losses(self, outputs: FloatArray, labels: Array, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        """The divergence from the source; 0 for the source itself. Raises: DataError for embeddings of another width."""
        if source is None:
            return np.zeros(len(outputs))
        if source.shape != outputs.shape:
            raise DataError(
                f"embeddings have {outputs.shape[-1]} numbers, those to compare with have {source.shape[-1]}"
            )
        return self.divergence(source, outputs)

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        """1 - cosine, mean over the texts."""
        return np.asarray(np.maximum(1 - cosine(source, found), 0).mean(axis=1))

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Array, label_map: LabelMap) -> Answers:
        """given: float64[N], cosine of the two texts; the label of a single text means nothing."""
        pairs = outputs.shape[1] == 2
        labels = np.asarray(labels, dtype=np.float64) if pairs else np.full(len(outputs), np.nan)
        return Answers(labels, cosine(outputs[:, 0], outputs[:, -1]), losses)

    def metric_names(self, task: Task, answers: Answers) -> tuple[str, tuple[str, ...]]:
        """Correlations for labelled rows alone."""
        return ("cosine", ("cosine",)) if np.isnan(answers.labels).any() else (task.metric, task.metrics)

    def note_on(self, role: str, labels: Array) -> str | None:
        """Where rows have no labels."""
        if not np.isnan(labels).any():
            return None
        return f"the {role} rows have no labels: they are scored by cosine, 100 x the mean cosine to the source's embeddings"

    def reported(self, metric: str) -> tuple[str, ...]:
        """The likeness to the source, too."""
        return (metric,) if metric == "cosine" else (metric, "cosine")

    def head_columns(self, task: Task) -> None:
        """Any width."""
        return


def cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    """float64[...] of vectors [..., D]; 0 where one of them is 0."""
    above = (a * b).sum(axis=-1)
    below = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def pooling_of(folder: Path | None) -> tuple[Positions, str]:
    """(which tokens make an embedding, how that is known); mean where the folder does not say.

    Raises: DataError for two modes at once, or one that is not in POOLING.
    """
    path = None if folder is None else folder / POOLING_FILE
    if path is None or not path.is_file():
        return "mean", f"assumed: there is no {POOLING_FILE.as_posix()}"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        asked = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    names = [POOLING[name] for name in asked if name in POOLING]
    if len(asked) != 1 or len(names) != 1:
        raise DataError(f"{path}: pooling is {', '.join(asked) or 'not named'}, expected one of {', '.join(POOLING)}")
    return names[0], f"by {POOLING_FILE.as_posix()}"


for _name in ("spearman", "pearson"):
    register_metric("embedding", NumberMetric(_name))
register_metric("embedding", LikenessMetric("cosine"))
EMBEDDING = register(Embedding())

"""What a task is: a protocol that data, scoring, search and report speak, and its kinds (docs/adding-a-task.md).

Takes names and configurations; gives records that the rest of the tool asks what rows mean, what of a model is read, and what an
answer is worth.
"""

from __future__ import annotations

from axformer_onnx.tasks.agreement import AGREEMENT, by_agreement
from axformer_onnx.tasks.classification import CLASSIFICATION
from axformer_onnx.tasks.definitions import GLUE, custom_task, get_task, is_kind, own_task, with_columns
from axformer_onnx.tasks.embedding import EMBEDDING, pooling_of
from axformer_onnx.tasks.labels import label_ids, match_labels, model_label_names, spelled_alike, with_label_names
from axformer_onnx.tasks.metrics import Answers, Metric, metric_named, register_metric
from axformer_onnx.tasks.multilabel import MULTILABEL
from axformer_onnx.tasks.outputs import Output, Positions, logits_of
from axformer_onnx.tasks.protocol import (
    WITHOUT_LABELS,
    HeadLoss,
    Kind,
    LabelColumn,
    LabelMap,
    Task,
    kind_named,
    register,
)
from axformer_onnx.tasks.regression import REGRESSION

__all__ = [
    "AGREEMENT",
    "CLASSIFICATION",
    "EMBEDDING",
    "GLUE",
    "MULTILABEL",
    "REGRESSION",
    "WITHOUT_LABELS",
    "Answers",
    "HeadLoss",
    "Kind",
    "LabelColumn",
    "LabelMap",
    "Metric",
    "Output",
    "Positions",
    "Task",
    "by_agreement",
    "custom_task",
    "get_task",
    "is_kind",
    "kind_named",
    "label_ids",
    "logits_of",
    "match_labels",
    "metric_named",
    "model_label_names",
    "own_task",
    "pooling_of",
    "register",
    "register_metric",
    "spelled_alike",
    "with_columns",
    "with_label_names",
]

"""What a task is: its columns, labels and metrics, and which output of a model stands for which label.

Takes names and configurations; gives records that the rest of the tool asks what an answer is worth.
"""

from __future__ import annotations

from axformer_onnx.tasks.definitions import Task, custom_task, get_task, with_columns
from axformer_onnx.tasks.labels import LabelMap, label_ids, match_labels, with_label_names

__all__ = [
    "LabelMap",
    "Task",
    "custom_task",
    "get_task",
    "label_ids",
    "match_labels",
    "with_columns",
    "with_label_names",
]

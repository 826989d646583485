"""The tree of errors. Each class carries the exit code of the command line.

AxformerError            2   something about the input that the user can mend
+-- ModelError           2   not a model, truncated, an operator set that is not supported
|   +-- RecogniseError   2   no attention found, or a part that was asked for was not understood
|   +-- ProbeError       2   the model does not run on the inputs that were made for it
+-- PlanError            2   a plan that is not valid, or that belongs to another model
+-- DataError            2   rows, columns, labels
|   +-- MissingLabels    2   rows without labels, where the task compares with labels
+-- UsageError           2   options that contradict each other or name what does not exist
+-- RuntimeFailure       3   ONNX Runtime, a provider, a missing extra, the file system
+-- VerifyError          3   a produced graph failed its own check; nothing was written
"""

from __future__ import annotations


class AxformerError(Exception):
    """Base of every error that this project raises on purpose: one line that says what, where and what to do."""

    exit_code = 2


class ModelError(AxformerError):
    """The file is not a model that can be read."""


class RecogniseError(ModelError):
    """The graph was read, but the part that was asked for was not recognised."""


class ProbeError(ModelError):
    """The graph was read, but it does not run on a small input."""


class PlanError(AxformerError):
    """The plan is malformed or does not fit the model."""


class DataError(AxformerError):
    """The rows, columns or labels are not what the task needs."""


class MissingLabels(DataError):
    """The rows have no labels, or marks for none, and nothing else was found wrong with them."""


class UsageError(AxformerError):
    """Options that contradict each other, or name what does not exist."""


class RuntimeFailure(AxformerError):
    """ONNX Runtime, a provider, a missing extra or the file system refused."""

    exit_code = 3


class VerifyError(AxformerError):
    """A produced graph failed its own check; nothing was written."""

    exit_code = 3


def printable(text: str) -> str:
    """`text` with control characters, line breaks apart, as escapes: a file's names must not command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)

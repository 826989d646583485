"""The error tree, as the tool's users import it. Defined beside the passes, which raise it too."""

from axformer_passes.errors import (
    AxformerError,
    DataError,
    MissingLabels,
    ModelError,
    PlanError,
    ProbeError,
    RecogniseError,
    RuntimeFailure,
    UsageError,
    VerifyError,
    printable,
)

__all__ = [
    "AxformerError",
    "DataError",
    "MissingLabels",
    "ModelError",
    "PlanError",
    "ProbeError",
    "RecogniseError",
    "RuntimeFailure",
    "UsageError",
    "VerifyError",
    "printable",
]

"""The options of serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.options.base import Options, option
from axformer_onnx.options.shared import ANY_MODEL, MAX_LENGTH, PROVIDER, THREADS

if TYPE_CHECKING:
    from axformer_onnx.scoring import Machine


class ServeOptions(Options):
    """The model, where it listens, and what it takes at most."""

    model: Path = option(help=f"A finished run's folder. {ANY_MODEL}", positional=True)
    host: str = option("127.0.0.1", "Address to listen at: this machine alone. 0.0.0.0: every network that it is in.")
    port: int = option(8000, "Port; 0: any that is free.", ge=0, le=65535)
    name: str | None = option(None, "What clients call the model; default: its folder's name.", pattern=r"^[\w.-]+$")
    task: str | None = option(
        None,
        "GLUE's name of the task, or its kind: classification, multilabel, regression, embedding; default: what the run, the model "
        "or its labels state.",
    )
    max_batch: int = option(32, "Rows of a batch.", ge=1, le=4096)
    max_delay: float = option(
        0.0,
        "Milliseconds that a row waits for others while nothing runs; what arrives during a run is batched anyway.",
        ge=0,
        le=1e4,
    )
    max_queue: int = option(1024, "Rows that wait; beyond it requests are told 503 and Retry-After.", ge=1, le=10**6)
    max_body: float = option(4.0, "Megabytes of a request.", gt=0, le=1024)
    provider: str = PROVIDER
    threads: int | None = THREADS
    max_length: int | None = MAX_LENGTH

    @property
    def machine(self) -> Machine:
        """Where the session runs."""
        from axformer_onnx.scoring import Machine

        return Machine(self.provider, self.threads)

"""What a server counts, for Prometheus: `GET /metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "axformer_requests", "Requests for an answer, by status code.", ["code"], registry=registry
        )
        self.seconds = Histogram(
            "axformer_request_seconds", "From the request's head to its answer.", buckets=_SECONDS, registry=registry
        )
        self.waited = Histogram(
            "axformer_queue_seconds", "A request's time in the queue.", buckets=_SECONDS, registry=registry
        )
        self.run_seconds = Histogram("axformer_run_seconds", "A batch's run.", buckets=_SECONDS, registry=registry)
        self.batch_rows = Histogram("axformer_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.tokens = Counter("axformer_tokens", "Tokens that were run, padding left out.", registry=registry)
        self.padding = Counter("axformer_padding_tokens", "Tokens of padding that were run.", registry=registry)
        self.truncated = Counter("axformer_truncated_rows", "Texts cut at the model's limit.", registry=registry)
        self.queue = Gauge("axformer_queue_rows", "Rows that wait.", registry=registry)

    def watch_queue(self, rows: Callable[[], int]) -> None:
        """Ask `rows` how long the queue is whenever somebody looks."""
        self.queue.set_function(rows)

    def text(self) -> tuple[bytes, str]:
        """(the page, its content type)."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        content: Any = generate_latest(self.registry)
        return bytes(content), str(CONTENT_TYPE_LATEST)

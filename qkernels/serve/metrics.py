"""What Prometheus reads."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

import qkernels._core as kernel_core

_SECONDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in a registry of its own; processor time and memory of the process are among them.

    `of` gives those of a model; requests that are for none of the models are of the model "".
    """

    def __init__(self, restarts: int = 0) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        seconds: dict[str, Any] = {"buckets": _SECONDS}

        def made(kind: Any, name: str, help: str, *labels: str, **options: Any) -> Any:
            return kind(f"qkernels_{name}", help, labels, registry=self.registry, **options)

        self.connections = made(Gauge, "connections", "Open connections.")
        self.connections_ended = made(
            Counter, "connections_ended", "Connections that the server ended: idle, slow, or no room for them.",
            "reason",
        )  # fmt: skip
        self.restarts = made(Counter, "restarts", "Serving processes that were killed before this.")
        self.restarts.inc(restarts)
        self.requests = made(Counter, "requests", "Answered inference requests.", "model", "status")
        self.request_seconds = made(
            Histogram, "request_seconds", "From the headers to the answer; not of what is refused before it is read.",
            "model", **seconds,
        )  # fmt: skip
        self.queue_seconds = made(
            Histogram, "queue_seconds", "From a request's arrival to its batch.", "model", **seconds
        )
        self.compute_seconds = made(
            Histogram, "compute_seconds", "Of one batch.", "model", **seconds
        )
        self.batch_rows = made(Histogram, "batch_rows", "Rows of a batch.", "model", buckets=_ROWS)
        self.queue_rows = made(Gauge, "queue_rows", "Rows that wait for a worker.", "model")
        self.in_flight = made(
            Gauge, "requests_in_flight", "Requests that have no answer yet.", "model"
        )
        self.loads = made(Counter, "loads", "Attempts to load the model.", "model", "result")
        self.load_seconds = made(
            Gauge, "load_seconds", "To load the model and warm it up.", "model"
        )
        self.model = made(
            Gauge, "model", "1 for a version in use.", "model", "number", "version", "isa"
        )

    def of(self, model: str) -> ModelMetrics:
        return ModelMetrics(self, model)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class ModelMetrics:
    """Those of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._all, self._model = metrics, model
        self._answered: dict[int, Any] = {}
        self.request_seconds = metrics.request_seconds.labels(model)
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.compute_seconds = metrics.compute_seconds.labels(model)
        self.batch_rows = metrics.batch_rows.labels(model)
        self.queue_rows = metrics.queue_rows.labels(model)
        self.in_flight = metrics.in_flight.labels(model)

    def answered(self, status: int) -> None:
        counter = self._answered.get(status)
        if counter is None:
            counter = self._answered[status] = self._all.requests.labels(self._model, status)
        counter.inc()

    def loaded(self, number: str, version: str, seconds: float) -> None:
        self._all.loads.labels(self._model, "ok").inc()
        self._all.load_seconds.labels(self._model).set(seconds)
        self._all.model.labels(self._model, number, version, kernel_core.active_isa()).set(1)

    def failed(self) -> None:
        self._all.loads.labels(self._model, "failed").inc()

    def retired(self, number: str, version: str) -> None:
        self._all.model.remove(self._model, number, version, kernel_core.active_isa())

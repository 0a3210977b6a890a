"""What Prometheus reads."""

from __future__ import annotations

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
    """Of one server, in a registry of its own; processor time and memory of the process are among them."""

    def __init__(self, restarts: int = 0) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        r = self.registry
        self.requests = Counter(
            "qkernels_requests", "Answered inference requests.", ["status"], registry=r
        )
        self.request_seconds = Histogram(
            "qkernels_request_seconds",
            "From the headers to the answer; not of what is refused before it is read.",
            buckets=_SECONDS,
            registry=r,
        )
        self.queue_seconds = Histogram(
            "qkernels_queue_seconds",
            "From a request's arrival to its batch.",
            buckets=_SECONDS,
            registry=r,
        )
        self.compute_seconds = Histogram(
            "qkernels_compute_seconds", "Of one batch.", buckets=_SECONDS, registry=r
        )
        self.batch_rows = Histogram(
            "qkernels_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=r
        )
        self.queue_rows = Gauge("qkernels_queue_rows", "Rows that wait for a worker.", registry=r)
        self.in_flight = Gauge(
            "qkernels_requests_in_flight", "Requests that have no answer yet.", registry=r
        )
        self.connections = Gauge("qkernels_connections", "Open connections.", registry=r)
        self.connections_ended = Counter(
            "qkernels_connections_ended",
            "Connections that the server ended: idle, slow, or no room for them.",
            ["reason"],
            registry=r,
        )
        self.restarts = Counter(
            "qkernels_restarts", "Serving processes that were killed before this.", registry=r
        )
        self.restarts.inc(restarts)
        self.loads = Counter(
            "qkernels_loads", "Attempts to load the model.", ["result"], registry=r
        )
        self.load_seconds = Gauge(
            "qkernels_load_seconds", "To load the model and warm it up.", registry=r
        )
        self.model = Gauge(
            "qkernels_model", "1 for the version in use.", ["version", "isa"], registry=r
        )

    def loaded(self, version: str, seconds: float) -> None:
        self.loads.labels("ok").inc()
        self.load_seconds.set(seconds)
        self.model.clear()
        self.model.labels(version, kernel_core.active_isa()).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)

"""What a model has done, in the form of the protocol's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sum:
    """How often, and seconds in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * 1e9)}


@dataclass
class Statistics:
    """The statistics of one version.

    ``success``, ``fail``: requests, from their headers to their answer. ``input``, ``output``: the reading and writing
    of their messages. ``batches``: those of so many rows.
    """

    success: Sum = field(default_factory=Sum)
    fail: Sum = field(default_factory=Sum)
    queue: Sum = field(default_factory=Sum)
    input: Sum = field(default_factory=Sum)
    infer: Sum = field(default_factory=Sum)
    output: Sum = field(default_factory=Sum)
    batches: dict[int, Sum] = field(default_factory=dict)
    rows: int = 0
    last: float = 0.0  # time.time()

    def ran(self, rows: int, requests: int, seconds: float) -> None:
        self.batches.setdefault(rows, Sum()).add(seconds)
        self.infer.add(seconds * requests, requests)
        self.rows += rows
        self.last = time.time()

    def answered(self, began: float, read: float, decoded: float, computed: float) -> None:
        """A request, now, with the times of `time.perf_counter` at which its parts began."""
        now = time.perf_counter()
        self.success.add(now - began)
        self.input.add(decoded - read)
        self.output.add(now - computed)

    def shown(self, name: str, version: str) -> dict[str, Any]:
        nothing = Sum().shown()
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last * 1e3),
            "inference_count": self.rows,
            "execution_count": sum(batch.count for batch in self.batches.values()),
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": self.queue.shown(),
                "compute_input": self.input.shown(),
                "compute_infer": self.infer.shown(),
                "compute_output": self.output.shown(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": {"count": batch.count, "ns": 0},
                    "compute_infer": batch.shown(),
                    "compute_output": {"count": batch.count, "ns": 0},
                }
                for rows, batch in sorted(self.batches.items())
            ],
        }

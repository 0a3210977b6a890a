"""A program on Ray Serve: replicas over the nodes of a cluster, each behind the HTTP application of `qkernels serve`.

    serve run qkernels.serve.ray:app path=/models/student.qkp size=1,3,32,32

How many replicas there are, where and on how many CPUs is said in Ray's own options of the deployment `Replica`.
"""

# No annotations from the future: Ray looks for a pydantic model in the annotation of `app`.
import asyncio
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pydantic import BaseModel
from ray import serve
from starlette.applications import Starlette

from qkernels.serve.app import application
from qkernels.serve.batching import Times
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Arrays, map_program
from qkernels.serve.repository import Repository
from qkernels.serve.settings import Settings
from qkernels.serve.statistics import Statistics
from qkernels.utils.input_size import parse_size


class Arguments(BaseModel, extra="forbid"):
    """``path``: a program, in this place on every node. ``name``: of the model, else that of its file.

    ``size``: of an input, such as 1,3,224,224; of several, with spaces between. ``max_delay``: milliseconds that a
    batch waits to fill up to ``max_batch`` rows.
    """

    path: Path
    name: str | None = None
    size: str = ""
    max_batch: int = 32
    max_delay: float = 0.0


def _rows(requests: list[Arrays]) -> int:
    return sum(len(inputs[0]) for inputs in requests)


def _threads() -> int:
    """A thread for each CPU of the replica, so that those of a node take no more than its cores; 1 for part of one."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


@serve.deployment(
    autoscaling_config={"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 16},
    max_ongoing_requests=64,  # of a replica: one batch runs while the next one gathers
    max_queued_requests=256,
)
@serve.ingress()
class Replica:
    """One process that answers on as many threads as it has CPUs.

    It maps the program: the replicas of a node share the weights. Raises what `map_program` and `Settings` raise, more
    CPUs than the node has among it.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._settings = Settings(
            path=arguments.path,
            name=arguments.name or arguments.path.stem,
            sizes=tuple(parse_size(text) for text in arguments.size.split()),
            threads=_threads(),
            max_batch=arguments.max_batch,
            max_delay=arguments.max_delay / 1e3,
            queue=arguments.max_batch,  # what waits is Ray's part
            control="explicit",
            token=os.environ.get("QKERNELS_TOKEN"),
        )
        settings = self._settings
        opened = map_program(settings.path, settings.sizes, settings.threads)
        self.model = opened.warm_up(settings.max_batch)
        batch: Any = self.infer  # Ray's types have not its setters, nor bind below
        batch.set_max_batch_size(self.model.max_batch)
        batch.set_batch_wait_timeout_s(settings.max_delay)

    def __serve_build_asgi_app__(self) -> Starlette:
        return application(self._settings, repository=partial(_Loaded, self))

    async def predict(self, *inputs: np.ndarray) -> Arrays:
        """The model's outputs for float32 arrays [N, ...]; for a handle in Python. Raises ValueError for others."""
        self.model.check(inputs)
        return await self.infer(inputs)

    @serve.batch(batch_size_fn=_rows)
    async def infer(self, requests: list[Arrays]) -> list[Arrays]:
        """Requests of any number of rows as one call."""
        return await asyncio.to_thread(self.model.run_together, requests)


class _Batches:
    """Ray's batches, as the application asks for its own; how long a request waited for one, Ray does not say."""

    full = False  # Ray's proxy refuses what is beyond max_queued_requests

    def __init__(self, replica: Any, settings: Settings) -> None:
        self.model, self.settings, self.statistics = replica.model, settings, Statistics()
        self._replica = replica

    async def infer(
        self, inputs: Arrays, seconds: float = math.inf, times: Times | None = None
    ) -> Arrays:
        began = time.perf_counter()
        results: Arrays = await self._replica.infer(inputs)
        if times is not None:
            times.compute = time.perf_counter() - began
        return results


class _Loaded(Repository):
    """The model of a replica, which stays as it is: Ray replaces replicas."""

    def __init__(self, replica: Any, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        batches: Any = _Batches(replica, settings)
        self.put(settings.name, batches.model.version, batches)

    async def watch(self) -> None:
        pass


def app(arguments: Arguments) -> serve.Application:
    """The application for `serve run` and Serve's configuration files."""
    replica: Any = Replica
    return replica.bind(arguments)

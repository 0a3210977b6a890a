"""The model in use, replaced when its file is."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

from qkernels.serve.batching import Batcher
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import open_model
from qkernels.serve.settings import Settings

logger = logging.getLogger("qkernels.serve")

Stamp = tuple[int, int, int]


class CurrentModel:
    """Requests go to ``batcher``, None until the first model is loaded and has run.

    A new version takes its place in one assignment; requests that wait for the old one are still answered by it, by
    the same workers.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.batcher: Batcher | None = None
        self._settings, self._metrics = settings, metrics
        self._workers = ThreadPoolExecutor(settings.workers, "worker")
        self._stamp: Stamp | None = None

    async def watch(self) -> None:
        """Load the model, then every new version of its file. Raises what is wrong with the first one only."""
        await self._load(self._seen())
        trouble = ""
        while True:
            await asyncio.sleep(self._settings.watch_every)
            try:
                if (stamp := self._seen()) != self._stamp:
                    await self._load(stamp)
                    trouble = ""
            except Exception as error:  # whatever the new file is, the old version goes on
                if str(error) != trouble:  # once, not at every look
                    trouble = str(error)
                    self._metrics.loads.labels("failed").inc()
                    logger.error("not reloaded, the old version goes on: %s", error)

    async def _load(self, stamp: Stamp) -> None:
        self._stamp = stamp
        began = time.perf_counter()
        settings, loop = self._settings, asyncio.get_running_loop()
        opened = await asyncio.to_thread(
            open_model, settings.path, settings.sizes, settings.threads
        )
        model = await loop.run_in_executor(self._workers, opened.warm_up, settings.max_batch)
        self.batcher = Batcher(model, settings, self._workers, self._metrics)
        seconds = time.perf_counter() - began
        self._metrics.loaded(model.version, seconds)
        logger.info("version %s is ready after %.3f s", model.version, seconds)

    def _seen(self) -> Stamp:
        stat = os.stat(self._settings.path)
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def close(self) -> None:
        self._workers.shutdown(wait=False)

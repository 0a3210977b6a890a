"""The models that a server has: one file, or a folder with NAME/VERSION/model.qkp, which may change while it serves."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qkernels.serve.batching import Batcher
from qkernels.serve.errors import COME_BACK, RequestError, bad
from qkernels.serve.metrics import Metrics, ModelMetrics
from qkernels.serve.model import open_model
from qkernels.serve.settings import Settings, own_settings
from qkernels.serve.workers import Workers

logger = logging.getLogger("qkernels.serve")

PROGRAM, OWN = "model.qkp", "settings.json"
_MOST_CHANGES = 16  # that wait for each other

_WORTH = 1.1  # times that a row is cheaper in a full batch where waiting for one may pay
_LOOK_SECONDS = 5.0  # for the file system to answer

Stamp = tuple[int, ...]
T = TypeVar("T")


@dataclass
class Source:
    """A version's file as it was seen. ``own``: the model's own settings, if it has them."""

    path: Path
    stamp: Stamp
    own: Path | None = None


Seen = dict[str, dict[str, Source]]  # by name and number


@dataclass
class Version:
    """``number``: its folder's name; of a file of its own, its checksum. ``batcher``: None until it is loaded."""

    number: str
    source: Source | None = None  # what was tried last
    batcher: Batcher | None = None
    trouble: str = ""

    @property
    def loaded(self) -> Batcher:
        assert self.batcher is not None
        return self.batcher

    @property
    def state(self) -> dict[str, str]:
        if self.batcher is not None:
            return {"state": "READY", "reason": self.trouble}
        return {"state": "UNAVAILABLE" if self.trouble else "LOADING", "reason": self.trouble}


@dataclass
class Served:
    """A model by its name. ``inside``: requests for results that have no answer yet."""

    name: str
    metrics: ModelMetrics
    versions: dict[str, Version] = field(default_factory=dict)
    inside: int = 0
    latest: Version | None = None

    def choose(self) -> None:
        """Make ``latest`` the loaded version of the highest number, after a change."""
        loaded = [version for version in self.versions.values() if version.batcher is not None]
        self.latest = max(loaded, key=lambda version: _order(version.number), default=None)

    def find(self, number: str | None) -> Version:
        """The version of this number or checksum; None: the latest. Raises RequestError."""
        if number is None:
            latest = self.latest
            if latest is None:
                raise self._unready(self.versions.values())
            return latest
        for version in self.versions.values():
            loaded = version.batcher
            if loaded is not None and number in (version.number, loaded.model.version):
                return version
            if number == version.number:
                raise self._unready([version])
        there = ", ".join(version.number for version in self.versions.values())
        raise RequestError(404, f"there is no version {number!r}; it is {there!r}")

    def numbers(self) -> list[str]:
        """The numbers of the versions that are loaded."""
        return [version.number for version in self.versions.values() if version.batcher is not None]

    def compare(self, name: str | None, number: str | None, found: Version) -> None:
        """What the message says with what the address says. Raises RequestError(404)."""
        if name is not None and name != self.name:
            raise RequestError(404, f"there is no model {name!r} at the address of {self.name!r}")
        if number is not None and self.find(number) is not found:
            raise RequestError(
                404, f"there is no version {number!r} at the address of {found.number!r}"
            )

    def _unready(self, versions: Iterable[Version]) -> RequestError:
        if trouble := next((version.trouble for version in versions if version.trouble), ""):
            return RequestError(503, f"model {self.name!r} cannot be served: {trouble}", COME_BACK)
        return RequestError(503, f"model {self.name!r} is being loaded", COME_BACK)

    def is_full(self) -> bool:
        """Whether one more request for results is one too many.

        Then as many are inside, waiting or still being read, as the queue and the workers hold, or as many rows wait as
        may.
        """
        latest = self.latest
        if latest is None or latest.batcher is None:
            return False
        batcher = latest.batcher
        settings = batcher.settings
        return self.inside >= settings.queue + settings.workers * settings.max_batch or batcher.full


class Repository:
    """Looks its models up, loads what is new and lets go what is gone; whatever is wrong with one, the others go on."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, Served] = {}
        self._workers, self._background = Workers(settings.workers), Background()
        self._changing, self._changes, self._reading = asyncio.Lock(), 0, asyncio.Lock()
        self._looking: asyncio.Future[Seen] | None = None
        self._said: dict[str, str] = {}  # what is wrong, by where: once for each change
        self.is_ready = False
        if not settings.is_folder:
            self._served(settings.name)

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._models.values()))

    def get(self, name: str) -> Served | None:
        return self._models.get(name)

    def find(self, name: str) -> Served:
        """Raises RequestError(404), and what `check_known` raises."""
        if (served := self._models.get(name)) is None:
            self.check_known()
            there = ", ".join(map(repr, self._models)) or "none"
            raise RequestError(404, f"there is no model {name!r}; this is {there}")
        return served

    def check_known(self) -> None:
        """Raises RequestError(503) while nobody has read yet which models there are."""
        if self._settings.is_folder and not self.is_ready:
            raise RequestError(503, "the models are being loaded", COME_BACK)

    async def watch(self) -> None:
        """Load what is there, then whatever changes. Raises what is wrong with a file of its own at the start only."""
        wanted = set(self._settings.loads)
        if self._settings.is_folder:
            await self._change(lambda name: self._settings.polls or name in wanted)
            for name in wanted - self._models.keys():
                self._say(name, f"the repository has no model {name!r}")
        else:
            (source,) = (await self._seen())[self._settings.name].values()
            await self._load_first(source)
        self.is_ready = True
        while self._settings.polls:
            await asyncio.sleep(self._settings.watch_every)
            await self._change(lambda name: True)

    async def load(self, name: str) -> None:
        """All versions of a model, as its files are now. Raises RequestError for one that does not load."""
        self._may_change()
        if (before := self._models.get(name)) is not None:
            for version in before.versions.values():
                if version.trouble:
                    version.source = None  # once more
        # It goes on where whoever asked does not wait for it.
        await asyncio.shield(asyncio.ensure_future(self._change(lambda other: other == name)))
        served = self._models.get(name)
        if served is None:
            raise RequestError(404, f"the repository has no model {name!r}")
        if trouble := [version.trouble for version in served.versions.values() if version.trouble]:
            raise bad(f"model {name!r} does not load: {trouble[0]}")

    async def unload(self, name: str) -> None:
        """No request finds it any more; those that wait are still answered."""
        self._may_change()
        served = self.find(name)
        async with self._changing:
            for version in list(served.versions.values()):
                self._retire(served, version)
            self._models.pop(name, None)

    def statistics(
        self, name: str | None = None, number: str | None = None
    ) -> list[dict[str, Any]]:
        """What the protocol tells of the loaded versions of one model, or of all. Raises RequestError(404)."""
        every = self if name is None else [self.find(name)]
        return [
            version.loaded.statistics.shown(served.name, version.number)
            for served in every
            for version in (served.versions.values() if number is None else [served.find(number)])
            if version.batcher is not None
        ]

    async def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """Name, version, state and reason of whatever is in the repository."""
        try:
            seen = await self._seen()
        except OSError:
            seen = {}
        rows = [
            {"name": served.name, "version": version.number} | version.state
            for served in self
            for version in served.versions.values()
        ]
        unloaded = {"state": "UNAVAILABLE", "reason": "unloaded"}
        rows += [
            {"name": name, "version": number} | unloaded
            for name, versions in seen.items()
            for number in versions
            if name not in self._models
        ]
        return [row for row in rows if row["state"] == "READY" or not only_ready]

    def close(self) -> None:
        self._workers.close()

    def put(self, name: str, number: str, batcher: Batcher) -> None:
        """A version that somebody else has loaded."""
        served = self._served(name)
        served.versions[number] = Version(number, batcher=batcher)
        served.choose()
        self.is_ready = True

    def _may_change(self) -> None:
        if self._settings.polls:
            raise bad(
                "models are loaded and unloaded as their files are: --control explicit is needed"
            )
        if self._changes >= _MOST_CHANGES:
            raise RequestError(503, "other models are being loaded", COME_BACK)

    async def _change(self, concerns: Callable[[str], bool]) -> None:
        """Bring what is loaded to what is there, for the models of these names."""
        self._changes += 1
        try:
            async with self._changing:
                try:
                    seen = await self._seen()
                except OSError as error:  # its file system went away: what is loaded goes on
                    self._say("", f"the repository cannot be read: {error}")
                    return
                self._say("", "")
                await self._update_all({name: seen[name] for name in seen if concerns(name)})
                for served in self:
                    if concerns(served.name) and served.name not in seen:
                        self._drop(served)
        finally:
            self._changes -= 1

    async def _seen(self) -> Seen:
        """What is there. Raises OSError, also where the file system does not answer."""
        looking = self._looking  # of whoever looks at the same moment
        if looking is None or looking.done():
            looking = self._looking = asyncio.ensure_future(self._background.run(self._look))
        done, _ = await asyncio.wait({looking}, timeout=_LOOK_SECONDS)
        if not done:
            raise OSError(f"{self._settings.path}: its file system does not answer")
        return looking.result()

    def _look(self) -> Seen:
        """What lies in the folder, or the one file.

        Raises OSError; an empty folder that was not empty is one, since that is what a file system leaves that is not
        there any more.
        """
        path = self._settings.path
        if not self._settings.is_folder:
            return {self._settings.name: {"": Source(path, _stamp(path))}}
        seen: Seen = {}
        for folder in sorted(path.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            own = folder / OWN
            numbers = [one.name for one in folder.iterdir() if _is_number(one.name)]
            seen[folder.name] = {}
            for number in sorted(numbers, key=int):
                program = folder / number / PROGRAM
                if program.is_file():
                    has_own = own.is_file()
                    stamp = _stamp(program) + (_stamp(own) if has_own else ())
                    seen[folder.name][number] = Source(program, stamp, own if has_own else None)
        if not seen and self._models:
            raise FileNotFoundError(f"{path} is empty")
        return seen

    async def _update_all(self, seen: Seen) -> None:
        """Two models at a time: the file of one is read while the other runs its first batches."""
        two = asyncio.Semaphore(2)

        async def update(name: str) -> None:
            async with two:
                await self._update(name, seen[name])

        await asyncio.gather(*map(update, seen))

    async def _update(self, name: str, seen: dict[str, Source]) -> None:
        if not seen:
            if name not in self._models:
                self._say(name, f"there is no {name}/VERSION/{PROGRAM}, whose VERSION is a number")
            else:
                self._drop(self._models[name])
            return
        served = self._served(name)
        for number, source in seen.items():
            version = served.versions.setdefault(number, Version(number))
            if version.source is None or version.source.stamp != source.stamp:
                await self._try(served, version, source)
        for number in served.versions.keys() - seen.keys():
            self._retire(served, served.versions.pop(number))

    async def _try(self, served: Served, version: Version, source: Source) -> None:
        """Whatever the new file is, the old one goes on where it is not right."""
        version.source = source
        try:
            await self._load(served, version, source)
            version.trouble = ""
        except Exception as error:
            served.metrics.failed()
            version.trouble = str(error)
            what = "the old version goes on" if version.batcher is not None else "it is not served"
            logger.error("%s is not loaded, %s: %s", _label(served, version), what, error)

    async def _load_first(self, source: Source) -> None:
        served = self._served(self._settings.name)
        version = served.versions[""] = Version("", source)
        await self._load(served, version, source)

    async def _load(self, served: Served, version: Version, source: Source) -> None:
        began = time.perf_counter()
        settings = self._settings
        async with self._reading:
            if source.own is not None:
                settings = await self._background.run(own_settings, settings, source.own)
            opened = await self._background.run(
                open_model, source.path, settings.sizes, settings.threads
            )
        model = await self._workers.run(opened.warm_up, settings.max_batch)
        if settings.max_delay > 0 and (gain := await self._workers.run(model.batch_gain)) < _WORTH:
            logger.warning(
                "%s: requests wait for others, though a row of a full batch costs %.2f of one alone",
                _label(served, version),
                1 / gain,
            )
        self._retire(served, version)
        version.batcher = Batcher(model, settings, self._workers, served.metrics)
        if not self._settings.is_folder:
            version.number = model.version
        served.choose()
        seconds = time.perf_counter() - began
        served.metrics.loaded(version.number, model.version, seconds)
        logger.info(
            "%s, version %s, is ready after %.3f s", _label(served, version), model.version, seconds
        )

    def _served(self, name: str) -> Served:
        if name not in self._models:
            served = Served(name, self._metrics.of(name))
            served.metrics.in_flight.set_function(lambda: served.inside)
            self._models[name] = served
        return self._models[name]

    def _drop(self, served: Served) -> None:
        if not self._settings.is_folder:
            return
        for version in served.versions.values():
            self._retire(served, version)
        del self._models[served.name]

    def _retire(self, served: Served, version: Version) -> None:
        """Requests that wait for it are still answered by it."""
        if version.batcher is None:
            return
        served.metrics.retired(version.number, version.batcher.model.version)
        version.batcher = None
        served.choose()

    def _say(self, where: str, trouble: str) -> None:
        if self._said.get(where, "") != trouble:
            self._said[where] = trouble
            if trouble:
                logger.error("%s; what is loaded goes on", trouble)
            else:
                logger.info("the repository can be read again")


class Background:
    """A thread for what may never come back, since a file system may not answer.

    Nobody waits for it at the end, and another takes its place for whatever comes while it is busy. It stays otherwise,
    for each new thread would have memory of its own, which loading a model after the other would let grow.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] | None = None
        self._is_busy = False

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._jobs is None or self._is_busy:
            if self._jobs is not None:
                self._jobs.put(None)
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), name="files", daemon=True).start()
        jobs, self._is_busy = self._jobs, True

        def tell(set: Callable[[Any], None], what: Any) -> None:
            if jobs is self._jobs:
                self._is_busy = False
            if not future.done():
                set(what)

        def job() -> None:
            try:
                told: tuple[Any, Any] = future.set_result, work(*arguments)
            except BaseException as error:
                told = future.set_exception, error
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, *told)

        jobs.put(job)
        return await future


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _label(served: Served, version: Version) -> str:
    return f"model {served.name!r}" + (
        f", number {version.number}" if _is_number(version.number) else ""
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and name[0] != "0"


def _order(number: str) -> int:
    return int(number) if _is_number(number) else 0


def _stamp(path: Path) -> Stamp:
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ino, stat.st_size

"""What a server is told when it starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from qkernels.utils.cores import usable_cores
from qkernels.utils.input_size import Size, parse_size

_NAME = re.compile(r"[^/\x00-\x1f\x7f]+")
_LEAST = {
    "workers": 1, "threads": 1, "max_batch": 1, "max_delay": 0, "max_body": 1, "timeout": 0.001, "keep_alive": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    ``path``: a model's file, or a folder of models, whose ``name`` is "": each of them has its own, and may have
    settings of its own beside its versions. ``control``: whether models are loaded and let go as their files are, or as
    clients ask, after those of ``loads``.

    ``sizes``: [N, C, H, W] or [N, C] of each input, whose N is only an example; none: they follow from the file.

    ``workers`` calls run at a time, each on ``threads`` threads. ``queue``: rows that may wait for them.
    ``max_delay``, ``timeout``: seconds a batch waits to fill up, and a request has in all, its headers before that.
    ``keep_alive``: seconds that a connection may be idle. ``max_body``: bytes. ``token``: white space around it is none
    of it, since files with secrets end in a newline. ``origins``: whose pages may ask (CORS), "*": all. ``grpc``: the
    address for it, and the files of its TLS certificate and key. ``cores``: those there were when it began; models that
    are loaded later are no worse for a quota that shrank meanwhile.
    """

    path: Path
    name: str = ""
    sizes: tuple[Size, ...] = ()
    workers: int = 1
    threads: int = 1
    max_batch: int = 32
    max_delay: float = 0.0
    queue: int = 256
    timeout: float = 10.0
    keep_alive: float = 75.0  # above the 60 of most load balancers, which would meet a reset
    max_body: int = 16 << 20
    token: str | None = None
    watch_every: float = 1.0  # seconds between two looks at the files
    control: Literal["poll", "explicit"] = "poll"
    loads: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    grpc: tuple[str, Path | None, Path | None] | None = None
    cores: int = field(default_factory=lambda: usable_cores(), repr=False)
    is_folder: bool = field(init=False, default=False)

    @property
    def polls(self) -> bool:
        return self.control == "poll"

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number")
            if value < low:
                raise ValueError(f"{name}={value} must be at least {low}")
        if self.token is not None:
            object.__setattr__(self, "token", checked_token(self.token))
        object.__setattr__(self, "is_folder", self.path.is_dir())
        if self.is_folder and (self.name or self.sizes):
            what = "name" if self.name else "size"
            raise ValueError(
                f"{what} is of one model: in the folder {self.path} each has its own, and sizes in NAME/settings.json"
            )
        if not self.is_folder and not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be without / and control characters")
        if self.queue < self.max_batch:
            raise ValueError(
                f"queue={self.queue} must hold at least one batch, max_batch={self.max_batch}"
            )
        if self.workers * self.threads > self.cores:
            raise ValueError(
                f"workers={self.workers} x threads={self.threads} is above the {self.cores} cores that this "
                "process may use"
            )


class _Own(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """NAME/settings.json of a repository, in the words and units of the flags."""

    size: tuple[str, ...] = ()
    max_batch: int | None = None
    max_delay: float | None = None
    queue: int | None = None
    timeout: float | None = None


def own_settings(settings: Settings, path: Path) -> Settings:
    """The settings with what the file of a model says otherwise. Raises ValueError that names the file, and OSError."""
    try:
        own = msgspec.json.decode(path.read_bytes(), type=_Own)
        changed = {
            name: value for name, value in msgspec.structs.asdict(own).items() if value is not None
        }
        changed["sizes"] = tuple(parse_size(text) for text in changed.pop("size", ()))
        if own.max_delay is not None:
            changed["max_delay"] = own.max_delay / 1e3
        return replace(settings, path=path, name=path.parent.name, **changed)
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def checked_token(text: str) -> str:
    """The token without white space around it. Raises ValueError for one that no header can hold."""
    token = text.strip()
    if not token:
        raise ValueError("the bearer token is empty: set one, or unset $QKERNELS_TOKEN")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the bearer token has characters that no header can hold")
    return token


def share_cores(workers: int | None, threads: int | None) -> tuple[int, int]:
    """What is left open gets the cores that are left: one worker on all of them, where both are."""
    cores = usable_cores()
    if threads is None:
        workers = workers or 1
        return workers, max(1, cores // workers)
    return workers or max(1, cores // threads), threads

"""A server in a process of its own, and what tests ask of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx


@dataclass
class Served:
    process: subprocess.Popen[str]
    ready_when: str = "is ready"
    lines: list[dict[str, Any]] = field(default_factory=list)
    listening: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    scheme: str = ""
    address: str = ""

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            is_json = text.startswith("{")  # or a sentence of one that did not start
            self.lines.append(json.loads(text) if is_json else {"message": text})
            message = self.lines[-1]["message"]
            if found := re.search(r"running on (https?)://(\S+)", message):
                self.scheme, self.address = found[1], found[2]
                self.listening.set()
            if self.ready_when in message:
                self.ready.set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def child(self) -> int:
        """The process that serves now; the one that was started only keeps it alive."""
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20)


@contextmanager
def serving(
    *words: object,
    module: tuple[str, ...] = ("qkernels.serve",),
    before: Callable[[], None] | None = None,
    ready: str = "is ready",
    **environment: str,
) -> Iterator[Served]:
    """`qkernels.serve` on a free port, once its log says ``ready``; killed afterwards, if it still runs. ``before``:
    what its process does first."""
    command = [sys.executable, "-m", *module, *map(str, words), "--port", "0"]
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    served = Served(process, ready_when=ready)
    reader = threading.Thread(target=served.read_log)
    reader.start()
    try:
        while not (served.listening.is_set() and served.ready.is_set()):
            assert process.poll() is None, served.lines
            time.sleep(0.01)
        yield served
    finally:
        process.kill()
        process.wait()
        reader.join()

"""A server in a process of its own, and what tests ask of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Served:
    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    listening: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            message = self.lines[-1]["message"]
            if found := re.search(r"running on http://(\S+)", message):
                self.address = found[1]
                self.listening.set()
            if "is ready" in message:
                self.ready.set()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20)


@contextmanager
def serving(*words: object, **environment: str) -> Iterator[Served]:
    """`qkernels.serve` on a free port, once it is ready; killed afterwards, if it still runs."""
    command = [sys.executable, "-m", "qkernels.serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    served = Served(process)
    reader = threading.Thread(target=served.read_log)
    reader.start()
    try:
        assert served.listening.wait(60) and served.ready.wait(60), served.lines
        yield served
    finally:
        process.kill()
        process.wait()
        reader.join()

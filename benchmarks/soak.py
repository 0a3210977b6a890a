"""A server of several models under mixed load for a long time: every answer as it must be, memory that does not grow.

python benchmarks/soak.py [--minutes 30] [--rate 60] [--model MODEL.qkp --size C,H,W] [--out RESULTS.json]

Requests that are good, malformed, huge, slow or given up half-way, in a seeded mixture, while the models' files are
replaced now and then, and a second version of one of them comes and goes. Exit code 1: an answer was wrong, or memory
in the last fifth of the time was more than BOUND_MB above that in the second.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

import load
import served
from load import Address, Connection, connect

from qkernels.utils.progress import Advance, progress

BOUND_MB = 2.0
USERS = 8
RELOADS = 10
SAMPLES = 100
GONE = "gone"  # what a client that went gets
PATH = "/v2/models/m/infer"
OTHERS = ("a", "b", "c")  # models beside m


@dataclass(frozen=True)
class Kind:
    """``share`` of all requests. ``pause``: seconds after half of the bytes; ``leaves``: then closes instead."""

    name: str
    share: float
    request: bytes
    expected: int | str
    pause: float = 0.0
    leaves: bool = False


def kinds(size: tuple[int, ...]) -> list[Kind]:
    x = np.random.default_rng(0).standard_normal((8, *size)).astype(np.float32)
    one = load.infer(x[:1])
    given = {"name": "input", "shape": [1, *size], "datatype": "FP32"}
    text = json.dumps({"inputs": [given | {"data": x[0].ravel().tolist()}]}).encode()
    short = json.dumps({"inputs": [given | {"data": [0.5]}]}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: soak\r\nContent-Length: {10**12}\r\n\r\n".encode()
    packed = gzip.compress(text, 1, mtime=0)
    index = "/v2/repository/index"
    return [
        Kind("one image", 0.29, one, 200),
        *(Kind(f"one image, model {m}", 0.05, load.infer(x[:1], name=m), 200) for m in OTHERS),
        Kind("JSON, gzip", 0.02, load.post(PATH, packed, Content_Encoding="gzip"), 200),
        Kind("index", 0.02, load.post(index, b"{}"), 200),
        Kind("statistics", 0.02, b"GET /v2/models/stats HTTP/1.1\r\nHost: soak\r\n\r\n", 200),
        Kind("eight images", 0.10, load.infer(x), 200),
        Kind("JSON", 0.05, load.post(PATH, text), 200),
        Kind("metrics", 0.05, b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n", 200),
        Kind("slow", 0.05, one, 200, pause=0.2),
        Kind("gives up", 0.05, one, GONE, leaves=True),
        Kind("NaN", 0.05, load.infer(np.full_like(x[:1], np.nan)), 400),
        Kind("wrong shape", 0.05, load.post(PATH, short), 400),
        Kind("no JSON", 0.05, load.post(PATH, text[:-9]), 400),
        Kind("no such model", 0.03, load.infer(x[:1], name="other"), 404),
        Kind("too large", 0.02, head, 413),
    ]


@dataclass
class Soak:
    """What is seen: (minutes, MB, open files) of the serving process, and how often each kind got what."""

    minutes: float
    rate: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    answers: Counter[tuple[str, int | str]] = field(default_factory=Counter)

    async def run(
        self, address: Address, models: Path, mixture: list[Kind], advance: Advance
    ) -> None:
        self.began = time.monotonic()
        self.until = self.began + 60 * self.minutes
        users = [self._user(address, mixture, seed) for seed in range(USERS)]
        await asyncio.gather(self._watch(address, models, advance), *users)

    async def _user(self, address: Address, mixture: list[Kind], seed: int) -> None:
        random, connection = np.random.default_rng(seed), await connect(address)
        shares = [kind.share for kind in mixture]
        while time.monotonic() < self.until:
            kind = mixture[random.choice(len(mixture), p=shares)]
            if connection.closed:
                connection = await connect(address)
            self.answers[kind.name, await _ask(connection, kind)] += 1
            await asyncio.sleep(random.exponential(USERS / self.rate))
        connection.transport.close()

    async def _watch(self, address: Address, models: Path, advance: Advance) -> None:
        """Sample the metrics, and change the repository."""
        reload_at, reloads = self.began, 0
        while (now := time.monotonic()) < self.until:
            connection = await connect(address)
            _, body = await connection.ask(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n")
            connection.transport.close()
            megabytes = _metric(body, "process_resident_memory_bytes") / 1e6
            minutes = (now - self.began) / 60
            self.samples.append((minutes, megabytes, int(_metric(body, "process_open_fds"))))
            if now >= reload_at:
                reload_at += 60 * self.minutes / RELOADS
                change(models, reloads)
                reloads += 1
            advance(1, f"{megabytes:.1f} MB, {sum(self.answers.values())} requests")
            await asyncio.sleep(60 * self.minutes / SAMPLES)


async def _ask(connection: Connection, kind: Kind) -> int | str:
    try:
        if kind.leaves or kind.pause:
            half = len(kind.request) // 2
            connection.transport.write(kind.request[:half])
            await asyncio.sleep(kind.pause)
            if kind.leaves:
                connection.transport.close()
                connection.closed = True
                return GONE
            status, _ = await connection.ask(kind.request[half:])
        else:
            status, _ = await connection.ask(kind.request)
        return status
    except OSError:
        return "connection closed"


def _metric(body: bytes, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", body.decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def put(program: Path, models: Path, name: str, version: int = 1) -> Path:
    """Move a file into a repository, where it is there at once."""
    path = models / name / str(version) / "model.qkp"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    shutil.copyfile(program, aside)
    aside.replace(path)
    return path


def change(models: Path, turn: int) -> None:
    """Replace a model by the same bytes, which the server cannot know; let a version of another one come or go."""
    names = ("m", *OTHERS)
    name = names[turn % len(names)]
    program = put(models / name / "1/model.qkp", models, name)
    second = models / OTHERS[0] / "2"
    if second.exists():
        shutil.rmtree(second)
    else:
        put(program, models, OTHERS[0], 2)


def growth(samples: list[tuple[float, float, int]]) -> float:
    """MB from the second fifth of the samples to the last, by their means: each holds a time with and a time without
    the version that comes and goes, between which a median would fall on either."""
    fifth = len(samples) // 5
    memory = [megabytes for _, megabytes, _ in samples]
    return float(np.mean(memory[-fifth:]) - np.mean(memory[fifth : 2 * fifth]))


def report(soak: Soak, mixture: list[Kind], command: str) -> dict[str, Any]:
    """JSON-able."""
    expected = {kind.name: kind.expected for kind in mixture}
    rows = [
        {"kind": name, "got": got, "count": count, "right": got == expected[name]}
        for (name, got), count in sorted(soak.answers.items(), key=str)
    ]
    return {
        "command": command,
        "minutes": soak.minutes,
        "samples": soak.samples,
        "answers": rows,
        "wrong": sum(row["count"] for row in rows if not row["right"]),
        "growth_mb": growth(soak.samples),
        "bound_mb": BOUND_MB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument("--model", type=Path, help="else the ResNet-20 of benchmarks/serving.py")
    parser.add_argument("--size", default="3,32,32")
    parser.add_argument("--out", type=Path, default=served.ROOT / "build/soak.json")
    arguments = parser.parse_args()
    if arguments.model is None:
        served.prepare(served.MODELS[:1])
        arguments.model = served.MODELS[0].file("qkp")
    mixture = kinds(tuple(map(int, arguments.size.split(","))))
    soak = Soak(arguments.minutes, arguments.rate)
    with tempfile.TemporaryDirectory() as folder, progress("soaking", SAMPLES) as advance:
        models, port = Path(folder), served.free_port()
        for name in ("m", *OTHERS):
            put(arguments.model, models, name)
            (models / name / "settings.json").write_text(
                json.dumps({"size": [f"1,{arguments.size}"]})
            )
        command = ["-m", "qkernels.serve", str(models)]
        flags = [f"--port={port}", "--threads=1", "--log-level=error"]
        with served.running([*command, *flags], port, "/v2/health/ready") as address:
            uvloop.run(soak.run(address, models, mixture, advance))
    words = f"--minutes {arguments.minutes:g} --rate {arguments.rate:g}"
    result = report(soak, mixture, f"python benchmarks/soak.py {words}")
    served.save(arguments.out, result)
    for row in result["answers"]:
        print(
            f"{row['kind']:>14}  {row['got']!s:<18}{row['count']:>8}  {'' if row['right'] else 'WRONG'}"
        )
    print(
        f"memory: {result['growth_mb']:+.2f} MB (bound {BOUND_MB:g} MB), wrong answers: {result['wrong']}"
    )
    sys.exit(result["wrong"] > 0 or result["growth_mb"] > BOUND_MB)


if __name__ == "__main__":
    main()

"""Ray Serve on two nodes: each has a replica, their answers are the program's bits, and a killed one is replaced."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from qkernels.program import Program

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'qkernels[ray]'")

import qkernels.serve.ray as served_by_ray  # noqa: E402
from qkernels.serve.model import map_program, open_model  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NODE = ["--num-cpus=1", "--object-store-memory=80000000", "--node-ip-address=127.0.0.1"]


@dataclass
class Deployed:
    """``address``: of the model over HTTP. ``folder``: of the nodes' sessions."""

    address: str
    folder: Path

    def replicas(self) -> dict[int, int]:
        """The raylet, one a node, of each replica, by process."""
        running = {int(p.name): p for p in Path("/proc").iterdir() if p.name.isdigit()}
        titles, parents = dict[int, str](), dict[int, int]()
        for process, place in running.items():
            with contextlib.suppress(OSError):  # gone meanwhile
                titles[process] = (place / "cmdline").read_text()
                parents[process] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        ours = {p for p, title in titles.items() if f"raylet_socket_name={self.folder}" in title}
        return {
            process: parents[process]
            for process, title in titles.items()
            if title.startswith("ray::ServeReplica") and parents.get(process) in ours
        }

    def ask(self, *images: np.ndarray) -> list[np.ndarray]:
        """All at once, so that some meet in a batch."""
        with triton.InferenceServerClient(self.address, concurrency=8) as client:
            asked = [client.async_infer("student", [tensor(x)]) for x in images]
            return [one.get_result().as_numpy("output") for one in asked]


def tensor(x: np.ndarray) -> triton.InferInput:
    given = triton.InferInput("input", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return given


def maps(process: int, file: object) -> bool:
    return str(file) in Path(f"/proc/{process}/maps").read_text()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@contextlib.contextmanager
def node(log: Path, environment: dict[str, str], *words: str) -> Iterator[Callable[[], bool]]:
    """`ray start` with all its processes, which end with it; says whether it has started."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *NODE, *words]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )

    def started() -> bool:
        assert process.poll() is None, log.read_text()
        return "Ray runtime started" in log.read_text()

    try:
        yield started
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):  # what is left of its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def deployed(program: Path) -> Iterator[Deployed]:
    """The program on a cluster of two nodes of one core each, deployed by the example."""
    port, http = free_port(), free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    head = "--head", f"--port={port}", "--include-dashboard=false"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # short, as sockets lie in it
        with contextlib.ExitStack() as nodes:
            one = node(folder / "head.log", environment, *head, f"--temp-dir={folder}")
            started = [nodes.enter_context(one)]
            until(lambda: accepts(port) or started[0]())
            two = node(folder / "second.log", environment, f"--address=127.0.0.1:{port}")
            started.append(nodes.enter_context(two))
            until(lambda: all(has() for has in started))
            command = [sys.executable, str(ROOT / "examples/ray_serve.py")]
            done = subprocess.run(
                [*command, str(program), "1,3,8,8", str(http)],
                env=environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
                stdout=subprocess.PIPE,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0
            assert "{'RUNNING': 2} on 2 nodes" in done.stdout
            assert "from Python and over HTTP: True" in done.stdout
            yield Deployed(f"127.0.0.1:{http}", folder)


def assert_answers_are_the_bits_of_the_program(deployed: Deployed, path: Path) -> None:
    rng, program = np.random.default_rng(0), Program.load(path)
    images = [rng.standard_normal((n, 3, 8, 8), np.float32) for n in [1, 2, 3, 32] * 4]
    for x, answer in zip(images, deployed.ask(*images), strict=True):
        assert np.array_equal(answer, program(x))


def test_each_node_has_a_replica_that_maps_the_program_and_holds_no_torch(
    deployed: Deployed, program: Path
) -> None:
    found = deployed.replicas()
    assert len(found) == 2 and len(set(found.values())) == 2
    for process in found:
        assert maps(process, program) and not maps(process, "libtorch")


def test_answers_over_http_are_the_bits_of_the_program(deployed: Deployed, program: Path) -> None:
    assert_answers_are_the_bits_of_the_program(deployed, program)


def test_a_wrong_question_is_refused_by_name(deployed: Deployed) -> None:
    with triton.InferenceServerClient(deployed.address) as client:
        assert client.is_server_ready() and client.is_model_ready("student")
        assert not client.is_model_ready("other")
    with pytest.raises(InferenceServerException, match=r"shape \[1, 3, 9, 8\]"):
        deployed.ask(np.zeros((1, 3, 9, 8), np.float32))


def test_a_killed_replica_is_replaced_on_its_node(deployed: Deployed, program: Path) -> None:
    before = deployed.replicas()
    killed = next(iter(before))
    os.kill(killed, signal.SIGKILL)

    def replaced() -> bool:
        found = deployed.replicas()
        return killed not in found and len(found) == 2 and all(maps(p, program) for p in found)

    until(replaced)
    after = deployed.replicas()
    assert len(after.keys() - before.keys()) == 1
    assert set(after.values()) == set(before.values())
    assert_answers_are_the_bits_of_the_program(deployed, program)


@pytest.mark.parametrize(
    ("cpus", "threads"), [({"CPU": 4.0}, 4), ({"CPU": 1.0}, 1), ({"CPU": 0.5}, 1), ({}, 1)]
)
def test_threads_follow_the_cpus_of_a_replica(
    cpus: dict[str, float], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_assigned_resources=lambda: cpus)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert served_by_ray._threads() == threads


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([np.zeros((1, 3, 8, 8))], r"'input' is float64 \[1, 3, 8, 8\]; float32 \[N, 3, 8, 8\]"),
        ([np.zeros((1, 3, 8), np.float32)], r"\[1, 3, 8\]"),
        ([np.zeros((9, 3, 8, 8), np.float32)], "N from 1 to 8"),
        ([np.zeros((0, 3, 8, 8), np.float32)], "N from 1 to 8"),
        ([], r"takes 1 input\(s\), not 0"),
    ],
)
def test_arrays_that_a_handle_may_not_send_are_named(
    inputs: list[np.ndarray], sentence: str, program: Path
) -> None:
    model = map_program(program, [(1, 3, 8, 8)], threads=1).warm_up(8)
    with pytest.raises(ValueError, match=sentence):
        model.check(inputs)
    model.check([np.zeros((8, 3, 8, 8), np.float32)])


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_requests_that_meet_in_a_batch_get_their_own_answers(
    two_headed: Path, rows: list[int]
) -> None:
    sizes = [(1, 3, 8, 8), (1, 2, 8, 8)]
    model, rng = map_program(two_headed, sizes, threads=1).warm_up(32), np.random.default_rng(0)
    asked = [[rng.standard_normal((n, *s[1:]), np.float32) for s in sizes] for n in rows]
    answers = model.run_together(asked)
    for inputs, answer in zip(asked, answers, strict=True):
        for got, want in zip(answer, Program.load(two_headed)(*inputs), strict=True):
            assert np.array_equal(got, want)


def test_a_mapped_program_has_the_version_of_one_that_is_read(program: Path) -> None:
    sizes = [(1, 3, 8, 8)]
    assert map_program(program, sizes, 1).version == open_model(program, sizes, 1).version


def test_a_misspelt_argument_is_named() -> None:
    with pytest.raises(ValueError, match="siez"):
        served_by_ray.Arguments(path="student.qkp", siez="1,3,8,8")

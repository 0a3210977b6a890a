"""A folder of models: what is found, loaded, replaced and let go, and that no model stops another."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from serve_process import Served, serving
from served_nets import save_program
from starlette.testclient import TestClient
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from qkernels.program import Program
from qkernels.serve import application, repository
from qkernels.serve import settings as settings_module
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Arrays, Model, Tensor
from qkernels.serve.settings import Settings, own_settings
from qkernels.serve.workers import Workers

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("programs")
    return [save_program(folder / f"{seed}.qkp", seed) for seed in range(3)]


@pytest.fixture
def folder(programs: list[Path], tmp_path: Path) -> Path:
    """a with versions 1 and 2, b with version 10."""
    models = tmp_path / "models"
    for place, program in zip(("a/1", "a/2", "b/10"), programs, strict=True):
        put(program, models / place)
    for name in ("a", "b"):
        (models / name / "settings.json").write_text('{"size": ["1,3,8,8"]}')
    return models


def put(program: Path, place: Path) -> None:
    """Move a file in, which is there at once."""
    place.mkdir(parents=True, exist_ok=True)
    aside = place / ".aside"
    shutil.copy(program, aside)
    aside.replace(place / "model.qkp")


def given(x: np.ndarray = X) -> list[triton.InferInput]:
    one = triton.InferInput("input", list(x.shape), "FP32")
    one.set_data_from_numpy(x)
    return [one]


def asked(server: Served, name: str, version: str = "") -> np.ndarray:
    client = triton.InferenceServerClient(server.address)
    return client.infer(name, given(), model_version=version).as_numpy("output")


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def states(server: Served) -> dict[tuple[str, str], str]:
    index = triton.InferenceServerClient(server.address).get_model_repository_index()
    return {(row["name"], row["version"]): row["state"] for row in index}


@pytest.fixture
def explicit(folder: Path) -> Iterator[Served]:
    with serving(folder, "--control", "explicit", "--load", "a") as server:
        yield server


def test_versions_are_found_by_number_and_by_checksum_and_the_highest_is_the_models(
    folder: Path, programs: list[Path]
) -> None:
    with serving(folder) as server:
        wait_for(lambda: len(states(server)) == 3 and set(states(server).values()) == {"READY"})
        want = [Program.load(program)(X) for program in programs]
        checksum = f"{zlib.crc32(programs[0].read_bytes()):08x}"
        assert np.array_equal(asked(server, "a"), want[1])
        assert np.array_equal(asked(server, "a", "2"), want[1])
        assert np.array_equal(asked(server, "a", "1"), want[0])
        assert np.array_equal(asked(server, "a", checksum), want[0])
        assert np.array_equal(asked(server, "b"), want[2])
        client = triton.InferenceServerClient(server.address)
        assert client.get_model_metadata("a")["versions"] == ["1", "2"]
        assert client.is_model_ready("b", "10") and not client.is_model_ready("b", "1")
        assert client.infer("a", given()).get_response()["model_version"] == "2"
        config = client.get_model_config("a")
        assert config["max_batch_size"] == 32 and config["input"][0]["dims"] == [3, 8, 8]
        stats = client.get_inference_statistics("a", "2")["model_stats"][0]
        assert stats["inference_stats"]["success"]["count"] == 3
        assert stats["inference_count"] == 6 and stats["execution_count"] == 3
        assert stats["batch_stats"][0]["batch_size"] == 2
        every = client.get_inference_statistics()["model_stats"]
        assert sorted((one["name"], one["version"]) for one in every) == [
            ("a", "1"),
            ("a", "2"),
            ("b", "10"),
        ]
        with pytest.raises(InferenceServerException, match="no model 'c'"):
            asked(server, "c")
        with pytest.raises(InferenceServerException, match="--control explicit is needed"):
            client.load_model("a")
        text = httpx.get(server.url + "/metrics", timeout=20).text
        assert 'qkernels_requests_total{model="b",status="200"} 1.0' in text
        assert 'qkernels_requests_total{model="",status="404"} 1.0' in text


def test_what_is_put_into_the_folder_and_taken_out_of_it_is_served_and_is_not(
    folder: Path, programs: list[Path]
) -> None:
    with serving(folder) as server:
        wait_for(lambda: set(states(server).values()) == {"READY"})
        put(programs[2], folder / "a" / "3")
        wait_for(lambda: states(server).get(("a", "3")) == "READY")
        assert np.array_equal(asked(server, "a"), Program.load(programs[2])(X))
        shutil.rmtree(folder / "a" / "3")
        wait_for(lambda: ("a", "3") not in states(server))
        assert np.array_equal(asked(server, "a"), Program.load(programs[1])(X))
        shutil.rmtree(folder / "b")
        wait_for(lambda: ("b", "10") not in states(server))
        with pytest.raises(InferenceServerException, match="no model 'b'"):
            asked(server, "b")


def test_a_bad_model_stops_no_other_and_says_why(folder: Path, programs: list[Path]) -> None:
    (folder / "broken/1").mkdir(parents=True)
    (folder / "broken/1/model.qkp").write_bytes(b"broken")
    (folder / "cut/1").mkdir(parents=True)
    (folder / "cut/1/model.qkp").write_bytes(programs[0].read_bytes()[:-9])
    (folder / "empty").mkdir()
    put(programs[0], folder / "sizeless/1")
    put(programs[0], folder / "wrong/1")
    (folder / "wrong/settings.json").write_text('{"size": ["1,3,8,8"], "colour": "red"}')
    (folder / "notes.txt").write_text("not a model")
    with serving(folder) as server:
        client = triton.InferenceServerClient(server.address)
        wait_for(client.is_server_ready)
        assert len(states(server)) == 7
        rows = {row["name"]: row for row in client.get_model_repository_index()}
        reasons = {
            "broken": "it has 6 bytes",
            "cut": "model.qkp",
            "sizeless": "give --size",
            "wrong": "unknown field `colour`",
        }
        for name, reason in reasons.items():
            assert rows[name]["state"] == "UNAVAILABLE" and reason in rows[name]["reason"]
            with pytest.raises(InferenceServerException, match="cannot be served"):
                asked(server, name)
        asked(server, "a")
        time.sleep(1.5)  # whatever is polled is news once
        for name in (*reasons, "empty"):
            assert (
                sum(
                    f"{name}" in line["message"]
                    for line in server.lines
                    if line["level"] == "error"
                )
                == 1
            )
        put(programs[1], folder / "broken/1")
        (folder / "broken/settings.json").write_text('{"size": ["1,3,8,8"]}')
        wait_for(lambda: states(server)["broken", "1"] == "READY")
        assert np.array_equal(asked(server, "broken"), Program.load(programs[1])(X))
        (folder / "a/2/model.qkp").write_bytes(b"broken now")  # the old one goes on
        wait_for(lambda: any("the old version goes on" in line["message"] for line in server.lines))
        assert np.array_equal(asked(server, "a"), Program.load(programs[1])(X))


def test_models_are_loaded_and_unloaded_as_clients_ask(
    explicit: Served, folder: Path, programs: list[Path]
) -> None:
    client = triton.InferenceServerClient(explicit.address)
    wait_for(client.is_server_ready)
    assert states(explicit) == {
        ("a", "1"): "READY",
        ("a", "2"): "READY",
        ("b", "10"): "UNAVAILABLE",
    }
    with pytest.raises(InferenceServerException, match="no model 'b'"):
        asked(explicit, "b")
    client.load_model("b")
    assert np.array_equal(asked(explicit, "b"), Program.load(programs[2])(X))
    put(programs[0], folder / "b/10")
    time.sleep(1.5)
    assert np.array_equal(asked(explicit, "b"), Program.load(programs[2])(X))  # nobody asked
    client.load_model("b")
    assert np.array_equal(asked(explicit, "b"), Program.load(programs[0])(X))
    client.unload_model("a")
    assert states(explicit)["a", "1"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="no model 'a'"):
        asked(explicit, "a")
    (folder / "a/2/model.qkp").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(InferenceServerException, match="it has 6 bytes"):
            client.load_model("a")
    assert np.array_equal(asked(explicit, "a", "1"), Program.load(programs[0])(X))
    for name in ("nothing", "../a", "..", ""):
        with pytest.raises(InferenceServerException):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="'config' is not taken"):
        client.load_model("a", config=json.dumps({"max_batch_size": 1}))


def test_limits_are_each_models_own(folder: Path) -> None:
    own = {"size": ["1,3,8,8"], "max_batch": 1, "queue": 1, "max_delay": 0.5, "timeout": 3}
    (folder / "b/settings.json").write_text(json.dumps(own))
    with serving(folder) as server:
        wait_for(lambda: set(states(server).values()) == {"READY"})
        client = triton.InferenceServerClient(server.address)
        config = client.get_model_config("b")
        assert config["max_batch_size"] == 1
        policy = config["dynamic_batching"]["default_queue_policy"]
        assert policy["max_queue_size"] == 1 and policy["default_timeout_microseconds"] == 3_000_000
        with pytest.raises(InferenceServerException, match="N from 1 to 1"):
            asked(server, "b")
        assert len(asked(server, "a")) == 2


@pytest.mark.parametrize(("gain", "told"), [(1.0, True), (2.0, False)])
def test_who_makes_requests_wait_is_told_where_rows_are_no_cheaper_together(
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gain: float,
    told: bool,
) -> None:
    monkeypatch.setattr(Model, "batch_gain", lambda self: gain)

    async def use() -> None:
        settings = Settings(program, "small", ((1, 3, 8, 8),), max_delay=0.5, control="explicit")
        models = repository.Repository(settings, Metrics())
        await models.watch()
        models.close()

    asyncio.run(use())
    assert ("a row of a full batch costs 1.00 of one alone" in caplog.text) == told


def test_a_batch_that_costs_less_than_its_rows_alone_gains() -> None:
    def run(inputs: Arrays) -> Arrays:
        time.sleep(0.004 + 0.001 * len(inputs[0]))
        return inputs

    one = (Tensor("x", (1,)),)
    assert Model("v", "p", one, one, 8, run).batch_gain() > 1.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "settings.json: "),
        ('{"size": ["3"]}', "size '3' must be"),
        ('{"queue": 0}', "queue=0 must hold"),
        ('{"max_delay": -1}', "max_delay=-0.001 must be at least 0"),
        ('{"name": "x"}', "unknown field `name`"),
    ],
)
def test_wrong_settings_of_a_model_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        own_settings(Settings(tmp_path), path)


def test_a_model_loads_after_the_cores_became_fewer_than_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 4)
    settings, path = Settings(tmp_path, workers=2, threads=2), tmp_path / "settings.json"
    path.write_text('{"max_batch": 8}')
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 1)
    own = own_settings(settings, path)
    assert (own.workers, own.threads, own.max_batch) == (2, 2, 8)


@pytest.mark.parametrize("changed", [{"name": "x"}, {"sizes": ((1, 3, 8, 8),)}])
def test_what_is_of_one_model_is_refused_for_a_folder(tmp_path: Path, changed: Any) -> None:
    with pytest.raises(ValueError, match="is of one model"):
        Settings(tmp_path, **changed)


def test_a_repository_that_goes_away_goes_on_with_what_is_loaded(
    folder: Path, tmp_path: Path
) -> None:
    with serving(folder) as server:
        wait_for(lambda: set(states(server).values()) == {"READY"})
        folder.rename(tmp_path / "elsewhere")
        wait_for(lambda: any("cannot be read" in line["message"] for line in server.lines))
        folder.mkdir()  # what is left of a file system that is not mounted
        time.sleep(1.5)
        asked(server, "a")
        asked(server, "b")
        folder.rmdir()
        (tmp_path / "elsewhere").rename(folder)
        wait_for(lambda: any("read again" in line["message"] for line in server.lines))


def test_a_file_system_that_never_answers_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(repository, "_LOOK_SECONDS", 0.1)

    async def use() -> None:
        models = repository.Repository(Settings(folder, watch_every=0.01), Metrics())
        watching = asyncio.create_task(models.watch())
        while not models.is_ready:
            await asyncio.sleep(0.01)
        look = models._look
        monkeypatch.setattr(models, "_look", lambda: (answers.wait(20), look())[1])
        before = threading.active_count()
        for _ in range(5):
            assert len(await models.index()) == 3
        assert threading.active_count() <= before + 2
        assert models.find("a").find(None).number == "2"
        answers.set()
        watching.cancel()
        models.close()

    asyncio.run(use())


def test_many_may_look_at_the_repository_at_the_same_time(folder: Path) -> None:
    async def use() -> None:
        models = repository.Repository(Settings(folder, watch_every=0.001), Metrics())
        watching = asyncio.create_task(models.watch())
        for _ in range(100):
            await asyncio.gather(*(models.index() for _ in range(5)))
        assert not watching.done()
        watching.cancel()
        models.close()

    asyncio.run(use())


def test_a_storm_of_loads_is_refused_beyond_what_may_wait_and_the_others_are_answered(
    explicit: Served,
) -> None:
    got: list[int] = []

    def load() -> None:
        url = explicit.url + "/v2/repository/models/b/load"
        for _ in range(5):
            got.append(httpx.post(url, timeout=60).status_code)

    storm = [threading.Thread(target=load) for _ in range(24)]
    for thread in storm:
        thread.start()
    for _ in range(10):
        asked(explicit, "a")
    for thread in storm:
        thread.join()
    assert len(got) == 120 and set(got) <= {200, 503} and 200 in got
    asked(explicit, "b")


def test_a_killed_process_comes_back_with_its_models(folder: Path) -> None:
    with serving(folder) as server:
        wait_for(lambda: set(states(server).values()) == {"READY"})
        os.kill(server.child, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return set(states(server).values()) == {"READY"} and len(states(server)) == 3
            except (OSError, InferenceServerException):
                return False

        wait_for(is_back)
        asked(server, "a")


def test_a_repository_that_nobody_has_read_yet_says_come_back_and_not_that_there_is_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, look = threading.Event(), repository.Repository._look
    monkeypatch.setattr(repository.Repository, "_look", lambda self: (go.wait(20), look(self))[1])
    with TestClient(application(Settings(folder))) as client:
        for path in ("/v2/models/a", "/v2/models/a/ready", "/v2/models/nothing", "/classify"):
            answer = client.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        go.set()
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        assert client.get("/v2/models/nothing").status_code == 404


def test_twenty_models_are_all_served(tmp_path: Path, programs: list[Path]) -> None:
    for i in range(20):
        put(programs[i % 3], tmp_path / f"m{i}" / "1")
        (tmp_path / f"m{i}" / "settings.json").write_text('{"size": ["1,3,8,8"]}')
    with serving(tmp_path) as server:
        wait_for(lambda: list(states(server).values()) == ["READY"] * 20)
        for i in range(20):
            assert np.array_equal(asked(server, f"m{i}"), Program.load(programs[i % 3])(X))


class Load:
    """A queue that is never empty; ``work``: of one batch."""

    def __init__(self, seconds: float) -> None:
        self.used = 0.0
        self.seconds, self.batches, self.left = seconds, 0, 1 << 30

    def take(self) -> Callable[[], None] | None:
        if not self.left:
            return None
        self.left -= 1
        return lambda: time.sleep(self.seconds)

    def finish(self, run: object, seconds: float) -> None:
        self.batches += 1


def test_workers_share_their_time_whatever_a_batch_takes() -> None:
    async def use() -> tuple[Load, Load]:
        workers, light, heavy = Workers(1), Load(0.001), Load(0.02)
        for queue in (light, heavy):
            workers.ask(queue)
        await asyncio.sleep(1)
        light.left = heavy.left = 0
        await asyncio.sleep(0.1)
        workers.close()
        return light, heavy

    light, heavy = asyncio.run(use())
    assert heavy.batches > 3 and light.batches > 3 * heavy.batches
    assert 0.5 < light.used / heavy.used < 2


def test_a_model_that_was_idle_does_not_make_up_for_it() -> None:
    async def use() -> tuple[int, int]:
        workers, busy, late = Workers(1), Load(0.002), Load(0.002)
        workers.ask(busy)
        await asyncio.sleep(0.4)
        before = busy.batches
        workers.ask(late)
        await asyncio.sleep(0.4)
        busy.left = late.left = 0
        await asyncio.sleep(0.1)
        workers.close()
        return busy.batches - before, late.batches

    busy, late = asyncio.run(use())
    assert busy > late / 3

"""What a server may be told, and how cores are counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qkernels.serve import settings
from qkernels.serve.settings import Settings, share_cores
from qkernels.utils import cores
from qkernels.utils.cores import usable_cores


def group(root: Path, line: str, files: dict[str, str]) -> Path:
    """A file system with this process's control group in it."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "files", "count"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "6400000 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/elsewhere", {"cpu.max": "400000 100000"}, 4),
        ("4:cpu,x:/a", {"cpu,x/a/cpu.cfs_quota_us": "150000", "cpu,x/a/cpu.cfs_period_us": "50000"}, 3),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "50000"}, 8),
        ("5:memory:/", {"memory/cpu.max": "100000 100000"}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_the_control_group_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, files: dict[str, str], count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(group(tmp_path, line, files)) == count


def test_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert usable_cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((None, None), (1, 6)),
        ((2, None), (2, 3)),
        ((4, None), (4, 1)),
        ((None, 2), (3, 2)),
        ((None, 4), (1, 4)),
    ],
)
def test_workers_and_threads_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[int | None, int | None], got: tuple[int, int]
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 6)
    assert share_cores(*asked) == got


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"workers": 2, "threads": 4}, "workers=2 x threads=4 is above the 6 cores"),
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"max_delay": -1}, "max_delay=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": 1e-9}, "timeout=1e-09 must be at least 0.001"),
        ({"timeout": float("inf")}, "timeout=inf must be a finite number"),
        ({"keep_alive": float("nan")}, "keep_alive=nan must be a finite number"),
        ({"max_delay": float("inf")}, "max_delay=inf must be a finite number"),
        ({"name": "a/b"}, "name='a/b' must be without /"),
        ({"name": ""}, "name='' must be"),
        ({"token": ""}, "token is empty"),
        ({"token": " \n"}, "token is empty"),
        ({"token": "one\ntwo"}, "characters that no header can hold"),
        ({"queue": 8}, "queue=8 must hold at least one batch, max_batch=32"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 6)
    with pytest.raises(ValueError, match=sentence):
        Settings(Path("m.qkp"), **({"name": "m"} | changed))


def test_there_is_at_least_one_core() -> None:
    assert cores.usable_cores() >= 1

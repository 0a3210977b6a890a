"""Files are whole whenever somebody reads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import qkernels as qk
from qkernels.prune import Masks
from qkernels.utils.files import replacing


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_text("old")
    with replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old" and aside.name == path.name
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["model.bin"]


def test_others_may_read_a_file_whichever_library_writes_it(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "x.safetensors") as aside:
        save_file({"x": torch.ones(3)}, aside)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as aside:
        aside.write_text("ne")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.bin"]


def test_the_file_is_on_the_disk_before_its_name_is_and_its_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(handle: int) -> None:
        seen.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{handle}'))}")
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        seen.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with replacing(tmp_path / "model.bin") as aside:
        aside.write_text("new")
    assert seen == ["sync model.bin", "rename", f"sync {tmp_path.name}"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"no folder .*/missing$"),
        replacing(tmp_path / "missing/model.bin"),
    ):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(torch.ones(4096), path),
        lambda path: path.write_bytes(b"x" * 16384),
        lambda path: np.ones(4096).tofile(path),
    ],
    ids=["torch", "bytes", "numpy"],
)
def test_a_full_disk_is_said_with_the_path(tmp_path: Path, write: Callable[[Path], object]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's")
    said = pytest.raises(OSError, match=r"model.bin could not be written \(.*what was there before")
    with said, replacing(tmp_path / "model.bin") as aside:
        aside.unlink()
        aside.symlink_to("/dev/full")
        write(aside)


def test_what_safetensors_says_of_a_full_disk_is_said_with_the_path(tmp_path: Path) -> None:
    said = pytest.raises(OSError, match=r"model.bin could not be written \(No space left\)")
    with said, replacing(tmp_path / "model.bin"):
        raise SafetensorError("No space left")


@pytest.mark.parametrize("kind", ["checkpoint", "program", "masks"])
def test_what_the_package_writes_is_flushed_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    int8 = qk.quantize(nn.Sequential(nn.Linear(8, 4)), "static", [torch.randn(3, 8)])
    if kind == "checkpoint":
        qk.save(int8, tmp_path / "x.safetensors")
    elif kind == "program":
        qk.compile(int8, torch.zeros(1, 8)).save(tmp_path / "x.qkp")
    else:
        Masks({"0.weight": torch.ones(4, 8, dtype=torch.bool)}).save(tmp_path / "x.safetensors")
    assert len(synced) == 2  # the file and its folder

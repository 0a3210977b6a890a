"""Weights in the files that people have, and what foreign files are said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qkernels.models import load_weights


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"model.module.{n}": v for n, v in state.items()}},
    ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_a_pth_file_is_read_whatever_is_around_its_weights(
    wrap: Any, old_format: bool, tmp_path: Path
) -> None:
    path = tmp_path / "net.pth"
    torch.save(wrap(net().state_dict()), path, _use_new_zipfile_serialization=not old_format)
    loaded = load_weights(net(1), path)
    for name, value in net().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


class Runs:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code of a file was run')",)


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    for content in (net(), {"state_dict": net().state_dict(), "args": Runs()}):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(ValueError, match="holds pickled objects besides tensors"):
            load_weights(net(), tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "is empty: write or fetch it again"),
        (b"PK\x03\x04 and no more", "cut off or no file of torch.save"),
        (b"\x80\x02 and no more", "cut off|besides tensors"),
    ],
)
def test_what_is_no_weights_file_is_called_what_it_is(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_weights(net(), path)
    assert str(path) in str(error.value)


def test_a_folder_or_a_list_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="name the weights file in it"):
        load_weights(net(), tmp_path)
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state dict but list"):
        load_weights(net(), tmp_path / "a.pt")


def test_a_cut_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        ValueError, match=r"net.safetensors is not a safetensors file or is cut off"
    ):
        load_weights(net(), path)

"""Several models at once: the same figures as one after the other, on no more threads than cores."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import qkernels
from qkernels.data import ImageData
from qkernels.evaluate import evaluate
from qkernels.models import TutorialCNN
from qkernels.parallel import evaluate_many, share_cores


@given(st.integers(1, 200), st.integers(1, 200))
def test_threads_never_outnumber_cores_and_no_core_that_could_work_idles(
    jobs: int, cores: int
) -> None:
    processes, threads = share_cores(jobs, cores)
    assert 1 <= processes <= jobs and threads >= 1
    assert processes * threads <= cores
    assert processes == jobs or processes * (threads + 1) > cores


def test_without_jobs_there_is_nothing_to_share() -> None:
    with pytest.raises(ValueError, match="not 0 jobs and 4 cores"):
        share_cores(0, 4)


def cnn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return TutorialCNN(10, in_channels=1, image_size=8, width=4)


class Witness(nn.Module):
    """Writes down who answers and with how many threads."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def forward(self, x: Tensor) -> Tensor:
        name = f"{os.getpid()}-{torch.get_num_threads()}"
        (self.folder / name).touch()
        return x.new_zeros(len(x), 10)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such luck")


def test_figures_are_those_of_one_after_the_other(digits: ImageData, tmp_path: Path) -> None:
    int8 = qkernels.quantize(cnn(0), calibration=digits.batches("train", 128))
    models = {"first": cnn(0), "second": cnn(1), "int8": int8, "witness": Witness(tmp_path)}
    found = evaluate_many(models, digits, limit=100, cores=2)
    assert list(found) == list(models)
    for name in ("first", "second", "int8"):
        assert found[name] == evaluate(models[name], digits, limit=100)
    seen = [path.name.split("-") for path in tmp_path.iterdir()]
    assert [threads for _, threads in seen] == ["1"]  # 4 models, 2 cores: 2 processes of 1 thread
    assert seen[0][0] != str(os.getpid())
    assert evaluate_many({}, digits) == {}


def test_a_model_that_fails_is_named(digits: ImageData) -> None:
    with pytest.raises(RuntimeError, match="model 'broken': no such luck"):
        evaluate_many({"broken": Broken()}, digits, cores=1)

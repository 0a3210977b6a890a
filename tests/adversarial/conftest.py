"""A classifier of real digits, trained in a second and shared by the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch
from adversarial_nets import cnn
from torch import nn

from qkernels.data import ImageData, load
from qkernels.distill import TrainConfig, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    pytest.importorskip("sklearn")
    return load("digits")


@pytest.fixture(scope="session")
def teacher(digits: ImageData) -> nn.Module:
    pytest.importorskip("accelerate")
    model = cnn(16)
    train(model, digits, TrainConfig(epochs=12, batch_size=64, lr=0.05), progress=False)
    model.zero_grad()
    return model.eval()

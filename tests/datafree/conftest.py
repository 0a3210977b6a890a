"""A teacher of real digits with batch norms, trained in seconds and shared by the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch
from datafree_nets import resnet
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
    model = resnet(16)
    train(model, digits, TrainConfig(epochs=10, batch_size=64, lr=0.1), progress=False)
    model.zero_grad()
    return model.eval()

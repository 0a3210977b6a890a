"""A teacher of real digits with batch norms, trained in seconds and shared by the tests of this folder."""

import pytest
from datafree_nets import resnet
from torch import nn

from qkernels.data import ImageData
from qkernels.distill import TrainConfig, train


@pytest.fixture(scope="session")
def teacher(digits: ImageData) -> nn.Module:
    pytest.importorskip("accelerate")
    model = resnet(16)
    train(model, digits, TrainConfig(epochs=10, batch_size=64, lr=0.1), progress=False)
    model.zero_grad()
    return model.eval()

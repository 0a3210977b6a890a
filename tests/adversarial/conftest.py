"""A classifier of real digits, trained in a second and shared by the tests of this folder."""

import pytest
from adversarial_nets import cnn
from torch import nn

from qkernels.data import ImageData
from qkernels.distill import TrainConfig, train


@pytest.fixture(scope="session")
def teacher(digits: ImageData) -> nn.Module:
    pytest.importorskip("accelerate")
    model = cnn(16)
    train(model, digits, TrainConfig(epochs=12, batch_size=64, lr=0.05), progress=False)
    model.zero_grad()
    return model.eval()

"""The small CNN of the first tutorial: two convolutions, two fully connected layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TutorialCNN(nn.Module):
    """conv-relu-pool twice, then two fully connected layers; [N, C, S, S] -> [N, num_classes].

    The convolutions have `width` and 2 * `width` channels, the hidden layer 4 * `width`: a student
    is the same network with a smaller width. Images of any side >= 4: the fully connected layers
    take their size from `image_size`. Raises ValueError for a smaller image.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, width: int = 64
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size must be at least 4 for two poolings, not {image_size}")
        side = image_size // 2 // 2  # each pooling halves and rounds down
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(2 * width * side * side, 4 * width)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc2(self.relu3(self.fc1(x)))

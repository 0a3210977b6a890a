"""A data set and models small enough that a training run takes a fraction of a second."""

import torch
from torch import Tensor, nn

from qkernels.data import Augment, ImageData, Split


def toy_data(train: int = 96, labelled: bool = True) -> ImageData:
    """Two classes: bright left half, bright right half, under noise."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 2
        images = torch.randint(150, (count, 1, 4, 4), generator=generator)
        images[labels == 0, :, :, :2] += 100
        images[labels == 1, :, :, 2:] += 100
        return Split(images.to(torch.uint8), labels)

    first = split(train)
    data = ImageData("toy", ("left", "right"), first, split(32), split(32), (0.5,), (0.25,))
    data = ImageData(**{**vars(data), "augment": Augment(1, flip=False)})
    return data if labelled else data.with_train(first.unlabelled())


def toy_model(width: int = 4, seed: int = 0, batch_norm: bool = True) -> nn.Sequential:
    """Convolution, batch norm, dropout, linear: everything that has state or draws numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(0.1 if batch_norm else 0.0),
        nn.Flatten(),
        nn.Linear(width * 16, 2),
    )


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models agree in every bit of every tensor."""
    other: dict[str, Tensor] = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())

"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from qkernels.models.channels import narrow_
from qkernels.models.cifar_resnet import CifarResNet
from qkernels.models.mobilenet_v2 import MobileNetV2
from qkernels.models.resnet import BasicBlock, Bottleneck, ResNet
from qkernels.models.sources import build, is_named_by_source
from qkernels.models.transformer import VisionTransformer
from qkernels.models.tutorial_cnn import TutorialCNN

# He et al. 2016: 6n+2 layers are the networks for small images, 18 and 50 those for ImageNet.
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "tutorial_cnn": TutorialCNN,
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "mobilenet_v2": MobileNetV2,
    "vit": VisionTransformer,
}
_NEED_IMAGE_SIZE = ("tutorial_cnn", "vit")  # others pool over whatever remains


def available() -> tuple[str, ...]:
    """Names that `create` knows."""
    return tuple(BUILDERS)


def create(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    channels: Mapping[str, Mapping[str, int]] | None = None,
    **options: Any,
) -> nn.Module:
    """A model with fresh weights from torch's global random state (seed it before).

    What is None stays as published (10 classes of 32x32 or 1000 of 224x224, RGB). `image_size`
    matters to `tutorial_cnn` and `vit`: the others pool over whatever remains. `options`: width
    (all but mobilenet_v2), depth, heads and patch (vit), width_mult and dropout (mobilenet_v2). `channels`: the counts
    of a pruned model, see `qkernels.models.narrow_`.
    A name with a colon is built by what it names, see `qkernels.models.sources`, with exactly the arguments given.
    Raises ValueError for an unknown name, with the nearest known ones.
    """
    if is_named_by_source(name):
        given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        given = {key: value for key, value in given.items() if value is not None}
        return narrow_(build(name, **given, **options), channels or {})
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=3, cutoff=0.4) or BUILDERS
        raise ValueError(f"no model {name!r}; the nearest: {', '.join(near)}")
    if name in _NEED_IMAGE_SIZE:
        options["image_size"] = image_size
    options.update(num_classes=num_classes, in_channels=in_channels)
    model = BUILDERS[name](**{key: value for key, value in options.items() if value is not None})
    return narrow_(model, channels or {})

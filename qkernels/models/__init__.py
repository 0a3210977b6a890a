"""Reference models, all of plain modules that torch.fx can trace."""

from typing import TYPE_CHECKING

from qkernels.models.channels import changes, narrow_, sizes
from qkernels.models.cifar_resnet import CifarResNet
from qkernels.models.mobilenet_v2 import MobileNetV2
from qkernels.models.registry import available, create
from qkernels.models.resnet import ResNet
from qkernels.models.sources import accepted, check_trusted, is_named_by_source
from qkernels.models.transformer import TransformerEncoder, VisionTransformer
from qkernels.models.tutorial_cnn import TutorialCNN
from qkernels.models.weights import load_weights
from qkernels.utils.renamed import renamed

__all__ = [
    "CifarResNet",
    "MobileNetV2",
    "ResNet",
    "TransformerEncoder",
    "TutorialCNN",
    "VisionTransformer",
    "accepted",
    "available",
    "changes",
    "check_trusted",
    "create",
    "is_named_by_source",
    "load_weights",
    "narrow_",
    "sizes",
]

if not TYPE_CHECKING:

    def __getattr__(name):
        return renamed(__name__, name)

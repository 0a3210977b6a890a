"""Reference models, all of plain modules that torch.fx can trace."""

from qkernels.models.cifar_resnet import CifarResNet
from qkernels.models.mobilenet_v2 import MobileNetV2
from qkernels.models.narrow import changes, narrow, sizes
from qkernels.models.registry import available, create
from qkernels.models.resnet import ResNet
from qkernels.models.transformer import TransformerEncoder, VisionTransformer
from qkernels.models.tutorial_cnn import TutorialCNN
from qkernels.models.weights import load_weights

__all__ = [
    "CifarResNet",
    "MobileNetV2",
    "ResNet",
    "TransformerEncoder",
    "TutorialCNN",
    "VisionTransformer",
    "available",
    "changes",
    "create",
    "load_weights",
    "narrow",
    "sizes",
]

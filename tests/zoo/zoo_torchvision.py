"""torchvision's definitions, as small as their constructors allow."""

from typing import Any

from torch import nn
from zoo_models import images, zoo_model


def _model(name: str, **settings: Any) -> Any:
    return zoo_model(name, "torchvision", **settings)


@_model("alexnet")
def alexnet() -> Any:
    from torchvision.models import AlexNet

    return _small_head(AlexNet(num_classes=10), 256 * 36), images(63)


@_model("vgg11_bn")
def vgg11_bn() -> Any:
    from torchvision.models.vgg import VGG, make_layers

    widths: Any = [8, "M", 16, "M", 16, 24, "M", 24, 24, "M", 32, 32, "M"]
    model = VGG(make_layers(widths, batch_norm=True), init_weights=False)
    return _small_head(model, 32 * 49), images(64)


def _small_head(model: Any, features: int) -> nn.Module:
    """Both hold their weights in two layers of 4096 channels, which no argument makes smaller."""
    widths = iter([features, 48, 48, 10])
    width = next(widths)
    for i, layer in enumerate(model.classifier):
        if isinstance(layer, nn.Linear):
            model.classifier[i] = nn.Linear(width, width := next(widths))
    return model


@_model("resnet18")
def resnet18() -> Any:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), images(64)


@_model("resnext50")
def resnext50() -> Any:
    from torchvision.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4)
    return model, images(64)


@_model("densenet121")
def densenet121() -> Any:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2, 2), 16, num_classes=10), images(64)


@_model("googlenet")
def googlenet() -> Any:
    from torchvision.models import GoogLeNet

    return GoogLeNet(num_classes=10, init_weights=False), images(64)


# Its ten random outputs lose 1.7 or 4.8 dB, as torch's float kernels for a CPU round what calibration sees; the int8
# bits are those of every CPU.
@_model("inception_v3", may_lose=5.0)
def inception_v3() -> Any:
    from torchvision.models import Inception3

    return Inception3(num_classes=10, init_weights=False), images(79)


@_model("mobilenet_v2")
def mobilenet_v2() -> Any:
    from torchvision.models import MobileNetV2

    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 2]]
    return MobileNetV2(10, 0.5, settings), images(64)


@_model("mobilenet_v3_small")
def mobilenet_v3_small() -> Any:
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(num_classes=10, width_mult=0.5), images(64)


@_model("shufflenet_v2_x0_5")
def shufflenet_v2_x0_5() -> Any:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], num_classes=10), images(64)


@_model("mnasnet0_5")
def mnasnet0_5() -> Any:
    from torchvision.models import MNASNet

    return MNASNet(0.5, num_classes=10), images(64)


@_model("efficientnet_b0")
def efficientnet_b0() -> Any:
    from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf

    blocks, last = _efficientnet_conf("efficientnet_b0", width_mult=0.5, depth_mult=0.3)
    return EfficientNet(blocks, 0.2, num_classes=10, last_channel=last), images(64)


@_model("regnet_y_400mf")
def regnet_y_400mf() -> Any:
    from torchvision.models.regnet import BlockParams, RegNet

    blocks = BlockParams.from_init_params(6, 48, 27.89, 2.09, 8, se_ratio=0.25)
    return RegNet(blocks, num_classes=10), images(64)


@_model("convnext_tiny")
def convnext_tiny() -> Any:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 48, 2), CNBlockConfig(48, None, 1)]
    return ConvNeXt(blocks, num_classes=10), images(64)


@_model("vit_b_16")
def vit_b_16() -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=10), images(32)


@_model("swin_t")
def swin_t() -> Any:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10), images(48)


@_model("lraspp_mobilenet_v3_large")
def lraspp_mobilenet_v3_large() -> Any:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    return model, images(64)


@_model("fasterrcnn_mobilenet_v3_large_320_fpn", programs=None)
def fasterrcnn_mobilenet_v3_large_320_fpn() -> Any:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=128,
        rpn_pre_nms_top_n_test=30, rpn_post_nms_top_n_test=12, box_detections_per_img=8,
        box_score_thresh=0.0,
    )  # fmt: skip
    return model, [images(96)[0].sigmoid(), images(112)[0].sigmoid()]

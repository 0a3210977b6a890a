"""timm's definitions, as small as their constructors allow."""

import dataclasses
from typing import Any

from zoo_models import images, zoo_model


def _model(name: str, **settings: Any) -> Any:
    return zoo_model(name, "timm", **settings)


def _create(name: str, **settings: Any) -> Any:
    import timm

    return timm.create_model(name, num_classes=10, **settings)


@_model("efficientnet_lite0")
def efficientnet_lite0() -> Any:
    from timm.models.efficientnet import _gen_efficientnet_lite

    return _gen_efficientnet_lite("efficientnet_lite0", 0.5, 0.5, num_classes=10), images(64)


@_model("mobileone_s0")
def mobileone_s0() -> Any:
    from timm.models.byobnet import ByobNet, model_cfgs

    config = model_cfgs["mobileone_s0"]
    stages = [stage[:4] for stage in config.blocks[:2]]
    config = dataclasses.replace(config, blocks=stages, width_factor=0.5)
    return ByobNet(config, num_classes=10), images(48)


@_model("repvgg_a0")
def repvgg_a0() -> Any:
    from timm.models.byobnet import ByobNet, model_cfgs

    config = model_cfgs["repvgg_a0"]
    stages = [dataclasses.replace(b, c=32, d=min(b.d, 2)) for b in config.blocks]
    return ByobNet(dataclasses.replace(config, blocks=stages), num_classes=10), images(64)


@_model("mobilenetv4_conv_small")
def mobilenetv4_conv_small() -> Any:
    from timm.models.mobilenetv3 import _gen_mobilenet_v4

    return _gen_mobilenet_v4("mobilenetv4_conv_small", 0.5, num_classes=10), images(64)


@_model("deit_tiny")
def deit_tiny() -> Any:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return _create("deit_tiny_patch16_224", **small), images(32)


@_model("convnextv2_atto")
def convnextv2_atto() -> Any:
    return _create("convnextv2_atto", depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)), images(64)


@_model("fastvit_t8")
def fastvit_t8() -> Any:
    return _create("fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 64)), images(64)


@_model("levit_128s")
def levit_128s() -> Any:
    small = {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)}
    return _create("levit_128s", **small), images(64)

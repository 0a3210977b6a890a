"""Models that others wrote, as torchvision, timm and transformers build them, with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkernels.modules.calling import Call

from . import torchvision_schemas

TORCHVISION = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
    "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0",
    "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
DENSE = (
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)  # fmt: skip
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")
TIMM = (
    "efficientnet_lite0", "mobileone_s0", "repvgg_a0", "mobilenetv4_conv_small", "deit_tiny_patch16_224",
    "convnextv2_atto", "fastvit_t8", "levit_128s", "resnet26d", "ghostnet_100", "rexnet_100", "mixer_s32_224",
    "resmlp_12_224", "poolformer_s12", "edgenext_xx_small", "mobilevit_s", "efficientformer_l1", "hrnet_w18_small",
    "mobilenetv3_large_100",
)  # fmt: skip
TRANSFORMERS = {
    "minilm": ("Bert", "Model", {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}),
    "bert": ("Bert", "ForSequenceClassification", {}),
    "roberta": ("Roberta", "ForSequenceClassification", {}),
    "distilbert": ("DistilBert", "ForSequenceClassification", {}),
    "albert": ("Albert", "Model", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
    "electra": ("Electra", "ForSequenceClassification", {}),
    "mpnet": ("MPNet", "Model", {}),
    "gpt2": ("GPT2", "LMHeadModel", {"n_layer": 6, "use_cache": False}),
    "llama": ("Llama", "ForCausalLM", {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6,
                                      "num_attention_heads": 12, "vocab_size": 8192, "use_cache": False}),
    "t5_encoder": ("T5", "EncoderModel", {}),
    "clip_text": ("CLIPText", "ModelWithProjection", {}),
    "clip_vision": ("CLIPVision", "ModelWithProjection", {}),
    "vit": ("ViT", "ForImageClassification", {}),
    "segformer": ("Segformer", "ForImageClassification", {}),
    "whisper_encoder": ("Whisper", "Model", {"encoder_layers": 4, "decoder_layers": 1}),
    "wav2vec2": ("Wav2Vec2", "Model", {"num_hidden_layers": 4}),
}  # fmt: skip
TOKENS = 128


@dataclass(frozen=True)
class RealModel:
    """``build`` gives the model in eval mode; ``inputs`` of a batch is what it is called with: a tensor or a dict."""

    name: str
    package: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Any]


def real_models() -> Iterator[RealModel]:
    """Every model of the lists above."""
    for name in (*TORCHVISION, *DENSE):
        size = {"inception_v3": 299, "ssdlite320_mobilenet_v3_large": 320}.get(name, 224)
        yield RealModel(name, "torchvision", _torchvision(name), _images(3, size, size))
    for name in VIDEO:
        yield RealModel(name, "torchvision", _torchvision(name), _images(3, 8, 112, 112))
    for name in TIMM:
        size = 256 if name in {"fastvit_t8", "mobilevit_s", "edgenext_xx_small"} else 224
        yield RealModel(name, "timm", _timm(name), _images(3, size, size))
    for name, (family, head, settings) in TRANSFORMERS.items():
        yield RealModel(name, "transformers", _transformers(family, head, settings), _INPUTS[name])


def settled(net: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """The model as a trained one is: heads that begin as zeros are not, batch norms know what they see."""
    net.eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all calls
        norm.train()
    with torch.no_grad():
        for call in calls if norms else ():
            call.run(net)
    return net.eval()


def _imported(library: str) -> Any:
    torchvision_schemas.declare()
    return importlib.import_module(library)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = _imported("torchvision.models")
        settings: dict[str, Any] = {"weights": None}
        if name in DENSE:
            settings["weights_backbone"] = None
        if name in {"googlenet", "inception_v3"}:
            settings |= {"aux_logits": False, "init_weights": False}
        return models.get_model(name, **settings)

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: _imported("timm").create_model(name)


def _transformers(family: str, head: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = _imported("transformers")
        model = getattr(library, family + head)(getattr(library, f"{family}Config")(**settings))
        return model.encoder if family == "Whisper" else model

    return build


def _images(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def _text(tokens: int = TOKENS) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    def made(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(5, 8000, (batch, tokens), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return made


def _named(name: str, *shape: int) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    return lambda batch, generator: {name: torch.randn(batch, *shape, generator=generator)}


_INPUTS = {name: _text() for name in TRANSFORMERS} | {
    "clip_text": _text(77),
    "clip_vision": _named("pixel_values", 3, 224, 224),
    "vit": _named("pixel_values", 3, 224, 224),
    "segformer": _named("pixel_values", 3, 224, 224),
    "whisper_encoder": _named("input_features", 80, 3000),
    "wav2vec2": _named("input_values", 16000),
}

"""One whole model at one batch size, with the weights and data that every contender gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkernels import models
from qkernels.measuring.costs import count_macs
from qkernels.modules.calling import Call

from .real_models import TOKENS, RealModel, real_models, settled

FILES = Path(__file__).parents[2] / "build/models"  # what peers make of a model once: ONNX, IR
CALIBRATION = 16  # examples, in batches of 4
OPENVINO, ONNXRUNTIME = "OpenVINO int8", "ONNX Runtime int8"
ANY = ()  # the fastest of all peers


@dataclass(frozen=True)
class Goal:
    """`factor` times the speed of the fastest of `over`."""

    factor: float
    over: tuple[str, ...] = ANY


@dataclass(frozen=True)
class Model:
    """`goals` by batch size; `shape` is that of one example."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    goals: dict[int, tuple[Goal, ...]]


def _resnet(over_openvino: float) -> tuple[Goal, ...]:
    return Goal(over_openvino, (OPENVINO,)), Goal(2, (ONNXRUNTIME,)), Goal(10, ("torch fp32",))


_MOBILE = (Goal(1.2, (OPENVINO, "OpenVINO bf16", ONNXRUNTIME)),)
_ENCODER = (Goal(1.1, (OPENVINO,)),)
_LARGE, _SMALL = (3, 224, 224), (3, 32, 32)
_SINGLE = {1: (Goal(1.5),), 16: ()}

MODELS = {
    model.name: model
    for model in (
        Model("resnet50", partial(models.create, "resnet50"), _LARGE, {1: _resnet(1.3), 16: _resnet(1.2)}),
        Model("resnet18", partial(models.create, "resnet18"), _LARGE, {1: _resnet(1.3), 16: _resnet(1.2)}),
        Model("mobilenet_v2", partial(models.create, "mobilenet_v2"), _LARGE, {1: _MOBILE, 16: _MOBILE}),
        Model("resnet20", partial(models.create, "resnet20"), _SMALL, _SINGLE),
        Model("tutorial_cnn", partial(models.create, "tutorial_cnn"), _SMALL, _SINGLE),
        Model("encoder", models.TransformerEncoder, (128, 384), {1: _ENCODER, 8: _ENCODER}),
    )
}  # fmt: skip


def _real(model: RealModel) -> Model:
    """One that others wrote: images, or the ids of words."""
    ids = model.package == "transformers"
    shape = (TOKENS,) if ids else (3, 224, 224)
    build = (lambda: WordsAlone(model.build())) if ids else model.build
    return Model(model.name, build, shape, {1: (Goal(1.15),), 16: ()})


class WordsAlone(nn.Module):
    """A text model that is called with ids alone and answers with the state of its last layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).last_hidden_state


# With resnet50, resnet18 and mobilenet_v2 the eighteen whose speed against the fastest peer is watched.
WATCHED = {
    "vgg11_bn", "squeezenet1_1", "densenet121", "googlenet", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny",
    "efficientnet_b0", "mobilenet_v3_large", "mobilenetv4_conv_small", "repvgg_a0", "deit_tiny_patch16_224", "vit_b_16",
    "swin_t", "minilm",
}  # fmt: skip
MODELS |= {model.name: _real(model) for model in real_models() if model.name in WATCHED}


@dataclass(frozen=True)
class ModelProblem:
    """`x` is [batch, ...] float32, or int64 ids of words.

    Results may be 40 % off, since random weights make small differences of large sums.
    """

    model: str
    batch: int
    tolerance: ClassVar[float] = 0.4
    what: ClassVar[str] = "model"

    @property
    def goals(self) -> tuple[Goal, ...]:
        return MODELS[self.model].goals[self.batch]

    @property
    def shape(self) -> tuple[int, ...]:
        return MODELS[self.model].shape

    @property
    def net(self) -> nn.Module:
        """The float model, one object for all problems of it: copy it before changing it."""
        return float_model(self.model)

    @property
    def is_images(self) -> bool:
        return len(self.shape) == 3

    @cached_property
    def x(self) -> Tensor:
        return examples(self.shape, self.batch, seed=2)

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Other examples than `x`."""
        return list(examples(self.shape, CALIBRATION, seed=1).split(4))

    @cached_property
    def expected(self) -> Tensor:
        with torch.no_grad():
            return self.net(self.x)

    @property
    def macs(self) -> int:
        """Multiply-adds of one example."""
        with torch.inference_mode(False):
            return count_macs(self.net, self.x[:1].clone())

    def file(self, name: str) -> Path:
        """Where something that is made of the model once is kept."""
        (FILES / self.model).mkdir(parents=True, exist_ok=True)
        return FILES / self.model / name


def problems() -> Iterator[ModelProblem]:
    """Every model at every batch size."""
    for model in MODELS.values():
        for batch in model.goals:
            yield ModelProblem(model.name, batch)


def examples(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Normal values with the mean and deviation of normalised images, smooth enough to survive pooling; or ids."""
    random = torch.Generator().manual_seed(seed)
    if len(shape) == 1:
        return torch.randint(5, 8000, (count, *shape), generator=random)
    if len(shape) < 3:
        return torch.randn(count, *shape, generator=random)
    coarse = torch.randn(count, shape[0], 8, 8, generator=random)
    fine = torch.randn(count, *shape, generator=random)
    return 0.8 * nn.functional.interpolate(coarse, shape[1:], mode="bilinear") + 0.6 * fine


@lru_cache
@torch.inference_mode(False)
def float_model(name: str) -> nn.Module:
    """Random weights from one seed, batch norms with the statistics of what they see, in eval mode."""
    torch.manual_seed(0)
    batches = examples(MODELS[name].shape, CALIBRATION, seed=0).split(8)
    return settled(MODELS[name].build(), [Call((x,)) for x in batches])

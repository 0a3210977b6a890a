"""What is wrong with a model, a teacher or labels, said before a training or where its loss is no number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qkernels.data.image_data import ImageData
from qkernels.data.task import check_labels
from qkernels.modules.answers import logits_of
from qkernels.nn import QuantModule


def check_trainable(model: nn.Module) -> None:
    """Raise ValueError for a model that no optimizer can train, naming the layer that stands in the way."""
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            raise ValueError(
                f"{kind} cannot be trained: {name or 'it'} is an int8 layer, which has no gradient; train the float "
                "model, or qkernels.qat for int8"
            )
        for key, parameter in module._parameters.items():
            full = f"{name}.{key}".lstrip(".")
            if parameter is None:
                continue
            if is_lazy(parameter):
                raise ValueError(
                    f"{full} of {kind} has no shape yet: call the model once before training"
                )
            if parameter.is_meta:
                raise ValueError(
                    f"{full} of {kind} is on the meta device and holds no values: load its weights first"
                )
            if parameter.is_inference():
                raise ValueError(
                    f"{full} of {kind} was made in torch.inference_mode and can have no gradient: build and load the "
                    "model outside of it"
                )
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"{full} of {kind} is {parameter.dtype}: train float32 weights, with precision='bf16' for speed"
                )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{kind} has nothing to train: none of its parameters requires a gradient")


def check_labels_of(data: ImageData, answers: Tensor) -> None:
    """Raise ValueError, naming the split, for a label that a model with such answers or the data does not have."""
    classes = answers.shape[-1]
    for split in ("train", "val"):
        labels = data.split(split).labels
        if labels is None:
            continue
        if data.meaning.task != "multiclass":
            data.meaning.check_fit(answers, labels[: len(answers)])
        for count in (classes, data.num_classes or classes):
            try:
                check_labels(labels, data.meaning, count)
            except ValueError as error:
                whose = "the model's" if count == classes else f"those of {data.name}"
                raise ValueError(
                    f"{data.name} {split}: {error}".replace("the model's", whose)
                ) from error


def check_inputs(images: Tensor, where: str) -> None:
    """Raise FloatingPointError for inputs that are not finite: the data is at fault, and no model."""
    if not images.is_floating_point():
        return
    bad = ~images.isfinite().reshape(len(images), -1).all(1)
    if bad.any():
        raise FloatingPointError(
            f"{int(bad.sum())} of {len(images)} inputs of {where} are not finite: look at the data and its std"
        )


def check_finite(who: str, model: nn.Module, images: Tensor) -> None:
    """Raise FloatingPointError for a model with weights or answers that are not finite, naming which."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise FloatingPointError(
                f"{who}'s {name} is not finite before any training: its file is at fault"
            )
    found = logits_of(model, images).isfinite()
    bad = ~found.reshape(len(found), -1).all(1)
    if bad.any():
        raise FloatingPointError(
            f"{who}'s answers to {int(bad.sum())} of {len(images)} images are not finite: look at the weights and "
            f"the layers of {type(model).__name__}"
        )

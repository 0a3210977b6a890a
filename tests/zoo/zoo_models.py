"""The table of the zoo: name -> a small, seeded, lively float model and a batch to call it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Batch = Any  # a tensor, a tuple of arguments, a dict of keyword arguments, a list of images
Make = Callable[[], tuple[nn.Module, Batch]]


@dataclass(frozen=True)
class ZooModel:
    """One entry of the table.

    Attributes:
        make: the model in eval mode, and a batch.
        package: where its definition comes from; None for definitions of this folder.
        generates: whether it also writes tokens, one after the other, with a cache.
        programs: how many its compiled form is; None: no test says, since it is not captured as it is called here, or
            is not counted yet.
        may_lose: dB that its compiled form may be below its layers; int8 sums of convolutions cost FastViT 3.4.
    """

    make: Make
    package: str | None = None
    generates: bool = False
    programs: int | None = 1
    may_lose: float = 4.0

    def build(self) -> tuple[nn.Module, Batch]:
        """The same weights and batch at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, batch = self.make()
            return lively(model.eval(), batch), batch

    def run(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Everything that the model answers to the batch."""
        answers = [call(model, batch)]
        if self.generates:
            prompt = {k: v for k, v in batch.items() if not k.startswith("decoder_")}
            settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
            answers.append(model.generate(**prompt, **settings, use_cache=True))
        return answers

    def calibration(self, batch: Batch) -> Any:
        """What `quantize` takes: the batches, or a function of the model."""
        if self.generates:
            return lambda model: self.run(model, batch)
        return [batch]


ZOO: dict[str, ZooModel] = {}


def zoo_model(name: str, package: str | None = None, **settings: Any) -> Callable[[Make], Make]:
    """Puts the function under `name` into the table."""

    def put(make: Make) -> Make:
        ZOO[name] = ZooModel(make, package, **settings)
        return make

    return put


def call(model: nn.Module, batch: Batch) -> Any:
    with torch.no_grad():
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def images(size: int, count: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size)


def lively(model: nn.Module, batch: Batch) -> nn.Module:
    """Parameters that a constructor leaves constant (norms, biases, layer scales, LoRA's zeros) become random, and
    batch norms get statistics near those of the batch, so that what is folded wrongly or left out shows."""
    for parameter in model.parameters():
        values = parameter.detach()
        if values.numel() > 1 and (values == values.flatten()[0]).all():
            values.uniform_(0.5, 1.5) if values.any() else values.normal_(0, 0.1)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(_settle) for norm in norms]
    if norms:
        call(model, batch)
    for handle in handles:
        handle.remove()
    return model


def _settle(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """The mean is moved the wrong way and no channel is stretched above the others: else norms amplify noise, and some
    fifty of them leave nothing but noise of a random network, in float too."""
    x = inputs[0].transpose(0, 1).flatten(1)
    norm.running_mean.copy_(x.mean(1) / -5)
    energy = (x - norm.running_mean[:, None]).square().mean(1)
    norm.running_var.copy_(energy.clamp(min=energy.mean()))

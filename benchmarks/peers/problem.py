"""One layer under one scheme, with the data that every contender gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from qkernels.measuring.bench import Case, ConvCase, LinearCase
from qkernels.nn.weights import quantize_weight

Scheme = Literal["int8", "static", "dynamic", "weight-only f32", "weight-only bf16"]
INPUT_SCALE, OUTPUT_SCALE = 4 / 127, 8 / 127  # what normal inputs and sums of them stay within


class Unsupported(Exception):
    """A contender cannot run a problem; the message is the reason."""


class AnyProblem(Protocol):
    """What a result is checked against: it may be `tolerance` off `expected`, by the norm of the difference."""

    @property
    def expected(self) -> Tensor: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def what(self) -> str: ...


@dataclass(frozen=True)
class Problem:
    """`int8`: int8 in and out. `static`, `dynamic`: float32 in and out. `weight-only`: float activations.

    Weights have one scale an output channel, activations one for all with zero point 0 (unsigned: 128).
    """

    case: Case
    scheme: Scheme
    tolerance: ClassVar[float] = 0.1
    what: ClassVar[str] = "layer"

    @property
    def is_conv(self) -> bool:
        return isinstance(self.case, ConvCase)

    @property
    def conv(self) -> ConvCase:
        assert isinstance(self.case, ConvCase)
        return self.case

    @property
    def linear(self) -> LinearCase:
        assert isinstance(self.case, LinearCase)
        return self.case

    @cached_property
    def layer(self) -> nn.Conv2d | nn.Linear:
        """float32, outputs of about unit variance."""
        torch.manual_seed(1)
        if self.is_conv:
            layer: nn.Conv2d | nn.Linear = self.conv.float_layer()
        else:
            layer = nn.Linear(self.linear.k, self.linear.n)
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        return layer.requires_grad_(False)

    @cached_property
    def x(self) -> Tensor:
        """float32, convolutions channels-last."""
        torch.manual_seed(0)
        if not self.is_conv:
            return torch.randn(self.linear.m, self.linear.k)
        c = self.conv
        x = torch.randn(c.batch, c.channels, c.size, c.size)
        return x.to(memory_format=torch.channels_last)

    @cached_property
    def q(self) -> Tensor:
        """x as int8 with INPUT_SCALE and zero point 0."""
        return (self.x / INPUT_SCALE).round().clamp(-128, 127).to(torch.int8)

    @cached_property
    def weight(self) -> tuple[Tensor, Tensor]:
        """int8 values and one scale an output channel."""
        return quantize_weight(self.layer.weight)

    @cached_property
    def expected(self) -> Tensor:
        """The float32 layer's output."""
        return self.layer(self.x)

    @property
    def bytes(self) -> int:
        """Of the int8 weight and of x and y in the types that the scheme has them in."""
        item = {"int8": 1, "weight-only bf16": 2}.get(self.scheme, 4)
        return self.layer.weight.numel() + item * (self.x.numel() + self.expected.numel())

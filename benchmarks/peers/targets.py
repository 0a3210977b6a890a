"""The cases of the comparison, by class, and how far ahead of the best peer each class is meant to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qkernels.measuring.bench import Case, ConvCase, LinearCase

from .problem import Problem, Scheme


@dataclass(frozen=True)
class Target:
    """`factor`: times the best int8 peer's speed; `factor_single` at batch 1 where it differs."""

    name: str
    schemes: tuple[Scheme, ...]
    cases: tuple[Case, ...]
    factor: float
    factor_single: float | None = None

    def factor_of(self, problem: Problem) -> float:
        single = problem.is_conv and problem.conv.batch == 1
        return self.factor_single if single and self.factor_single else self.factor


def _batches(*cases: ConvCase) -> tuple[ConvCase, ...]:
    return tuple(replace(case, batch=batch) for case in cases for batch in (1, 16))


LARGE = tuple(LinearCase(*s) for s in ((512, 768, 3072), (1024,) * 3, (2048,) * 3, (4096,) * 3))
MIDDLE = (LinearCase(64, 768, 3072), LinearCase(128, 1024, 1024))
STREAMED = (LinearCase(16, 1024, 4096), LinearCase(1, 4096, 4096), LinearCase(1, 4096, 11008))
CACHED = (LinearCase(1, 1024, 1024),)
ENDS: tuple[Scheme, ...] = ("int8", "static")

TARGETS = (
    Target("large int8", ("int8",), LARGE, 1.3),
    Target("large float ends", ("dynamic", "static"), LARGE, 1.4),
    Target("middle", ("int8", "static", "dynamic"), MIDDLE, 1.3),
    Target("small M, weights beyond L2", ("int8", "static", "dynamic"), STREAMED, 1.1),
    Target("small M, weights in L2", ("int8", "static", "dynamic"), CACHED, 1.5),
    Target("weight-only", ("weight-only f32", "weight-only bf16"), (*STREAMED, *CACHED), 1.2),
    Target(
        "conv 3x3",
        ENDS,
        _batches(
            ConvCase("3x3", 3, 64, 64, 56),
            ConvCase("3x3", 3, 128, 128, 28),
            ConvCase("3x3", 3, 256, 256, 14),
            ConvCase("3x3", 3, 512, 512, 7),
            ConvCase("3x3", 3, 64, 128, 56, 2),
            ConvCase("3x3", 3, 256, 512, 14, 2),
        ),
        1.25,
        1.5,
    ),
    Target(
        "conv 1x1",
        ENDS,
        _batches(
            ConvCase("1x1", 1, 64, 256, 56),
            ConvCase("1x1", 1, 256, 64, 56),
            ConvCase("1x1", 1, 1024, 256, 14),
            ConvCase("1x1", 1, 512, 1024, 28, 2),
        ),
        1.25,
        1.5,
    ),
    Target(
        "stem",
        ENDS,
        _batches(
            ConvCase("stem", 7, 3, 64, 224, 2),
            ConvCase("stem", 3, 3, 32, 224, 2),
            ConvCase("stem", 3, 3, 64, 32),
        ),
        1.5,
    ),
    Target(
        "depthwise",
        ENDS,
        _batches(
            ConvCase("depthwise", 3, 32, 32, 112, 1, 32),
            ConvCase("depthwise", 3, 192, 192, 28, 1, 192),
            ConvCase("depthwise", 3, 144, 144, 56, 2, 144),
            ConvCase("depthwise", 5, 672, 672, 14, 1, 672),
            ConvCase("depthwise", 3, 64, 128, 56, 1, 64),
            ConvCase("depthwise", 3, 192, 192, 28, 1, 192, dilation=2),
        ),
        1.8,
    ),
)


def problems() -> Iterator[tuple[Target, Problem]]:
    """Every row of the comparison, class by class."""
    for target in TARGETS:
        for case in target.cases:
            for scheme in target.schemes:
                yield target, Problem(case, scheme)

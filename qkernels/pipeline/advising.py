"""The advisor on a model out of a file, and its best combination written as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qkernels.advise import Advice, advise
from qkernels.data import ImageData
from qkernels.pipeline.architecture import (
    ModelChoice,
    create_model,
    describe_architecture,
    describe_data,
    open_float_model,
)
from qkernels.quantization import save


def advise_on(
    weights: Path,
    out: Path,
    data: ImageData,
    choice: ModelChoice,
    *,
    floor: float,
    latency_ms: float | None,
    run: Path,
    students: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Advice:
    """Advise on the float weights, students by name, and write the best trial. Arguments and errors as `advise`."""
    net, architecture = open_float_model(weights, data, choice)
    torch.manual_seed(seed)
    fresh = {name: create_model(name, data, choice.width) for name in students}
    advice = advise(
        net.requires_grad_(True).eval(), data, floor=floor, latency_ms=latency_ms, run_dir=run,
        config=settings or {}, students=fresh, seed=seed,
    )  # fmt: skip
    best = advice.best
    if best.student is not None:
        architecture = describe_architecture(best.student, data, choice.width)
    if best.channels:
        kept = architecture["kwargs"].get("channels", {})
        kwargs = {**architecture["kwargs"], "channels": {**kept, **best.channels}}
        architecture = {**architecture, "kwargs": kwargs}
    save(best.model, out, architecture=architecture, extra=describe_data(data))
    return advice

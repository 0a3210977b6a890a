"""Prune a little, train, prune more: gradual schedules, resumable at every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkernels.data.image_data import ImageData
from qkernels.distill import TrainResult, train
from qkernels.distill.cache import digest
from qkernels.distill.config import TrainConfig
from qkernels.models.channels import changes, narrow_, sizes
from qkernels.prune.masks import Masks
from qkernels.reports import forget, hang, reports_of
from qkernels.utils.files import replacing

Prune = Callable[[nn.Module, float], nn.Module]


@dataclass(frozen=True)
class GradualReport:
    """The report of `prune_gradually`.

    Attributes:
        steps: the training that followed each step of pruning.
    """

    steps: tuple[TrainResult, ...]


def cubic(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """The amount after `step` of `steps`: final + (initial - final) (1 - step / steps)^3.

    Fast while there is much to prune, slow at the end. Zhu, Gupta 2017 (1710.01878), equation 1.
    """
    if not 0 <= step <= steps or steps < 1:
        raise ValueError(f"step={step} must be in 0..{steps}")
    return final + (initial - final) * (1 - step / steps) ** 3


def prune_gradually(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    prune: Prune,
    *,
    final: float,
    steps: int,
    run_dir: str | Path,
    description: str = "",
    **training: Any,
) -> nn.Module:
    """Prune in `steps` steps up to the amount `final` (`cubic`), each followed by training as `config` says.

    Args:
        model: stays as it is.
        data: what each training learns from.
        config: of each training.
        prune: called as prune(model, amount) with a copy and the amount reached so far, counted from the first model;
            returns a model. Where `Masks` hang on it (`qkernels.reports.hang`), they are kept while training.
            `prune_channels` with macs=int((1 - amount) * macs of the first model) fits as it is.
        final: share to prune in all, in [0, 1).
        steps: at least 1.
        run_dir: one folder a step. Killed at any moment and called again, it goes on from the last whole epoch with
            the choices it had made.
        description: what `prune` goes by (scores, scope, multiple), which no folder can tell of a function.
        training: teacher, objective and progress, as `train` takes them.

    Returns:
        The model in eval mode, with `GradualReport` as its only report, whether a run was resumed or not.

    Raises ValueError for a final amount outside [0, 1), fewer than 1 step, and a folder of another run: other
    weights, amounts or another description.
    """
    if not 0 <= final < 1:
        raise ValueError(f"final={final} must be in [0, 1)")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    results = []
    for step in range(1, steps + 1):
        folder = Path(run_dir) / f"step-{step}"
        amount = cubic(step, steps, final)
        model, masks = _pruned(model, prune, amount, description, folder / "pruned.pt")
        results.append(train(model, data, config, run_dir=folder, after_step=masks, **training))
    return hang(forget(model.eval()), GradualReport(tuple(results)))


def _pruned(
    model: nn.Module, prune: Prune, amount: float, description: str, file: Path
) -> tuple[nn.Module, Masks | None]:
    """What `prune` makes of the model, or made of it when this step was begun."""
    made_of = {"amount": amount, "description": description, "weights": digest(model)}
    if file.exists():
        kept = torch.load(file, map_location="cpu", weights_only=True)
        _refuse_other_choice(file, kept, made_of)
        model = narrow_(copy.deepcopy(model), kept["channels"])
        model.load_state_dict(kept["model"])
        return model, None if kept["masks"] is None else Masks(kept["masks"])
    before = sizes(model)
    model = prune(forget(copy.deepcopy(model)), amount)  # no masks of an earlier step
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"prune(model, amount) returned a {type(model).__name__}: let it return the model alone, "
            "with hang(model, masks) where masks are kept"
        )
    masks = next((done for done in reversed(reports_of(model)) if isinstance(done, Masks)), None)
    if masks is not None:
        masks(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        **made_of,
        "model": model.state_dict(),
        "channels": changes(before, model),
        "masks": None if masks is None else masks.kept,
    }
    with replacing(file) as aside:
        torch.save(kept, aside)
    return model, masks


def _refuse_other_choice(file: Path, kept: dict[str, Any], made_of: dict[str, Any]) -> None:
    for name, value in made_of.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{file} was pruned with {name}={kept.get(name)!r}, not {value!r}: take another run_dir"
            )

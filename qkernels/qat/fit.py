"""Quantization-aware training with a floor: the answer is never below post-training quantization on validation data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qkernels.data import ImageData
from qkernels.distill import TrainConfig, train
from qkernels.distill.cache import digest
from qkernels.distill.run_folder import RunFolder
from qkernels.evaluate import Quality, evaluate
from qkernels.qat.prepare import convert_qat, prepare_qat
from qkernels.quantization.calibration import Calibration
from qkernels.quantization.config import QuantConfig
from qkernels.reports import hang


@dataclass(frozen=True)
class QatResult:
    """The report of `fit_qat`: the int8 model on the validation images `before` and `after` training."""

    before: Quality
    after: Quality

    @property
    def trained(self) -> bool:
        """Whether the model is the trained one, which has to be better; of equal accuracies the lower loss wins."""
        return _rank(self.after) > _rank(self.before)


def fit_qat(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    calibration: Calibration,
    *,
    quant: QuantConfig | Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    run_dir: str | Path | None = None,
    extend: bool = False,
    progress: bool = True,
) -> nn.Module:
    """Train the int8 form of `model`, and keep it only if it got better.

    Args:
        model: trained float weights; not changed.
        data: with validation images, which decide.
        config: an lr of 1e-4 and a temperature of 1 are a good start, see docs/quantization.md.
        calibration: as for `prepare_qat`.
        quant: as `config` of `prepare_qat`.
        teacher: as for `train`; the float model itself is a good teacher.
        run_dir: as for `train`, and for this model and this `quant` only; the training is in its folder "training".
        extend: as for `train`.
        progress: as for `train`.

    Returns:
        The better int8 model of the two on the validation images, with `QatResult` as its report.

    Raises:
        ValueError: without validation images; as `prepare_qat` and `train`.
    """
    if len(data.val) == 0:
        raise ValueError(f"{data.name} has no validation images to compare on")
    quant = QuantConfig.of(quant)
    trained = prepare_qat(model, quant, calibration)
    training = None
    if run_dir is not None:
        training = Path(run_dir) / "training"
        description = {"weights": digest(model), "quant": repr(quant)}
        RunFolder(run_dir, description, resume=True).create()
    start = convert_qat(trained)
    before = evaluate(start, data, "val")
    train(
        trained, data, config, teacher=teacher, run_dir=training, extend=extend, progress=progress
    )
    int8 = convert_qat(trained)
    after = evaluate(int8, data, "val")
    result = QatResult(before, after)
    return hang(int8 if result.trained else start, result)


def _rank(result: Quality) -> tuple[float, float]:
    return result.value, -result.loss

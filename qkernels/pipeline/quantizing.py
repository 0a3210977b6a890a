"""A trained model in int8, out of its file, with what the recovery and the training of int8 can add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qkernels
from qkernels import recovery
from qkernels.data import ImageData
from qkernels.distill import TrainConfig
from qkernels.distill.recipe import suitable_batch
from qkernels.distill.registry import suitable_soft_loss
from qkernels.evaluate import Quality, evaluate
from qkernels.pipeline.architecture import ModelChoice, describe_data, open_float_model
from qkernels.pipeline.run import calibration_batches
from qkernels.qat import fit_qat
from qkernels.qat.fit import QatResult
from qkernels.quantization import QuantConfig

QAT_LR, QAT_TEMPERATURE = 1e-4, 1.0  # see docs/quantization.md


@dataclass(frozen=True)
class Int8Plan:
    """How int8 is made: `images` of training data for ranges, recovery, and `qat_epochs` of training in int8."""

    quant: QuantConfig
    images: int = 512
    seed: int = 0
    equalize: bool = False
    correct_bias: bool = False
    qat_epochs: int = 0
    qat_run: Path | None = None


@dataclass(frozen=True)
class Quantized:
    """What there is to say of an int8 model, reports and sentences, and its quality on test images.

    `before` is that of the float model; both are None where they were not asked for, or test images have no labels.
    """

    said: tuple[object, ...]
    before: Quality | None = None
    after: Quality | None = None


def quantize_file(
    weights: Path,
    out: Path,
    data: ImageData,
    choice: ModelChoice,
    plan: Int8Plan,
    *,
    compare: bool = True,
) -> Quantized:
    """Write the int8 checkpoint of a float one, and `compare` the two.

    Raises ValueError for settings that do not go together, and as `qkernels.quantize`.
    """
    if plan.qat_epochs and plan.correct_bias:
        raise ValueError("--qat-epochs trains biases too: leave --correct-bias out")
    if plan.qat_run is not None and not plan.qat_epochs:
        raise ValueError("--qat-run is the folder of a training in int8: give --qat-epochs too")
    if plan.qat_epochs and plan.quant.activation != "static":
        raise ValueError(
            f"--qat-epochs trains static int8, not {plan.quant.activation}: leave --activation or --qat-epochs out"
        )
    net, architecture = open_float_model(weights, data, choice)
    needs_data = plan.quant.activation == "static" or plan.correct_bias or plan.qat_epochs
    batches = list(calibration_batches(data, plan.images, plan.seed)) if needs_data else None
    said: list[object] = []
    compare = compare and len(data.test) > 0 and data.test.labels is not None
    before = evaluate(net, data) if compare else None
    if plan.equalize:
        net = recovery.equalize(net, next(iter(data.batches("train", 2)))[0])
        said.append(str(qkernels.report(net)))
    if plan.qat_epochs:
        int8: Any = _trained(net, data, batches, plan, said)
    else:
        int8 = qkernels.quantize(net, plan.quant, batches)
        said.append(qkernels.report(int8))
    if plan.correct_bias and batches is not None:
        shifts = qkernels.report(recovery.correct_bias_(int8, net, batches)).shifts
        said.append(
            f"biases of {len(shifts)} layers corrected, by up to {max(shifts.values()):.3g}"
        )
    qkernels.save(int8, out, architecture=architecture, extra=describe_data(data))
    return Quantized(tuple(said), before, evaluate(int8, data) if compare else None)


def _trained(net: Any, data: ImageData, batches: Any, plan: Int8Plan, said: list[object]) -> Any:
    config = TrainConfig.model_validate(
        {"epochs": plan.qat_epochs, "lr": QAT_LR, "temperature": QAT_TEMPERATURE, "optimizer": "adamw",
         "loss": suitable_soft_loss(data.meaning.task),
         "batch_size": suitable_batch(len(data.train)), "seed": plan.seed}
    )  # fmt: skip
    net.requires_grad_(True)
    int8 = fit_qat(
        net, data, config, batches, quant=plan.quant, teacher=net, run_dir=plan.qat_run, extend=True
    )
    done = qkernels.report(int8, QatResult)
    which = "trained in int8" if done.trained else "not trained: training made it no better"
    said.append(f"{which}; validation {done.after.metric} {done.before} before, {done.after} after")
    return int8

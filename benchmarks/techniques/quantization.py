"""Rows of the table: int8 schemes, how ranges are chosen, and accuracy won back.

All start from the student trained alone; where nothing is trained, the int8 column is the row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import qkernels
from qkernels.qat import fit_qat
from qkernels.quantization import cross_validate, mix
from qkernels.quantization.study import Rounding, fake_affine
from qkernels.recovery import clip_outliers, correct_bias_, equalize, round_weights_
from techniques.row import Outcome, Row, Setting

FOLDED, QAT_EPOCHS, DECIBELS = 1024, 2, 3.0


def by(**config: Any) -> Callable[[Setting], Outcome]:
    """Calibrated and converted by other settings than the default ones."""

    def run(setting: Setting) -> Outcome:
        int8 = qkernels.quantize(setting.alone, config, calibration=setting.calibration())
        return Outcome(None, int8)

    return run


def cross_validated(setting: Setting) -> Outcome:
    batches = setting.data.batches("train", 128, shuffle=True, seed=setting.seed).head(FOLDED)
    x, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    found = cross_validate(setting.alone, x, labels, seed=setting.seed)
    int8 = qkernels.quantize(setting.alone, found.config, calibration=setting.calibration())
    kept = f"{found.config.observer}, {found.config.percentile}"
    return Outcome(None, int8, f"5 folds of {FOLDED} training images chose {kept}")


def mixed(setting: Setting) -> Outcome:
    """So many layers in float that the logits' error has half the power it has in plain int8."""
    plain = qkernels.report(mix(setting.alone, calibration=setting.calibration(), floor=0.0))
    floor = plain.score + DECIBELS
    int8 = mix(setting.alone, calibration=setting.calibration(), floor=floor)
    found = qkernels.report(int8)
    share = f"{len(found.kept_float)} of {len(found.layers)} layers in float"
    return Outcome(None, int8, f"{share} for {found.score - plain.score:+.1f} dB of the logits")


def simulated(bits: int, rounding: Rounding) -> Callable[[Setting], Outcome]:
    """Weights of fewer bits, one range a layer, in a float model."""

    def run(setting: Setting) -> Outcome:
        net = copy.deepcopy(setting.alone)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.copy_(fake_affine(module.weight, bits=bits, rounding=rounding))
        return Outcome(net, None, "simulated: float speed and size")

    return run


def equalized(setting: Setting, **config: Any) -> Outcome:
    model = equalize(setting.alone)
    done = qkernels.report(model)
    int8 = qkernels.quantize(model, config, calibration=setting.calibration())
    correct_bias_(int8, model, setting.calibration())
    return Outcome(None, int8, f"{len(done.pairs)} pairs of layers, then biases corrected")


def clipped(setting: Setting) -> Outcome:
    model = clip_outliers(setting.alone, per_channel=False)
    done = qkernels.report(model).shares
    int8 = qkernels.quantize(model, {"weight": "per_tensor"}, calibration=setting.calibration())
    return Outcome(None, int8, f"one scale a tensor; {len(done)} layers looked at")


def rounded(setting: Setting) -> Outcome:
    int8 = setting.int8(setting.alone)
    round_weights_(int8, setting.alone, setting.calibration())
    return Outcome(None, int8, "rounding of the weights learned")


def trained(setting: Setting, *, teacher: bool) -> Outcome:
    return Outcome(None, *fitted(setting, setting.alone, teacher=teacher))


def fitted(
    setting: Setting, model: nn.Module, *, teacher: bool, **quant: Any
) -> tuple[nn.Module, str]:
    """`model` by QAT, kept only where it beats plain int8 on validation images; and what came of it."""
    config = setting.training(
        epochs=QAT_EPOCHS, lr=1e-3, temperature=1.0, weight_decay=0.0, precision="no"
    )
    int8 = fit_qat(
        model,
        setting.data,
        config,
        setting.calibration(),
        quant=quant,
        teacher=setting.teacher if teacher else None,
        run_dir=setting.run_dir / "training",
    )
    found = qkernels.report(int8)
    change = 100 * (found.after.accuracy - found.before.accuracy)
    kept = "the trained one kept" if found.trained else "the untrained one kept"
    return int8, f"{change:+.2f} points on validation images, {kept}"


def _row(name: str, ids: str, code: str, test: str, run: Callable[[Setting], Outcome]) -> Row:
    code, test = f"qkernels/{code}.py", f"tests/{test}.py"
    return Row(name, tuple(ids.split()), code, test, "docs/quantization.md", run)


CONVERT, OBSERVE, STUDY = "quantization/convert", "quantization/observers", "quantization/study"
CONVERTED, OBSERVED = "quantization/test_quantize", "quantization/test_observers"
SWEPT, GLOBAL = "quantization/test_cross_validation", "quantization/test_fixed_and_global_range"
STUDIED, AFTER, QAT = "quantization/test_study", "recovery/test_after_quantize", "qat/test_qat"
ROWS = [
    _row("int8, the default", "S0-3 S0-5 S1-6 S3-5", CONVERT, CONVERTED, by()),
    _row("int8, one scale a tensor", "S3-1 S3-4", CONVERT, CONVERTED, by(weight="per_tensor")),
    _row("int8, symmetric", "S3-2 S3-3", CONVERT, CONVERTED, by(symmetric=True)),
    _row("int8, ranges: min-max", "S0-4", OBSERVE, OBSERVED, by(observer="minmax")),
    _row("int8, ranges: squared error", "S3-6", OBSERVE, OBSERVED, by(observer="mse")),
    _row("int8, ranges: entropy", "S3-6", OBSERVE, OBSERVED, by(observer="entropy")),
    _row("int8, ranges: cross-validated", "S3-16", "quantization/cross_validation", SWEPT, cross_validated),
    _row("int8, one range for all layers", "S2-6", OBSERVE, GLOBAL, by(observer="global")),
    _row("int8, dynamic", "S2-7 S3-7 S3-8 S3-9", CONVERT, CONVERTED, by(activation="dynamic")),
    _row("int8 and float, mixed", "S2-8 S1-7", "quantization/sensitivity", "quantization/test_sensitivity", mixed),
    _row("4 bits, to nearest", "S0-4 S4-2", STUDY, STUDIED, simulated(4, "nearest_even")),
    _row("4 bits, truncated", "S4-2", STUDY, STUDIED, simulated(4, "floor")),
    _row("8 bits, truncated", "S4-2", STUDY, STUDIED, simulated(8, "floor")),
    _row("one scale a tensor, equalized", "S3-1", "recovery/equalize", "recovery/test_equalize",
         partial(equalized, weight="per_tensor")),
    _row("one scale a tensor, outliers clipped", "S3-1", "recovery/outliers", "recovery/test_before_quantize", clipped),
    _row("int8, rounding learned", "S3-2", "recovery/rounding", AFTER, rounded),
    _row("QAT", "S2-9", "qat/fit", QAT, partial(trained, teacher=False)),
    _row("QAT, distilled", "S2-9 S2-15", "qat/fit", QAT, partial(trained, teacher=True)),
]  # fmt: skip

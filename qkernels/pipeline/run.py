"""Teacher -> distilled student -> int8 student, resumable at every step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qkernels.data import ImageData
from qkernels.distill import OBJECTIVES, EpochRecord, TrainConfig, train
from qkernels.evaluate import check_of_classes, paired_change, predict, score
from qkernels.graph import compile
from qkernels.measuring.costs import count_macs, count_parameters
from qkernels.measuring.machine import describe_machine
from qkernels.measuring.speed import Speeds, measure_speed
from qkernels.pipeline.architecture import (
    ModelChoice,
    create_model,
    describe_architecture,
    describe_data,
    names_its_model,
    open_float_model,
)
from qkernels.pipeline.config import PipelineConfig
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.quantization import (
    LayerError,
    QuantConfig,
    QuantReport,
    layer_errors,
    load,
    quantize,
    save,
)
from qkernels.quantization.observers import observer_names
from qkernels.reports import report
from qkernels.utils.files import replacing

TEACHER, ALONE, DISTILLED, INT8 = "teacher", "student alone", "student distilled", "student int8"
FOLDERS = {TEACHER: "teacher", ALONE: "student", DISTILLED: "distilled"}
PROGRAM = "student.qkp"  # the int8 student, to be served

Say = Callable[[str], object]
Curves = dict[str, tuple[EpochRecord, ...]]


@dataclass(frozen=True)
class _Entry:
    """A finished model, its weights file and its program; `against` names what it is compared with."""

    model: nn.Module
    path: Path
    against: str | None = None
    program: Path | None = None


def run_pipeline(
    config: PipelineConfig, *, say: Say = lambda text: None, progress: bool = False
) -> PipelineResult:
    """Do what `config.run` does not hold yet, then evaluate and time all models.

    Float weights go to RUN/teacher, RUN/student and RUN/distilled, int8 ones to RUN/int8, and the
    int8 student as a program to RUN/student.qkp. A run that was killed goes on where it was. `say`
    is told what is about to happen.
    Raises ValueError or FileNotFoundError for settings, data, weights or a run folder at fault.
    """
    data = config.load_data()
    for note in data.notes:
        say(note)
    config = config.suited(data)
    check_of_classes(data)
    if (labels := data.test.labels) is None:
        raise ValueError(f"{data.name}: the test images have no labels to compare with")
    floats, curves = _train_all(config, data, say, progress)
    shown = min(config.calibration_images, len(data.train))
    say(f"quantizing, calibrated on {shown} training images")
    quantized, reports = _quantize_all(config, data, floats[DISTILLED].model)
    compile_student(config, data, quantized[INT8].model, say)
    program = config.run / PROGRAM
    if program.exists():
        quantized[INT8] = replace(quantized[INT8], program=program)
    entries = floats | quantized
    say(f"evaluating {len(entries)} models on {len(data.test)} test images")
    batches = data.batches("test", 250)
    logits = {name: predict(entry.model, batches) for name, entry in entries.items()}
    say(f"timing {len(entries)} models with {torch.get_num_threads()} threads")
    speeds = measure_speed(
        {name: entry.model for name, entry in entries.items()},
        data.image_shape,
        batch=config.throughput_batch,
        seconds=config.timing_seconds,
        progress=progress,
    )
    return PipelineResult(
        config=config,
        machine=describe_machine(),
        data=_describe(data),
        rows=_rows(entries, data, labels, logits, speeds),
        curves=curves,
        quantization=reports,
        layers=_layer_errors(floats[DISTILLED].model, quantized, data),
    )


def int8_configs(config: PipelineConfig) -> dict[str, QuantConfig]:
    """Row name -> how its int8 student is made: first the one asked for, then the variants."""
    configs = {INT8: QuantConfig(observer=config.observer)}
    if config.variants:
        for observer in observer_names(from_data=True):
            if observer != config.observer:
                configs[f"{INT8}, {observer}"] = QuantConfig(observer=observer)
        configs[f"{INT8}, dynamic"] = QuantConfig(activation="dynamic")
    return configs


def calibration_batches(data: ImageData, count: int, seed: int) -> Iterator[Tensor]:
    """Batches [B, C, H, W] of `count` training images picked by seed, as a model sees them."""
    size = min(count, 64)
    batches = data.batches("train", size, shuffle=True, seed=seed)
    for images, _ in itertools.islice(batches, -(-count // size)):
        yield images[:count]
        count -= len(images)


def _train_all(
    config: PipelineConfig, data: ImageData, say: Say, progress: bool
) -> tuple[dict[str, _Entry], Curves]:
    curves: Curves = {}

    def fit(
        name: str, model: nn.Module, settings: TrainConfig, guide: nn.Module | None = None
    ) -> Path:
        folder = config.run / FOLDERS[name]
        say(f"{name}: {settings.epochs} epochs, in {folder}")
        result = train(model, data, settings, teacher=guide, run_dir=folder, progress=progress)
        curves[name] = result.history
        return folder / "model.safetensors"

    teacher = _teacher(config, data)
    students = {name: _seeded(config, data, config.student_choice) for name in (ALONE, DISTILLED)}
    learning = config.student_training()
    # What does not fit a student is said here, before the teacher is trained.
    OBJECTIVES[learning.loss](learning, teacher, students[DISTILLED], data)
    settings = config.teacher_training()
    path = _keep(config, teacher) if settings is None else fit(TEACHER, teacher, settings)
    entries = {TEACHER: _Entry(teacher, path)}
    for name, guide in ((ALONE, None), (DISTILLED, teacher)):
        path = fit(name, students[name], learning, guide)
        entries[name] = _Entry(students[name], path, against=ALONE if guide else None)
    return entries, curves


def _teacher(config: PipelineConfig, data: ImageData) -> nn.Module:
    """The teacher with its weights; a checkpoint, such as a pruned one, names its model itself."""
    if config.teacher_weights is None:
        return _seeded(config, data, config.teacher_choice)
    if names_its_model(config.teacher_weights):
        teacher, _ = open_float_model(config.teacher_weights, data, ModelChoice(trust=config.trust))
    else:
        teacher, _ = open_float_model(config.teacher_weights, data, config.teacher_choice)
    return teacher.requires_grad_(True)


def _seeded(config: PipelineConfig, data: ImageData, choice: ModelChoice) -> nn.Module:
    torch.manual_seed(config.seed)
    assert choice.name is not None
    return create_model(choice.name, data, None, choice.arguments)


def _keep(config: PipelineConfig, teacher: nn.Module) -> Path:
    """Write the weights of a teacher that is not trained here, in the form of the others."""
    path = config.run / FOLDERS[TEACHER] / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        save_file(teacher.state_dict(), aside)
    return path


def _quantize_all(
    config: PipelineConfig, data: ImageData, student: nn.Module
) -> tuple[dict[str, _Entry], dict[str, QuantReport]]:
    entries, reports = {}, {}
    architecture = describe_architecture(
        config.student, data, None, config.student_choice.arguments
    )
    for name, settings in int8_configs(config).items():
        batches = calibration_batches(data, config.calibration_images, config.seed)
        static = settings.activation == "static"
        model = quantize(student, settings, batches if static else None)
        reports[name] = report(model, QuantReport)
        file = f"{settings.observer if static else settings.activation}.safetensors"
        path = config.run / "int8" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save(model, path, architecture=architecture, extra=describe_data(data))
        entries[name] = _Entry(load(path), path, against=DISTILLED)  # what is on disk is measured
    return entries, reports


def compile_student(config: PipelineConfig, data: ImageData, student: nn.Module, say: Say) -> None:
    """Write the int8 student as a program that answers as it does, or `say` which part of it is none."""
    path = config.run / PROGRAM
    try:
        chained = compile(student, torch.zeros(1, *data.image_shape), exact=True)
        chained.save(path, extra=describe_data(data))
    except ValueError as error:  # a part of it is left to torch
        path.unlink(missing_ok=True)
        say(f"{path} is not written, the checkpoint can be served as well: {error}")


def _rows(
    entries: dict[str, _Entry],
    data: ImageData,
    labels: Tensor,
    logits: dict[str, Tensor],
    speeds: dict[str, Speeds],
) -> list[Row]:
    rows = []
    for name, entry in entries.items():
        twin = entries[DISTILLED].model if name.startswith(INT8) else entry.model
        against = entry.against
        change = None if against is None else paired_change(logits[against], logits[name], labels)
        row = Row(
            name=name,
            precision="int8" if name.startswith(INT8) else "fp32",
            accuracy=score(logits[name], labels),
            file_bytes=entry.path.stat().st_size,
            parameters=count_parameters(twin),
            macs=count_macs(twin, data.image_shape),
            speeds=speeds[name],
            against=against,
            change=change,
            program_bytes=entry.program.stat().st_size if entry.program else None,
        )
        rows.append(row)
    return rows


def _layer_errors(
    student: nn.Module, quantized: dict[str, _Entry], data: ImageData
) -> dict[str, list[LayerError]]:
    images, _ = next(iter(data.batches("test", 128)))
    return {name: layer_errors(student, entry.model, images) for name, entry in quantized.items()}


def _describe(data: ImageData) -> dict[str, Any]:
    return {
        "name": data.name,
        "image_shape": list(data.image_shape),
        "classes": list(data.class_names),
        **{split: len(data.split(split)) for split in ("train", "val", "test")},
    }

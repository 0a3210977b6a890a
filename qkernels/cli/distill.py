"""Train a model, and learn from a --teacher if there is one, by --loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from qkernels import data as datasets
from qkernels import models
from qkernels.cli.flags import flags_of, given
from qkernels.cli.options import Data, Root, Width
from qkernels.cli.printing import say
from qkernels.distill import CachedTeacher, TrainConfig, train
from qkernels.evaluate import evaluate as evaluate_model
from qkernels.pipeline import PipelineConfig, create_model

TRAIN_HELP = {
    "feature_weight": "Weight of a loss on features, else as published.",
    "until": "Stop at this validation accuracy, 0..1.",
    "patience": "Stop after so many validations without a new best.",
    "momentum": "Momentum of sgd.",
    "label_smoothing": "Share of each label spread over all classes.",
    "clip_grad_norm": "Longest gradient.",
    "eval_every": "Epochs between two validations.",
    "checkpoint_every": "Epochs between two checkpoints.",
} | {name: field.description or "" for name, field in PipelineConfig.model_fields.items()}


@flags_of(
    TrainConfig, help_of=TRAIN_HELP, shown=lambda f: str(TrainConfig.model_fields[f].default or "")
)
def command(
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Data = "digits",
    data_root: Root = None,
    student: Annotated[str, typer.Option(help="Model to train.")] = "resnet14",
    student_width: Width = None,
    teacher: Annotated[str | None, typer.Option(help="Model of the teacher, if any.")] = None,
    teacher_width: Width = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="safetensors file of the teacher.")
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(help="File that keeps the teacher's answers for later runs.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped run was.")] = True,
    **flags: Any,
) -> None:
    if (teacher is None) != (teacher_weights is None):
        raise ValueError("--teacher and --teacher-weights go together: give both or neither")
    if teacher_cache is not None and teacher is None:
        raise ValueError("--teacher-cache keeps the answers of a --teacher: give one")
    config, images = TrainConfig(**given(flags)), datasets.load(data, data_root)
    guide = None
    if teacher is not None and teacher_weights is not None:
        guide = models.load_weights(create_model(teacher, images, teacher_width), teacher_weights)
        guide = guide if teacher_cache is None else CachedTeacher(guide, teacher_cache)
    torch.manual_seed(config.seed)
    model = create_model(student, images, student_width)
    result = train(model, images, config, teacher=guide, run_dir=run, resume=resume)
    if result.trained == 0:
        say(f"nothing trained: {run} holds all {len(result.history)} epochs of this run")
    say(f"test accuracy {evaluate_model(model, images, progress=True)}")
    say(f"wrote {run / 'model.safetensors'}")

"""Train a model, and learn from a --teacher if there is one, by --loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qkernels.cli.flags import flags_of
from qkernels.cli.options import MODEL, Trust, chosen_data, rest, takes_data
from qkernels.cli.printing import say
from qkernels.cli.worse import check_not_ruined
from qkernels.data.choice import DataChoice
from qkernels.distill import TrainConfig
from qkernels.distill.trainer import accelerator_for, training_on
from qkernels.pipeline import ModelChoice, PipelineConfig
from qkernels.pipeline.distilling import Distillation, distil_student

TRAIN_HELP = {
    "feature_weight": "Weight of a loss on features, else as published.",
    "until": "Stop at this validation accuracy, 0..1.",
    "patience": "Stop after so many validations without a new best.",
    "momentum": "Momentum of sgd.",
    "label_loss": "What is learned from labels: cross_entropy, focal, bce, mse, huber; else what suits them.",
    "class_weights": "Weights of the classes, such as 1,2.5,1, or balanced.",
    "focal_gamma": "How much less a focal loss counts what is right already.",
    "huber_delta": "From which error on the Huber loss is linear.",
    "label_smoothing": "Share of each label spread over all classes.",
    "clip_grad_norm": "Longest gradient.",
    "keep": "Which weights: of the last epoch, or the best of start and epochs.",
    "accumulate": "Parts of a batch that go through one after the other.",
    "sync_batch_norm": "Statistics of batch norms over all processes (GPUs).",
    "find_unused_parameters": "For models that leave some out in a step, on several processes.",
    "eval_every": "Epochs between two validations.",
    "checkpoint_every": "Epochs between two checkpoints.",
} | {name: field.description or "" for name, field in PipelineConfig.model_fields.items()}
DEFAULT = "resnet14"
SUITED = {"epochs", "batch_size", "optimizer", "lr", "warmup_epochs", "keep"}  # by suitable_config


def _shown(field: str) -> str:
    default = str(TrainConfig.model_fields[field].default or "")
    return "by data and model" if field in SUITED else default


@flags_of(TrainConfig, help_of=TRAIN_HELP, shown=_shown)
@takes_data
def command(
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    student: Annotated[
        str | None, typer.Option(help=f"Model to train, else resnet14: {MODEL}.")
    ] = None,
    student_width: Annotated[int | None, typer.Option(help="Its width.", min=1)] = None,
    student_args: Annotated[str, typer.Option(help="Its arguments as JSON.")] = "",
    student_weights: Annotated[
        Path | None,
        typer.Option(help="Weights it starts from, or a checkpoint, such as a pruned one."),
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Model of the teacher; once for each of several.")
    ] = None,
    teacher_width: Annotated[int | None, typer.Option(help="Its width.", min=1)] = None,
    teacher_args: Annotated[str, typer.Option(help="Its arguments as JSON.")] = "",
    teacher_weights: Annotated[
        list[Path] | None, typer.Option(help="Its weights; a checkpoint needs no --teacher.")
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(help="File that keeps the teacher's answers for later runs.")
    ] = None,
    adversarial: Annotated[
        float,
        typer.Option(help="Attack every batch, within so many levels of 255.", min=0, max=255),
    ] = 0.0,
    made_images: Annotated[
        int,
        typer.Option(help="Learn from the teacher alone, by so many made images an epoch.", min=0),
    ] = 0,
    trust: Trust = False,
    may_lose: Annotated[
        float, typer.Option(help="Points of accuracy below --student-weights that are no error.")
    ] = 5.0,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped run was.")] = True,
    **flags: Any,
) -> None:
    files, names = teacher_weights or [], teacher or []
    if names and len(names) != len(files):
        raise ValueError(
            "--teacher and --teacher-weights go together: give as many of one as of the other"
        )
    if teacher_cache is not None and not files:
        raise ValueError("--teacher-cache keeps the answers of a --teacher: give one")
    choices = [ModelChoice(name, teacher_args, teacher_width, trust) for name in names]
    choices = choices or [ModelChoice(trust=trust)] * len(files)
    name = student or (DEFAULT if student_weights is None else None)
    plan = Distillation(
        ModelChoice(name, student_args, student_width, trust),
        student_weights, list(zip(files, choices, strict=True)), teacher_cache, adversarial, made_images,
    )  # fmt: skip
    settings = rest(flags, DataChoice)
    TrainConfig.model_validate(settings)  # what is wrong with them is said before the data is read
    data = chosen_data(flags)
    say(training_on(accelerator_for(TrainConfig.model_validate({})).num_processes))
    done = distil_student(plan, data, run, settings, resume=resume)
    if done.training.trained == 0:
        say(f"nothing trained: {run} holds all {len(done.training.history)} epochs of this run")
    for note in done.training.notes:
        say(note)
    say(f"test {done.accuracy.metric} {done.accuracy}")
    if done.robust is not None:
        say(str(done.robust))
    say(f"wrote {run / 'model.safetensors'}, and {done.checkpoint}, which names its model")
    check_not_ruined(done.accuracy, done.before, data, may_lose)

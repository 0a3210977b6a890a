"""One training loop for plain training and for distillation, on one process or many."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkernels.data.image_data import ImageData
from qkernels.distill.cache import describe, digest
from qkernels.distill.config import TrainConfig
from qkernels.distill.history import TrainResult, check_target
from qkernels.distill.label_loss import label_loss
from qkernels.distill.loop import AfterStep, Loop
from qkernels.distill.objective import LabelObjective, Objective
from qkernels.distill.registry import OBJECTIVES
from qkernels.distill.run_folder import RunFolder
from qkernels.distill.soundness import check_trainable
from qkernels.modules.copying import unwrapped
from qkernels.utils.extras import require
from qkernels.utils.progress import progress as progress_bar


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    after_step: AfterStep | None = None,
    run_dir: str | Path | None = None,
    resume: bool = True,
    extend: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train `model` in place on `data.train`; with a `teacher`, distil it by `config.loss`.

    `objective` says what to minimise instead of either. `after_step(model, lr)` runs after every optimizer step and
    may change weights in place (masks, proximal steps); a run folder remembers it by its `repr`, and no plain function.

    The teacher stays as it is: its weights are read by a twin in eval mode without gradients. With a `run_dir` the run
    may be killed at any moment and called again with the same arguments: the final weights are those of a run never
    interrupted, bit for bit. A run that goes on does so from its own weights; that those given are others than it began
    with is a warning. Afterwards the model is on the device and in the layout that it came in. What is in
    eval mode in a model in training mode, such as frozen batch norms, stays so. Under `accelerate launch` every process
    takes its share of each batch.

    With `extend` a finished run goes on for the epochs that the config has more, by the schedule of the new length.

    Raises ValueError for settings that do not fit the data, the models or the run folder; FloatingPointError
    when the loss is no longer finite (the last good checkpoint stays); TargetError when the run ends below
    `config.until` (everything is kept).
    """
    model, _ = unwrapped(model)  # names in files are those of the model, not of what is around it
    check_trainable(model)
    accelerator = accelerator_for(config)
    if config.until is not None and (len(data.val) == 0 or data.val.labels is None):
        raise ValueError(f"until={config.until}: {data.name} has no labelled validation images")
    if config.until is not None and data.meaning.task == "regression":
        raise ValueError(
            f"until={config.until} is an accuracy, and labels that are values have none"
        )
    given = objective
    objective = _objective(model, data, config, teacher, objective)
    folder = None
    if run_dir is not None:
        description = _describe(model, data, config, teacher, given, after_step)
        description["teacher_weights"] = [digest(teacher) for teacher in objective.teachers]
        defaults = TrainConfig.model_validate({}).model_dump()
        folder = RunFolder(
            run_dir, description, digest(model), resume=resume, defaults=defaults, extend=extend
        )
    with _given_back(model):
        loop = Loop(model, data, config, objective, after_step, accelerator)
        loop.check()
        loop.restore(folder)
        begun = len(loop.history)
        total, done = config.epochs * len(loop.batches), len(loop.history) * len(loop.batches)
        show = progress and accelerator.is_main_process
        with progress_bar(
            training_on(accelerator.num_processes), total, done=done, enabled=show
        ) as advance:
            while not loop.over:
                loop.run_epoch(advance)
                due = len(loop.history) % config.checkpoint_every == 0
                if folder is not None and (due or loop.over):
                    loop.save(folder)
        if loop.guard is not None:
            loop.model.load_state_dict(loop.guard.weights)
        if folder is not None and accelerator.is_main_process:
            folder.save_weights(loop.model.state_dict())
        accelerator.wait_for_everyone()
    kept, notes = (None, ()) if loop.guard is None else (loop.guard.epoch, loop.guard.said())
    result = TrainResult(tuple(loop.history), len(loop.history) - begun, kept, notes)
    check_target(config, result)
    return result


def training_on(processes: int) -> str:
    """What is said of a training, so that a launcher that starts fewer processes than it was asked for is noticed."""
    return f"training on {processes} process" + ("es" if processes > 1 else "")


def accelerator_for(config: TrainConfig) -> Any:
    """The accelerator that a training has: the first state that accelerate makes is that of the process."""
    library = require("accelerate")
    found = config.find_unused_parameters
    handlers = [library.DistributedDataParallelKwargs(find_unused_parameters=True)] if found else []
    accelerator = library.Accelerator(mixed_precision="no", kwargs_handlers=handlers)
    if config.sync_batch_norm and accelerator.device.type == "cpu":
        raise ValueError("sync_batch_norm=True needs GPUs: torch has no SyncBatchNorm for the CPU")
    return accelerator


@contextmanager
def _given_back(model: nn.Module) -> Iterator[None]:
    """The model on the device and in the layout that it came in."""
    came = next(model.parameters(), torch.empty(0))
    images = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    layout = torch.channels_last if images else torch.contiguous_format
    try:
        yield
    finally:
        model.to(came.device, memory_format=layout)  # type: ignore[call-overload]


def _objective(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    teacher: nn.Module | None,
    objective: Objective | None,
) -> Objective:
    if objective is not None:
        if teacher is not None:
            raise ValueError("give a teacher or an objective, not both")
        return objective
    if teacher is None:
        return LabelObjective(label_loss(config, data))
    return OBJECTIVES[config.loss](config, teacher, model, data)


def _describe(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    teacher: nn.Module | None,
    objective: Objective | None,
    after_step: AfterStep | None,
) -> dict[str, Any]:
    """What must be equal for a run folder to be continued."""
    return {
        **config.model_dump(),
        "data": f"{data.name}, {len(data.train)} images of {list(data.image_shape)}",
        "data_digest": data.digest(),
        "model": describe(model),
        "teacher": None if teacher is None else describe(teacher),
        "objective": None if objective is None else repr(objective),
        **(
            {} if inspect.isroutine(after_step) else {"after_step": after_step and repr(after_step)}
        ),
    }

"""The state of a training run and its steps, on one process or many."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.data.batches import Batches, epoch_seed
from qkernels.data.image_data import ImageData
from qkernels.distill.config import TrainConfig, learning_rate
from qkernels.distill.guard import Guard
from qkernels.distill.history import EpochRecord, is_over
from qkernels.distill.label_loss import plain_loss
from qkernels.distill.objective import Objective
from qkernels.distill.run_folder import RunFolder
from qkernels.distill.soundness import check_finite, check_inputs, check_labels_of
from qkernels.modules.answers import logits_of
from qkernels.utils.extras import require
from qkernels.utils.progress import Advance

AfterStep = Callable[[nn.Module, float], object]  # model, lr


@dataclass(frozen=True)
class Sums:
    """Sums over images and processes: of the loss, of images, of labels that were hit, of labels that count."""

    loss: float = 0.0
    images: float = 0.0
    right: float = 0.0
    known: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def mean_loss(self) -> float:
        return self.loss / self.images

    @property
    def accuracy(self) -> float | None:
        """None where there is nothing to hit."""
        return self.right / self.known if self.known else None


class Loop:
    """State of a run: model, optimizer, objective, batches and the epochs so far."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        config: TrainConfig,
        objective: Objective,
        after_step: AfterStep | None,
        accelerator: Any,
    ) -> None:
        if objective.needs_labels and data.train.labels is None:
            raise ValueError(
                f"{data.name}: training images without labels need a teacher and a loss that goes without them"
            )
        for teacher in objective.teachers:
            _check_apart(model, teacher)
        # What lies in eval mode in a model that trains, such as frozen batch norms, stays as it is.
        self.still = [m for m in model.modules() if model.training and not m.training]
        self.data, self.steps = data, 0
        self.config, self.accelerator = config, accelerator
        self.batches = _train_batches(data, config, accelerator)
        self.val_batches = _val_batches(data, config, accelerator)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]
        self.objective, self.after_step = objective.to(accelerator.device), after_step
        for teacher in self.objective.teachers:
            teacher.to(accelerator.device)  # in its own layout: another one would be a second copy
        self.learned = nn.ModuleList([self.model, self.objective])
        self.optimizer = _optimizer(self.learned, config)
        shared = self.model
        if config.sync_batch_norm and accelerator.num_processes > 1:
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # holds the same tensors
        self.wrapped, self.stepper = accelerator.prepare(shared, self.optimizer)
        self._share(self.objective.state_dict())  # the wrapped model's are shared already
        self.history: list[EpochRecord] = []
        self.guard: Guard | None = None

    def restore(self, folder: RunFolder | None) -> None:
        """Continue from the folder's checkpoint, or make a first one of the untrained model."""
        checkpoint = None if folder is None else folder.load()
        if self.config.keep == "best":
            found = (None, None) if checkpoint is not None else self._validate()
            start = None if found[0] is None else (found[1] or 0.0, -found[0])
            meaning, falls = self.data.meaning, self.objective.loss_falls
            chance = meaning.chance(self.data.val.labels, self.data.num_classes)
            self.guard = Guard(chance, start, self.model.state_dict(), by_loss=falls)
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint["model"])
            self.objective.load_state_dict(checkpoint.get("objective", {}))
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.history = [EpochRecord(**record) for record in checkpoint["history"]]
            if self.guard is not None:
                self.guard.load(checkpoint["guard"])
        elif folder is not None:
            if self.accelerator.is_main_process:
                folder.create()
            self.save(folder)

    def check(self) -> None:
        """Show the objective a few images, so that what does not fit is said before training."""
        self.model.eval()
        images, labels = next(self.batches.epoch(len(self.history)))
        few = images[:4]
        check_inputs(images, "the first batch")
        with torch.no_grad(), self._autocast():
            if self.objective.of_classes:
                for teacher in self.objective.teachers:
                    check_finite("the teacher", teacher, few)
                check_finite("the model", self.model, few)
                check_labels_of(self.data, logits_of(self.model, few))
            self.objective.check(self.model, few, None if labels is None else labels[:4])

    def save(self, folder: RunFolder) -> None:
        """Write the checkpoint from the first process; refuse weights that are not finite."""
        for name, value in (self.model.state_dict() | self.objective.state_dict()).items():
            if not value.isfinite().all():
                epoch = len(self.history)
                raise FloatingPointError(f"{name} is not finite after epoch {epoch}: lower the lr")
        if self.accelerator.is_main_process:
            folder.save(
                {
                    "model": self.model.state_dict(),
                    "objective": self.objective.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "history": [asdict(record) for record in self.history],
                    **({} if self.guard is None else {"guard": self.guard.state()}),
                }
            )
        self.accelerator.wait_for_everyone()

    @property
    def over(self) -> bool:
        """Whether no epoch is left to take."""
        return is_over(self.config, self.history) or (self.guard is not None and self.guard.over)

    def run_epoch(self, advance: Advance) -> None:
        """Train the next epoch, validate if it is due, and append its record."""
        epoch = len(self.history)
        if self.guard is None:
            self.history.append(self.train_epoch(epoch, advance)[0])
            return
        before = copy.deepcopy((self.learned.state_dict(), self.optimizer.state_dict()))
        while True:
            try:
                record, first_loss = self.train_epoch(epoch, advance)
                why = self.guard.ruined(record, first_loss)
            except FloatingPointError as error:
                if self.steps == 0:
                    raise
                why = str(error)
            if why is None:
                self.guard.see(record, self.model.state_dict())
                self.history.append(record)
                return
            self.learned.load_state_dict(before[0])
            self.optimizer.load_state_dict(copy.deepcopy(before[1]))
            if not self.guard.retake(epoch + 1, why, self.config.lr * self.guard.scale):
                return

    def train_epoch(self, epoch: int, advance: Advance) -> tuple[EpochRecord, float]:
        """Train one epoch and validate if it is due; its record, and the loss of its first step."""
        started = time.perf_counter()
        # Seeding per epoch (dropout) makes an epoch independent of what ran before it.
        torch.manual_seed(epoch_seed(self.config.seed, epoch, self.accelerator.process_index))
        self.wrapped.train()
        for module in self.still:
            module.training = False
        sums, rate, first_loss = Sums(), 0.0, 0.0
        for step, batch in enumerate(self.batches.epoch(epoch)):
            rate = learning_rate(self.config, epoch * len(self.batches) + step, len(self.batches))
            rate *= 1.0 if self.guard is None else self.guard.scale
            step_sums = self._step(*batch, rate)
            if not math.isfinite(step_sums.loss):
                where = f"the loss is {step_sums.loss} in epoch {epoch + 1}, step {step + 1}"
                raise FloatingPointError(f"{where}: {self._blame(batch[0])}")
            self.steps += 1
            first_loss = step_sums.mean_loss if step == 0 else first_loss
            sums = sums + step_sums
            hits = "" if sums.accuracy is None else f" acc {sums.accuracy:.1%}"
            advance(1, f"epoch {epoch + 1} loss {sums.mean_loss:.3f}{hits}")
        due = (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.config.epochs
        val_loss, val_accuracy = self._validate() if due else (None, None)
        seconds = time.perf_counter() - started
        record = EpochRecord(
            epoch + 1, sums.mean_loss, sums.accuracy, val_loss, val_accuracy, rate, seconds
        )
        return record, first_loss

    def _step(self, images: Tensor, labels: Tensor | None, rate: float) -> Sums:
        """One optimizer step, and its sums over all processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.stepper.zero_grad()
        parts = images.chunk(min(self.config.accumulate, len(images)))
        splits = [None] * len(parts) if labels is None else labels.split(len(parts[0]))
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for part, some in zip(parts, splits, strict=True):
            last = len(steps) + 1 == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self._autocast():
                    step = self.objective(self.wrapped, part, some)
                self.accelerator.backward(step.loss * (len(part) / len(images)))
            steps.append((step.loss.detach() * len(part), step.logits.detach(), step.truth))
        self._average_objective()
        if self.config.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.learned.parameters(), self.config.clip_grad_norm)
        self.stepper.step()
        if self.after_step is not None:
            self.after_step(self.model, rate)
        losses, logits, truths = zip(*steps, strict=True)
        sums = self._sums(torch.stack(losses).sum(), torch.cat(logits), torch.cat(truths))
        return self._over_processes(sums)

    @torch.no_grad()
    def _blame(self, images: Tensor) -> str:
        """What a loss that is no number comes from: the lr only where a step has been taken with it."""
        if images.is_floating_point() and not images.isfinite().all():
            return "the inputs of this batch are not finite, look at the data"
        for teacher in self.objective.teachers:
            if not logits_of(teacher, images).isfinite().all():
                return "the teacher's answers to this batch are not finite"
        if self.steps == 0:
            return "no step has been taken yet, so that no lr helps; look at the model's answers and the objective"
        return "lower the lr"

    def _share(self, tensors: dict[str, Tensor]) -> None:
        """Give every process the first one's values."""
        if self.accelerator.num_processes > 1:
            for tensor in tensors.values():
                require("accelerate.utils").broadcast(tensor)

    def _average_objective(self) -> None:
        """The wrapped model averages its gradients over the processes, the objective's are left to us."""
        if self.accelerator.num_processes > 1:
            for parameter in self.objective.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def _validate(self) -> tuple[float | None, float | None]:
        """(loss, accuracy) on the validation split, every process on its share."""
        if self.val_batches is None:
            return None, None
        self._share(dict(self.model.named_buffers()))  # batch statistics differ between processes
        self.model.eval()
        totals, plain = Sums(), plain_loss(self.data.meaning)
        for images, labels in self.val_batches:
            if len(images) == 0:  # the last batch has fewer than there are processes
                continue
            assert labels is not None
            with torch.no_grad(), self._autocast():
                images = self.objective.shown(self.model, images, labels)
                logits = logits_of(self.model, images).float()
            totals = totals + self._sums(plain(logits, labels) * len(labels), logits, labels)
        totals = self._over_processes(totals)
        return totals.mean_loss, totals.accuracy

    def _sums(self, loss: Tensor, logits: Tensor, truth: Tensor) -> Sums:
        right, known = self.data.meaning.right(logits, truth)
        return Sums(float(loss), len(truth), float(right), float(known))

    def _over_processes(self, own: Sums) -> Sums:
        sums = torch.tensor(astuple(own), dtype=torch.float64, device=self.accelerator.device)
        return Sums(*self.accelerator.reduce(sums, "sum").tolist())

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)


def _check_apart(model: nn.Module, teacher: nn.Module) -> None:
    """A teacher is read where it lies: it must not be what is trained."""
    own = {parameter.data_ptr() for parameter in model.parameters() if parameter.numel()}
    if any(parameter.data_ptr() in own for parameter in teacher.parameters()):
        raise ValueError(
            f"the teacher ({type(teacher).__name__}) shares weights with the model that is trained: "
            "give copy.deepcopy of it"
        )


def _train_batches(data: ImageData, config: TrainConfig, accelerator: Any) -> Batches:
    """Full batches only: all steps weigh the same and all processes get equal shares."""
    size, processes = min(config.batch_size, len(data.train)), accelerator.num_processes
    if size == 0 or size % processes:
        raise ValueError(f"a batch of {size} images cannot be shared by {processes} processes")
    return data.batches(
        "train",
        size,
        shuffle=True,
        augment=config.augment,
        drop_last=True,
        **_placement(config, accelerator),
    )


def _val_batches(data: ImageData, config: TrainConfig, accelerator: Any) -> Batches | None:
    if len(data.val) == 0 or data.val.labels is None:
        return None
    return data.batches("val", config.batch_size, **_placement(config, accelerator))


def _placement(config: TrainConfig, accelerator: Any) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "channels_last": config.channels_last,
        "device": accelerator.device,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(learned, config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        learned,
        config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )

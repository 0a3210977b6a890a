"""Accuracy under attack, of a float model and of its int8 form on the very same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qkernels.adversarial.attack import fgsm, pgd
from qkernels.adversarial.ball import Ball
from qkernels.data.batches import Batches
from qkernels.data.image_data import ImageData
from qkernels.evaluate import Evaluation, predict, score
from qkernels.utils.progress import Advance
from qkernels.utils.progress import progress as progress_bar

Change = Callable[[Tensor, Tensor], Tensor]  # images and labels to the images shown


@dataclass(frozen=True)
class RobustRow:
    """Accuracies under one attack, made with the gradients of the model called `through` (clean: none)."""

    attack: str
    through: str
    float32: Evaluation
    int8: Evaluation | None


@dataclass(frozen=True)
class Robustness:
    """What `robustness` measured: the first row is clean accuracy."""

    ball: Ball
    rows: tuple[RobustRow, ...]

    def row(self, attack: str, through: str = "float twin") -> RobustRow:
        """The row of an attack: "clean", "FGSM" or "PGD-<steps>"."""
        wanted = (attack, "" if attack == "clean" else through)
        for row in self.rows:
            if (row.attack, row.through) == wanted:
                return row
        known = ", ".join(f"{row.attack} {row.through}".strip() for row in self.rows)
        raise KeyError(f"no row {attack} {through}; there are {known}")

    def __str__(self) -> str:
        title = f"accuracy within eps = {self.ball.eps * 255:.3g}/255 (L-infinity)"
        lines = [f"{'attack':<10}{'through':<16}{'float32':>9}{'int8':>9}"]
        for row in self.rows:
            int8 = "" if row.int8 is None else f"{row.int8.accuracy:.2%}"
            lines.append(f"{row.attack:<10}{row.through:<16}{row.float32.accuracy:>9.2%}{int8:>9}")
        return "\n".join([title, *lines])


def robustness(
    model: nn.Module,
    data: ImageData,
    ball: Ball,
    *,
    int8: nn.Module | None = None,
    through: Mapping[str, nn.Module] | None = None,
    steps: int = 20,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """Clean, FGSM and PGD accuracy of `model` and `int8` on (the first `limit` images of) a split.

    int8 layers have no gradient, so int8 answers on images made with the gradients of `model`, its float twin. That is
    a transfer attack: it shows what quantization changes, not what an attacker of int8 could reach at best. `through`
    names further models to take gradients from: an independent one for plain transfer, or `prepare_qat(model, ...)`,
    whose forward is the int8 kernel and whose backward is straight-through, for an attack on int8 itself.

    Raises ValueError for a split without labels or images, and as `pgd`.
    """
    batches = data.batches(split, batch_size)
    batches = batches if limit is None else batches.head(limit)
    if len(batches) == 0 or batches.split.labels is None:
        raise ValueError(f"{data.name}: the split {split} has no labelled images to attack")
    changes: dict[tuple[str, str], Change] = {("clean", ""): lambda images, target: images}
    for name, source in {"float twin": model, **(through or {})}.items():
        draw = torch.Generator().manual_seed(seed)
        changes["FGSM", name] = partial(fgsm, source, ball=ball)
        changes[f"PGD-{steps}", name] = partial(pgd, source, ball=ball, steps=steps, generator=draw)
    models, rows = [model] if int8 is None else [model, int8], []
    with progress_bar("attacking", len(changes) * len(batches), enabled=progress) as advance:
        for (attack, name), change in changes.items():
            found = _evaluate(models, batches, change, advance)
            rows.append(RobustRow(attack, name, found[0], None if int8 is None else found[1]))
    return Robustness(ball, tuple(rows))


def _evaluate(
    models: list[nn.Module], batches: Batches, change: Change, advance: Advance
) -> list[Evaluation]:
    """Every model on the same changed images, which exist one batch at a time."""
    answers: list[list[Tensor]] = [[] for _ in models]
    for images, labels in batches:
        assert labels is not None
        shown = change(images, labels)
        for model, logits in zip(models, answers, strict=True):
            logits.append(predict(model, [(shown, None)]))
        advance()
    labels = batches.split.labels
    assert labels is not None
    return [score(torch.cat(logits), labels) for logits in answers]

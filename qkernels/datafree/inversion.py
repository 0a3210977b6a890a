"""Images found by gradient descent on their pixels, until the teacher takes them for its training data."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.data import Split
from qkernels.data.batches import epoch_seed
from qkernels.datafree.batch_norm import BatchNormGap
from qkernels.datafree.image_kind import ImageKind
from qkernels.datafree.sheet import write_sheet
from qkernels.distill.run_folder import RunFolder
from qkernels.modules.answers import logits_of
from qkernels.modules.eval_mode import eval_mode
from qkernels.utils.progress import Advance
from qkernels.utils.progress import progress as progress_bar


class InversionConfig(BaseModel):
    """Settings of `invert`. Weights are of means over pixels, so they suit any image and batch size.

    pydantic raises ValidationError (a ValueError) naming the field at fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(256, ge=1)
    batch_size: int = Field(128, ge=2)  # statistics are matched by the batch
    steps: int = Field(300, ge=1)  # of each batch
    lr: float = Field(0.1, gt=0)  # of Adam, on normalised images; falls as half a cosine
    batch_norm: float = Field(0.3, ge=0)  # 0 for a model without batch norms
    total_variation: float = Field(0.01, ge=0)
    l2: float = Field(0.001, ge=0)
    jitter: int = Field(1, ge=0)  # pixels by which the images are rolled at each step, at most
    seed: int = Field(0, ge=0)


def invert(
    model: nn.Module,
    kind: ImageKind,
    config: InversionConfig,
    *,
    run_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Split:
    """Images, with evenly many of each class, that `model` classifies as wanted and that fit its batch norms.

    DeepInversion, Yin et al. 2020 (1912.08795), without its competition term: each batch minimises cross-entropy +
    batch_norm * `BatchNormGap` + total_variation * TV + l2 * mean x^2 over pixels that stay within 0..1.

    With a `run_dir` every finished batch is kept there, with a `sheet.png` to look at; a killed call goes on behind
    the last of them and gives the same images. A finished folder is only read.

    Returns:
        uint8 images [config.images, C, H, W] and the labels that were asked for.

    Raises:
        ValueError: a model without batch norms, images it cannot take, or the folder of another run.
        FloatingPointError: the loss is no longer finite; the batches before it stay.
    """
    folder = None
    if run_dir is not None:
        description = {**config.model_dump(), "kind": repr(kind), "model": _fingerprint(model)}
        folder = RunFolder(run_dir, description, resume=resume)
    with eval_mode(model):
        inversion = _Inversion(model, kind, config, folder)
        inversion.run(progress)
    return inversion.split()


class _Inversion:
    """The batches so far, and what makes the next one."""

    def __init__(
        self, model: nn.Module, kind: ImageKind, config: InversionConfig, folder: RunFolder | None
    ) -> None:
        self.model, self.kind, self.config, self.folder = model, kind, config, folder
        self.gap = BatchNormGap(model) if config.batch_norm else None
        self.device = next(model.parameters()).device
        with torch.no_grad():
            black = kind.normalise(torch.zeros(1, *kind.shape, device=self.device))
            self.classes = logits_of(model, black).shape[1]
        self.images: list[Tensor] = []
        self.history: list[dict[str, float]] = []
        checkpoint = None if folder is None else folder.load()
        if checkpoint is not None:
            self.images, self.history = checkpoint["images"], checkpoint["history"]
        elif folder is not None:
            folder.create()

    def run(self, progress: bool) -> None:
        sizes = [len(part) for part in self._labels().split(self.config.batch_size)]
        total, done = len(sizes) * self.config.steps, len(self.images) * self.config.steps
        with progress_bar("inverting", total, done=done, enabled=progress) as advance:
            for number in range(len(self.images), len(sizes)):
                self._add(number, advance)
                if self.folder is not None:
                    self.folder.save({"images": self.images, "history": self.history})
                    write_sheet(self.split(), self.folder.path / "sheet.png")

    def split(self) -> Split:
        images = torch.cat(self.images)
        return Split(images, self._labels()[: len(images)])

    def _labels(self) -> Tensor:
        return torch.arange(self.config.images) % self.classes

    def _add(self, number: int, advance: Advance) -> None:
        labels = self._labels().split(self.config.batch_size)[number].to(self.device)
        draw = torch.Generator().manual_seed(epoch_seed(self.config.seed, number))
        images = torch.randn(len(labels), *self.kind.shape, generator=draw).to(self.device)
        low, high = self.kind.bounds(images)
        images = images.clamp(low, high).requires_grad_()
        optimizer = torch.optim.Adam([images], self.config.lr, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.config.steps)
        for step in range(self.config.steps):
            loss = self._loss(images, labels, draw)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} in batch {number + 1}, step {step + 1}: lower the lr"
                )
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                images.copy_(images.clamp(low, high))
            advance(1, f"batch {number + 1} loss {loss.item():.3f}")
        self._keep(images.detach(), labels, loss.item())

    def _loss(self, images: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
        config = self.config
        reach = 2 * config.jitter + 1
        shift = torch.randint(reach, (2,), generator=draw) - config.jitter
        shown = images.roll(shift.tolist(), (2, 3))
        loss = config.l2 * images.square().mean() + config.total_variation * _variation(images)
        if self.gap is None:
            return loss + cross_entropy(logits_of(self.model, shown), labels)
        with self.gap.watching() as gaps:
            logits = logits_of(self.model, shown)
        return loss + cross_entropy(logits, labels) + config.batch_norm * torch.stack(gaps).sum()

    def _keep(self, images: Tensor, labels: Tensor, loss: float) -> None:
        pixels = self.kind.to_uint8(images)
        with torch.no_grad():
            logits = logits_of(self.model, self.kind.normalise(pixels / 255))
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        self.images.append(pixels.cpu())
        self.history.append({"batch": len(self.images), "loss": loss, "accuracy": accuracy})


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart by their weights: other weights have other images."""
    digest = 0
    for tensor in model.state_dict().values():
        digest = zlib.crc32(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), digest
        )
    return f"{type(model).__name__}, weights {digest:08x}"


def _variation(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbours, across and down."""
    across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return across.mean() + down.mean()

"""Students taught on images that a generator makes up; for `qkernels.distill.train(objective=...)`.

The generator learns beside the student, from the teacher alone. It is a part of the objective, so the trainer steps it
and saves it with the run; the images of the data set are only counted (`ImageKind.placeholders`). Train with
`optimizer="adamw"` and without augmentation: one lr has to suit both networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.parallel import DistributedDataParallel

from qkernels.data import Split
from qkernels.datafree.batch_norm import BatchNormGap
from qkernels.datafree.generator import Generator
from qkernels.distill.losses import hinton_loss
from qkernels.distill.objective import Objective, StepLoss
from qkernels.modules.answers import logits_of
from qkernels.modules.eval_mode import eval_mode
from qkernels.modules.watching import watching


class Made(NamedTuple):
    """Normalised images [N, C, H, W], the teacher's logits [N, K] for them, and the generator's scalar loss."""

    images: Tensor
    logits: Tensor
    loss: Tensor


class GeneratorObjective(Objective):
    """The generator's loss, plus the student's T^2 * KL with the teacher on the same images.

    The student's loss does not reach the generator; nothing reaches the teacher's weights. `batch_norm` weighs
    `BatchNormGap`; 0 for a teacher without batch norms.
    """

    needs_labels = False
    loss_falls = False  # student and generator pull at it from two sides

    def __init__(
        self, teacher: nn.Module, generator: Generator, *, batch_norm: float, temperature: float
    ) -> None:
        super().__init__(teacher)
        self.generator, self.batch_norm, self.temperature = generator, batch_norm, temperature
        self.gap = BatchNormGap(self.teachers[0]) if batch_norm else None

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        return self.taught(model, self.make(len(images), images.device))

    def taught(self, model: nn.Module, made: Made) -> StepLoss:
        """The generator's loss, and the student's on what was made."""
        guide = made.logits.detach()
        logits = logits_of(model, made.images.detach())
        soft = hinton_loss(logits, guide, temperature=self.temperature, alpha=1.0)
        return StepLoss(made.loss + soft, logits, guide.argmax(1))

    def make(self, count: int, device: torch.device) -> Made:
        """A batch of new images, and what the generator has to learn from the teacher's answer to them."""
        raise NotImplementedError

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and the weighted gap of its batch norms, both with a gradient to the images."""
        if self.gap is None:
            return logits_of(self.teachers[0], images), images.new_zeros(())
        with self.gap.watching() as gaps:
            logits = logits_of(self.teachers[0], images)
        return logits, self.batch_norm * torch.stack(gaps).sum()

    @torch.no_grad()
    def sample(self, count: int, *, seed: int = 0, batch_size: int = 256) -> Split:
        """`count` images of the generator as it stands, labelled by the teacher: to look at, to calibrate with."""
        kind, device = self.generator.kind, next(self.generator.parameters()).device
        images, labels = [], []
        with torch.random.fork_rng(), eval_mode(self.generator):
            torch.manual_seed(seed)
            for start in range(0, count, batch_size):
                made = self.make(min(batch_size, count - start), device)
                images.append(kind.to_uint8(made.images).cpu())
                labels.append(made.logits.argmax(1).cpu())
        return Split(torch.cat(images), torch.cat(labels))

    def extra_repr(self) -> str:
        return f"batch_norm={self.batch_norm}, temperature={self.temperature}"


class DAFL(GeneratorObjective):
    """One-hot + activation * L_a + information * L_ie: Chen et al. 2019 (1904.01186), with its weights.

    The teacher should be sure of each image (cross-entropy with its own answer), its features large (L_a = -mean |f|,
    f what its last Linear reads) and its classes equally often met (L_ie = sum of p log p, p the mean answer of a
    batch). `batch_norm` is no part of the paper, and what makes images of networks with batch norms useful.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        *,
        activation: float = 0.1,
        information: float = 5.0,
        batch_norm: float = 0.3,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(teacher, generator, batch_norm=batch_norm, temperature=temperature)
        self.activation, self.information = activation, information

    def make(self, count: int, device: torch.device) -> Made:
        images = self.generator(torch.randn(count, self.generator.latent, device=device))
        with _inputs_of(_last_linear(self.teachers[0])) as features:
            logits, loss = self.ask(images)
        shares = logits.softmax(1).mean(0)
        loss = loss + cross_entropy(logits, logits.argmax(1))
        loss = loss - self.activation * features[0].abs().mean()
        loss = loss + self.information * (shares * shares.clamp_min(1e-12).log()).sum()
        return Made(images, logits, loss)

    def extra_repr(self) -> str:
        return (
            f"activation={self.activation}, information={self.information}, {super().extra_repr()}"
        )


class LabelVAE(GeneratorObjective):
    """A variational autoencoder of the labels, whose decoder passes through an image and the teacher.

    Without images the only thing to encode is the class. So: a label y drawn evenly, a code z from the learned
    posterior q(z|y) = N(mean_y, diag(var_y)) by the reparameterisation of Kingma and Welling 2014 (1312.6114), an image
    from z by the decoder (the generator), and the teacher must read y again. The loss is the negative ELBO,
    -E log p_teacher(y | image(z)) + prior * KL(q(z|y) || N(0, 1)), plus the gap of the batch norms. There is no
    encoder of images, since there are none. `prior` is below 1: at 1 a label costs as many nats to encode as it saves.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        *,
        prior: float = 0.1,
        batch_norm: float = 0.3,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(teacher, generator, batch_norm=batch_norm, temperature=temperature)
        self.prior = prior
        self.classes = _last_linear(self.teachers[0]).out_features
        self.posterior = nn.Embedding(self.classes, 2 * generator.latent)
        nn.init.zeros_(self.posterior.weight[:, generator.latent :])  # log variances

    def make(self, count: int, device: torch.device) -> Made:
        labels = torch.randint(self.classes, (count,), device=device)
        mean, log_variance = self.posterior(labels).chunk(2, 1)
        codes = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        images = self.generator(codes)
        logits, loss = self.ask(images)
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1).mean()
        loss = loss + cross_entropy(logits, labels) + self.prior * divergence
        return Made(images, logits, loss)

    def extra_repr(self) -> str:
        return f"prior={self.prior}, {super().extra_repr()}"


class DFQ(GeneratorObjective):
    """One-hot + information * L_ie - adversarial * KL(teacher || student): images on which the two differ.

    Choi et al. 2020 (2005.04136): the generator seeks what the student has not learned yet, held to the teacher's
    batch norms. As in CMI (Fang et al. 2021, 2105.08584), a `memory` of the last images made teaches the student
    too, so that it does not forget what the generator has left; half of what it learns from comes from there.
    """

    images: Tensor
    answers: Tensor
    seen: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        *,
        adversarial: float = 1.0,
        information: float = 5.0,
        batch_norm: float = 0.3,
        temperature: float = 4.0,
        memory: int = 4096,
    ) -> None:
        super().__init__(teacher, generator, batch_norm=batch_norm, temperature=temperature)
        self.adversarial, self.information, self.memory = adversarial, information, memory
        classes = _last_linear(self.teachers[0]).out_features
        shape = generator.kind.shape
        self.register_buffer("images", torch.zeros(memory, *shape, dtype=torch.uint8))
        self.register_buffer("answers", torch.zeros(memory, classes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # images ever made

    def make(self, count: int, device: torch.device) -> Made:
        images = self.generator(torch.randn(count, self.generator.latent, device=device))
        logits, loss = self.ask(images)
        shares = logits.softmax(1).mean(0)
        loss = loss + cross_entropy(logits, logits.argmax(1))
        loss = loss + self.information * (shares * shares.clamp_min(1e-12).log()).sum()
        return Made(images, logits, loss)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        made = self.make(len(images), images.device)
        apart = _divergence(made.logits, _unlearning(model, made.images))
        step = self.taught(model, made._replace(loss=made.loss - self.adversarial * apart))
        known = min(int(self.seen), self.memory)
        if known:
            again = torch.randint(known, (len(images),), device=images.device)
            logits = logits_of(model, self._recalled(again))
            soft = hinton_loss(logits, self.answers[again], temperature=self.temperature, alpha=1.0)
            step = step._replace(loss=step.loss + soft)
        if self.memory:
            self._remember(made)
        return step

    @torch.no_grad()
    def _remember(self, made: Made) -> None:
        places = (int(self.seen) + torch.arange(len(made.images))) % self.memory
        self.images[places] = self.generator.kind.to_uint8(made.images)
        self.answers[places] = made.logits.float()
        self.seen += len(made.images)

    def _recalled(self, places: Tensor) -> Tensor:
        return self.generator.kind.normalise(self.images[places].float() / 255)

    def extra_repr(self) -> str:
        return (
            f"adversarial={self.adversarial}, information={self.information}, memory={self.memory}, "
            f"{super().extra_repr()}"
        )


def _unlearning(model: nn.Module, images: Tensor) -> Tensor:
    """The student's logits with a gradient to the images alone: neither weights nor statistics take part."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    fixed = {name: value.detach() for name, value in inner.named_parameters()}
    fixed |= {name: value.clone() for name, value in inner.named_buffers()}
    return logits_of(partial(functional_call, inner, fixed), images)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits [N, K], averaged over images, with a gradient to both."""
    return kl_div(
        student.float().log_softmax(1), teacher.float().log_softmax(1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip


def _last_linear(teacher: nn.Module) -> nn.Linear:
    """The classifier: the last Linear of a network."""
    for module in reversed(list(teacher.modules())):
        if isinstance(module, nn.Linear):
            return module
    raise ValueError(f"{type(teacher).__name__} has no Linear that classifies features")


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that every call of `module` inside fills with its input."""
    inputs: list[Tensor] = []
    with watching({"": module}, lambda name, call: inputs.append(call.first)):
        yield inputs

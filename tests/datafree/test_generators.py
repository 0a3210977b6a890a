"""The generators' losses by hand, and what students learn from them about real digits that they have never seen."""

import copy
from pathlib import Path

import pytest
import torch
from datafree_nets import resnet
from torch import Tensor, nn

from qkernels.data import ImageData, Split
from qkernels.datafree import (
    DAFL,
    DFQ,
    BatchNormGap,
    Generator,
    GeneratorObjective,
    ImageKind,
    LabelVAE,
)
from qkernels.distill import TrainConfig, hinton_loss, train
from qkernels.evaluate import evaluate
from qkernels.models import TutorialCNN

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=2, batch_size=32, optimizer="adamw", lr=2e-3, augment=False)


class KilledError(Exception):
    pass


def generator(data: ImageData, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator(ImageKind.of(data), latent=16, width=16)


def make(kind: str, data: ImageData, teacher: nn.Module, **options: float) -> GeneratorObjective:
    return {"dafl": DAFL, "vae": LabelVAE, "dfq": DFQ}[kind](teacher, generator(data), **options)


def gap(teacher: nn.Module, images: Tensor) -> Tensor:
    with BatchNormGap(teacher).watching() as gaps:
        teacher(images)
    return torch.stack(gaps).sum()


def test_dafl_by_hand(digits: ImageData, teacher: nn.Module) -> None:
    objective = DAFL(teacher, generator(digits), activation=0.3, information=2.0, batch_norm=0.5)
    features: list[Tensor] = []
    teacher.get_submodule("avgpool").register_forward_hook(lambda m, a, y: features.append(y))
    torch.manual_seed(1)
    made = objective.make(40, torch.device("cpu"))
    logits = teacher(made.images)
    one_hot = -logits.log_softmax(1).amax(1).mean()
    shares = logits.softmax(1).mean(0)
    information = (shares * shares.log()).sum()
    expected = one_hot - 0.3 * features[0].abs().mean() + 2.0 * information
    expected = expected + 0.5 * gap(teacher, made.images)
    torch.testing.assert_close(made.loss, expected)
    torch.testing.assert_close(made.logits, logits)


def test_label_vae_by_hand(digits: ImageData, teacher: nn.Module) -> None:
    objective = LabelVAE(teacher, generator(digits), prior=0.2, batch_norm=0.5)
    with torch.no_grad():
        objective.posterior.weight[:, 16:] = torch.linspace(-1, 0.5, 16)
    torch.manual_seed(1)
    made = objective.make(40, torch.device("cpu"))
    torch.manual_seed(1)
    labels = torch.randint(10, (40,))
    mean, variance = objective.posterior.weight[:, :16], objective.posterior.weight[:, 16:].exp()
    posterior = torch.distributions.Normal(mean[labels], variance[labels].sqrt())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1))
    reading = -made.logits.log_softmax(1)[torch.arange(40), labels]
    expected = reading.mean() + 0.2 * divergence.sum(1).mean() + 0.5 * gap(teacher, made.images)
    torch.testing.assert_close(made.loss, expected)


@pytest.mark.parametrize("kind", ["dafl", "vae"])
def test_generator_and_student_learn_each_its_own_and_the_teacher_nothing(
    digits: ImageData, teacher: nn.Module, kind: str
) -> None:
    objective, student = make(kind, digits, teacher), resnet()
    before = copy.deepcopy(objective.teachers[0].state_dict())
    images = torch.zeros(32, 1, 8, 8)
    torch.manual_seed(0)
    objective.make(32, images.device).loss.backward()
    alone = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    assert len(alone) == len(list(objective.parameters()))
    objective.zero_grad()
    torch.manual_seed(0)
    result = objective(student, images, None)
    result.loss.backward()
    for parameter, grad in zip(objective.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, grad)  # the student's loss adds nothing to it
    assert all(p.grad is not None for p in student.parameters())
    teacher_now = objective.teachers[0].state_dict()
    assert all(torch.equal(value, teacher_now[name]) for name, value in before.items())
    assert not any(name.startswith("teachers") for name in objective.state_dict())


def test_dfq_s_generator_seeks_what_the_student_does_not_know_and_the_student_does_not_help_it(
    digits: ImageData, teacher: nn.Module
) -> None:
    objective, student = DFQ(teacher, generator(digits), adversarial=0.7, memory=0), resnet()
    images, twin = torch.zeros(32, 1, 8, 8), copy.deepcopy(student)
    torch.manual_seed(0)
    made = objective.make(32, images.device)
    answers, known = twin(made.images).log_softmax(1), made.logits.log_softmax(1)
    apart = (known.exp() * (known - answers)).sum(1).mean()
    wanted = torch.autograd.grad(made.loss - 0.7 * apart, list(objective.parameters()))
    torch.manual_seed(0)
    objective(student, images, None).loss.backward()
    for parameter, grad in zip(objective.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    twin = copy.deepcopy(resnet())
    soft = hinton_loss(twin(made.images.detach()), made.logits.detach(), temperature=4.0, alpha=1.0)
    soft.backward()
    for mine, alone in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, alone.grad)  # of the soft loss alone
    for name, value in student.named_buffers():  # statistics of one pass, not of two
        torch.testing.assert_close(value, twin.get_buffer(name))


def test_dfq_s_memory_holds_the_last_images_and_their_answers(
    digits: ImageData, teacher: nn.Module
) -> None:
    objective = DFQ(teacher, generator(digits), memory=48)
    for _ in range(2):
        objective(resnet(), torch.zeros(32, 1, 8, 8), None)
    assert int(objective.seen) == 64
    with torch.no_grad():
        again = objective.teachers[0](objective._recalled(torch.arange(48)))
    # rounded to 8 bits, the images are nearly those that were answered
    assert (again.argmax(1) == objective.answers.argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("kind", ["dafl", "vae", "dfq"])
def test_a_student_of_no_real_image_reads_real_digits(
    digits: ImageData, teacher: nn.Module, kind: str
) -> None:
    """A quarter of a minute; docs/digits.md has the figures of longer runs. Guessing gives 10 %."""
    made_up = digits.with_train(ImageKind.of(digits).placeholders(32 * 64))
    config = TrainConfig(epochs=8, batch_size=64, optimizer="adamw", lr=0.02, augment=False)
    student = resnet(8, seed=1)
    train(student, made_up, config, objective=make(kind, digits, teacher), progress=False)
    assert evaluate(student, digits).accuracy > 0.5


@pytest.mark.parametrize("kind", ["dafl", "vae", "dfq"])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, digits: ImageData, teacher: nn.Module, kind: str
) -> None:
    data = digits.with_train(ImageKind.of(digits).placeholders(5 * 32))
    undisturbed, whole = resnet(4), make(kind, digits, teacher)
    train(undisturbed, data, CONFIG, objective=whole)

    steps = iter(range(7))  # five an epoch

    def kill(model: nn.Module, lr: float) -> None:
        if next(steps, None) is None:
            raise KilledError

    halted = make(kind, digits, teacher)
    with pytest.raises(KilledError):
        train(resnet(4), data, CONFIG, objective=halted, after_step=kill, run_dir=tmp_path)
    resumed, rest = resnet(4, seed=5), make(kind, digits, teacher)
    train(resumed, data, CONFIG, objective=rest, run_dir=tmp_path)
    for one, other in ((undisturbed, resumed), (whole, rest)):
        expected = one.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert same(whole.sample(20, seed=3), rest.sample(20, seed=3))


def same(one: Split, other: Split) -> bool:
    assert isinstance(one.images, Tensor) and isinstance(other.images, Tensor)
    assert one.labels is not None and other.labels is not None
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_samples_repeat_by_seed_and_disturb_nothing(digits: ImageData, teacher: nn.Module) -> None:
    objective = make("vae", digits, teacher)
    before, state = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    first = objective.sample(30, seed=1, batch_size=30)
    assert len(first) == 30 and first.images.shape == (30, 1, 8, 8)
    assert same(first, objective.sample(30, seed=1, batch_size=30))
    assert not same(first, objective.sample(30, seed=2, batch_size=30))
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.generator.training
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_teachers_that_cannot_guide_a_generator_say_why(digits: ImageData) -> None:
    without = TutorialCNN(10, in_channels=1, image_size=8, width=4)
    with pytest.raises(ValueError, match=r"no batch norm with running statistics.*batch_norm=0"):
        LabelVAE(without, generator(digits))
    loss = DAFL(without, generator(digits), batch_norm=0)(
        resnet(), torch.zeros(8, 1, 8, 8), None
    ).loss
    assert loss.isfinite()
    headless = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(ValueError, match="has no Linear that classifies"):
        LabelVAE(headless, generator(digits), batch_norm=0)

"""Labels that are several at once, values, weighted, or unknown: losses, trainings, teachers and figures of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    mse_loss,
)
from torch.utils.data import TensorDataset

from qkernels.data import ImageData, Labels, from_datasets
from qkernels.distill import (
    LabelLoss,
    TrainConfig,
    binary_focal_loss,
    binary_hinton_loss,
    focal_loss,
    label_loss,
    mean_answer,
    soft_objective,
    suitable_config,
    train,
)
from qkernels.distill.label_loss import LABEL_LOSSES, balanced
from qkernels.evaluate import evaluate, judge

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=12, batch_size=32, optimizer="adamw", lr=0.02, keep="best")
seeds = st.integers(0, 10_000)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int = 320) -> Tensor:
    return randn(3, count, 6)


def multilabel(ignore: int | None = None) -> ImageData:
    """Label k is the sign of the k-th number; with `ignore`, a third of the labels is unknown."""
    x = inputs()
    y = (x[:, :4] > 0.5).float()
    if ignore is not None:
        y[torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) < 1 / 3] = ignore
    return from_datasets(TensorDataset(x, y), ignore_index=ignore)


def values() -> ImageData:
    x = inputs()
    return from_datasets(TensorDataset(x, torch.stack([x[:, 0] - x[:, 1], x[:, 2] * 2], 1)))


def net(outputs: int, width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, outputs))


# ---- what labels mean


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (torch.arange(20) % 3, "multiclass", 3),
        (torch.eye(4).repeat(5, 1), "multilabel", 4),
        (torch.eye(4, dtype=torch.bool).repeat(5, 1), "multilabel", 4),
        (torch.eye(4, dtype=torch.int32).repeat(5, 1), "multilabel", 4),
        (torch.linspace(0, 1, 20), "regression", 1),
        (torch.randn(20, 2), "regression", 2),
    ],
)
def test_what_labels_mean_is_seen_by_their_form(labels: Tensor, task: str, classes: int) -> None:
    data = from_datasets(TensorDataset(torch.zeros(20, 3), labels))
    assert data.meaning.task == task and data.num_classes == classes
    for split in (data.train, data.val, data.test):
        assert split.labels is not None and split.labels.ndim == 1 + (task != "multiclass")


def test_labels_that_are_none_of_their_meaning_are_named() -> None:
    x = torch.zeros(20, 6)
    with pytest.raises(
        ValueError, match=r"multiclass labels must be int64 \[N\], not torch.float32"
    ):
        from_datasets(TensorDataset(x, torch.rand(20)), task="multiclass")
    with pytest.raises(
        ValueError, match=r"regression labels must be float \[N, K\], not torch.int64"
    ):
        from_datasets(TensorDataset(x, torch.arange(20)), task="regression")
    wrong = torch.eye(4).repeat(5, 1)
    wrong[2, 1] = 2
    data = from_datasets(TensorDataset(x, wrong), task="multilabel", val_fraction=0.0)
    with pytest.raises(
        ValueError, match="own train: label 2 of image 2, output 1, is neither 0 nor 1"
    ):
        train(net(4), data, CONFIG)
    wrong[2, 1] = torch.inf
    data = from_datasets(TensorDataset(x, wrong), task="regression", val_fraction=0.0)
    with pytest.raises(ValueError, match="label inf of image 2, output 1, is not finite"):
        train(net(4), data, CONFIG)


def test_answers_of_another_form_than_the_labels_are_refused_and_not_broadcast() -> None:
    flat = nn.Sequential(net(1), nn.Flatten(0))
    data = from_datasets(TensorDataset(inputs(), inputs()[:, 0]))
    with pytest.raises(ValueError, match=r"answers \[4\] do not fit regression labels \[4, 1\]"):
        train(flat, data, CONFIG)
    with pytest.raises(ValueError, match=r"answers \[4, 3\] do not fit multilabel labels \[4, 4\]"):
        train(net(3), multilabel(), CONFIG)


# ---- losses by hand


@settings(deadline=None)
@given(seeds, st.integers(2, 5), st.floats(0, 3))
def test_focal_losses_by_hand(seed: int, classes: int, gamma: float) -> None:
    logits, labels = randn(seed, 7, classes), torch.arange(7) % classes
    weights = torch.rand(classes, generator=torch.Generator().manual_seed(seed)) + 0.1
    p = logits.softmax(1)[torch.arange(7), labels]
    expected = (weights[labels] * -((1 - p) ** gamma) * p.log()).sum() / weights[labels].sum()
    torch.testing.assert_close(
        focal_loss(logits, labels, gamma=gamma, weights=weights), expected, rtol=1e-4, atol=1e-5
    )
    multi = (randn(seed + 1, 7, classes) > 0).float()
    p = torch.where(multi > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -((1 - p) ** gamma) * p.log() * torch.where(multi > 0, weights, 1.0)
    torch.testing.assert_close(
        binary_focal_loss(logits, multi, gamma=gamma, pos_weight=weights), expected, rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_gamma_0_is_cross_entropy_and_hard_images_are_finite() -> None:
    logits, labels = 50 * randn(0, 9, 4), torch.arange(9) % 4
    torch.testing.assert_close(focal_loss(logits, labels, gamma=0), cross_entropy(logits, labels))
    multi = (randn(1, 9, 4) > 0).float()
    torch.testing.assert_close(
        binary_focal_loss(logits, multi, gamma=0).mean(),
        binary_cross_entropy_with_logits(logits, multi),
    )
    for gamma in (0.5, 2.0):
        x = (1e4 * logits).requires_grad_()
        (
            focal_loss(x, labels, gamma=gamma) + binary_focal_loss(x, multi, gamma=gamma).mean()
        ).backward()
        assert x.grad is not None and x.grad.isfinite().all()


@settings(deadline=None)
@given(seeds, st.integers(1, 4), st.floats(1, 5))
def test_hinton_of_several_labels_is_the_divergence_of_each(
    seed: int, classes: int, temperature: float
) -> None:
    student, teacher = randn(seed, 5, classes), randn(seed + 1, 5, classes)
    two = [
        torch.stack([x, torch.zeros_like(x)], 2).div(temperature).log_softmax(2)
        for x in (student, teacher)
    ]
    expected = temperature**2 * kl_div(*two, reduction="sum", log_target=True) / 5
    torch.testing.assert_close(
        binary_hinton_loss(student, teacher, temperature=temperature), expected, rtol=1e-4, atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize(("task", "name"), [(t, n) for n, ts in LABEL_LOSSES.items() for t in ts])
def test_labels_that_say_nothing_have_no_part_in_a_loss(task: str, name: str) -> None:
    if task == "regression":
        return
    logits = randn(0, 6, 3)
    labels = torch.arange(6) % 3 if task == "multiclass" else (randn(1, 6, 3) > 0).float()
    weights = (1.0, 2.0, 3.0)
    full = LabelLoss(name, Labels(task), weights=weights)
    part = LabelLoss(name, Labels(task, -1), weights=weights)
    torch.testing.assert_close(part(logits, labels), full(logits, labels))
    unknown = labels.clone()
    unknown[:2] = -1
    torch.testing.assert_close(part(logits, unknown), full(logits[2:], labels[2:]))
    unknown[:] = -1
    nothing = logits.clone().requires_grad_()
    part(nothing, unknown).backward()
    assert nothing.grad is not None and nothing.grad.abs().max() == 0


def test_smoothing_and_weights_are_those_of_torch() -> None:
    logits, labels, multi = randn(0, 6, 3), torch.arange(6) % 3, (randn(1, 6, 3) > 0).float()
    weights = torch.tensor([1.0, 2.0, 0.5])
    config = TrainConfig(class_weights="1,2,0.5", label_smoothing=0.2)
    torch.testing.assert_close(
        label_loss(config)(logits, labels),
        cross_entropy(logits, labels, weights, label_smoothing=0.2),
    )
    loss = label_loss(config, multilabel())
    with pytest.raises(ValueError, match="class_weights has 3 values for 4 classes"):
        loss(randn(0, 6, 4), torch.ones(6, 4))
    torch.testing.assert_close(
        loss(logits, multi),
        binary_cross_entropy_with_logits(logits, 0.8 * multi + 0.1, pos_weight=weights),
    )


def test_balanced_weights_make_classes_count_alike() -> None:
    labels = torch.tensor([0, 0, 0, 1, -1])
    assert balanced(labels, Labels(ignore=-1), 2) == pytest.approx((4 / 6, 4 / 2))
    with pytest.raises(ValueError, match="class 2 never occurs in training"):
        balanced(labels, Labels(ignore=-1), 3)
    rows = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, -1]])
    assert balanced(rows, Labels("multilabel", -1), 2) == pytest.approx((3.0, 2.0))


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        (
            {"label_loss": "mse"},
            multilabel,
            "label_loss='mse' is none of multilabel labels: take focal, bce",
        ),
        ({"label_loss": "bce"}, values, "'bce' is none of regression labels: take mse, huber"),
        ({"label_smoothing": 0.1}, values, "label_smoothing is of classes"),
        ({"class_weights": "1,2"}, values, "class_weights is of classes"),
        (
            {"label_loss": "focal", "label_smoothing": 0.1},
            multilabel,
            "no meaning in the focal loss",
        ),
        ({"until": 0.9}, values, "until=0.9 is an accuracy"),
    ],
)
def test_settings_that_do_not_go_with_the_labels_are_named(
    changes: dict[str, object], data: Callable[[], ImageData], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train(net(4), data(), TrainConfig(**changes))


@pytest.mark.parametrize("text", ["1,x", "-1,2", "0,0", "nan,1", "inf,1", "uneven"])
def test_class_weights_that_weigh_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="class_weights"):
        TrainConfig(class_weights=text)


# ---- trainings


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_several_labels_at_once_are_learned_and_taught(name: str) -> None:
    data = multilabel(ignore=-1)
    config = CONFIG.model_copy(update={"label_loss": name, "class_weights": "balanced"})
    teacher, student = net(4, 32), net(4, 8, seed=1)
    history = train(teacher, data, config, progress=False).history
    assert history[-1].accuracy > 0.9 and history[-1].val_accuracy > 0.85
    for loss in ("hinton", "logit_mse", "rkd"):
        taught = copy.deepcopy(student)
        config = CONFIG.model_copy(update={"loss": loss, "features": "1" if loss == "rkd" else ""})
        result = train(taught, data, config, teacher=teacher.eval(), progress=False)
        assert result.val_accuracy > 0.85
    unlabelled = data.with_train(data.train.unlabelled())
    alone = train(copy.deepcopy(student), unlabelled, CONFIG, teacher=teacher, progress=False)
    assert alone.history[-1].accuracy > 0.85  # agreement with the teacher
    with pytest.raises(
        ValueError, match="loss='dkd' is none of multilabel answers: take hinton, logit_mse"
    ):
        train(student, data, CONFIG.model_copy(update={"loss": "dkd"}), teacher=teacher)


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_values_are_learned_and_taught(name: str, tmp_path: Path) -> None:
    data = values()
    config = CONFIG.model_copy(update={"label_loss": name})
    teacher, student = net(2, 64), net(2, 32, seed=1)
    result = train(teacher, data, config, run_dir=tmp_path, progress=False)
    assert result.history[-1].accuracy is None and result.val_accuracy is None
    assert result.history[-1].val_loss < 0.1 * float(data.val.labels.var())
    assert result.kept == min(result.history, key=lambda r: r.val_loss).epoch  # the best by loss
    suited = suitable_config(data, student, {"epochs": 12, "batch_size": 32, "lr": 0.02})
    assert suited.loss == "logit_mse"
    taught = train(student, data, suited, teacher=teacher.eval(), progress=False)
    assert taught.history[-1].val_loss < 0.2 * float(data.val.labels.var())
    with pytest.raises(
        ValueError, match="loss='hinton' is none of regression answers: take logit_mse, cosine"
    ):
        train(student, data, CONFIG, teacher=teacher)


def test_patience_goes_by_the_loss_where_there_is_no_accuracy() -> None:
    config = CONFIG.model_copy(
        update={"lr": 1e-9, "patience": 2, "keep": "last", "weight_decay": 0.0}
    )
    still = train(net(2), values(), config.model_copy(update={"lr": 1e-30}), progress=False)
    assert len(still.history) == 3


def test_images_of_an_unknown_class_are_taught_by_the_teacher_alone() -> None:
    x, y = inputs(), (inputs()[:, 0] > 0).long()
    known = from_datasets(TensorDataset(x, y))
    y = torch.where(torch.arange(320) % 4 > 0, -100, y)
    data = from_datasets(TensorDataset(x, y), TensorDataset(x, y), ignore_index=-100)
    teacher = net(2, 32)
    train(teacher, known, CONFIG, progress=False)
    student = net(2, 8, seed=1)
    result = train(student, data, CONFIG, teacher=teacher.eval(), progress=False)
    assert result.val_accuracy > 0.9
    found = evaluate(student, data)
    assert found.count == 80 and found.accuracy == pytest.approx(
        result.history[result.kept - 1].val_accuracy
    )
    strict = from_datasets(TensorDataset(x, y))
    with pytest.raises(ValueError, match="label -100 of image"):
        train(net(2), strict, CONFIG)


def test_several_teachers_of_any_labels_teach_their_mean() -> None:
    first, second = randn(0, 5, 3), randn(1, 5, 3)
    both = [first, second]
    mean = mean_answer(both, temperature=2.0, weights=[3, 1], task="multilabel")
    probs = 0.75 * (first / 2).sigmoid() + 0.25 * (second / 2).sigmoid()
    torch.testing.assert_close((mean / 2).sigmoid(), probs)
    mean = mean_answer(both, temperature=2.0, weights=[3, 1], task="regression")
    torch.testing.assert_close(mean, 0.75 * first + 0.25 * second)
    teachers = [net(2, 16, seed=i).eval() for i in (1, 2)]
    config = TrainConfig(alpha=1.0)
    objective = soft_objective("logit_mse", config, *teachers, data=values())
    x = inputs(8)
    student = net(2)
    expected = 2 * mse_loss(student(x), (teachers[0](x) + teachers[1](x)) / 2) / 2
    assert objective(student, x, torch.zeros(8, 2)).loss.item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_a_killed_run_of_values_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    data, config = values(), CONFIG.model_copy(update={"epochs": 4})
    whole, part = net(2), net(2)
    train(whole, data, config, progress=False)
    steps = iter(range(15))

    def kill(model: nn.Module, lr: float) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, data, config, after_step=kill, run_dir=tmp_path, progress=False)
    resumed = net(2)
    train(resumed, data, config, run_dir=tmp_path, progress=False)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- figures


def test_figures_are_those_of_scikit_learn() -> None:
    pytest.importorskip("torchmetrics")
    known = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    answers, labels = randn(0, 60, 3), (randn(1, 60, 3) > 0).float()
    found = judge(answers, labels, Labels("multilabel"))
    assert (
        found.value
        == found.metrics["mAP"]
        == pytest.approx(known.average_precision_score(labels, answers))
    )
    hits = (answers > 0).float()
    assert found.metrics["F1"] == pytest.approx(known.f1_score(labels, hits, average="micro"))
    assert found.metrics["label accuracy"] == pytest.approx(float((hits == labels).float().mean()))
    assert found.unlearned == pytest.approx(float(labels.mean()))
    truth = answers + randn(2, 60, 3)
    found = judge(answers, truth, Labels("regression"))
    assert found.value == pytest.approx(known.r2_score(truth, answers), rel=1e-4)
    ranks = [stats.spearmanr(answers[:, k], truth[:, k]).statistic for k in range(3)]
    assert found.metrics["Spearman"] == pytest.approx(sum(ranks) / 3, rel=1e-4)


def test_unknown_labels_have_no_part_in_a_figure() -> None:
    pytest.importorskip("torchmetrics")
    answers, labels = randn(0, 60, 3), (randn(1, 60, 3) > 0).float()
    labels[:20] = -1
    found = judge(answers, labels, Labels("multilabel", -1))
    part = judge(answers[20:], labels[20:], Labels("multilabel"))
    assert found.metrics == pytest.approx(part.metrics)
    assert found.loss == pytest.approx(part.loss)


def test_answers_that_do_not_look_at_the_input_are_worth_what_is_said() -> None:
    pytest.importorskip("torchmetrics")
    labels = values().train.labels
    assert labels is not None
    found = judge(labels.mean(0).expand_as(labels).clone(), labels, Labels("regression"))
    assert found.value == pytest.approx(found.unlearned, abs=1e-5)

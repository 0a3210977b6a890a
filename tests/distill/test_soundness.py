"""What is wrong with models, labels and folders is named: it is not always the learning rate."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from safetensors.torch import load_file
from torch import Tensor, nn

import qkernels as qk
from qkernels.adversarial import Ball, fgsm
from qkernels.data import ImageData, Split
from qkernels.distill import CachedTeacher, TrainConfig, dkd_loss, hinton_loss, logit_mse, train
from qkernels.evaluate import evaluate, predict, score
from qkernels.modules.answers import AnswerError, logits_of
from qkernels.prune import taylor

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=0.05)


class Answering(nn.Module):
    """A model whose answer has another form."""

    def __init__(self, form: Any, width: int = 4) -> None:
        super().__init__()
        self.inner, self.form = toy_model(width), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x))


class Output(dict):
    """As the ModelOutput of transformers: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


FORMS = {
    "dict": lambda y: {"loss": None, "logits": y},
    "object": lambda y: SimpleNamespace(logits=y),
    "both": lambda y: Output(logits=y),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_logits_in_an_output_are_found_by_everything_that_asks_for_them(
    form: Any, tmp_path: Path
) -> None:
    model, data = Answering(form).eval(), toy_data()
    plain = predict(model.inner, data.batches("test", 8))
    assert torch.equal(predict(model, data.batches("test", 8)), plain)
    images, labels = next(iter(data.batches("train", 8)))
    assert fgsm(model, images, labels, Ball(0.1, data.mean, data.std)).shape == images.shape
    assert taylor(model, [(images, labels)])
    cached = CachedTeacher(model, tmp_path / "answers")
    assert torch.equal(cached(images), model.inner(images))
    train(Answering(form), data, CONFIG, teacher=model)


def first_tensor(output: Any) -> Tensor:
    inside = vars(output) if isinstance(output, SimpleNamespace) else output
    return next(iter(inside.values() if isinstance(inside, dict) else inside))


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (lambda y: (y, y), "a tuple of 2, .* output: output\\[0\\]"),
        (lambda y: {"scores": y}, "a dict of 'scores', .*output\\['scores'\\]"),
        (lambda y: SimpleNamespace(scores=y), "a SimpleNamespace"),
    ],
)
def test_an_output_without_logits_says_what_to_write(form: Any, line: str) -> None:
    model, data = Answering(form), toy_data()
    with pytest.raises(AnswerError, match=line):
        evaluate(model, data)
    with pytest.raises(AnswerError, match=line):
        train(model, data, CONFIG)
    model.register_forward_hook(lambda module, inputs, output: first_tensor(output))
    train(model, data, CONFIG)


# ---- what a loss that is no number comes from


def test_a_teacher_with_nan_weights_is_named_and_not_the_lr() -> None:
    teacher = toy_model()
    with torch.no_grad():
        teacher[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"the teacher's 0.weight is not finite before"
    ) as e:
        train(toy_model(), toy_data(), CONFIG, teacher=teacher)
    assert "lr" not in str(e.value).split()


def test_infinite_answers_of_teacher_and_student_are_named() -> None:
    model = Answering(lambda y: y / 0)
    with pytest.raises(FloatingPointError, match="the teacher's answers to 4 of 4 images"):
        train(toy_model(), toy_data(), CONFIG, teacher=model)
    with pytest.raises(FloatingPointError, match="the model's answers to 4 of 4 images"):
        train(model, toy_data(), CONFIG)


def test_the_lr_is_only_blamed_after_a_step() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) / (0 if self.training else 1)

    with pytest.raises(FloatingPointError, match="no step has been taken yet"):
        train(Sometimes(), toy_data(), CONFIG)
    with pytest.raises(FloatingPointError, match="lower the lr"):
        train(toy_model(batch_norm=False), toy_data(), CONFIG.model_copy(update={"lr": 1e30}))


@pytest.mark.parametrize(
    ("label", "said"), [(-100, "label -100 of image 5"), (2, "label 2 of image 5")]
)
def test_labels_out_of_range_are_named_before_training(label: int, said: str) -> None:
    data = toy_data()
    labels = data.train.labels.clone()
    labels[5] = label
    with pytest.raises(ValueError, match=f"toy train: {said} is none of 0..1"):
        train(toy_model(), data.with_train(Split(data.train.images, labels)), CONFIG)
    with pytest.raises(ValueError, match=f"{said} is none of 0..1"):
        score(torch.zeros(len(labels), 2), labels)


def test_labels_that_the_data_has_no_name_for_are_no_class_of_a_wider_model() -> None:
    data = toy_data()
    data = ImageData(**{**vars(data), "class_names": ("left",)})
    with pytest.raises(ValueError, match=r"label 1 of image 1 is none of 0\.\.0, those of toy"):
        train(toy_model(), data, CONFIG)


# ---- heads of one output


def test_one_output_has_no_softmax_no_accuracy_and_no_silent_zero() -> None:
    one, labels = torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)
    for loss in (
        lambda: hinton_loss(one, one, temperature=1.0, alpha=1.0),
        lambda: dkd_loss(one, one, labels, temperature=1.0),
        lambda: score(one, labels),
    ):
        with pytest.raises(ValueError, match=r"two classes or more, not \[4, 1\]"):
            loss()
    assert logit_mse(one, one + 1) == 0.5  # a regression knows one output
    head = nn.Sequential(*toy_model()[:-1], nn.Linear(64, 1))
    data = toy_data()
    data = data.with_train(Split(data.train.images, torch.zeros_like(data.train.labels)))
    data = ImageData(**{**vars(data), "val": data.train})
    with pytest.raises(ValueError, match="two classes or more"):
        train(head, data, CONFIG)


# ---- wrapped and odd models


def test_what_is_around_a_model_is_in_no_name_of_its_file(tmp_path: Path) -> None:
    model = toy_model()
    plain = copy.deepcopy(model)
    train(plain, toy_data(), CONFIG)
    for number, wrap in enumerate((nn.DataParallel, lambda m: torch.compile(m, backend="eager"))):
        inner = copy.deepcopy(model)
        train(wrap(inner), toy_data(), CONFIG, run_dir=tmp_path / str(number))
        assert same_state(inner, plain)
        saved = load_file(tmp_path / str(number) / "model.safetensors")
        assert saved.keys() == plain.state_dict().keys()


def test_a_compiled_layer_inside_leaves_no_mark_in_the_file(tmp_path: Path) -> None:
    model = toy_model()
    model[0] = torch.compile(model[0], backend="eager")
    train(model, toy_data(), CONFIG, run_dir=tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == toy_model().state_dict().keys()


def test_a_frozen_batch_norm_stays_where_it_is() -> None:
    model = toy_model().train()
    model[1].eval()
    before = model[1].running_mean.clone()
    train(model, toy_data(), CONFIG)
    assert torch.equal(model[1].running_mean, before)
    other = toy_model().eval()  # a whole model in eval mode is only a loaded one
    train(other, toy_data(), CONFIG)
    assert not torch.equal(other[1].running_mean, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_of_another_precision_answers_in_it(dtype: torch.dtype) -> None:
    teacher = toy_model(8).to(dtype)
    train(toy_model(), toy_data(), CONFIG, teacher=teacher)
    assert 0 <= evaluate(teacher, toy_data()).accuracy <= 1
    x = torch.randn(2, 1, 4, 4)
    assert logits_of(teacher.eval(), x).dtype == dtype


def test_a_teacher_that_cannot_be_copied_teaches_all_the_same() -> None:
    teacher = toy_model(8)
    teacher[0] = torch.nn.utils.weight_norm(teacher[0])
    teacher(torch.zeros(2, 1, 4, 4))  # which leaves a computed weight
    teacher.lock = threading.Lock()
    student = toy_model()
    before = copy.deepcopy(student)
    train(student, toy_data(), CONFIG, teacher=teacher)
    assert not same_state(before, student)


def test_a_model_that_nothing_can_train_is_refused_by_layer() -> None:
    data = toy_data()
    int8 = qk.quantize(toy_model(), "dynamic")
    with pytest.raises(ValueError, match="0 is an int8 layer, which has no gradient"):
        train(int8, data, CONFIG)
    with pytest.raises(ValueError, match="nothing to train"):
        train(toy_model().requires_grad_(False), data, CONFIG)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"1.weight of Sequential has no shape yet"):
        train(lazy, data, CONFIG)
    with pytest.raises(ValueError, match=r"0.weight of Sequential is torch.float16"):
        train(toy_model().half(), data, CONFIG)


# ---- a folder of other data


@pytest.mark.parametrize("change", ["labels", "pixels"])
def test_a_run_folder_is_not_taken_for_other_data_of_the_same_size(
    change: str, tmp_path: Path
) -> None:
    data = toy_data()
    train(toy_model(), data, CONFIG, run_dir=tmp_path)
    assert train(toy_model(), data, CONFIG, run_dir=tmp_path).trained == 0
    images, labels = data.train.images.clone(), data.train.labels.clone()
    if change == "labels":
        labels = labels.flip(0)
    else:
        images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="holds a run with data_digest="):
        train(toy_model(), data.with_train(Split(images, labels)), CONFIG, run_dir=tmp_path)

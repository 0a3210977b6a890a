"""Taps by module name, and objectives on what they bring."""

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from torch import nn

from qkernels.distill import (
    OBJECTIVES,
    Attention,
    Contrast,
    FeatureObjective,
    Hint,
    Relations,
    TrainConfig,
    attention_loss,
    feature_shapes,
    hint_loss,
    soft_objective,
    tap,
    train,
)
from qkernels.distill.registry import CONNECTORS, SOFT_LOSSES
from qkernels.models import create

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.01)
SHAPE = (1, 4, 4)
LAYERS = {"0": "0", "2": "2"}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def objective(connector=Hint, weight: float = 1.0, layers=LAYERS) -> FeatureObjective:
    base = soft_objective("hinton", CONFIG, toy_model(8, seed=3))
    return FeatureObjective(base, toy_model(), layers, connector, image_shape=SHAPE, weight=weight)


def test_a_tap_brings_what_the_module_gives_and_leaves_nothing_behind() -> None:
    model = create("resnet8").eval()
    images = torch.randn(2, 3, 32, 32)
    plain = model(images)
    with tap(model, ["layer1", "layer2.0.bn1", "avgpool"]) as found:
        tapped = model(images)
    assert torch.equal(plain, tapped)
    assert torch.equal(found["layer1"], model.layer1(model.relu(model.bn1(model.conv1(images)))))
    assert found["layer2.0.bn1"].shape == (2, 32, 16, 16)
    assert found["avgpool"].requires_grad
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_error_and_other_hooks_are_not() -> None:
    model = toy_model()
    model[2].register_forward_hook(lambda *call: None)
    with pytest.raises(RuntimeError), tap(model, ["0", "2"]):
        assert hooks(model) == 3
        model(torch.zeros(1, 3, 4, 4))
    assert hooks(model) == 1


def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    model = create("resnet8")
    with (
        pytest.raises(
            ValueError, match=r"CifarResNet has no module 'layer4'; the nearest: layer\d"
        ),
        tap(model, ["layer1", "layer4"]),
    ):
        pass
    assert hooks(model) == 0


def test_a_module_that_is_not_called_is_named() -> None:
    model = toy_model()
    model.add_module("spare", nn.Sequential(nn.Linear(1, 1)))
    with (
        pytest.raises(ValueError, match="module '0' of Sequential was not called"),
        tap(model, ["0"]),
    ):
        pass


def test_shapes_are_found_without_a_trace_on_the_model() -> None:
    model = toy_model().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert feature_shapes(model, ["0", "5"], SHAPE) == [torch.Size([4, 4, 4]), torch.Size([2])]
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_loss_is_the_base_plus_weight_times_the_mean_over_layers() -> None:
    made, student = objective(weight=2.0), toy_model().eval()
    images, labels = next(iter(toy_data().batches("train", 8)))
    step = made.eval()(student, images, labels)
    base = made.base(student, images, labels)
    teacher = made.teachers[0]
    hints = [
        hint_loss(connector.regressor(student[: end + 1](images)), teacher[: end + 1](images))
        for connector, end in zip(made.connectors, (0, 2), strict=True)
    ]
    expected = base.loss + 2.0 * (hints[0] + hints[1]) / 2
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(step.logits, base.logits)


def test_the_teacher_runs_once_a_step() -> None:
    made, student = objective(), toy_model()
    calls = []
    made.teachers[0].register_forward_hook(lambda *call: calls.append(1))
    images, labels = next(iter(toy_data().batches("train", 8)))
    made(student, images, labels)
    assert len(calls) == 1


@pytest.mark.parametrize("connector", [Hint, Attention, Relations, Contrast])
def test_features_teach_the_student_and_the_connectors_only(connector) -> None:
    made, student = objective(connector), toy_model()
    teacher = toy_model(8, seed=3)
    train(student, toy_data(), CONFIG, objective=made)
    assert same_state(made.teachers[0], teacher)
    assert hooks(student) == hooks(made.teachers[0]) == 0
    fresh = objective(connector)
    for a, b in zip(made.connectors.parameters(), fresh.connectors.parameters(), strict=True):
        assert not torch.equal(a, b)
    assert all(parameter.grad is None for parameter in made.teachers[0].parameters())


def test_attention_alone_pulls_the_student_towards_the_teacher() -> None:
    """With the answers silenced (alpha 1, T so high that nothing is left), only features remain to learn from."""
    teacher, student = toy_model(8, seed=3), toy_model(seed=5)
    config = CONFIG.model_copy(update={"alpha": 1.0, "temperature": 1e3, "epochs": 8, "lr": 0.05})
    base = soft_objective("hinton", config, teacher)
    made = FeatureObjective(base, student, {"2": "2"}, Attention, image_shape=SHAPE, weight=30)
    images = next(iter(toy_data().batches("test", 32)))[0]

    def distance() -> float:
        return attention_loss(student.eval()[:3](images), teacher.eval()[:3](images)).item()

    before = distance()
    train(student, toy_data(), config, objective=made)
    assert distance() < 0.7 * before


OF_CLASSES = [name for name in OBJECTIVES if "multiclass" in SOFT_LOSSES.get(name, {"multiclass"})]


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_name_trains_by_its_loss(name: str) -> None:
    features = "2" if name in CONNECTORS else ""
    config = CONFIG.model_copy(update={"loss": name, "features": features})
    students = {"it": toy_model(), "hinton": toy_model()}
    train(students["it"], toy_data(), config, teacher=toy_model(8, seed=3))
    train(students["hinton"], toy_data(), CONFIG, teacher=toy_model(8, seed=3))
    assert same_state(students["it"], students["hinton"]) == (name == "hinton")


def test_features_are_given_as_names_of_the_student_and_of_the_teacher() -> None:
    config = CONFIG.model_copy(
        update={"loss": "fitnets", "features": "0, 1=2", "feature_weight": 7}
    )
    made = OBJECTIVES["fitnets"](config, toy_model(8), toy_model(), toy_data())
    assert isinstance(made, FeatureObjective)
    assert (made.layers, made.weight) == ({"0": "0", "1": "2"}, 7)


def test_a_loss_of_ones_own_is_put_in_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config, teacher, student, data):
        return soft_objective("logit_mse", config, teacher)

    monkeypatch.setitem(OBJECTIVES, "mine", build)
    config = TrainConfig.model_validate(CONFIG.model_dump() | {"loss": "mine"})
    by_name, known = toy_model(), toy_model()
    train(by_name, toy_data(), config, teacher=toy_model(8, seed=3))
    mse = config.model_copy(update={"loss": "logit_mse"})
    train(known, toy_data(), mse, teacher=toy_model(8, seed=3))
    assert same_state(by_name, known)


def test_faults_are_named_before_training() -> None:
    with pytest.raises(ValueError, match="no loss 'hintn'; the nearest: hinton"):
        TrainConfig(loss="hintn")
    feature = CONFIG.model_copy(update={"loss": "attention"})
    with pytest.raises(ValueError, match=r"name layers of the student in features= \(0, 1, 2"):
        train(toy_model(), toy_data(), feature, teacher=toy_model(8))
    wrong = feature.model_copy(update={"features": "2=22"})
    with pytest.raises(ValueError, match="no module '22'; the nearest: 2"):
        train(toy_model(), toy_data(), wrong, teacher=toy_model(8))
    empty = feature.model_copy(update={"features": "2,"})
    with pytest.raises(ValueError, match="features='2,' has an empty name"):
        train(toy_model(), toy_data(), empty, teacher=toy_model(8))
    flat = feature.model_copy(update={"features": "4"})
    with pytest.raises(ValueError, match=r"must be \[N, C, H, W\]"):
        train(toy_model(), toy_data(), flat, teacher=toy_model(8))
    with pytest.raises(ValueError, match="one height and width"):
        objective(layers={"2": "4"})
    dkd = CONFIG.model_copy(update={"loss": "dkd"})
    with pytest.raises(ValueError, match="a loss that goes without them"):
        train(toy_model(), toy_data(labelled=False), dkd, teacher=toy_model(8))
    with pytest.raises(ValueError, match="features need one teacher, not 2"):
        base = soft_objective("hinton", CONFIG, toy_model(8), toy_model(4))
        FeatureObjective(base, toy_model(), LAYERS, Hint, image_shape=SHAPE, weight=1.0)

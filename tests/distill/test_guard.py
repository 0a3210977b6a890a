"""A training cannot end worse than it began: the best weights are kept, a ruinous epoch is taken again."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from distill_toys import same_state, toy_data, toy_model
from torch import nn

from qkernels.cli.worse import RuinedError, check_not_ruined
from qkernels.data import ImageData, Split, load
from qkernels.distill import TrainConfig, loop, suitable_config, train
from qkernels.evaluate import Evaluation, evaluate
from qkernels.models import CifarResNet, VisionTransformer

pytest.importorskip("accelerate")
BEST = TrainConfig(epochs=3, batch_size=16, lr=0.05, keep="best")


@pytest.fixture(scope="module")
def good() -> nn.Module:
    model = toy_model(batch_norm=False)
    train(model, toy_data(), TrainConfig(epochs=4, batch_size=16, lr=0.05))
    assert evaluate(model, toy_data(), "val").accuracy > 0.9
    return model


@pytest.mark.parametrize("lr", [30.0, 1e20])
def test_a_rate_that_ruins_a_good_model_is_lowered_and_said(lr: float, good: nn.Module) -> None:
    before = evaluate(good, toy_data(), "val")
    model = copy.deepcopy(good)
    result = train(model, toy_data(), BEST.model_copy(update={"lr": lr}))
    after = evaluate(model, toy_data(), "val")
    assert after.accuracy >= before.accuracy
    assert result.notes[0].startswith(f"epoch 1 is taken again at a tenth of the lr: at {lr:.3g}, ")
    if lr == 1e20:
        assert "stopped before it" in result.notes[-1] and result.kept == 0
        assert same_state(model, good)


def test_the_best_epoch_is_kept_and_a_healthy_run_is_the_same_epochs(good: nn.Module) -> None:
    last, best = toy_model(), toy_model()
    plain = train(last, toy_data(), BEST.model_copy(update={"keep": "last"}))
    kept = train(best, toy_data(), BEST)
    strip = [(r.loss, r.accuracy, r.val_accuracy) for r in plain.history]
    assert strip == [(r.loss, r.accuracy, r.val_accuracy) for r in kept.history]
    assert kept.notes == () and kept.kept == max(
        (r.val_accuracy, -r.val_loss, r.epoch) for r in kept.history
    )[2]  # fmt: skip
    if kept.kept == 3:
        assert same_state(last, best)


def test_that_no_epoch_was_better_than_the_start_is_said(good: nn.Module) -> None:
    data = toy_data()
    assert data.train.labels is not None
    wrong = data.with_train(replace(data.train, labels=1 - data.train.labels))
    model = copy.deepcopy(good)
    result = train(model, wrong, BEST.model_copy(update={"lr": 1e-4}))
    assert result.kept == 0 and same_state(model, good)
    assert result.notes == (
        "none of the epochs is better on the validation images than the start, whose weights are kept",
    )


@pytest.mark.parametrize("lr", [0.05, 30.0])
def test_a_kept_run_is_resumed_to_the_bit(
    lr: float, good: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BEST.model_copy(update={"lr": lr})
    straight, resumed = copy.deepcopy(good), copy.deepcopy(good)
    want = train(straight, toy_data(), config)
    original, calls = loop.Loop.train_epoch, iter(range(4))

    def dying(self: loop.Loop, *args: object) -> object:
        if next(calls, None) == 3:
            raise KeyboardInterrupt
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Loop, "train_epoch", dying)
    with pytest.raises(KeyboardInterrupt) if lr > 1 else pytest.MonkeyPatch.context():
        train(resumed, toy_data(), config, run_dir=tmp_path)
    resumed = copy.deepcopy(good)
    got = train(resumed, toy_data(), config, run_dir=tmp_path)
    assert same_state(straight, resumed) and got.kept == want.kept and got.notes == want.notes


def test_settings_follow_data_model_and_start() -> None:
    digits = load("digits")
    net = CifarResNet(8, num_classes=10, in_channels=1)
    vit = VisionTransformer(
        num_classes=10, in_channels=1, image_size=8, patch=4, width=16, depth=1, heads=2
    )
    fresh, tuned = (suitable_config(digits, net, {}, trained=t) for t in (False, True))
    assert fresh.optimizer == "adamw" and tuned.lr == pytest.approx(fresh.lr / 10)
    assert fresh.keep == tuned.keep == "best"
    assert suitable_config(digits, vit, {}).lr < fresh.lr
    few = digits.with_train(digits.train.head(180))
    small = suitable_config(few, net, {})
    assert small.batch_size == 8 and small.epochs * (180 // 8) >= 1200
    many = ImageData(
        **{**vars(digits), "train": Split(digits.train.images[:1].expand(20_000, -1, -1, -1))}
    )
    assert suitable_config(many, net, {}).optimizer == "sgd"
    given = suitable_config(digits, net, {"epochs": 2, "lr": 0.5, "batch_size": 7})
    assert (given.epochs, given.lr, given.batch_size, given.warmup_epochs) == (2, 0.5, 7, 0)


def test_a_command_says_when_its_result_is_ruined() -> None:
    data = toy_data()
    chance, good, bad = Evaluation(50, 100, 1.0), Evaluation(99, 100, 0.1), Evaluation(10, 100, 9.0)
    with pytest.raises(
        RuinedError, match=r"fell by 89.0 points, from 99.00% to 10.00%: .*--may-lose 90"
    ):
        check_not_ruined(bad, good, data, 5.0)
    with pytest.raises(RuinedError, match=r"50.00% is no more than chance, 50.00% of 2 classes"):
        check_not_ruined(chance, None, data, 5.0)
    check_not_ruined(bad, good, data, 90)
    check_not_ruined(chance, None, data, 100)
    check_not_ruined(good, None, data, 5.0)

"""The pipeline: its settings, what it trains, what it measures, and that it can be called again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qkernels import data as datasets
from qkernels.distill import TrainConfig
from qkernels.evaluate import paired_change
from qkernels.measuring.costs import count_macs
from qkernels.measuring.speed import deployed, measure_speed
from qkernels.measuring.timing import Timing, time_in_turns
from qkernels.pipeline import (
    PROGRAM,
    PipelineConfig,
    PipelineResult,
    calibration_batches,
    create_model,
    run_pipeline,
)
from qkernels.pipeline.run import compile_student
from qkernels.program import Program
from qkernels.quantization import load, quantize

TINY = {"epochs": 2, "teacher_epochs": 2, "teacher_width": 8, "student_width": 4}
TINY |= {"timing_seconds": 0.01, "throughput_batch": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    return run_pipeline(PipelineConfig.for_data("digits", run=run, variants=True, **TINY))


def test_the_cifar_flags_mean_the_settings_of_the_published_run() -> None:
    config = PipelineConfig.for_data(
        "cifar10-jpeg",
        teacher="resnet56",
        teacher_weights=Path("resnet56.safetensors"),
        teacher_epochs=3,
        student="resnet14",
        epochs=30,
        run=Path("run"),
    )
    common = {"batch_size": 128, "precision": "bf16", "channels_last": True}
    common |= {"weight_decay": 5e-4, "seed": 0}
    assert config.teacher_training() == TrainConfig(epochs=3, lr=0.02, warmup_epochs=0, **common)
    assert config.student_training() == TrainConfig(
        epochs=30, lr=0.1, warmup_epochs=1, temperature=4.0, alpha=0.9, **common
    )


def test_a_teacher_without_weights_is_trained_like_the_students() -> None:
    config = PipelineConfig(epochs=7, lr=0.05, temperature=9.0)
    teacher, student = config.teacher_training(), config.student_training()
    assert teacher is not None
    assert (teacher.epochs, teacher.lr, teacher.warmup_epochs) == (7, 0.05, 1)
    assert (teacher.temperature, student.temperature) == (TrainConfig().temperature, 9.0)


def test_the_loss_is_the_students_alone() -> None:
    config = PipelineConfig(loss="attention", features="layer2")
    teacher, student = config.teacher_training(), config.student_training()
    assert teacher is not None
    assert (student.loss, student.features) == ("attention", "layer2")
    assert (teacher.loss, teacher.features) == ("hinton", "")


def test_a_teacher_that_would_know_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher_weights"):
        PipelineConfig(teacher_epochs=0).teacher_training()


def test_the_command_names_what_differs_from_the_recipe() -> None:
    config = PipelineConfig.for_data("digits", epochs=5, augment=True, run=Path("a b"))
    words = "qkernels pipeline --data digits --run 'a b' --epochs 5 --augment"
    assert config.command() == words


def test_the_command_leaves_out_what_is_none() -> None:
    assert PipelineConfig(data="cifar10").command() == "qkernels pipeline --data cifar10"
    assert "None" not in PipelineConfig(data="digits").command()


def test_a_recipe_gives_its_width_to_its_own_model_only() -> None:
    config = PipelineConfig.for_data("digits", teacher="resnet20")
    assert config.teacher_width is None and config.student_width == 8
    assert PipelineConfig.for_data("digits", teacher="tutorial_cnn").teacher_width == 64
    assert PipelineConfig.for_data("digits", teacher="resnet20", teacher_width=4).teacher_width == 4


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"student": "tutorial_cn"}, "tutorial_cn"),
        ({"student": "mobilenet_v2"}, "mobilenet_v2 has no width"),
        ({"loss": "crd"}, "loss='crd' compares features"),
        ({"loss": "fitnets", "features": "conv9"}, "no module 'conv9'"),
    ],
)
def test_a_student_at_fault_is_named_before_the_teacher_is_trained(
    wrong: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_pipeline(PipelineConfig.for_data("digits", run=tmp_path / "run", **TINY, **wrong))
    assert not (tmp_path / "run").exists()


def test_test_images_without_labels_are_refused_before_the_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = datasets.load("digits")
    blind = replace(digits, test=replace(digits.test, labels=None))
    monkeypatch.setattr("qkernels.data.choice.load", lambda *name: blind)
    with pytest.raises(ValueError, match="the test images have no labels"):
        run_pipeline(PipelineConfig.for_data("digits", run=tmp_path / "run", **TINY))
    assert not (tmp_path / "run").exists()


def test_every_model_has_a_row_with_its_own_figures(tiny: PipelineResult) -> None:
    names = [row.name for row in tiny.rows]
    assert names[:4] == ["teacher", "student alone", "student distilled", "student int8"]
    assert {"student int8, minmax", "student int8, dynamic"} <= set(names)
    for row in tiny.rows:
        assert row.accuracy.count == tiny.data["test"]
        assert all(0 < speed.p50_ms <= speed.p95_ms for speed in row.speeds.every)
        chained = ["compiled", "program"] if row.precision == "int8" else []
        assert row.speeds.forms[: 1 + len(chained)] == ["eager", *chained][: len(row.speeds.forms)]
        assert (row.change is None) == (row.against is None)
    teacher, alone, distilled, int8 = tiny.rows[:4]
    assert (alone.against, distilled.against, int8.against) == (None, alone.name, distilled.name)
    assert teacher.macs > distilled.macs == int8.macs
    assert teacher.file_bytes > distilled.file_bytes


def test_the_gain_is_the_difference_of_the_accuracies(tiny: PipelineResult) -> None:
    for row in tiny.rows:
        if row.change is not None and row.against is not None:
            gain = row.accuracy.accuracy - tiny.row(row.against).accuracy.accuracy
            assert row.change.gain == pytest.approx(gain)
            assert row.change.interval[0] <= gain <= row.change.interval[1]


def test_students_start_from_the_same_weights_and_differ_by_the_teacher_alone(
    tiny: PipelineResult,
) -> None:
    run = tiny.config.run
    alone, distilled = (
        json.loads((run / name / "config.json").read_text()) for name in ("student", "distilled")
    )
    assert {name for name in alone if alone[name] != distilled[name]} == {
        "teacher",
        "teacher_weights",
    }
    assert alone["start"]


def test_the_int8_file_alone_rebuilds_the_model_that_was_measured(tiny: PipelineResult) -> None:
    data = datasets.load("digits")
    model = load(tiny.config.run / "int8" / "percentile.safetensors")
    images, labels = next(iter(data.batches("test", len(data.test))))
    with torch.inference_mode():
        correct = int((model(images).argmax(1) == labels).sum())
    assert correct == tiny.row("student int8").accuracy.correct


def test_the_program_that_is_left_to_be_served_is_the_int8_student(tiny: PipelineResult) -> None:
    data, run = datasets.load("digits"), tiny.config.run
    (images, _), *_ = data.batches("test", 50)
    program = Program.load(run / PROGRAM)
    expected = load(run / "int8" / "percentile.safetensors")(images)
    assert np.array_equal(program(images.numpy()), expected.numpy())
    assert program.extra["image_input"]["classes"] == list("0123456789")
    assert program.extra["image_input"]["size"] == [8, 8]


def test_a_student_that_is_no_program_is_said_and_leaves_no_old_one(tmp_path: Path) -> None:
    (tmp_path / PROGRAM).write_text("old")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Sigmoid(), torch.nn.Conv2d(4, 2, 1))  # fmt: skip
    int8 = quantize(net.eval(), "dynamic")
    said: list[str] = []
    compile_student(PipelineConfig(run=tmp_path), datasets.load("digits"), int8, said.append)
    assert "left to torch" in said[0] and not (tmp_path / PROGRAM).exists()


def test_a_finished_run_is_measured_again_without_training(tiny: PipelineResult) -> None:
    settings = tiny.config.model_copy(update={"variants": False})
    before = [(p, p.read_bytes()) for p in tiny.config.run.glob("*/history.jsonl")]
    again = run_pipeline(settings)
    assert all(path.read_bytes() == content for path, content in before)
    for row in again.rows:
        assert row.accuracy == tiny.row(row.name).accuracy


def test_other_settings_in_the_same_folder_are_refused(tiny: PipelineResult) -> None:
    with pytest.raises(ValueError, match="epochs=2, not 3"):
        run_pipeline(tiny.config.model_copy(update={"teacher_epochs": 3}))


def test_a_teacher_taken_as_it_is_keeps_its_weights(tiny: PipelineResult, tmp_path: Path) -> None:
    weights = tiny.config.run / "teacher" / "model.safetensors"
    taken = {"teacher_weights": weights, "teacher_epochs": 0, "run": tmp_path, "variants": False}
    result = run_pipeline(tiny.config.model_copy(update={**taken, "epochs": 1, "warmup_epochs": 0}))
    assert result.row("teacher").accuracy == tiny.row("teacher").accuracy
    assert "teacher" not in result.curves


def test_calibration_shows_as_many_images_as_asked_for() -> None:
    data = datasets.load("digits")
    for count in (1, 64, 100):
        batches = list(calibration_batches(data, count, seed=0))
        assert sum(map(len, batches)) == count
    many = list(calibration_batches(data, 10**6, seed=0))
    assert sum(map(len, many)) == len(data.train)


def test_a_width_for_a_model_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="mobilenet_v2 has no width"):
        create_model("mobilenet_v2", datasets.load("digits"), width=8)


def test_paired_change_counts_answers_won_lost_and_changed() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    before = torch.eye(3)[[0, 0, 1, 1, 2]]
    after = torch.eye(3)[[0, 1, 0, 0, 0]]  # right, lost, won, won, wrong in another way
    change = paired_change(before, after, labels)
    assert (change.gain, change.changed, change.count) == (pytest.approx(1 / 5), 4, 5)
    low, high = change.interval
    assert low < 1 / 5 < high
    assert not change.certain


def test_a_large_one_sided_change_is_certain() -> None:
    labels = torch.zeros(200, dtype=torch.int64)
    before, after = torch.eye(2)[[1] * 50 + [0] * 150], torch.eye(2)[[0] * 200]
    assert paired_change(before, after, labels).certain


def test_macs_of_a_linear_layer_are_its_products() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    assert count_macs(model, (3, 2, 2)) == 60


def test_counting_macs_leaves_a_model_in_training() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    count_macs(model, (3, 2, 2))
    assert model.training and model[0].training and not model[0].num_batches_tracked


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_speed({"": model}, (1, 8, 8), batch=2, seconds=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model[1], torch.nn.BatchNorm2d)


def test_an_int8_model_is_timed_in_every_form_with_one_thread_and_all() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    int8 = quantize(net.eval(), "static", torch.randn(2, 1, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speeds = measure_speed({"f": net, "i": int8}, (1, 8, 8), batch=2, seconds=0.01, rounds=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert speeds["f"].forms == ["eager"] and speeds["f"].form == "eager"
    assert speeds["i"].forms == ["eager", "compiled", "program"] and speeds["i"].form == "program"
    assert [s.threads for s in speeds["i"].of("program")] == [1, 2]
    assert speeds["i"].one_thread.layouts == ("contiguous", "contiguous")


def test_the_form_to_deploy_answers_as_the_model_does() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    images = torch.randn(3, 1, 8, 8)
    int8 = quantize(net.eval(), "static", images)
    form, prepare = deployed(int8, images)
    assert form == "program"
    assert np.array_equal(prepare(images, 2)(), int8(images).numpy())
    form, prepare = deployed(net, images)
    assert form == "eager" and torch.equal(prepare(images, 1)(), net(images))


def test_percentiles_lie_between_the_calls() -> None:
    timing = Timing((1.0, 2.0, 3.0, 5.0))
    assert timing.median == 2.5
    assert (timing.percentile(0), timing.percentile(100)) == (1.0, 5.0)


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = time_in_turns(calls, seconds=1e-6, rounds=2)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b", "a", "b"]
    assert len(times["a"].seconds) >= 2

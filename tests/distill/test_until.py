"""Training until a target is reached, or until nothing is to be expected any more."""

from pathlib import Path

import pytest
from distill_toys import same_state, toy_data, toy_model
from safetensors.torch import load_file

from qkernels.data import Split
from qkernels.distill import EpochRecord, TargetError, TrainConfig, train
from qkernels.distill.history import is_over

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=30, batch_size=16, lr=0.05)


def history(*scores: float | None) -> list[EpochRecord]:
    return [EpochRecord(i + 1, 1.0, 0.5, None, score, 0.1, 1.0) for i, score in enumerate(scores)]


@pytest.mark.filterwarnings("ignore:.*began with other weights")
def test_training_stops_at_the_first_validation_that_reaches_the_target(tmp_path: Path) -> None:
    model = toy_model()
    config = CONFIG.model_copy(update={"until": 0.9, "checkpoint_every": 7})
    result = train(model, toy_data(), config, run_dir=tmp_path)
    scores = [record.val_accuracy for record in result.history]
    assert len(scores) < 30
    assert scores[-1] >= 0.9 and max(scores[:-1], default=0) < 0.9
    again = toy_model(seed=7)
    assert train(again, toy_data(), config, run_dir=tmp_path) == result  # nothing is left to do
    assert same_state(model, again)


def test_the_teachers_labels_on_a_smaller_set_are_enough_for_a_target() -> None:
    teacher, student = toy_model(8), toy_model(2, seed=5)
    train(teacher, toy_data(), CONFIG.model_copy(update={"epochs": 4}))
    few = toy_data(train=32, labelled=False)
    result = train(student, few, CONFIG.model_copy(update={"until": 0.9}), teacher=teacher)
    assert len(result.history) < 30


def test_a_target_out_of_reach_names_the_best_and_keeps_the_work(tmp_path: Path) -> None:
    model = toy_model()
    config = CONFIG.model_copy(update={"epochs": 2, "until": 1.0, "lr": 1e-5})
    sentence = r"until=1.0 was not reached in 2 epochs: the best was 0\.\d+ in epoch \d"
    with pytest.raises(TargetError, match=sentence) as raised:
        train(model, toy_data(), config, run_dir=tmp_path)
    assert len(raised.value.result.history) == 2
    weights = load_file(tmp_path / "model.safetensors")
    assert all((weights[name] == tensor).all() for name, tensor in model.state_dict().items())
    with pytest.raises(TargetError):
        train(toy_model(), toy_data(), config, run_dir=tmp_path)


def test_patience_ends_what_no_longer_improves() -> None:
    patient = CONFIG.model_copy(update={"patience": 2})
    assert not is_over(patient, history(0.5, 0.6, 0.6))
    assert is_over(patient, history(0.5, 0.6, 0.6, 0.5))  # an equal score is no new best
    assert not is_over(patient, history(0.5, 0.6, 0.5, 0.7))
    assert not is_over(patient, history(0.6, None, None, 0.5, None))  # validations, not epochs
    assert not is_over(CONFIG, history(*[0.5] * 29))
    assert is_over(CONFIG, history(*[0.5] * 30))
    frozen = CONFIG.model_copy(update={"patience": 3, "lr": 1e-12})
    assert len(train(toy_model(), toy_data(), frozen).history) == 4


def test_a_run_stopped_by_patience_below_its_target_says_so() -> None:
    config = CONFIG.model_copy(update={"patience": 2, "lr": 1e-12, "until": 1.0})
    with pytest.raises(TargetError, match="not reached in 3 epochs"):
        train(toy_model(), toy_data(), config)


def test_a_target_needs_something_to_be_measured_on() -> None:
    data = toy_data()
    blind = type(data)(**{**vars(data), "val": Split(data.val.images)})
    with pytest.raises(ValueError, match=r"until=0.9: toy has no labelled validation images"):
        train(toy_model(), blind, CONFIG.model_copy(update={"until": 0.9}))

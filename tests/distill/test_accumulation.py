"""A batch in parts is one step of the whole batch; what needs GPUs or processes is said."""

from __future__ import annotations

import pytest
import torch
from distill_toys import toy_data, toy_model

from qkernels.distill import TrainConfig, train
from qkernels.distill.trainer import training_on

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05)


@pytest.mark.parametrize("parts", [3, 4, 100])
def test_a_batch_in_parts_is_the_step_of_the_whole(parts: int) -> None:
    whole, split = toy_model(batch_norm=False), toy_model(batch_norm=False)
    teacher = toy_model(8, seed=1)
    first = train(whole, toy_data(), CONFIG, teacher=teacher)
    config = CONFIG.model_copy(update={"accumulate": parts})
    second = train(split, toy_data(), config, teacher=teacher)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert second.history[-1].loss == pytest.approx(first.history[-1].loss, rel=1e-4)


def test_synchronised_batch_norms_on_a_cpu_are_refused_and_not_left_out() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has them")
    with pytest.raises(ValueError, match="sync_batch_norm=True needs GPUs"):
        train(toy_model(), toy_data(), CONFIG.model_copy(update={"sync_batch_norm": True}))


def test_unused_parameters_can_be_looked_for_on_one_process_too() -> None:
    config = CONFIG.model_copy(update={"find_unused_parameters": True})
    assert len(train(toy_model(), toy_data(), config).history) == 2


def test_how_many_processes_train_is_said() -> None:
    assert training_on(1) == "training on 1 process"
    assert training_on(2) == "training on 2 processes"

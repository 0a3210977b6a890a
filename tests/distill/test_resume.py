"""A run that is killed and called again ends with the very bits of a run left alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import same_state, toy_data, toy_model
from safetensors.torch import load_file
from torch import Tensor, nn

from qkernels.distill import (
    OBJECTIVES,
    CachedTeacher,
    DeepSupervision,
    Objective,
    TrainConfig,
    loop,
    soft_objective,
    train,
)
from qkernels.distill.run_folder import RunFolder
from qkernels.prune import Proximal

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:.*began with other weights")
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.05, warmup_epochs=1)


class KilledError(Exception):
    pass


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls = iter(range(step))
    original = loop.Loop._step

    def stepping(self: loop.Loop, *args: object) -> list[float]:
        if next(calls, None) is None:
            raise KilledError
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Loop, "_step", stepping)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [3, 6, 16])  # in the first epoch, after it, in the third
def test_resume_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, step: int
) -> None:
    config = CONFIG.model_copy(update={"optimizer": optimizer, "channels_last": True})
    teacher = toy_model(8, seed=9)
    undisturbed = toy_model()
    expected = train(undisturbed, toy_data(), config, teacher=teacher)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at_step(patch, step)
        train(toy_model(), toy_data(), config, teacher=teacher, run_dir=tmp_path)
    resumed = toy_model(seed=77)  # its weights must not matter
    result = train(resumed, toy_data(), config, teacher=teacher, run_dir=tmp_path)

    assert same_state(undisturbed, resumed)
    for a, b in zip(result.history, expected.history, strict=True):
        assert (a.loss, a.accuracy, a.val_loss) == (b.loss, b.accuracy, b.val_loss)


def test_resume_after_a_real_kill(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from distill_toys import toy_data, toy_model
from qkernels.distill import TrainConfig, train
from qkernels.distill.run_folder import RunFolder
from qkernels.prune import Proximal
from test_resume import objective
save = RunFolder.save
def save_and_die(self, checkpoint):
    save(self, checkpoint)
    if len(checkpoint["history"]) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.save = save_and_die
config = TrainConfig.model_validate_json({CONFIG.model_dump_json()!r})
student = toy_model()
train(student, toy_data(), config, objective=objective("fitnets", student), run_dir={str(tmp_path / "run")!r})
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        undisturbed, resumed = toy_model(), toy_model(seed=1)
        expected, found = objective("fitnets", undisturbed), objective("fitnets", resumed, seed=1)
        train(undisturbed, toy_data(), CONFIG, objective=expected)
        train(resumed, toy_data(), CONFIG, objective=found, run_dir=tmp_path / "run")
    finally:
        torch.set_num_threads(threads)
    assert same_state(undisturbed, resumed) and same_state(expected, found)


def objective(name: str, student: nn.Module, seed: int = 0) -> Objective:
    """One with weights of its own: regressors and momentum for them, or heads."""
    teacher, shape = toy_model(8, seed=9), (1, 4, 4)
    if name == "heads":
        base = soft_objective("hinton", CONFIG, teacher)
        return DeepSupervision(base, student, ["2"], image_shape=shape, num_classes=2, seed=seed)
    config = CONFIG.model_copy(
        update={"loss": name, "features": "0,2", "feature_weight": 1.0, "seed": seed}
    )
    return OBJECTIVES[name](config, teacher, student, toy_data())


@pytest.mark.parametrize("name", ["fitnets", "crd", "heads"])
@pytest.mark.parametrize("step", [0, 3, 6, 16])
def test_an_objective_is_resumed_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    undisturbed, killed, resumed = toy_model(), toy_model(), toy_model(seed=77)
    expected = objective(name, undisturbed)
    train(undisturbed, toy_data(), CONFIG, objective=expected)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at_step(patch, step)
        train(killed, toy_data(), CONFIG, objective=objective(name, killed), run_dir=tmp_path)
    found = objective(name, resumed, seed=5)  # its weights must not matter
    train(resumed, toy_data(), CONFIG, objective=found, run_dir=tmp_path)
    assert same_state(undisturbed, resumed)
    assert len(found.state_dict()) > 0 and same_state(expected, found)
    with pytest.raises(ValueError, match="with objective="):
        other = soft_objective("hinton", CONFIG, toy_model(8))
        train(toy_model(), toy_data(), CONFIG, objective=other, run_dir=tmp_path)


def test_a_loss_that_is_no_number_leaves_the_objective_of_the_last_epoch(tmp_path: Path) -> None:
    student = toy_model()
    made = objective("fitnets", student)

    def break_it(_: nn.Module, lr: float) -> None:
        if len((tmp_path / "history.jsonl").read_text().splitlines()) == 2:
            made.connectors[0].regressor[0].weight.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 3, step 2"):
        train(student, toy_data(), CONFIG, objective=made, run_dir=tmp_path, after_step=break_it)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["history"]) == 2
    saved = {**checkpoint["model"], **checkpoint["objective"]}
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_an_objective_that_is_no_number_never_becomes_a_checkpoint(tmp_path: Path) -> None:
    student = toy_model()
    made = objective("fitnets", student)

    def break_it(_: nn.Module, lr: float) -> None:
        if lr < 1e-3:  # in the last step of the last epoch: no loss will tell
            made.connectors[0].regressor[0].weight.data.fill_(float("inf"))

    with pytest.raises(FloatingPointError, match=r"connectors.0.* is not finite after epoch 4"):
        train(student, toy_data(), CONFIG, objective=made, run_dir=tmp_path, after_step=break_it)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 3


def test_a_folder_without_a_later_setting_had_its_default(tmp_path: Path) -> None:
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["loss"], settings["until"], settings["objective"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    with pytest.raises(ValueError, match="with loss='hinton', not 'dkd'"):
        other = CONFIG.model_copy(update={"loss": "dkd"})
        train(toy_model(), toy_data(), other, run_dir=tmp_path)


def test_run_folder_holds_settings_history_and_weights(tmp_path: Path) -> None:
    model = toy_model()
    result = train(model, toy_data(), CONFIG, run_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "checkpoint.pt",
        "history.jsonl",
        "model.safetensors",
    }
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["lr"] == 0.05 and settings["teacher"] is None
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[-1])["loss"] == result.history[-1].loss
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    first, second = toy_model(), toy_model(seed=1)
    result = train(first, toy_data(), CONFIG, run_dir=tmp_path)
    assert train(second, toy_data(), CONFIG, run_dir=tmp_path) == result
    assert same_state(first, second)


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    other = CONFIG.model_copy(update={"lr": 0.5})
    with pytest.raises(ValueError, match=r"with lr=0.05, not 0.5: take another run_dir"):
        train(toy_model(), toy_data(), other, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"with model='Sequential, \d+ parameters'"):
        train(toy_model(8), toy_data(), CONFIG, run_dir=tmp_path)
    with pytest.raises(ValueError, match="with teacher=None"):
        train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path, teacher=toy_model())
    assert train(toy_model(), toy_data(), other, run_dir=tmp_path, resume=False).history


def test_a_run_with_another_teacher_or_step_is_refused(tmp_path: Path) -> None:
    def run(folder: str, **how: Any) -> None:
        train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path / folder, **how)

    run("teacher", teacher=toy_model(seed=1))
    run("teacher", teacher=toy_model(seed=1))
    with pytest.raises(ValueError, match="with teacher_weights="):
        run("teacher", teacher=toy_model(seed=2))
    run("cached", teacher=toy_model(seed=1))
    run("cached", teacher=CachedTeacher(toy_model(seed=1), tmp_path / "answers"))
    run("objective", objective=soft_objective("hinton", CONFIG, toy_model(seed=1)))
    with pytest.raises(ValueError, match="with teacher_weights="):
        run("objective", objective=soft_objective("hinton", CONFIG, toy_model(seed=2)))
    run("step", after_step=Proximal(["0.weight"], l1=0.0))
    with pytest.raises(ValueError, match=r"with after_step='Proximal\(l1=0"):
        run("step", after_step=Proximal(["0.weight"], l1=1.0))
    with pytest.raises(ValueError, match=r"with after_step='Proximal\(l1=0.*not None"):
        run("step")
    run("step", after_step=lambda model, lr: None)  # of a function nothing is known


def test_a_run_that_began_with_other_weights_says_so_and_goes_on(tmp_path: Path) -> None:
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    with pytest.warns(UserWarning, match="began with other weights") as found:
        train(toy_model(seed=1), toy_data(), CONFIG, run_dir=tmp_path)
    assert found[0].filename == __file__


def test_a_folder_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    teacher = toy_model(seed=1)
    first = toy_model()
    history = train(first, toy_data(), CONFIG, run_dir=tmp_path, teacher=teacher).history
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["teacher_weights"], settings["after_step"], settings["start"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    second = toy_model(seed=1)
    again = train(second, toy_data(), CONFIG, run_dir=tmp_path, teacher=teacher).history
    assert again == history, "nothing is trained a second time"
    weights = second.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in first.state_dict().items())


def test_a_layer_under_two_names_is_saved_under_both(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        conv = nn.Conv2d(1, 1, 3, padding=1)
        return nn.Sequential(conv, conv, nn.Flatten(), nn.Linear(16, 2))

    train(tied(), toy_data(), CONFIG, run_dir=tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights["0.weight"], weights["1.weight"])
    tied().load_state_dict(weights)


def test_a_model_comes_back_in_the_layout_that_it_came_in(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"channels_last": True, "epochs": 1})
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), conv, nn.Flatten(), nn.Linear(64, 2))
    train(model, toy_data(), config)
    assert conv.weight.is_contiguous()
    conv.to(memory_format=torch.channels_last)
    train(model, toy_data(), CONFIG.model_copy(update={"epochs": 1}))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.weight.is_contiguous()


def test_a_checkpoint_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"a": 1}, resume=True)
    folder.create()
    folder.save({"history": [], "model": {}})
    with pytest.raises(AttributeError):
        folder.save({"history": [], "model": lambda: None})  # cannot be written
    assert folder.load() == {"history": [], "model": {}}
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "checkpoint.pt",
        "history.jsonl",
    }


def test_weights_that_are_no_numbers_never_become_a_checkpoint(tmp_path: Path) -> None:
    class Poison(torch.autograd.Function):
        """Finite loss, infinite gradient."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0] * float("inf")

    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy_model()

        def forward(self, x: Tensor) -> Tensor:
            return Poison.apply(self.inner(x))  # type: ignore[no-untyped-call, no-any-return]

    one_step = CONFIG.model_copy(update={"batch_size": 96})
    with pytest.raises(FloatingPointError, match="is not finite after epoch 1"):
        train(Poisoned(), toy_data(), one_step, run_dir=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"] == []


def test_a_cut_checkpoint_is_named_and_how_to_begin_again(tmp_path: Path) -> None:
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*remove it to begin"):
        train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {}, resume=True)
    folder.create()
    folder.save_weights({"a": torch.zeros(4)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file can grow further
    try:
        for write in (folder.save_weights, lambda w: folder.save({"model": w, "history": []})):
            with pytest.raises(OSError, match=r"(model.safetensors|checkpoint.pt) could not be"):
                write({"a": torch.ones(40_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.zeros(4))


def test_a_folder_is_no_cache_of_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name the file"):
        CachedTeacher(toy_model(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        CachedTeacher(toy_model(), tmp_path / "file" / "answers")


def test_a_finished_run_goes_on_for_more_epochs_and_for_no_fewer(tmp_path: Path) -> None:
    longer = CONFIG.model_copy(update={"epochs": 6})
    train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path)
    with pytest.raises(ValueError, match="epochs=4, not 6"):  # not without being asked for
        train(toy_model(), toy_data(), longer, run_dir=tmp_path)
    result = train(toy_model(), toy_data(), longer, run_dir=tmp_path, extend=True)
    assert (result.trained, len(result.history)) == (2, 6)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 6
    with pytest.raises(ValueError, match="epochs=6, not 4"):
        train(toy_model(), toy_data(), CONFIG, run_dir=tmp_path, extend=True)
    (tmp_path / "model.safetensors").unlink()  # as of a run that was stopped
    with pytest.raises(ValueError, match="epochs=6, not 8"):
        more = longer.model_copy(update={"epochs": 8})
        train(toy_model(), toy_data(), more, run_dir=tmp_path, extend=True)

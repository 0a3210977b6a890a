"""Two processes that share every batch learn what one process learns."""

import gc
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from distill_toys import toy_data, toy_model
from torch import nn

from qkernels.data.batches import epoch_seed
from qkernels.distill import CachedTeacher, DeepSupervision, TrainConfig, soft_objective, train

pytest.importorskip("accelerate")
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05, alpha=0.5)


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    model = toy_model(batch_norm=False)  # batch statistics are per process, by definition
    teacher = CachedTeacher(toy_model(8, seed=3, batch_norm=True), folder / "answers.sqlite")
    base = soft_objective("hinton", CONFIG, teacher)
    heads = DeepSupervision(base, model, ["2"], image_shape=(1, 4, 4), num_classes=2)
    result = train(model, toy_data(), CONFIG, objective=heads, run_dir=folder / "run")
    name = f"result{os.environ.get('RANK', '')}.pt"
    history = [(r.loss, r.accuracy, r.val_loss, r.val_accuracy) for r in result.history]
    state = {**model.state_dict(), **heads.state_dict()}
    torch.save({"history": history, "state": state}, folder / name)


def run_with_batch_norm(folder: Path) -> None:
    model = toy_model()
    last = train(model, toy_data(), CONFIG).history[-1]
    torch.save({"val_loss": last.val_loss, "state": model.state_dict()}, folder / "norm.pt")


class Viewing(nn.Module):
    """Says how many images there are as most models do, which torch refuses for none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.view(images.size(0), -1))


def run_with_an_uneven_last_batch(folder: Path) -> None:
    torch.manual_seed(0)
    data = toy_data()
    data = replace(data, val=data.val.head(17))  # the last batch is one image
    model = Viewing()
    last = train(model, data, CONFIG).history[-1]
    torch.save((last.val_loss, last.val_accuracy), folder / "uneven.pt")


def run_with_an_objective_of_another_seed_a_process(folder: Path) -> None:
    model = toy_model(batch_norm=False)
    base = soft_objective("hinton", CONFIG, toy_model(8, seed=3, batch_norm=True))
    heads = DeepSupervision(base, model, ["2"], image_shape=(1, 4, 4), num_classes=2)
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    for head in heads.heads:  # as a user's own objective may have been made
        head.reset_parameters()
    train(model, toy_data(), CONFIG, objective=heads)
    torch.save({**model.state_dict(), **heads.state_dict()}, folder / "seeds.pt")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def worker(rank: int, folder: Path, port: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    run(folder)
    (folder / str(rank)).mkdir()
    run_with_batch_norm(folder / str(rank))
    run_with_an_uneven_last_batch(folder / str(rank))
    run_with_an_objective_of_another_seed_a_process(folder / str(rank))
    leave_group()


def leave_group() -> None:
    """Nobody leaves before all are done, nor while a model in a reference cycle still holds the group:
    gloo's threads would outlive it, and the process would abort at its end."""
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    threads = torch.get_num_threads()
    try:
        run(tmp_path / "one")
        run_with_an_uneven_last_batch(tmp_path / "one")
        run_with_an_objective_of_another_seed_a_process(tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    mp.spawn(worker, (tmp_path / "two", free_port()), nprocs=2)  # type: ignore[no-untyped-call]
    one = torch.load(tmp_path / "one" / "result.pt", weights_only=True)
    ranks = [torch.load(tmp_path / "two" / f"result{r}.pt", weights_only=True) for r in (0, 1)]
    for rank in ranks:
        for alone, shared in zip(one["history"], rank["history"], strict=True):
            assert shared == pytest.approx(alone, rel=1e-4)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(rank["state"][name], tensor, rtol=1e-4, atol=1e-5)
            assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
    norms = [torch.load(tmp_path / "two" / r / "norm.pt", weights_only=True) for r in "01"]
    assert norms[0]["val_loss"] == norms[1]["val_loss"]
    for name, tensor in norms[0]["state"].items():
        assert torch.equal(tensor, norms[1]["state"][name])  # the running statistics too
    uneven = [torch.load(tmp_path / f"{p}/uneven.pt", weights_only=True) for p in ("two/0", "one")]
    assert uneven[0] == pytest.approx(uneven[1], rel=1e-4)
    one, first, second = (
        torch.load(tmp_path / f"{p}/seeds.pt", weights_only=True) for p in ("one", "two/0", "two/1")
    )
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])  # what an objective learns too
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


def test_no_process_draws_the_dropout_of_another_s_epoch() -> None:
    """torch seeds the numbers of a CPU with the lower 32 bits alone."""
    drawn = [
        epoch_seed(seed, epoch, process) % 2**32
        for seed in (0, 1, 7)
        for epoch in range(100)
        for process in range(16)
    ]
    assert len(set(drawn)) == len(drawn)
    assert epoch_seed(3, 5) == epoch_seed(3, 5, 0)

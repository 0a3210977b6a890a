"""A model cut in stages answers as the whole does, in one process and over two."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import qkernels
from qkernels.models import CifarResNet, MobileNetV2
from qkernels.parallel import Staged, split_at


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, in_channels=3, width=4).eval()


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cuts", [["layer2"], ["layer1", "layer3"], ["layer2.0.conv2"], ["linear"]])
def test_the_stages_answer_as_the_whole(cuts: list[str]) -> None:
    """A cut within a block ("layer2.0.conv2") sends the residual along."""
    expected = resnet()(images())
    staged = split_at(resnet(), cuts, ["cpu"] * (len(cuts) + 1))
    assert len(staged.stages) == len(cuts) + 1
    assert torch.equal(staged(images()), expected)


def test_every_weight_lies_in_one_stage_and_keeps_its_values() -> None:
    whole = resnet()
    staged = split_at(resnet(), ["layer2"], ["cpu", "cpu"])
    parts = [{id(p) for p in stage.parameters()} for stage in staged.stages]
    assert not parts[0] & parts[1]
    counts = [sum(p.numel() for p in stage.parameters()) for stage in staged.stages]
    assert min(counts) > 0 and sum(counts) == sum(p.numel() for p in whole.parameters())


def test_each_stage_is_on_its_device_and_values_go_there() -> None:
    """A meta device stands for a second one: it has no values, but shapes and a place."""
    staged = split_at(resnet(), ["layer2"], ["cpu", "meta"])
    devices = [{p.device.type for p in stage.parameters()} for stage in staged.stages]
    assert devices == [{"cpu"}, {"meta"}]
    answer = staged(images())
    assert answer.device.type == "meta" and answer.shape == (4, 10)


def test_int8_models_are_split_too() -> None:
    model = MobileNetV2(width_mult=0.25, num_classes=10).eval()
    int8 = qkernels.quantize(model, calibration=images())
    expected = int8(images())
    staged = split_at(int8, ["features.5"], ["cpu", "cpu"])
    assert torch.equal(staged(images()), expected)


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"no module 'layer4' runs.*near are layer"):
        split_at(resnet(), ["layer4"], ["cpu", "cpu"])
    with pytest.raises(ValueError, match="2 cuts make 3 stages, not 2"):
        split_at(resnet(), ["layer1", "layer2"], ["cpu", "cpu"])
    with pytest.raises(ValueError, match=r"\['layer3', 'layer1'\] must be modules in the order"):
        split_at(resnet(), ["layer3", "layer1"], ["cpu"] * 3)


def worker(rank: int, folder: Path, port: str) -> None:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    staged: Staged = split_at(resnet(), ["layer2"], ["cpu", "cpu"])
    stage = PipelineStage(staged.stages[rank], rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=2)
    with torch.no_grad():
        answer = schedule.step(images()) if rank == 0 else schedule.step()
    if rank == 1:
        torch.save(answer, folder / "answer.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_in_a_pipeline_answer_as_one_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    mp.spawn(worker, (tmp_path, port), nprocs=2)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), resnet()(images()).detach())

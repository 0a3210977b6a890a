import pytest
import torch
from torch import nn

from qkernels.datafree import BatchNormGap


def test_the_gap_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(8)
    ).eval()
    model[1].running_mean.copy_(torch.tensor([1.0, -2.0]))
    model[1].running_var.copy_(torch.tensor([0.5, 3.0]))
    x = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = model[0](x)
        second = model[1](first).flatten(1)
    expected = []
    for channels, layer in (
        ([first[:, c].flatten() for c in range(2)], model[1]),
        ([second[:, c] for c in range(8)], model[3]),
    ):
        means = torch.stack([values.mean() for values in channels])
        variances = torch.stack([values.var(correction=0) for values in channels])
        expected.append(
            ((means - layer.running_mean) ** 2).sum().sqrt()
            + ((variances - layer.running_var) ** 2).sum().sqrt()
        )
    with BatchNormGap(model).watching() as gaps:
        model(x)
    torch.testing.assert_close(torch.stack(gaps), torch.stack(expected))
    with torch.no_grad():
        model(x)
    assert len(gaps) == 2  # nothing is watched any more


def test_a_batch_with_the_remembered_statistics_has_no_gap_and_noise_has_one() -> None:
    layer = nn.BatchNorm2d(3, momentum=1.0)
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1
    layer(x)  # momentum 1: it now remembers this very batch (with the unbiased variance)
    layer.eval()
    found = []
    for batch in (x, torch.randn_like(x)):
        with BatchNormGap(layer).watching() as gaps:
            layer(batch)
        found.append(gaps[0].item())
    assert found[0] < 0.01 < 1 < found[1]


def test_folded_batch_norms_are_missed_by_name() -> None:
    with pytest.raises(ValueError, match="Linear has no batch norm with running statistics"):
        BatchNormGap(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no batch norm"):
        BatchNormGap(nn.BatchNorm2d(2, track_running_stats=False))

"""L1, elastic net and ridge: closed forms, and zeros that are exactly zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prune_nets import toy_data, toy_net
from torch import Tensor, nn

from qkernels.distill import TrainConfig, train
from qkernels.prune import Proximal, gammas, soft_threshold, weights


@given(st.floats(-3, 3), st.floats(0, 2))
def test_soft_threshold_minimises_its_problem(x: float, threshold: float) -> None:
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    cost = 0.5 * (grid - x) ** 2 + threshold * grid.abs()
    best = float(soft_threshold(torch.tensor(x, dtype=torch.float64), threshold))
    assert abs(best - float(grid[cost.argmin()])) <= 1e-3


def orthonormal_problem() -> tuple[Tensor, Tensor]:
    """A design X [32, 8] with X^T X = I and targets whose least squares solution is (-2, .., 2)."""
    x = torch.linalg.qr(torch.randn(32, 8, dtype=torch.float64))[0]
    return x, x @ torch.linspace(-2, 2, 8, dtype=torch.float64)


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.0), (0.5, 0.7), (0.0, 0.7), (0.0, 0.0)])
def test_steps_reach_the_closed_form_of_lasso_elastic_net_and_ridge(l1: float, l2: float) -> None:
    """Zou, Hastie 2005, equation 6: with X^T X = I the solution is soft_threshold(w_ols, l1) / (1 + l2)."""
    x, y = orthonormal_problem()
    layer = nn.Linear(8, 1, bias=False).double()
    proximal = Proximal(["weight"], l1=l1, l2=l2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (layer(x).flatten() - y).square().sum()).backward()
        optimizer.step()
        proximal(layer, 0.1)
    expected = soft_threshold(torch.linspace(-2, 2, 8, dtype=torch.float64), l1) / (1 + l2)
    torch.testing.assert_close(layer.weight.detach().flatten(), expected, atol=1e-6, rtol=0)
    assert torch.equal(layer.weight.flatten() == 0, expected == 0)  # zeros are exact


def test_a_step_moves_by_at_most_the_rate_times_l1() -> None:
    layer = nn.Linear(4, 4)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    Proximal(["weight"], l1=0.5)(layer, 0.1)
    assert float((layer.weight.detach() - before).abs().max()) <= 0.05 + 1e-7
    assert torch.equal(layer.bias, bias)  # only what is named


def test_slimming_makes_exact_zeros_of_batch_norm_scales() -> None:
    config = TrainConfig(epochs=8, batch_size=16, lr=0.1, augment=False, weight_decay=0.0)
    zeros = {}
    for l1 in (0.0, 1.0):
        net = toy_net()
        train(net, toy_data(), config, after_step=Proximal(gammas(net), l1=l1), progress=False)
        zeros[l1] = sum(int((gamma == 0).sum()) for gamma in gammas(net).values())
    assert zeros[0.0] == 0 and zeros[1.0] > 0


def test_negative_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"l1=-1 and l2=0\.0 must not be negative"):
        Proximal(weights(toy_net()), l1=-1)
    assert repr(Proximal(["a", "b"], l1=0.1)) == "Proximal(l1=0.1, l2=0, 2 parameters)"

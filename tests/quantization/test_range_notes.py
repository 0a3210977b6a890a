"""What calibration cut off is told, with its remedies; what was not cut is not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.recovery import smooth

pytestmark = pytest.mark.filterwarnings("ignore:.*dB of the float model")
REMEDIES = ("minmax", "dynamic", "smooth")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def with_outlier(value: float, *size: int) -> Tensor:
    x = normal(*size).clamp(-1, 1)
    x.view(-1)[7] = value
    return x


def cut_notes(model: nn.Module) -> list[str]:
    return [note for note in qk.report(model).notes if "calibration cut" in note]


@pytest.mark.parametrize("outlier", [500.0, -500.0])
def test_one_token_far_outside_is_told_with_its_remedies(outlier: float) -> None:
    x = with_outlier(outlier, 20_000, 16)
    model = mlp()
    int8 = qk.quantize(model, "static", [x])
    note = next(note for note in cut_notes(int8) if note.startswith("0:"))
    assert all(remedy in note for remedy in REMEDIES)
    assert "500" in note
    assert qk.report(int8).layers[0].name == "0"


def test_every_layer_behind_that_is_cut_is_told_by_name() -> None:
    int8 = qk.quantize(mlp(), {"percentile": 99.9}, [with_outlier(500.0, 20_000, 16)])
    assert [note.split(":")[0] for note in cut_notes(int8)] == ["0", "2"]


@pytest.mark.parametrize("observer", ["percentile", "mse", "entropy", "moving_average", "fixed"])
@pytest.mark.parametrize("outlier", [20.0, 500.0])
def test_an_observer_says_so_exactly_where_it_cuts_most_of_the_range(
    observer: str, outlier: float
) -> None:
    config: dict[str, Any] = {"observer": observer}
    if observer == "fixed":
        config["range"] = (-1.0, 1.0)
    data = [with_outlier(outlier, 20_000, 16)] + [normal(64, 16, seed=i) for i in range(60)]
    int8 = qk.quantize(mlp(), config, data)
    kept = 255 * qk.report(int8).layers[0].input_scale
    low = min(float(x.min()) for x in data)
    cut = (outlier - low) / kept
    assert any(note.startswith("0:") for note in cut_notes(int8)) == (cut > 4)
    assert observer not in ("fixed", "moving_average", "percentile") or outlier < 500 or cut > 4


@pytest.mark.parametrize("observer", ["minmax", "global"])
def test_an_observer_that_keeps_both_ends_says_nothing(observer: str) -> None:
    int8 = qk.quantize(mlp(), {"observer": observer}, [with_outlier(500.0, 20_000, 16)])
    assert cut_notes(int8) == []


@pytest.mark.parametrize(
    "x", [normal(4000, 16), normal(4000, 16).relu(), with_outlier(3.5, 20_000, 16)]
)
def test_ordinary_data_is_not_worth_a_note(x: Tensor) -> None:
    assert cut_notes(qk.quantize(mlp(), "static", [x])) == []


def test_the_outlier_of_a_late_batch_counts() -> None:
    batches = [normal(500, 16, seed=i) for i in range(40)] + [with_outlier(500.0, 500, 16)]
    assert cut_notes(qk.quantize(mlp(), {"percentile": 99.9}, batches))


def test_a_range_in_an_override_is_told_for_its_layer_alone() -> None:
    config = {"observer": "minmax", "overrides": {"2": {"observer": "fixed", "range": (0.0, 0.01)}}}
    assert [
        note.split(":")[0] for note in cut_notes(qk.quantize(mlp(), config, [normal(64, 16)]))
    ] == ["2"]


def test_symmetric_ranges_are_compared_by_their_larger_end() -> None:
    x = normal(20_000, 16).abs()
    assert cut_notes(qk.quantize(mlp(), {"symmetric": True}, [x])) == []
    config = {"symmetric": True, "percentile": 99.99}
    assert cut_notes(qk.quantize(mlp(), config, [with_outlier(-500.0, 20_000, 16)]))


def test_each_remedy_that_the_note_names_keeps_the_token() -> None:
    class Normed(nn.Module):
        """One channel of the norm's output is far larger: `smooth` moves it into the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 4)
            self.norm.weight.data[3] = 0
            self.norm.bias.data[3] = 0.01

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(x))

    model, x = mlp(), with_outlier(500.0, 20_000, 16)
    token = x[:1]

    def error(int8: nn.Module, exact: nn.Module) -> float:
        y, truth = int8(token), exact(token)
        return float((y - truth).detach().norm() / truth.detach().norm())

    assert error(qk.quantize(model, "static", [x]), model) > 0.5
    assert error(qk.quantize(model, {"observer": "minmax"}, [x]), model) < 0.05
    assert error(qk.quantize(model, "dynamic"), model) < 0.05
    torch.manual_seed(0)
    normed = Normed().eval()
    assert cut_notes(qk.quantize(smooth(normed, [x]), "static", [x])) == []


def test_training_for_int8_starts_with_the_same_ranges_and_an_answer_worth_a_warning_is_one() -> (
    None
):
    x = with_outlier(500.0, 20_000, 16)
    with pytest.warns(UserWarning, match="dB"):
        int8 = qk.quantize(mlp(), "static", [x], example_inputs=x[:1])
    assert min(qk.report(int8).sqnr_db.values()) < 10

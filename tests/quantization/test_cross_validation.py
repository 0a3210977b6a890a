import pytest
import torch
from nets import conv_net, images
from torch import Tensor, nn

from qkernels.quantization import cross_validate


def data(count: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = conv_net(), images(count)
    x[7] *= 3000  # an outlier image: its range costs all others their resolution
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def closeness(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Mean logit of the float model's class, over typical inputs."""
    typical = inputs.abs().amax((1, 2, 3)) < 10
    with torch.inference_mode():
        return float(model(inputs)[typical].log_softmax(1).gather(1, labels[typical, None]).mean())


@pytest.mark.slow
def test_the_search_is_the_same_for_a_seed_and_other_for_another() -> None:
    model, x, y = data()
    first, again = (cross_validate(model, x, y, folds=4, metric=closeness) for _ in range(2))
    assert first == again
    other = cross_validate(model, x, y, folds=4, seed=1, metric=closeness)
    assert other.scores != first.scores


def test_a_clip_that_serves_the_task_beats_the_full_range() -> None:
    model, x, y = data()
    candidates = [{"observer": "minmax"}, {"observer": "percentile", "percentile": 97.0}]
    result = cross_validate(model, x, y, candidates=candidates, folds=4, metric=closeness)
    assert result.config.percentile == 97.0
    assert "percentile=97.0" in str(result)


def test_the_held_out_fold_never_calibrates() -> None:
    model, x, y = data(8)
    seen: list[int] = []

    def remember(int8: nn.Module, inputs: Tensor, labels: Tensor) -> float:
        big = bool((inputs.abs() > 1000).any())
        seen.append(float(int8.conv1.input_scale) * 255 > 1000 and big)
        return 0.0

    cross_validate(model, x, y, candidates=[{"observer": "minmax"}], folds=8, metric=remember)
    assert len(seen) == 8 and not any(seen)


def test_bad_input_is_one_sentence() -> None:
    model, x, y = data(8)
    for folds in (1, 9):
        with pytest.raises(ValueError, match=f"folds={folds} must be between 2 and the 8 inputs"):
            cross_validate(model, x, y, folds=folds)
    with pytest.raises(ValueError, match="8 inputs and 3 labels"):
        cross_validate(model, x, y[:3])
    with pytest.raises(ValueError, match="no candidates"):
        cross_validate(model, x, y, candidates=[])
    with pytest.raises(ValueError, match="'clip' is not known"):
        cross_validate(model, x, y, candidates=[{"clip": 3}])

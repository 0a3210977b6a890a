import pytest
import torch
from torch import Tensor, nn

from qkernels.data import ImageData, Split
from qkernels.evaluate import agreement, evaluate, predict, score, wilson_interval


def brightness_data(labels: Tensor | None) -> ImageData:
    """The class of an image is its grey level."""
    levels = torch.tensor([0, 1, 2, 1, 0], dtype=torch.uint8)
    split = Split(levels[:, None, None, None].expand(5, 1, 2, 2).clone(), labels)
    return ImageData("levels", ("0", "1", "2"), split, split, split, (0.0,), (1 / 255,))


def by_level(images: Tensor) -> Tensor:
    return -(images.mean((1, 2, 3))[:, None] - torch.arange(3.0)).abs()


def test_accuracy_of_any_callable() -> None:
    data = brightness_data(torch.tensor([0, 1, 2, 1, 1]))
    result = evaluate(by_level, data, batch_size=2)
    assert (result.correct, result.count) == (4, 5)
    assert result.accuracy == 0.8
    assert evaluate(by_level, data, limit=4).accuracy == 1.0
    assert str(result).startswith("80.00% [")


def test_predict_runs_in_eval_mode_and_puts_the_mode_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(1.0), nn.Linear(4, 3)).train()
    batches = brightness_data(None).batches("test", 2)
    first = predict(model, batches)
    assert first.shape == (5, 3)
    assert not torch.equal(first[0], first[2])  # the dropout was off
    assert model.training


def test_predict_leaves_a_frozen_batch_norm_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3)).train()
    model[0].eval()
    predict(model, brightness_data(None).batches("test", 2))
    assert [m.training for m in model] == [False, True, True]


def test_agreement() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert agreement(a, a * 5) == 1.0
    assert agreement(a, a.flip(1)) == 0.0
    with pytest.raises(ValueError, match=r"shapes \[4, 2\] and \[3, 2\]"):
        agreement(a, a[:3])


def test_score_counts_right_answers() -> None:
    result = score(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([1, 1]))
    assert result.correct == 1
    assert result.loss == pytest.approx(4.5, rel=1e-3)


def test_wilson_interval() -> None:
    low, high = wilson_interval(81, 263)  # Newcombe 1998, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 20)[0] == 0.0
    assert round(wilson_interval(0, 20)[1], 4) == 0.1611  # the same table
    assert wilson_interval(29, 29)[1] == 1.0
    with pytest.raises(ValueError, match="no interval for 3 of 2"):
        wilson_interval(3, 2)


def test_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="test has no labels"):
        evaluate(by_level, brightness_data(None))
    with pytest.raises(ValueError, match="the split is empty"):
        predict(by_level, [])

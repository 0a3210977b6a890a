import pytest
import torch

from qkernels.data import load
from qkernels.data.split import stratified_parts

pytest.importorskip("sklearn")


def test_digits_are_complete_and_scaled() -> None:
    data = load("digits")
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert data.image_shape == (1, 8, 8)
    assert data.num_classes == 10
    pixels = data.train.images[torch.arange(len(data.train))]
    assert pixels.dtype == torch.uint8
    assert pixels.max() == 255  # 16 of 16
    assert set(pixels.unique().tolist()) <= {round(level * 255 / 16) for level in range(17)}


def test_digits_split_depends_on_the_seed_alone() -> None:
    same, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert torch.equal(same.test.images, again.test.images)
    assert not torch.equal(same.test.labels, other.test.labels)


def test_every_class_has_its_share_in_every_split() -> None:
    data = load("digits")
    whole = torch.cat([data.train.labels, data.val.labels, data.test.labels]).bincount()
    for split, share in ((data.train, 0.6), (data.val, 0.2), (data.test, 0.2)):
        assert (split.labels.bincount() - share * whole).abs().max() <= 1


def test_parts_are_disjoint_and_complete() -> None:
    labels = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0))
    parts = stratified_parts(labels, (0.5, 0.3, 0.2), seed=0)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no data set 'mnist'; there are digits, cifar10"):
        load("mnist")

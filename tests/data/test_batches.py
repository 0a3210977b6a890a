import pytest
import torch
from torch import Tensor

from qkernels.data import Augment, ImageData, Split, hold_out


def make_data(count: int = 20, labelled: bool = True) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2 if labelled else None
    split = Split(images, labels)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    return ImageData("toy", ("a", "b"), split, split, split, mean, std, Augment(2, flip=True))


def images_of(batches: object, epoch: int = 0) -> Tensor:
    return torch.cat([images for images, _ in batches.epoch(epoch)])  # type: ignore[attr-defined]


def test_pixels_are_normalised_per_channel() -> None:
    data = make_data()
    (images, labels), *_ = data.batches("train", 20)
    raw = data.train.images[torch.arange(20)].double() / 255
    for channel in range(3):
        expected = (raw[:, channel] - data.mean[channel]) / data.std[channel]
        torch.testing.assert_close(images[:, channel].double(), expected, rtol=1e-5, atol=1e-6)
    assert images.dtype == torch.float32
    assert torch.equal(labels, data.train.labels)


def test_layout_and_dtype_change_no_value() -> None:
    data = make_data()
    plain = images_of(data.batches("train", 8))
    (last, _), *_ = data.batches("train", 8, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain[:8])
    assert torch.equal(images_of(data.batches("train", 8, dtype=torch.bfloat16)), plain.bfloat16())


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    data = make_data()
    batches = data.batches("train", 7, shuffle=True, augment=True, seed=5)
    assert torch.equal(images_of(batches, 3), images_of(batches, 3))
    assert not torch.equal(images_of(batches, 3), images_of(batches, 4))
    other = data.batches("train", 7, shuffle=True, augment=True, seed=6)
    assert not torch.equal(images_of(batches, 3), images_of(other, 3))


def test_shuffling_keeps_images_with_their_labels() -> None:
    data = make_data()
    plain = images_of(data.batches("train", 20))
    seen = []
    for images, labels in data.batches("train", 6, shuffle=True):
        for image, label in zip(images, labels, strict=True):
            position = (plain == image).flatten(1).all(1).nonzero().item()
            assert data.train.labels[position] == label
            seen.append(position)
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 4]), (True, [8, 8])])
def test_last_batch(drop_last: bool, sizes: list[int]) -> None:
    batches = make_data().batches("train", 8, drop_last=drop_last)
    assert [len(images) for images, _ in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_process(world_size: int) -> None:
    options = {"shuffle": True, "augment": True, "seed": 1}
    data = make_data()
    whole = list(data.batches("train", 8, **options))
    for rank in range(world_size):
        shards = data.batches("train", 8, **options, rank=rank, world_size=world_size)
        for (images, labels), (part, part_labels) in zip(whole, shards, strict=True):
            assert torch.equal(images[rank::world_size], part)
            assert torch.equal(labels[rank::world_size], part_labels)


def test_augment_equals_a_loop_over_images() -> None:
    augment = Augment(padding=2, flip=True)
    images = make_data().train.images[torch.arange(20)]
    choice = augment.draw(20, torch.Generator().manual_seed(1))
    assert choice[:, :2].min() == 0 and choice[:, :2].max() == 4
    assert set(choice[:, 2].tolist()) == {0, 1}
    result = augment.apply(images, choice)
    for image, (row, column, flipped), actual in zip(images, choice.tolist(), result, strict=True):
        canvas = torch.zeros(3, 10, 9, dtype=torch.uint8)
        canvas[:, 2:8, 2:7] = image
        expected = canvas[:, row : row + 6, column : column + 5]
        assert torch.equal(actual, expected.flip(2) if flipped else expected)


def test_no_flip_when_not_asked() -> None:
    assert Augment(1, flip=False).draw(100, torch.Generator()).select(1, 2).sum() == 0


def test_unlabelled_images_give_batches_without_labels() -> None:
    data = make_data(labelled=False)
    assert all(labels is None for _, labels in data.batches("train", 8))


def test_hold_out_takes_a_share_of_every_class() -> None:
    split = make_data(100).train
    rest, held = hold_out(split, 0.2)
    assert held.labels.bincount().tolist() == [10, 10]
    assert len(rest) == 80
    assert len(hold_out(split, 0.0)[1]) == 0
    assert len(hold_out(split.unlabelled(), 0.25)[1]) == 25


def test_faults_are_named() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"uint8, not torch.float32"):
        Split(images.float())
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], not \(3, 2, 2\)"):
        Split(images[0])
    with pytest.raises(ValueError, match=r"int64 \[4\] or float \[4, K\], not torch.int64 \[3\]"):
        Split(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"train, val or test, not 'dev'"):
        make_data().batches("dev", 4)
    with pytest.raises(ValueError, match=r"at least 1, not 0"):
        make_data().batches("train", 0)
    with pytest.raises(ValueError, match=r"rank 2 is not in 0..1"):
        make_data().batches("train", 4, rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"in \[0, 1\), not 1.0"):
        hold_out(Split(images), 1.0)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkernels.data import ImageData, Split
from qkernels.datafree import Generator, ImageKind, write_sheet

RGB = ImageKind((3, 5, 7), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_pixels_survive_normalising_and_back() -> None:
    pixels = torch.arange(256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)
    assert torch.equal(RGB.to_uint8(RGB.normalise(pixels / 255)), pixels)
    assert RGB.to_uint8(torch.full((1, 3, 1, 1), 99.0)).tolist() == [[[[255]]] * 3]  # saturates


def test_batches_of_made_images_are_normalised_as_real_ones(digits: ImageData) -> None:
    kind = ImageKind.of(digits)
    for made, real in zip(
        kind.batches(digits.train, 100), digits.batches("train", 100), strict=True
    ):
        assert torch.equal(made[0], real[0])


def test_placeholders_take_no_memory_and_carry_nothing() -> None:
    split = RGB.placeholders(10**6)
    assert len(split) == 10**6 and split.labels is None
    assert isinstance(split.images, torch.Tensor)
    assert split.images.untyped_storage().nbytes() == 3 * 5 * 7
    data = RGB.data(split)
    assert (len(data.val), len(data.test), data.image_shape) == (0, 0, (3, 5, 7))


def test_channels_must_agree() -> None:
    with pytest.raises(
        ValueError, match="images of 3 channels need as many means and stds, not 1 and 1"
    ):
        ImageKind((3, 4, 4), (0.5,), (0.5,))


@given(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13))
def test_a_generator_makes_real_pixels_of_any_size(channels: int, height: int, width: int) -> None:
    kind = ImageKind((channels, height, width), (0.4,) * channels, (0.3,) * channels)
    generator = Generator(kind, latent=4, width=2)
    images = generator(torch.randn(3, 4))
    assert images.shape == (3, channels, height, width)
    low, high = kind.bounds(images)
    assert (images >= low).all() and (images <= high).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_every_image_in_its_place(tmp_path: object, channels: int) -> None:
    pil, path = pytest.importorskip("PIL.Image"), f"{tmp_path}/sheet.png"
    levels = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)
    images = levels.view(5, 1, 1, 1).expand(5, channels, 4, 5)
    write_sheet(Split(images), path, columns=3)
    picture = pil.open(path)
    factor = picture.width // (3 * 7)
    assert picture.size == (3 * 7 * factor, 2 * 6 * factor)
    for place, level in enumerate(levels.tolist()):
        column, row = place % 3, place // 3
        seen = picture.getpixel((factor * (7 * column + 3), factor * (6 * row + 3)))
        assert seen == (level if channels == 1 else (level,) * 3)
    assert (
        picture.convert("L").getpixel((picture.width - 3 * factor, picture.height - 3 * factor))
        == 0
    )

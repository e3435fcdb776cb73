"""Reading photos and preparing them like torchvision and timm do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.models import ResNet50_Weights

from rapkernels.images import (
    Frame,
    ImageError,
    Preprocessing,
    prepare_image,
    read_image,
)

pytestmark = pytest.mark.cpu_only

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = Preprocessing((224, 224), 256, MEAN, STD)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (97, 640), (1001, 333)])
def test_pixels_are_those_of_torchvision(size: tuple[int, int]) -> None:
    photo = noise(*size)
    expected = ResNet50_Weights.IMAGENET1K_V2.transforms()(photo)
    ours = prepare_image(photo, Preprocessing((224, 224), 232, MEAN, STD, "bilinear"))
    torch.testing.assert_close(ours.pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(451, 300), (301, 600)])
def test_pixels_are_those_of_timm(size: tuple[int, int]) -> None:
    photo = noise(*size)
    transform = create_transform((3, 160, 160), interpolation="bicubic", crop_pct=0.875)
    expected = transform(photo)
    ours = prepare_image(photo, Preprocessing((160, 160), 182, MEAN, STD))
    torch.testing.assert_close(ours.pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (1500, 1400)])
@pytest.mark.parametrize("stretch", [False, True])
def test_the_view_shows_the_region_that_the_network_sees(
    size: tuple[int, int], stretch: bool
) -> None:
    preprocessing = CROP.stretched() if stretch else CROP
    prepared = prepare_image(noise(*size), preprocessing)
    seen = prepared.pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    view = np.asarray(prepared.view.resize((224, 224), Image.Resampling.BICUBIC)) / 255.0
    assert np.abs(view.transpose(2, 0, 1) - seen.numpy()).mean() < 0.01


def test_the_view_keeps_the_aspect_ratio_of_a_stretched_photo() -> None:
    prepared = prepare_image(noise(600, 300), CROP.stretched())
    assert prepared.view.size == (600, 300)
    assert prepared.pixels.shape == (3, 224, 224)


def test_pixels_are_dense_float32() -> None:
    pixels = prepare_image(noise(300, 300), CROP).pixels
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()


@pytest.mark.parametrize("resize", [223, (224, 223), (100, 300)])
def test_a_resize_smaller_than_the_crop_is_refused(resize: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"resize must be at least size \(224, 224\)"):
        Preprocessing((224, 224), resize, MEAN, STD)


def test_exif_orientation_turns_the_photo_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (20, 40)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.tiff"
    noise(16, 16, mode).save(path)
    assert read_image(path).mode == "RGB"


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)


def test_a_box_follows_resize_and_crop() -> None:
    # 600 x 300 to 512 x 256, of which the middle 224 x 224 is left: 144 to the left, 16 above.
    frame = Frame.of((600, 300), CROP)
    assert frame.scaled_size == (512, 256)
    assert frame.crop == (144, 16, 368, 240)
    scale = 256 / 300
    expected = (300 * scale - 144, 0 - 16, 600 * scale - 144, 150 * scale - 16)
    assert frame.to_input((300, 0, 600, 150)) == pytest.approx(expected)
    assert frame.to_input(frame.view) == pytest.approx((0, 0, 224, 224))


def test_a_box_follows_stretching() -> None:
    frame = Frame.of((448, 112), CROP.stretched())
    assert frame.to_input((0, 0, 224, 56)) == pytest.approx((0, 0, 112, 112))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a file; give the path of one image"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"photo\.png: "):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"photo.{suffix}: "):
        read_image(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(64, 64).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too large to be opened safely"):
        read_image(tmp_path / "photo.png")

"""Photos: read a file, prepare it for a network, keep the region that the network saw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ._optional import require
from .errors import RapError

if TYPE_CHECKING:
    from PIL.Image import Image

_VIEW_LIMIT = 1024
_SIXTEEN_BIT_TO_EIGHT = 257


class ImageError(RapError, ValueError):
    """A photo is missing, unreadable or empty; the message names the file and the cause."""


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its photos: resize, centre crop, scale to [0, 1], normalise.

    Attributes:
        size: (height, width) of the network's input.
        resize: before the centre crop; an int is the length of the photo's shorter side, a
            (height, width) stretches the whole photo. Neither may be smaller than ``size``.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divides what is left.
        interpolation: a name of ``PIL.Image.Resampling`` in lower case.
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        sides = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if sides[0] < self.size[0] or sides[1] < self.size[1]:
            raise ValueError(
                f"Preprocessing: resize must be at least size {self.size}, got {self.resize}."
            )

    def stretched(self) -> Preprocessing:
        """The same, but the whole photo stretched to the input size, as in the RAP paper."""
        return replace(self, resize=self.size)


@dataclass(frozen=True)
class PreparedImage:
    """A photo as the network sees it, and the same region for the eye.

    Attributes:
        pixels: (3, height, width) float32, normalised.
        view: the region that ``pixels`` shows, in the photo's own resolution and aspect ratio.
    """

    pixels: torch.Tensor
    view: Image


@dataclass(frozen=True)
class Frame:
    """Where the network's input lies in a photo: the photo is resized, then cropped.

    Attributes:
        photo_size: (width, height) of the photo.
        scaled_size: (width, height) of the resized photo.
        crop: (left, top, right, bottom) of the network's input in the resized photo, whole pixels.
    """

    photo_size: tuple[int, int]
    scaled_size: tuple[int, int]
    crop: tuple[int, int, int, int]

    @classmethod
    def of(cls, photo_size: tuple[int, int], preprocessing: Preprocessing) -> Frame:
        """The frame of a photo of (width, height); the steps equal torchvision's and timm's."""
        height, width = preprocessing.size
        if isinstance(preprocessing.resize, int):
            scaled_size = _shorter_side_to(photo_size, preprocessing.resize)
        else:
            scaled_size = (preprocessing.resize[1], preprocessing.resize[0])
        # Rounded like torchvision's, so that a network gets the pixels of its training.
        left = round((scaled_size[0] - width) / 2.0)
        top = round((scaled_size[1] - height) / 2.0)
        return cls(photo_size, scaled_size, (left, top, left + width, top + height))

    @property
    def view(self) -> tuple[float, float, float, float]:
        """The region (left, top, right, bottom) of the photo that the network sees."""
        across = self.photo_size[0] / self.scaled_size[0]
        down = self.photo_size[1] / self.scaled_size[1]
        left, top, right, bottom = self.crop
        return (left * across, top * down, right * across, bottom * down)

    def to_input(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box (x0, y0, x1, y1) of the photo in the input's pixels; it may reach beyond them."""
        across = self.scaled_size[0] / self.photo_size[0]
        down = self.scaled_size[1] / self.photo_size[1]
        left, top = self.crop[:2]
        x0, y0, x1, y1 = box
        return (x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top)


def read_image(path: str | Path) -> Image:
    """Read a photo as 8-bit RGB, turned upright by its EXIF tag, transparency over white.

    Raises:
        ImageError: the file is missing, is no image that Pillow can read, or is cut short.
    """
    pil_image = require("PIL.Image", "reading a photo", "rapkernels[cli]")
    pil_ops = require("PIL.ImageOps", "reading a photo", "rapkernels[cli]")
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file.")
    if not path.is_file():
        raise ImageError(f"{path}: not a file; give the path of one image.")
    try:
        with pil_image.open(path) as photo:
            upright = pil_ops.exif_transpose(photo)
            return _to_rgb(upright, pil_image)
    except pil_image.UnidentifiedImageError:
        raise ImageError(
            f"{path}: not an image that can be read; give a PNG, JPEG, WebP, TIFF, BMP or GIF file."
        ) from None
    except pil_image.DecompressionBombError as error:
        raise ImageError(f"{path}: the image is too large to be opened safely ({error}).") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read this file.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # Pillow raises any of these for damaged data, depending on the format.
        raise ImageError(f"{path}: the image is damaged or cut short ({error}).") from None


def _to_rgb(photo: Any, pil_image: Any) -> Image:
    if photo.mode.startswith("I;16"):
        eight_bit = (np.asarray(photo) // _SIXTEEN_BIT_TO_EIGHT).astype(np.uint8)
        photo = pil_image.fromarray(eight_bit)
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        white = pil_image.new("RGBA", rgba.size, "white")
        photo = pil_image.alpha_composite(white, rgba)
    rgb: Image = photo.convert("RGB")
    return rgb


def prepare_image(photo: Image, preprocessing: Preprocessing) -> PreparedImage:
    """Resize, crop and normalise an RGB photo."""
    pil_image = require("PIL.Image", "preparing a photo", "rapkernels[cli]")
    resampling = pil_image.Resampling[preprocessing.interpolation.upper()]
    frame = Frame.of(photo.size, preprocessing)
    unchanged = photo.size == frame.scaled_size
    scaled = photo if unchanged else photo.resize(frame.scaled_size, resampling)
    return PreparedImage(
        pixels=_normalise(scaled.crop(frame.crop), preprocessing), view=_view(photo, frame)
    )


def _shorter_side_to(size: tuple[int, int], length: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return length, int(length * height / width)
    return int(length * width / height), length


def _normalise(photo: Image, preprocessing: Preprocessing) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(photo, dtype=np.uint8)).permute(2, 0, 1)
    scaled = pixels.to(torch.float32).div(255)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1)
    return scaled.sub(mean).div(std).contiguous()


def _view(photo: Image, frame: Frame) -> Image:
    """What the network sees, cut out of the photo itself, at the photo's resolution."""
    pil_image = require("PIL.Image", "preparing a photo", "rapkernels[cli]")
    region = frame.view
    width, height = region[2] - region[0], region[3] - region[1]
    shrink = min(1.0, _VIEW_LIMIT / max(width, height))
    size = (max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink)))
    return photo.resize(size, pil_image.Resampling.BICUBIC, box=region)

"""Photos of a folder as cases, with boxes where there is a file of them.

Boxes are given in the photo's own pixels. They go the way of the photo: scaled by the network's
resize, shifted by its crop; a pixel of the network's input belongs to the object when its centre
lies in the box. What the crop cuts off is lost to both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from torch import Tensor
from typing_extensions import override

from ..images import Frame, Preprocessing, prepare_image, read_image
from .boxes import Boxes, LabelledBox, check_box
from .cases import Case, EvaluationError, box_mask

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


@dataclass(frozen=True)
class _Photo:
    path: Path
    target: int | None
    mask: Tensor | None


class PhotoCases(Sequence[Case]):
    """The photos of a folder, read anew each time that one is asked for.

    Args:
        folder: a folder with images; those in folders within it are not taken.
        preprocessing: how the network wants its photos.
        boxes: their boxes; photos without one are left out. None: all photos, no masks, and the
            predicted class is the one to explain.

    Attributes:
        left_out: names of the photos without a box.

    Raises:
        EvaluationError: no folder, no images in it, a box without a photo, a photo of another size
            than the boxes', a box outside of its photo or outside of what the network sees of it.
        ImageError: a photo cannot be read.
    """

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, boxes: Boxes | None = None
    ) -> None:
        self._preprocessing = preprocessing
        paths = list_images(folder)
        self.left_out: tuple[str, ...] = ()
        if boxes is None:
            self._photos = [_Photo(path, None, None) for path in paths]
            return
        matched = _match(paths, boxes, Path(folder))
        self.left_out = tuple(path.name for path in paths if path not in matched)
        self._photos = [
            _Photo(path, matched[path].label, self._mask(path, matched[path], boxes))
            for path in paths
            if path in matched
        ]

    @override
    def __len__(self) -> int:
        return len(self._photos)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    @override
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        if isinstance(index, slice):
            return [self._read(photo) for photo in self._photos[index]]
        return self._read(self._photos[index])

    def _read(self, photo: _Photo) -> Case:
        pixels = prepare_image(read_image(photo.path), self._preprocessing).pixels
        classes = () if photo.target is None else (photo.target,)
        return Case(photo.path.name, pixels, photo.target, photo.mask, classes)

    def _mask(self, path: Path, labelled: LabelledBox, boxes: Boxes) -> Tensor:
        size = read_image(path).size
        if boxes.size is not None and size != boxes.size:
            raise EvaluationError(
                f"{path}: the boxes of {boxes.source} are for photos of {boxes.size[0]} x "
                f"{boxes.size[1]} pixels, got {size[0]} x {size[1]}."
            )
        check_box(f"{boxes.source}, {path.name}", labelled.box, size)
        frame = Frame.of(size, self._preprocessing)
        mask = box_mask(frame.to_input(labelled.box), self._preprocessing.size)
        if not mask.any():
            raise EvaluationError(
                f"{boxes.source}, {path.name}: the network sees nothing of the box after "
                "resize and crop; stretch the photo, or leave it out."
            )
        return mask


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        EvaluationError: no such folder, or no images in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder.")
    paths = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES
    )
    if not paths:
        raise EvaluationError(f"{folder}: no images in this folder ({', '.join(SUFFIXES)}).")
    return paths


def _match(paths: Sequence[Path], boxes: Boxes, folder: Path) -> dict[Path, LabelledBox]:
    named: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        named[path.name].append(path)
        named[path.stem].append(path)
    matched: dict[Path, LabelledBox] = {}
    for name, labelled in boxes.of.items():
        found = named.get(name, [])
        if len(found) != 1:
            what = f"{len(found)} images have" if found else "no image has"
            raise EvaluationError(f"{boxes.source}, {name}: {what} this name in {folder}.")
        if found[0] in matched:
            raise EvaluationError(f"{boxes.source}, {name}: {found[0].name} has two boxes.")
        matched[found[0]] = labelled
    return matched

"""One model in every precision, in this process.

`python -m bench.precision_model MODEL SAMPLES THREADS [PHOTOS]` is that process.

It prints one JSON object a line, a :class:`PrecisionRow`, as soon as it is there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import rapkernels as rk
from bench.zoo_models import load as load_random
from rapkernels.errors import NonFiniteOutputError
from rapkernels.images import Preprocessing, prepare_image, read_image
from rapkernels.models import DEFAULT_MODEL, load_classifier

METHODS = {"rap": rk.RAP, "lrp": rk.LRP}
# What torchvision's weights for ImageNet were trained on.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of weights, input and relevance; and what the explainer is asked for.
PRECISIONS = {
    "fp32": (torch.float32, "fp32"),
    "fp32, bf16 back": (torch.float32, "bf16"),
    "bf16": (torch.bfloat16, "fp32"),
    "fp16": (torch.float16, "fp32"),
}


@dataclass(frozen=True)
class PrecisionRow:
    """How far the map of one precision is from those in float64.

    Attributes:
        model: its name in torchvision, or "efficientnet_lite0".
        precision: one of PRECISIONS.
        method: "rap" or "lrp".
        samples: how many; each figure is that of the worst of them.
        finite: whether every entry of the relevance is, and every output of the model; without
            those the figures are NaN.
        cosine: similarity with the float64 map of the model and input as they were.
        error: largest difference from it, of its largest entry.
        rounded_cosine: similarity with the float64 map of the rounded model and input: what is
            left without the rounding of those.
        rounded_error: likewise.
    """

    model: str
    precision: str
    method: str
    samples: int
    finite: bool
    cosine: float
    error: float
    rounded_cosine: float
    rounded_error: float


def load(name: str, samples: int) -> tuple[nn.Module, Tensor, Preprocessing]:
    """A network, its noise, and how it takes photos; "efficientnet_lite0" has trained weights."""
    if name == DEFAULT_MODEL:
        classifier = load_classifier(name)
        height, width = classifier.preprocessing.size
        return classifier.module, torch.randn(samples, 3, height, width), classifier.preprocessing
    model, x = load_random("torchvision", name, samples)
    side = x.shape[-1]
    return model, x, Preprocessing((side, side), side + 32, MEAN, STD)


def photos_of(folder: Path, count: int, preprocessing: Preprocessing) -> Tensor:
    """The first photos of a folder as a network takes them, ``(count, 3, H, W)``.

    Raises:
        ValueError: it holds fewer.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < count:
        raise ValueError(f"{folder} must hold {count} JPEG photos, got {len(paths)}")
    photos = (prepare_image(read_image(path), preprocessing) for path in paths[:count])
    return torch.stack([photo.pixels for photo in photos])


def measure(name: str, model: nn.Module, x: Tensor) -> Iterator[PrecisionRow]:
    """Attribute the same class of each sample in every precision.

    Args:
        name: what to call the model.
        model: in eval mode and float32; its weights are what float64 stands for.
        x: ``(N, C, H, W)`` float32.
    """
    with torch.no_grad():
        target = _cast(model, torch.float64)(x.double()).argmax(1)
    exact = _maps(model, x, target, torch.float64)
    for precision, (dtype, back) in PRECISIONS.items():
        try:
            found = _maps(model, x, target, dtype, back)
        except NonFiniteOutputError:
            nothing = (math.nan,) * 4
            yield from (PrecisionRow(name, precision, m, len(x), False, *nothing) for m in METHODS)
            continue
        rounded = exact
        if dtype != torch.float32:
            rounded = _maps(_cast(model, dtype), x.to(dtype), target, torch.float64)
        for method, relevance in found.items():
            yield PrecisionRow(
                name,
                precision,
                method,
                len(x),
                bool(torch.isfinite(relevance).all()),
                *compare(relevance, exact[method]),
                *compare(relevance, rounded[method]),
            )


def compare(relevance: Tensor, exact: Tensor) -> tuple[float, float]:
    """Cosine similarity, and largest difference of the largest entry: of the worst sample."""
    found, wanted = relevance.double().flatten(1), exact.double().flatten(1)
    # Scaled first: squares of large relevance would overflow.
    largest = wanted.abs().amax(1, keepdim=True)
    found, wanted = found / largest, wanted / largest
    cosine = torch.nn.functional.cosine_similarity(found, wanted)
    return float(cosine.min()), float((found - wanted).abs().max())


def _maps(
    model: nn.Module, x: Tensor, target: Tensor, dtype: torch.dtype, back: str = "fp32"
) -> dict[str, Tensor]:
    made = _cast(model, dtype)
    return {
        name: cls(made, precision=back).attribute(x.to(dtype), target)
        for name, cls in METHODS.items()
    }


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype)


def _main(name: str, samples: str, threads: str, folder: str = "") -> None:
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    model, x, preprocessing = load(name, int(samples))
    if folder:
        x = photos_of(Path(folder), len(x), preprocessing)
    for row in measure(name, model, x):
        print(json.dumps(dataclasses.asdict(row)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])

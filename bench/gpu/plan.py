"""What a GPU run measures, in order of worth: it may be cut off. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bench.limits import GPU_LIMITS
from bench.shapes import LayerShape, layer_shapes

NETWORKS = {"vgg16": "VGG-16", "resnet50": "ResNet-50"}
PRECISIONS = {"float32": "float32, TF32 off", "tf32": "float32, TF32 on", "bfloat16": "bfloat16"}
ELEMENTWISE = ("split_quotient", "gate", "apply_shift", "relprop_add", "merge")
# Activations of the networks that the element-wise kernels run on.
ACTIVATIONS = {
    "vgg16.conv1_2": ("VGG-16", (64, 224, 224)),
    "resnet50.layer1": ("ResNet-50", (256, 56, 56)),
}
LINEAR = "vgg16.fc6"
LINEAR_BATCHES = (1, 4, 16)
TIMED_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class OpRow:
    """An op to check and perhaps to time; `least_share` of the copy bandwidth is promised."""

    shape: LayerShape
    dtype: str
    timed: bool
    least_share: float | None = None

    @property
    def key(self) -> str:
        """What tells the row from all others."""
        timed = "/timed" if self.timed else ""
        return f"{self.shape.name}/{size_text(self.shape.x)}/{self.dtype}{timed}"

    @property
    def tolerance(self) -> float | None:
        """The largest error that counts as right, of the largest entry of the reference.

        None for products in bfloat16: they round sums that are then divided by, so their largest
        entries may be far off. Such a row is judged by its cosine.
        """
        if self.dtype == "float64":
            return GPU_LIMITS.float64_error
        if self.dtype == "float32":
            return GPU_LIMITS.float32_error
        return None if self.shape.weight else 2**-6


def size_text(size: Iterable[int]) -> str:
    """A tensor's size as the tables show it."""
    return " x ".join(map(str, size))


def op_rows() -> Iterator[OpRow]:
    """First all that must be right, then what has a limit, then the rest."""
    for dtype in ("float64", "float32"):
        for shape in layer_shapes():
            yield OpRow(shape, dtype, timed=False)
    for dtype in TIMED_DTYPES:
        yield from elementwise_rows(dtype)
        yield from linear_rows(dtype)
    for dtype in TIMED_DTYPES:
        for shape in layer_shapes():
            if shape.op not in ELEMENTWISE:
                yield OpRow(with_batch(shape, GPU_LIMITS.batch), dtype, timed=True)


def elementwise_rows(dtype: str) -> list[OpRow]:
    """The fused element-wise kernels on whole activations."""
    return [
        OpRow(_activation(place, op), dtype, True, GPU_LIMITS.elementwise_share)
        for op in ELEMENTWISE
        for place in ACTIVATIONS
    ]


def linear_rows(dtype: str) -> list[OpRow]:
    """fc6 of VGG-16 at small batch; the limit is of float32."""
    (fc6,) = [shape for shape in layer_shapes() if shape.name == LINEAR]
    least = GPU_LIMITS.linear_share if dtype == "float32" else None
    return [OpRow(with_batch(fc6, batch), dtype, True, least) for batch in LINEAR_BATCHES]


def with_batch(shape: LayerShape, batch: int) -> LayerShape:
    """The same layer with another number of samples."""
    return replace(shape, x=(batch, *shape.x[1:]))


def tiny(row: OpRow) -> OpRow:
    """The same op on a layer that a CPU does at once, to try the harness."""
    shape = row.shape
    batch = min(shape.x[0], 4)
    if len(shape.x) == 2:
        small = replace(shape, x=(batch, 12), weight=(5, 12))
    else:
        groups = 6 if shape.groups > 1 else 1
        channels = 6 if groups > 1 else 4
        weight = (6, channels // groups, *shape.weight[2:]) if shape.weight else ()
        small = replace(shape, x=(batch, channels, 9, 9), weight=weight, groups=groups)
    return replace(row, shape=small)


def _activation(place: str, op: str) -> LayerShape:
    network, size = ACTIVATIONS[place]
    x = (GPU_LIMITS.batch, *size)
    return LayerShape(
        f"{place}.{op}", network, op, x, (), (), kernel=1, stride=1, padding=0, groups=1
    )

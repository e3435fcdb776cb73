"""An op on a layer shape: its arguments, its work, and its result in comparable form."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.shapes import LayerShape
from rapkernels.relevance import Relevance

Arguments = tuple[Any, ...]
SEED = 0


@dataclass(frozen=True)
class Case:
    """Arguments of one op and the number of matrix products' operations its rule needs."""

    shape: LayerShape
    arguments: Arguments
    operations: int

    def in_float64(self) -> Case:
        """The same values in float64."""
        return Case(self.shape, tuple(map(_double, self.arguments)), self.operations)

    def samples(self, chosen: slice) -> Case:
        """The same op on some of the samples only, which do not depend on each other."""
        parts = [
            item[chosen] if isinstance(item, Tensor) and not self._is_weight(index) else item
            for index, item in enumerate(self.arguments)
        ]
        return Case(self.shape, tuple(parts), self.operations)

    def _is_weight(self, index: int) -> bool:
        return index == 1 and bool(self.shape.weight)

    def least_bytes(self, results: Sequence[Tensor]) -> int:
        """Bytes that have to move: every tensor argument and every result, once.

        Of the weight of the first step only the rows of the explained classes are needed.
        """
        tensors = [item for item in self.arguments if isinstance(item, Tensor)]
        if self.shape.op == "relprop_first_linear":
            tensors[1] = tensors[1][: self.shape.x[0]]
        return sum(item.numel() * item.element_size() for item in [*tensors, *results])


def build(
    shape: LayerShape,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Case:
    """Random arguments from a fixed seed: x after a ReLU, relevance of both signs.

    Args:
        shape: the layer.
        device: where the tensors are drawn; None is torch's default.
        dtype: of all tensors but the pending shift and scale.
        channels_last: the memory format of images and of their weights.
    """
    torch.manual_seed(SEED)
    with _defaults(device, dtype):
        arguments, units = BUILDERS[shape.op](shape)
    if channels_last:
        arguments = tuple(map(_channels_last, arguments))
    return Case(shape, arguments, units * shape.operations())


@contextlib.contextmanager
def _defaults(device: str | torch.device | None, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with contextlib.nullcontext() if device is None else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def comparable(op: str, result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The true relevance(s) in float64, whatever shift and scale are still pending.

    Entries of each tensor are compared with its own largest one; absorbed relevance, which may be
    zero or nearly so, is put beside the total of the map it was taken from.
    """
    if isinstance(result, Tensor):
        return [result.double()]
    parts = list(result)
    if op == "relprop_add":
        a, b, scale, absorbed = parts
        maps = [Relevance(a, None, scale).to_float64(), Relevance(b, None, scale).to_float64()]
        return [*maps, _beside(absorbed, maps[0])]
    if op == "merge":
        return [Relevance(parts[0], None, parts[1]).to_float64()]
    if op == "split_quotient":
        return [part.double() for part in parts]
    relevance = Relevance(parts[0], parts[1], parts[2]).to_float64()
    return [relevance] if op == "gate" else [relevance, _beside(parts[3], relevance)]


def max_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over all results, each relative to its own largest entry."""
    errors = [
        float((a - b).abs().amax() / b.abs().amax().clamp_min(torch.finfo(torch.float64).tiny))
        for a, b in zip(found, expected, strict=True)
    ]
    # Unlike max(), a tensor's amax is NaN wherever one of them is.
    return float(torch.tensor(errors, dtype=torch.float64).amax())


def _beside(absorbed: Tensor, relevance: Tensor) -> Tensor:
    return torch.stack([absorbed, relevance.abs().flatten(1).sum(1)])


def _double(item: Any) -> Any:
    return item.double() if isinstance(item, Tensor) and item.is_floating_point() else item


def _channels_last(item: Any) -> Any:
    if not isinstance(item, Tensor) or item.dim() != 4:
        return item
    return item.contiguous(memory_format=torch.channels_last)


def _after_relu(shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape).relu_()


def _weight(shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape) * math.sqrt(2 / math.prod(shape[1:]))


def _pending(samples: int) -> tuple[Tensor, Tensor]:
    """A pending shift and scale, as they arrive from the layer above."""
    psi = torch.full((samples,), 0.01, dtype=torch.float64)
    return psi, torch.full((samples,), 0.5, dtype=torch.float64)


def _linear(shape: LayerShape) -> tuple[Arguments, int]:
    relevance = torch.randn(shape.x[0], shape.weight[0])
    return (_after_relu(shape.x), _weight(shape.weight), relevance, *_pending(shape.x[0]), "rap"), 4


def _conv(shape: LayerShape) -> tuple[Arguments, int]:
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    stride, pads, dilation = _geometry(shape)
    z = torch.conv2d(x, weight, None, stride, shape.padding, dilation, shape.groups)
    relevance = torch.randn_like(z)
    pending = _pending(shape.x[0])
    # z is handed on, so three products remain: |w| * |x| and the two transposes.
    return (
        x,
        weight,
        z,
        relevance,
        *pending,
        stride,
        pads,
        dilation,
        shape.groups,
        "rap_conv",
        True,
    ), 3


def _zbox_conv(shape: LayerShape) -> tuple[Arguments, int]:
    x, weight = torch.randn(*shape.x), _weight(shape.weight)
    low, high = x.flatten(1).amin(1).view(-1, 1, 1, 1), x.flatten(1).amax(1).view(-1, 1, 1, 1)
    relevance = torch.randn(shape.x[0], shape.weight[0], *shape.result_size())
    stride, pads, dilation = _geometry(shape)
    pending = _pending(shape.x[0])
    return (x, weight, low, high, relevance, *pending, stride, pads, dilation, shape.groups), 4


def _first_linear(shape: LayerShape) -> tuple[Arguments, int]:
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    score, target = (x @ weight.T).max(dim=1)
    return (x, weight, None, target, score, "absolute"), 0


def _max_pool(shape: LayerShape) -> tuple[Arguments, int]:
    window = [[value] * shape.spatial for value in (shape.kernel, shape.stride, shape.padding, 1)]
    return (_after_relu(shape.x), _pooled(shape), *_pending(shape.x[0]), *window, False), 0


def _avg_pool(shape: LayerShape) -> tuple[Arguments, int]:
    window = [[value] * shape.spatial for value in (shape.kernel, shape.stride, shape.padding)]
    pending = _pending(shape.x[0])
    return (_after_relu(shape.x), _pooled(shape), *pending, *window, False, "absolute"), 0


def _adaptive_avg_pool(shape: LayerShape) -> tuple[Arguments, int]:
    return (_after_relu(shape.x), _pooled(shape), *_pending(shape.x[0]), "absolute"), 0


def _add(shape: LayerShape) -> tuple[Arguments, int]:
    a, b, relevance = (torch.randn(*shape.x) for _ in range(3))
    return (a, b, relevance, *_pending(shape.x[0]), "absolute"), 0


def _merge(shape: LayerShape) -> tuple[Arguments, int]:
    pending = _pending(shape.x[0])
    return (torch.randn(*shape.x), *pending, torch.randn(*shape.x), *pending), 0


def _apply_shift(shape: LayerShape) -> tuple[Arguments, int]:
    return (torch.randn(*shape.x), *_pending(shape.x[0])), 0


def _split_quotient(shape: LayerShape) -> tuple[Arguments, int]:
    a = torch.rand(*shape.x) + 0.1
    z = a * (1.8 * torch.rand(*shape.x) - 0.9)
    return (z, a, torch.randn(*shape.x), _pending(shape.x[0])[0], "rap_conv"), 0


def _gate(shape: LayerShape) -> tuple[Arguments, int]:
    total, scale = _pending(shape.x[0])
    return (_after_relu(shape.x), torch.randn(*shape.x), total, scale), 0


def _pooled(shape: LayerShape) -> Tensor:
    return torch.randn(*shape.x[:2], *shape.result_size())


def _geometry(shape: LayerShape) -> tuple[list[int], list[int], list[int]]:
    dims = shape.spatial
    return [shape.stride] * dims, [shape.padding] * 2 * dims, [1] * dims


BUILDERS: dict[str, Callable[[LayerShape], tuple[Arguments, int]]] = {
    "relprop_linear": _linear,
    "relprop_conv": _conv,
    "relprop_zbox_conv": _zbox_conv,
    "relprop_first_linear": _first_linear,
    "relprop_max_pool": _max_pool,
    "relprop_avg_pool": _avg_pool,
    "relprop_adaptive_avg_pool": _adaptive_avg_pool,
    "relprop_add": _add,
    "merge": _merge,
    "apply_shift": _apply_shift,
    "split_quotient": _split_quotient,
    "gate": _gate,
}

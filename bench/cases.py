"""An op on a layer shape: its arguments, its work, and its result in comparable form."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.shapes import LayerShape
from rapkernels import reference
from rapkernels.relevance import Relevance

Arguments = tuple[Any, ...]
SEED = 0


class Rule(NamedTuple):
    """A rule of convolutions and linear layers, for inputs that are not negative.

    name, parameters: what the op takes; RAP's name differs between ops.
    needs_z: whether it needs the layer's output, which a convolution is handed.
    once, each: matrix products beside that, for all targets together and for each.
    """

    name: str
    parameters: tuple[float, ...]
    needs_z: bool
    once: int
    each: int


# RAP's with the sums Z+ and Z- that the forward pass has kept.
SUMS = "sums"
# By what shapes.csv says.
RULES = {
    "": Rule("", (), True, 1, 2),
    SUMS: Rule("", (), False, 0, 2),
    "epsilon": Rule("epsilon", (1e-6,), True, 0, 1),
    "z_plus": Rule("alpha_beta", (1.0, 0.0, 1e-6), False, 1, 1),
    "alpha_beta": Rule("alpha_beta", (2.0, 1.0, 1e-6), True, 1, 2),
}


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
        # The op's parameters belong to all samples; everything else has one row or T of each.
        names = inspect.signature(getattr(reference, self.shape.op)).parameters
        parts = [
            self.rows(item, chosen)
            if isinstance(item, Tensor) and name not in ("weight", "bias")
            else item
            for name, item in zip(names, self.arguments, strict=False)
        ]
        return Case(self.shape, tuple(parts), self.operations)

    def rows(self, item: Tensor, chosen: slice) -> Tensor:
        """The rows of some samples in an argument or a result, which has N or, by target, T * N."""
        samples = self.shape.x[0]
        targets = item.shape[0] // samples
        return item.reshape(targets, samples, *item.shape[1:])[:, chosen].flatten(0, 1)

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
    if op in ("split_quotient", "linear_split"):
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


def _bias(shape: LayerShape) -> Tensor:
    return 0.01 * torch.randn(shape.weight[0])


def _pending(samples: int) -> tuple[Tensor, Tensor]:
    """A pending shift and scale, as they arrive from the layer above."""
    psi = torch.full((samples,), 0.01, dtype=torch.float64)
    return psi, torch.full((samples,), 0.5, dtype=torch.float64)


def _linear(shape: LayerShape) -> tuple[Arguments, int]:
    rule = RULES[shape.rule]
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    units = rule.needs_z + rule.once + rule.each * shape.targets
    if not rule.name:
        count = shape.targets * shape.x[0]
        arguments = x, weight, torch.randn(count, len(weight)), *_pending(count), "rap"
        if shape.rule != SUMS:
            return arguments, units
        return (*arguments, True, None, (), None, *reference.linear_split(x, weight, True)), units
    bias = _bias(shape)
    arrived = _vanishing_with(x @ weight.T + bias, shape.targets)
    return (x, weight, *arrived, rule.name, True, bias, rule.parameters), units


def _linear_split(shape: LayerShape) -> tuple[Arguments, int]:
    return (_after_relu(shape.x), _weight(shape.weight), True), 2


def _conv(shape: LayerShape) -> tuple[Arguments, int]:
    rule = RULES[shape.rule]
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    z, geometry = _output(shape, x, weight), (*_geometry(shape), shape.groups)
    # z is handed on, so that three products remain of RAP: |w| * |x| and the two transposes.
    units = rule.once + rule.each * shape.targets
    if not rule.name:
        count = shape.targets * shape.x[0]
        arrived = torch.randn(count, *z.shape[1:]), *_pending(count)
        return (x, weight, z, *arrived, *geometry, "rap_conv", True), units
    bias = _bias(shape)
    arrived = _vanishing_with(z + bias.view(-1, 1, 1), shape.targets)
    return (x, weight, z, *arrived, *geometry, rule.name, True, bias, rule.parameters), units


def _vanishing_with(output: Tensor, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance of both signs that vanishes with the square of the output; no shift, as in LRP.

    The rules divide by the output: relevance of an output that is nearly 0 would show nothing but
    how that was rounded.
    """
    relevance = torch.randn(targets, *output.shape) * output * output.abs()
    psi, scale = _pending(targets * len(output))
    return relevance.flatten(0, 1), torch.zeros_like(psi), scale


def _equilibrium_conv(shape: LayerShape) -> tuple[Arguments, int]:
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    relevance = torch.randn(shape.x[0], shape.weight[0], *shape.result_size())
    geometry = (*_geometry(shape), shape.groups)
    # Contributions, active and inactive neurons: three products with |w| forward and three back.
    return (x, weight, relevance, *_pending(shape.x[0]), *geometry, 2.0), 6


def _sharing_conv(shape: LayerShape) -> tuple[Arguments, int]:
    x, weight = _after_relu(shape.x), _weight(shape.weight)
    z, geometry = _output(shape, x, weight), (*_geometry(shape), shape.groups)
    pending = torch.randn_like(z), *_pending(shape.x[0])
    # z is handed on, and the share of the bias is a product of one channel: one transpose remains.
    return (x, weight, _bias(shape), z, *pending, *geometry), 1


def _share_squares(shape: LayerShape) -> tuple[Arguments, int]:
    return (_after_relu(shape.x), torch.randn(*shape.x), *_pending(shape.x[0])), 0


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


def _output(shape: LayerShape, x: Tensor, weight: Tensor) -> Tensor:
    stride, _, dilation = _geometry(shape)
    return torch.conv2d(x, weight, None, stride, shape.padding, dilation, shape.groups)


def _pooled(shape: LayerShape) -> Tensor:
    return torch.randn(*shape.x[:2], *shape.result_size())


def _geometry(shape: LayerShape) -> tuple[list[int], list[int], list[int]]:
    dims = shape.spatial
    return [shape.stride] * dims, [shape.padding] * 2 * dims, [1] * dims


BUILDERS: dict[str, Callable[[LayerShape], tuple[Arguments, int]]] = {
    "relprop_linear": _linear,
    "linear_split": _linear_split,
    "relprop_conv": _conv,
    "relprop_equilibrium_conv": _equilibrium_conv,
    "relprop_sharing_conv": _sharing_conv,
    "relprop_zbox_conv": _zbox_conv,
    "relprop_first_linear": _first_linear,
    "relprop_max_pool": _max_pool,
    "relprop_avg_pool": _avg_pool,
    "relprop_adaptive_avg_pool": _adaptive_avg_pool,
    "share_squares": _share_squares,
    "relprop_add": _add,
    "merge": _merge,
    "apply_shift": _apply_shift,
    "split_quotient": _split_quotient,
    "gate": _gate,
}

"""What the tests and the benchmark share: sample arguments of every operation, and comparers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rapkernels.relevance import Relevance


@dataclass
class Sampler:
    """Random tensors from one seed, on torch's default device.

    Drawn in float64 on the CPU: the same in every dtype and on every device.
    """

    dtype: torch.dtype = torch.float64
    seed: int = 0
    signed: bool = True
    batch: int = 3
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Seed the generator."""
        self._generator = torch.Generator("cpu").manual_seed(self.seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal entries."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(self.dtype).to(torch.get_default_device())

    def activation(self, *shape: int) -> Tensor:
        """About a third of the entries are zero, as behind a ReLU; signed if asked."""
        drawn = self.normal(*shape)
        kept = torch.where(drawn.abs() > 0.4, drawn, torch.zeros_like(drawn))
        return kept if self.signed else kept.abs()

    def relevance(self, *shape: int) -> Tensor:
        """Both signs, some zeros, a positive mean."""
        drawn = self.normal(*shape) + 0.2
        return torch.where(drawn.abs() > 0.1, drawn, torch.zeros_like(drawn))

    def pending(self) -> tuple[Tensor, Tensor]:
        """A pending shift and a pending scale."""
        index = torch.arange(self.batch, dtype=torch.float64, device="cpu")
        # A device's pow need not be exact, and a scale must be a power of two.
        device = torch.get_default_device()
        return (0.125 * (index - 1)).to(device), (2.0 ** (index - 1)).to(device)


Arguments = tuple[Any, ...]


def _linear(s: Sampler) -> Arguments:
    x, weight = s.activation(s.batch, 5, 17), s.normal(9, 17)
    state = s.relevance(s.batch, 5, 9), *s.pending()
    return x, weight, *state, "rap", not s.signed, s.normal(9), [], None, None, None


def _linear_split(s: Sampler) -> Arguments:
    return s.activation(s.batch, 5, 17), s.normal(9, 17), not s.signed


def _conv(s: Sampler) -> Arguments:
    x, weight = s.activation(s.batch, 6, 9, 7), s.normal(8, 3, 3, 2)
    relevance = s.relevance(s.batch, 8, 5, 6)
    options: Arguments = ("rap_conv", not s.signed, s.normal(8), [])
    geometry = [2, 1], [1, 2, 0, 1], [1, 2], 2
    return x, weight, None, relevance, *s.pending(), *geometry, *options


# Two targets for each sample.
def _of_targets(s: Sampler, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    psi, scale = s.pending()
    return s.relevance(2 * s.batch, *shape), psi.repeat(2), scale.repeat(2)


def _equilibrium_linear(s: Sampler) -> Arguments:
    return s.activation(s.batch, 5, 17), s.normal(9, 17), *_of_targets(s, 5, 9)


def _equilibrium_conv(s: Sampler) -> Arguments:
    x, weight = s.activation(s.batch, 6, 9, 7), s.normal(8, 3, 3, 2)
    return x, weight, *_of_targets(s, 8, 5, 6), [2, 1], [1, 2, 0, 1], [1, 2], 2, 1.5


def _bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return x.new_full([1] * x.dim(), -1), x.new_full([1] * x.dim(), 1)
    dims = list(range(1, x.dim()))
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)


def _zbox_linear(s: Sampler) -> Arguments:
    x, weight = s.normal(s.batch, 17), s.normal(9, 17)
    return x, weight, *_bounds(x), s.relevance(s.batch, 9), *s.pending(), 0.125


def _zbox_conv(s: Sampler) -> Arguments:
    x, weight = s.normal(s.batch, 3, 9, 7), s.normal(4, 3, 3, 3)
    geometry = [2, 1], [1, 1, 0, 2], [1, 1], 1
    return x, weight, *_bounds(x), s.relevance(s.batch, 4, 5, 7), *s.pending(), *geometry, 0.125


def _first_linear(s: Sampler) -> Arguments:
    x, weight, bias = s.activation(s.batch, 17), s.normal(9, 17), s.normal(9)
    target = torch.arange(s.batch) % 9
    score = (x.double() @ weight.double().T + bias.double()).gather(1, target[:, None])[:, 0]
    return x, weight, bias, target, score.to(s.dtype), "absolute"


def _max_pool(s: Sampler) -> Arguments:
    x = s.activation(s.batch, 4, 9, 8)
    geometry = [3, 2], [2, 2], [1, 0], [1, 1], False
    return x, s.relevance(s.batch, 4, 5, 4), *s.pending(), *geometry


def _avg_pool(s: Sampler) -> Arguments:
    x = s.activation(s.batch, 4, 9, 8)
    geometry = [3, 2], [2, 2], [1, 0], False
    return x, s.relevance(s.batch, 4, 5, 4), *s.pending(), *geometry, "absolute"


def _adaptive_max_pool(s: Sampler) -> Arguments:
    return s.activation(s.batch, 4, 9, 7), s.relevance(s.batch, 4, 3, 4), *s.pending()


def _adaptive_avg_pool(s: Sampler) -> Arguments:
    return *_adaptive_max_pool(s), "absolute"


def _add(s: Sampler) -> Arguments:
    shape = s.batch, 4, 5, 3
    return s.activation(*shape), s.activation(*shape), s.relevance(*shape), *s.pending(), "absolute"


def _share_squares(s: Sampler) -> Arguments:
    shape = s.batch, 4, 5, 3
    return s.activation(*shape), s.relevance(*shape), *s.pending()


def _sharing_conv(s: Sampler) -> Arguments:
    x, weight, z, relevance, psi, scale, *options = _conv(s)
    return x, weight, s.normal(8), z, relevance, psi, scale, *options[:4]


def _sharing_linear(s: Sampler) -> Arguments:
    x, weight, relevance, psi, scale, *_ = _linear(s)
    return x, weight, s.normal(9), relevance, psi, scale


def _merge(s: Sampler) -> Arguments:
    psi, scale = s.pending()
    shape = s.batch, 4, 5, 3
    return s.relevance(*shape), psi, scale, s.relevance(*shape), -psi, scale.flip(0)


def _apply_shift(s: Sampler) -> Arguments:
    return s.relevance(s.batch, 4, 5, 3), *s.pending()


def _split_quotient(s: Sampler) -> Arguments:
    shape = s.batch, 4, 5, 3
    z = s.normal(*shape)
    return z, z.abs() + s.normal(*shape).abs(), s.relevance(*shape), s.pending()[0], "rap"


def _gate(s: Sampler) -> Arguments:
    shape = s.batch, 4, 5, 3
    return s.activation(*shape), s.normal(*shape), *s.pending()


SAMPLES: dict[str, Callable[[Sampler], Arguments]] = {
    "relprop_linear": _linear,
    "relprop_conv": _conv,
    "relprop_zbox_linear": _zbox_linear,
    "relprop_zbox_conv": _zbox_conv,
    "relprop_equilibrium_linear": _equilibrium_linear,
    "relprop_equilibrium_conv": _equilibrium_conv,
    "relprop_first_linear": _first_linear,
    "relprop_max_pool": _max_pool,
    "relprop_avg_pool": _avg_pool,
    "relprop_adaptive_max_pool": _adaptive_max_pool,
    "relprop_adaptive_avg_pool": _adaptive_avg_pool,
    "relprop_add": _add,
    "share_squares": _share_squares,
    "relprop_sharing_conv": _sharing_conv,
    "relprop_sharing_linear": _sharing_linear,
    "merge": _merge,
    "apply_shift": _apply_shift,
    "split_quotient": _split_quotient,
    "gate": _gate,
    "linear_split": _linear_split,
}


# Where an operation takes the relevances of several targets (its classes, a gradient), and what
# else it takes per target: positions of arguments.
TARGETED: dict[str, tuple[int, ...]] = {
    "relprop_linear": (2, 3, 4),
    "relprop_conv": (3, 4, 5),
    "relprop_zbox_linear": (4, 5, 6),
    "relprop_zbox_conv": (4, 5, 6),
    "relprop_equilibrium_linear": (2, 3, 4),
    "relprop_equilibrium_conv": (2, 3, 4),
    "relprop_first_linear": (3, 4),
    "relprop_max_pool": (1, 2, 3),
    "relprop_avg_pool": (1, 2, 3),
    "relprop_adaptive_max_pool": (1, 2, 3),
    "relprop_adaptive_avg_pool": (1, 2, 3),
    "relprop_add": (2, 3, 4),
    "share_squares": (1, 2, 3),
    "relprop_sharing_conv": (4, 5, 6),
    "relprop_sharing_linear": (3, 4, 5),
    "split_quotient": (2, 3),
    "gate": (1, 2, 3),
}


def with_targets(name: str, runs: Sequence[Arguments]) -> Arguments:
    """The arguments of the first run, with the relevance of every run as one of several targets."""
    joined = list(runs[0])
    for position in TARGETED[name]:
        joined[position] = torch.cat([run[position] for run in runs])
    return tuple(joined)


@dataclass(frozen=True)
class Conv:
    """One geometry of a convolution."""

    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def weight(self, sampler: Sampler) -> Tensor:
        """A random weight."""
        return sampler.normal(self.outputs, self.channels // self.groups, *self.kernel)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution by torch."""
        pairs = [self.padding[i : i + 2] for i in range(0, len(self.padding), 2)]
        padded = functional.pad(x, [edge for pair in reversed(pairs) for edge in pair])
        zeros = [0] * len(self.size)
        return torch.convolution(
            padded, weight, None, self.stride, zeros, self.dilation, False, zeros, self.groups
        )

    def geometry(self) -> dict[str, Any]:
        """The keyword arguments of the operations."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


CONVS = {
    "1d": Conv(3, 4, (9,), (3,), (1,), (1, 1), (1,)),
    "1d dilated, uneven": Conv(2, 4, (11,), (3,), (2,), (0, 3), (2,), 2),
    "2d": Conv(3, 4, (5, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "2d pointwise, rows skipped": Conv(4, 3, (6, 5), (1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
    "2d rectangular, uneven": Conv(4, 6, (7, 5), (3, 2), (2, 1), (0, 2, 1, 0), (1, 2), 2),
    "2d depthwise, dilated": Conv(4, 4, (7, 6), (3, 3), (2, 2), (2, 1, 2, 2), (2, 2), 4),
    "2d depthwise, multiplied": Conv(2, 6, (4, 4), (2, 2), (1, 1), (0, 1, 0, 1), (1, 1), 2),
    "3d": Conv(2, 3, (3, 4, 3), (2, 2, 3), (1, 2, 1), (0, 0, 1, 0, 1, 1), (1, 1, 1)),
    "2d heavy, in slices": Conv(70, 4, (3, 4), (3, 2), (2, 1), (1, 1, 0, 1), (1, 1)),
    "2d of many channels": Conv(17, 20, (5, 4), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "2d of many channels, strided": Conv(16, 19, (8, 7), (2, 3), (3, 2), (0, 1, 2, 1), (2, 1)),
    "1d wide": Conv(24, 3, (6,), (3,), (1,), (2, 1), (1,)),
    "2d wide": Conv(16, 5, (4, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "2d wide, uneven": Conv(16, 3, (6, 5), (3, 2), (2, 1), (0, 2, 1, 0), (1, 2)),
    "2d wide, pointwise": Conv(70, 3, (3, 4), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "3d wide": Conv(9, 2, (3, 2, 3), (2, 2, 2), (1, 1, 2), (1, 0, 0, 1, 1, 1), (1, 1, 1)),
    "3d grouped": Conv(4, 4, (3, 3, 4), (2, 3, 2), (1, 1, 2), (1, 1, 0, 0, 0, 1), (1, 1, 2), 2),
}


@dataclass(frozen=True)
class Pool:
    """One geometry of a pool."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False

    def output_size(self) -> list[int]:
        """The spatial size of torch's pool."""
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
        x = torch.zeros(1, 1, *self.size)
        y = pool[len(self.size) - 1](
            x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return list(y.shape[2:])


POOLS = {
    "1d": Pool((9,), (3,), (2,), (1,), (1,)),
    "1d dilated": Pool((11,), (3,), (2,), (1,), (3,)),
    "2d": Pool((6, 6), (2, 2), (2, 2), (0, 0), (1, 1)),
    "2d overlapping": Pool((7, 6), (3, 3), (2, 1), (1, 0), (1, 1)),
    "2d ceil": Pool((7, 8), (3, 2), (2, 3), (1, 0), (1, 1), True),
    "2d ceil, last window dropped": Pool((5, 5), (2, 2), (4, 3), (1, 1), (1, 1), True),
    "2d gaps": Pool((9, 7), (2, 1), (3, 4), (0, 0), (1, 1)),
    "3d": Pool((5, 4, 6), (2, 3, 2), (2, 1, 3), (1, 1, 0), (1, 1, 1), True),
}

ADAPTIVE = [
    ((9,), (4,)),
    ((7, 5), (3, 5)),
    ((5, 4), (1, 1)),
    ((3, 4), (5, 6)),
    ((4, 5, 3), (2, 3, 1)),
]


def states(name: str, result: Any) -> list[Relevance]:
    """The relevance states in what the operation ``name`` returned."""
    if name == "relprop_add":
        values_a, values_b, scale, _ = result
        return [Relevance(values_a, None, scale), Relevance(values_b, None, scale)]
    if name == "merge":
        return [Relevance(result[0], None, result[1])]
    if name == "apply_shift":
        return [Relevance(result)]
    if name in ("split_quotient", "linear_split"):
        return [Relevance(result[0]), Relevance(result[1])]
    return [Relevance(*result[:3])]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry of ``expected``."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    difference = (actual.to(torch.float64) - expected.to(torch.float64)).abs().max().item()
    largest = expected.to(torch.float64).abs().max().item()
    return difference / largest if largest > 0 else difference


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "result") -> None:
    """Require ``relative_error`` to be at most ``tolerance``; NaN fails."""
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(f"{what}: error {error:.3g} of the largest entry, above {tolerance:g}")


def assert_same_relevance(name: str, actual: Any, expected: Any, tolerance: float) -> None:
    """Compare true relevance and absorbed parts of two results of the operation ``name``."""
    for ours, theirs in zip(states(name, actual), states(name, expected), strict=True):
        assert_close(ours.to_float64(), theirs.to_float64(), tolerance, name)
    if name.startswith(("relprop_", "share_", "split_")):
        # The last result is a sum per sample; it may cancel, so its unit is the sum of magnitudes.
        unit = sum(float(state.magnitude().sum()) for state in states(name, expected))
        unit += float(expected[-1].abs().sum())
        error = float((actual[-1] - expected[-1]).abs().sum())
        if not error <= tolerance * max(unit, 1e-300):
            raise AssertionError(f"{name}: sums differ by {error:.3g} of {unit:.3g}")


def strided(tensor: Tensor) -> Tensor:
    """The same values as a view with gaps between the elements and a storage offset."""
    if tensor.dim() == 0:
        return tensor
    roomy = tensor.new_full(
        [size + 2 for size in tensor.shape[:-1]] + [2 * tensor.shape[-1] + 3], 7
    )
    view = roomy[tuple([slice(1, size + 1) for size in tensor.shape[:-1]] + [slice(1, -2, 2)])]
    return view.copy_(tensor)


def channels_last(tensor: Tensor) -> Tensor:
    """The same values with the channels (dimension 1) innermost in memory."""
    if tensor.dim() < 3:
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def strided_batches(tensor: Tensor) -> Tensor:
    """``strided``, but for tensors with one entry per sample."""
    return strided(tensor) if tensor.dim() > 1 else tensor


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor.contiguous(),
    "channels_last": channels_last,
    "strided": strided_batches,
}


def convert(arguments: Sequence[Any], change: Callable[[Tensor], Tensor]) -> Arguments:
    """Apply ``change`` to the floating-point tensors."""
    return tuple(
        change(value) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in arguments
    )

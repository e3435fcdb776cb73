"""Convolution steps on the tensor cores: RAPKERNELS_FUSED_CONV=1."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rapkernels import reference
from rapkernels.testing import Sampler, assert_same_relevance, channels_last

pytestmark = pytest.mark.cuda_kernels


ON_CUDA = torch.get_default_device().type == "cuda"


class Shape(NamedTuple):
    """Channels of a group, positions, kernel and geometry of a convolution."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # low, high of each dimension
    dilation: int = 1
    groups: int = 1
    batch: int = 2


NONE = (0, 0, 0, 0)
# Tiles are 64 x 64 and 128 x 128, a stage has 16 or 32 channels. Between them: a tile that is not
# full, last tiles of one row and of one unit, depths below, at and beyond a stage, phases
# that no position of the kernel reaches, and more phases than positions.
SHAPES = {
    "3x3": Shape(24, 40, (9, 11)),
    "3x3, narrow": Shape(8, 8, (5, 4)),
    "3x3, deep": Shape(72, 16, (6, 5)),
    "3x3, strided": Shape(16, 24, (11, 14), stride=2),
    "3x3, stride 3": Shape(8, 16, (10, 8), stride=3),
    "3x3, dilated": Shape(16, 8, (9, 8), padding=(2, 2, 2, 2), dilation=2),
    "3x3, dilated and strided": Shape(8, 8, (13, 9), stride=2, padding=(2, 2, 2, 2), dilation=2),
    "3x3, unequal padding": Shape(8, 16, (9, 8), padding=(0, 2, 1, 0), stride=2),
    "1x1": Shape(40, 72, (8, 8), (1, 1), padding=NONE),
    "1x1, strided": Shape(32, 16, (7, 9), (1, 1), stride=2, padding=NONE),
    "1x1, 65 rows": Shape(8, 136, (13, 5), (1, 1), padding=NONE),
    "5x2": Shape(8, 8, (9, 6), (5, 2), padding=(2, 2, 1, 1)),
    "7x7, strided": Shape(8, 16, (15, 13), (7, 7), stride=2, padding=(3, 3, 3, 3)),
    "stride 4 on 3": Shape(8, 8, (3, 3), (3, 3), stride=4),
    "groups": Shape(16, 8, (7, 6), groups=3),
    "one position": Shape(24, 16, (3, 3), padding=NONE),
    "large tiles": Shape(8, 16, (130, 127), (1, 1), padding=NONE, batch=1),
    "large tiles, strided": Shape(8, 8, (131, 129), (2, 2), stride=2, padding=NONE, batch=1),
}

# Of the largest entry. Each message is rounded in x or S and in w, goes through S, and the shift
# that follows from the sum of all is as far off again. bfloat16 rounds S, G and C to storage, too.
FLOAT32 = 1e-5
TF32 = 4 * 2**-11
BFLOAT16 = 4 * 2**-8


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "1")


def arguments(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    *,
    signed: bool = False,
    batch: int | None = None,
    targets: int = 1,
    rule: tuple[str, list[float]] = ("rap_conv", []),
) -> list[Any]:
    batch = batch or shape.batch
    sampler = Sampler(dtype, signed=signed, batch=batch)
    x = sampler.activation(batch, shape.inputs * shape.groups, *shape.size)
    weight = sampler.normal(shape.outputs * shape.groups, shape.inputs, *shape.kernel)
    top, bottom, left, right = shape.padding
    padded = nn.functional.pad(x.double(), (left, right, top, bottom))
    z = nn.functional.conv2d(
        padded, weight.double(), None, shape.stride, 0, shape.dilation, shape.groups
    )
    relevance = sampler.relevance(targets * batch, *z.shape[1:])
    psi, scale = sampler.pending()
    geometry = [shape.stride] * 2, [*shape.padding], [shape.dilation] * 2, shape.groups
    name, parameters = rule
    bias = None if rule[0].startswith("rap") else sampler.normal(weight.shape[0])
    tensors = channels_last(x), channels_last(weight), None, channels_last(relevance)
    pending = psi.repeat(targets), scale.repeat(targets)
    return [*tensors, *pending, *geometry, name, not signed, bias, parameters]


def doubled(given: list[Any]) -> list[Any]:
    return [
        value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in given
    ]


def library_convolutions(call: Callable[[], Any]) -> int:
    """How many convolutions torch is asked for meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        call()
    return sum(event.count for event in profiled.key_averages() if "convolution" in event.key)


def kernel_of(native: ModuleType, given: list[Any]) -> str:
    """What a plan says."""
    return str(native._registered.relprop_conv_kernel(*given))


def agree(native: ModuleType, given: list[Any], tolerance: float) -> None:
    found: list[Any] = []
    assert library_convolutions(lambda: found.append(native.relprop_conv(*given))) == 0
    assert kernel_of(native, given) == "fused_conv"
    values, psi, *rest = reference.relprop_conv(*doubled(given))
    # An entry that was rounded to 0 takes no part in the shift.
    lost = (found[0][0] == 0) & (values != 0)
    expected = torch.where(lost, values + psi.view(-1, 1, 1, 1), values), psi, *rest
    assert_same_relevance("relprop_conv", found[0], expected, tolerance)


@pytest.mark.usefixtures("fused")
class TestProducts:
    """Every shape in every type, against float64."""

    @pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
    @pytest.mark.parametrize("name", SHAPES)
    def test_float32(
        self, native: ModuleType, name: str, signed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        agree(native, arguments(SHAPES[name], signed=signed), FLOAT32)

    @pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
    @pytest.mark.parametrize("name", SHAPES)
    def test_tf32(
        self, native: ModuleType, name: str, signed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        agree(native, arguments(SHAPES[name], signed=signed), TF32)

    @pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("name", SHAPES)
    def test_half_types(
        self, native: ModuleType, name: str, dtype: torch.dtype, signed: bool
    ) -> None:
        tolerance = BFLOAT16 if dtype == torch.bfloat16 else TF32
        agree(native, arguments(SHAPES[name], dtype, signed=signed), tolerance)


RULES = {
    "rap": ("rap", []),
    "gamma": ("gamma", [0.25, 1e-6]),
    "alpha_beta": ("alpha_beta", [2.0, 1.0, 1e-6]),
}


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_other_rules(
    native: ModuleType, rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    given = arguments(SHAPES["3x3"], dtype, rule=RULES[rule])
    agree(native, given, FLOAT32 if dtype == torch.float32 else BFLOAT16)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("name", ["3x3", "3x3, strided", "one position", "groups"])
@pytest.mark.parametrize(("batch", "targets"), [(1, 3), (3, 2), (2, 20)])
def test_many_targets(
    native: ModuleType, name: str, batch: int, targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    agree(native, arguments(SHAPES[name], batch=batch, targets=targets), FLOAT32)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("tf32", [False, True])
def test_what_meets_no_message_is_exactly_zero(
    native: ModuleType, signed: bool, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs whose weights are of one sign, where the relevance is of the other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    given = arguments(SHAPES["3x3"], signed=signed)
    weight, relevance = given[1], given[3]
    weight[:, ::2].clamp_(min=0)
    weight[:, 1::2].clamp_(max=0)
    relevance.clamp_(max=0)
    given[4] = None
    values, psi, *_ = native.relprop_conv(*given)
    expected, shift, *_ = reference.relprop_conv(*doubled(given))
    zeros = expected == 0
    assert zeros.float().mean() > 0.4
    assert torch.equal(values == 0, zeros)
    assert torch.allclose(psi, shift, rtol=TF32, atol=0)


@pytest.mark.usefixtures("fused")
def test_the_same_bits_again_and_alone(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    given = arguments(SHAPES["3x3"], batch=3)
    first, again = native.relprop_conv(*given), native.relprop_conv(*given)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    alone = [*given]
    for place in (0, 3, 4, 5):
        alone[place] = given[place][1:2]
    for one, other in zip(first, native.relprop_conv(*alone), strict=True):
        assert torch.equal(one[1:2], other)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(7, 16, (6, 6)),
        Shape(16, 9, (6, 6)),
        Shape(8, 8, (40, 3), (33, 2), padding=NONE),
        Shape(8, 8, (12, 12), stride=5),
        Shape(1, 1, (6, 6), groups=8),
    ],
    ids=["odd inputs", "odd outputs", "large kernel", "stride 5", "depthwise"],
)
def test_other_shapes_are_left_to_the_library(
    native: ModuleType, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(shape)
    without = native.relprop_conv(*given)
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "1")
    assert library_convolutions(lambda: native.relprop_conv(*given)) > 0
    assert kernel_of(native, given) == "library"
    for one, other in zip(native.relprop_conv(*given), without, strict=True):
        assert torch.equal(one, other)


def test_they_are_off_unless_asked_for(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPKERNELS_FUSED_CONV", raising=False)
    given = arguments(SHAPES["3x3"])
    assert library_convolutions(lambda: native.relprop_conv(*given)) > 0
    assert kernel_of(native, given) == "library"


def test_auto_measures_once_and_takes_one_of_both(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(SHAPES["3x3, strided"], batch=5)
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "0")
    library = native.relprop_conv(*given)
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "1")
    own = native.relprop_conv(*given)
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "auto")
    found: list[Any] = []
    assert kernel_of(native, given) == "fused_conv or library"
    first = library_convolutions(lambda: found.append(native.relprop_conv(*given)))
    later = [
        library_convolutions(lambda: found.append(native.relprop_conv(*given))) for _ in range(3)
    ]
    # Both run when the shape is first met.
    assert first > later[0]
    assert len(set(later)) == 1
    assert kernel_of(native, given) == ("library" if later[0] else "fused_conv")
    expected = library if later[0] else own
    for result in found:
        for one, other in zip(result, expected, strict=True):
            assert torch.equal(one, other)
    if not ON_CUDA:
        # An emulated kernel takes its time.
        assert later[0] > 0


def test_other_values_are_refused(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPKERNELS_FUSED_CONV", "yes")
    with pytest.raises(RuntimeError, match="RAPKERNELS_FUSED_CONV must be 0, 1 or auto, got 'yes'"):
        native.relprop_conv(*arguments(SHAPES["3x3"]))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("size", [(40, 24, 16), (3, 13, 8, 72)], ids=str)
def test_linear_layers_of_many_rows(
    native: ModuleType, size: tuple[int, ...], signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    *rows, inputs, outputs = size
    sampler = Sampler(torch.float32, signed=signed, batch=rows[0])
    x, weight = sampler.activation(*rows, inputs), sampler.normal(outputs, inputs)
    relevance = sampler.relevance(*rows, outputs)
    given = [x, weight, relevance, *sampler.pending(), "rap", not signed, None, [], None]
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        found = native.relprop_linear(*given)
    assert not {"aten::mm", "aten::addmm_"} & {event.key for event in profiled.key_averages()}
    assert native._registered.relprop_linear_kernel(*given) == "fused_conv"
    expected = reference.relprop_linear(*doubled(given))
    assert_same_relevance("relprop_linear", found, expected, FLOAT32)

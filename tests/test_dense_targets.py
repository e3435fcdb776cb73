"""Targets of outputs with positions: a class over a mask, or any set of entries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError, NonPositiveTargetWarning
from rapkernels.findings import Findings
from rapkernels.targets import resolve_target, resolve_targets
from tests.explainers import STARTING_AT_LAYERS, WALKERS, explainer
from tests.networks import Function, conv, drawn, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


def _segmented(m: Any, x: Tensor) -> dict[str, Tensor]:
    """Encoder, decoder, and an auxiliary head."""
    y = functional.relu(m.a(x))
    z = functional.relu(m.b(functional.max_pool2d(y, 2)))
    y = y + functional.interpolate(z, y.shape[2:], mode="bilinear", align_corners=False)
    return {"out": m.c(y), "aux": m.d(z)}


def build() -> nn.Module:
    return Function(_segmented, a=conv(3), b=conv(), c=conv(4, 5, 1), d=conv(4, 5, 1))  # type: ignore[arg-type]


@functools.cache
def model() -> nn.Module:
    """Logits (N, 5, 6, 6) beside auxiliary ones; exported once for all tests."""
    return seeded(build)


def mask() -> Tensor:
    """(H, W)."""
    found = torch.zeros(6, 6, dtype=torch.bool)
    found[1:4, 2:6] = True
    return found


def masks() -> Tensor:
    """(N, H, W), with 12 positions and with 3."""
    other = torch.zeros(6, 6, dtype=torch.bool)
    other[5, :3] = True
    return torch.stack([mask(), other])


def entries(output: Tensor, channel: list[int]) -> Tensor:
    """The entries of the output that a class over `masks` is, as bool of its shape."""
    found = torch.zeros(output.shape, dtype=torch.bool)
    for n, c in enumerate(channel):
        found[n, c] = masks()[n]
    return found


OUTPUT_METHODS = [name for name in WALKERS if name not in STARTING_AT_LAYERS]


@pytest.mark.parametrize("method", OUTPUT_METHODS)
def test_the_entries_of_the_output_are_sent_back(method: str, backend: Any) -> None:
    made, x = explainer(method, model(), output="out", backend=backend), images()
    output = model()(x)["out"].detach()
    start = torch.where(entries(output, [2, 4]), output, 0)
    found, report = made.attribute(x, rk.MaskedTarget([2, 4], masks()), return_report=True)
    torch.testing.assert_close(found, made.attribute(x, output_relevance=start))
    torch.testing.assert_close(report.score, start.flatten(1).sum(1))
    absorbed = torch.stack([row.absorbed for row in report.rows]).sum(0)
    magnitude = max(float(row.magnitude.max()) for row in report.rows)
    # Float64 sums of some hundred entries at each of ten nodes.
    assert float((report.total + absorbed - report.score).abs().max()) < 1e-12 * magnitude
    assert float(report.worst().error.max()) < 1e-13


@pytest.mark.parametrize("method", STARTING_AT_LAYERS)
def test_the_gradient_is_that_of_the_sum(method: str, backend: Any) -> None:
    """A network that returns the sum as its logit has the same map."""

    def summed(m: Any, x: Tensor) -> Tensor:
        output = m.net(x)["out"][:, 2]
        return (output * m.where).sum((1, 2))[:, None]

    whole = Function(summed, net=model())
    whole.register_buffer("where", mask().double())
    expected = explainer(method, whole.eval(), backend=backend).attribute(images(), 0)
    made = explainer(method, model(), output="out", backend=backend)
    torch.testing.assert_close(made.attribute(images(), rk.MaskedTarget(2, mask())), expected)


def test_one_position_is_an_index_tuple() -> None:
    made, x = rk.LRP(model(), output="out"), images()
    one = torch.zeros(6, 6, dtype=torch.bool)
    one[3, 2] = True
    torch.testing.assert_close(
        made.attribute(x, rk.MaskedTarget(4, one)), made.attribute(x, (4, 3, 2))
    )


def test_many_targets_equal_separate_calls() -> None:
    made, x = rk.RAP(model(), output="out"), images()
    targets = [rk.MaskedTarget(1, mask()), (4, 3, 2), rk.MaskedTarget([0, 3], masks())]
    together = made.attribute_targets(x, targets)
    assert together.shape == (3, *x.shape)
    for found, target in zip(together, targets, strict=True):
        torch.testing.assert_close(found, made.attribute(x, target))


def test_ones_in_place_of_the_logits() -> None:
    made, x = rk.LRP(model(), output="out"), images()
    found, report = made.attribute(
        x, rk.MaskedTarget(2, masks()), return_report=True, output_relevance="ones"
    )
    start = entries(model()(x)["out"], [2, 2]).double()
    torch.testing.assert_close(found, made.attribute(x, output_relevance=start))
    assert report.score.tolist() == [12, 3]
    assert torch.equal(report.target, start.bool())
    assert "target [12 entries, 3 entries]" in str(report)


def test_an_empty_batch() -> None:
    made = rk.RAP(model(), output="out")
    assert made.attribute(images(0), rk.MaskedTarget(2, mask())).shape == (0, 3, 6, 6)


def test_a_negative_sum_warns() -> None:
    made, x = rk.RAP(model(), output="out"), images()
    logits = model()(x)["out"].detach()[:, :, mask()].sum(2)
    channel = int(logits.amax(0).argmin())
    assert float(logits[:, channel].max()) < 0
    with pytest.warns(NonPositiveTargetWarning, match=r"sample\(s\) 0, 1"):
        made.attribute(x, rk.MaskedTarget(channel, mask()))


def test_half_precision_has_room_for_the_sum() -> None:
    """100 000 in all, beyond what float16 holds."""
    net = nn.Conv2d(1, 2, 1, bias=False).half().eval()
    with torch.no_grad():
        net.weight.fill_(1000)
    x = torch.ones(1, 1, 10, 10, dtype=torch.float16)
    whole = torch.ones(10, 10, dtype=torch.bool)
    _, report = rk.LRP(net).attribute(x, rk.MaskedTarget(1, whole), return_report=True)
    assert report.score.item() == 100_000


SHAPE = torch.Size((2, 5, 6, 6))


def resolved(target: Any, shape: torch.Size = SHAPE) -> Tensor:
    device = torch.device("cpu")
    found = resolve_target(target, shape, device, Findings(device))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "target",
    [
        lambda: rk.MaskedTarget([2, 2], masks()),
        lambda: rk.MaskedTarget(torch.tensor([2, 2]), masks()),
        lambda: rk.MaskedTarget(np.int64(2), masks().numpy()),
        lambda: rk.MaskedTarget(None, entries(torch.empty(SHAPE), [2, 2])),
    ],
    ids=["list", "tensors", "arrays", "entries"],
)
def test_forms(target: Callable[[], Any]) -> None:
    assert torch.equal(resolved(target()), entries(torch.empty(SHAPE), [2, 2]))


def test_a_mask_for_all_samples() -> None:
    for_all = resolved(rk.MaskedTarget(3, mask()))
    assert torch.equal(for_all, resolved(rk.MaskedTarget([3, 3], torch.stack([mask()] * 2))))
    given = for_all[0]
    assert torch.equal(for_all, resolved(rk.MaskedTarget(None, given)))


def test_volumes_and_sequences() -> None:
    for size in ((7,), (3, 4, 5)):
        where = drawn(*size) > 0
        found = resolved(rk.MaskedTarget(1, where), torch.Size((2, 4, *size)))
        assert found.shape == (2, 4, *size)
        assert torch.equal(found[1, 1], where)
        assert int(found.sum()) == 2 * int(where.sum())


ERRORS: list[tuple[Any, tuple[int, ...], type[Exception], str]] = [
    (
        (1, torch.ones(6, 5, dtype=torch.bool)),
        SHAPE,
        ArgumentError,
        "mask of the target must have shape [6, 6] or [2, 6, 6] with a channel for an output of "
        "shape [2, 5, 6, 6], got [6, 5]",
    ),
    (
        (None, torch.ones(6, 6, dtype=torch.bool)),
        SHAPE,
        ArgumentError,
        "mask of the target must have shape [5, 6, 6] or [2, 5, 6, 6] with channel None for an "
        "output of shape [2, 5, 6, 6], got [6, 6]",
    ),
    (
        (1, torch.ones(6, 6)),
        SHAPE,
        ArgumentTypeError,
        "mask of the target must be a bool tensor or array, got torch.float32",
    ),
    (
        (1, [[True]]),
        SHAPE,
        ArgumentTypeError,
        "mask of the target must be a bool tensor or array, got list",
    ),
    (
        (1, torch.tensor([[[True]], [[False]]]).expand(2, 6, 6)),
        SHAPE,
        ArgumentError,
        "mask of the target must hold a position for each sample, got none",
    ),
    (
        (5, torch.ones(6, 6, dtype=torch.bool)),
        SHAPE,
        ArgumentError,
        "target must be at least 0 and below the number of outputs 5, got 5",
    ),
    (
        ([1, 2, 3], torch.ones(6, 6, dtype=torch.bool)),
        SHAPE,
        ArgumentError,
        "target must have one entry per sample, 2, got 3 entries",
    ),
    (
        (1, torch.ones(6, 6, dtype=torch.bool)),
        (2, 5),
        ArgumentError,
        "target must be a class where the output has no positions, got a MaskedTarget for an "
        "output of shape [2, 5]",
    ),
]


@pytest.mark.parametrize(("target", "shape", "kind", "message"), ERRORS)
def test_errors(target: Any, shape: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        resolved(rk.MaskedTarget(*target), torch.Size(shape))
    assert str(caught.value) == message


def test_no_target_says_how_to_choose() -> None:
    with pytest.raises(ArgumentError, match=r"an index tuple of 3 ints, or .*MaskedTarget"):
        rk.RAP(model(), output="out").attribute(images())
    device = torch.device("cpu")
    with pytest.raises(ArgumentTypeError, match="a list of index tuples or MaskedTargets"):
        resolve_targets(3, SHAPE, device, Findings(device))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "lraspp_mobilenet_v3_large",
        pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow),
    ],
)
def test_segmentation_networks_of_torchvision(name: str) -> None:
    """Finite, conserving and the logits themselves, with RAP and LRP."""
    segmentation = pytest.importorskip("torchvision").models.segmentation
    settings = {} if name.startswith("lraspp") else {"aux_loss": True}

    def made() -> nn.Module:
        build = getattr(segmentation, name)
        return build(weights=None, weights_backbone=None, num_classes=4, **settings)

    net = seeded(made, torch.float32)
    x = drawn(2, 3, 64, 64)
    where = torch.zeros(64, 64, dtype=torch.bool)
    where[20:40, 10:50] = True
    score = net(x)["out"][:, 2, where].sum(1).detach()
    for method in (rk.RAP, rk.LRP):
        relevance, report = method(net, output="out").attribute(
            x, rk.MaskedTarget(2, where), return_report=True
        )
        assert bool(torch.isfinite(relevance).all())
        # Bilinear interpolation in float32, one summation order against another.
        assert float(report.worst().error.max()) < 1e-6
        # The size of the entries that cancel in a sum is not known to a relative bound.
        scale = float(net(x)["out"][:, 2, where].abs().sum(1).max())
        torch.testing.assert_close(report.score, score, rtol=0, atol=1e-5 * scale)
        absorbed = torch.stack([row.absorbed for row in report.rows]).sum(0)
        magnitude = max(float(row.magnitude.max()) for row in report.rows)
        assert float((report.total + absorbed - report.score).abs().max()) < 1e-5 * magnitude

"""Every rule at its place, and equal to what it should equal: folding, roles, bounds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels import reference
from rapkernels.relevance import Relevance
from tests.networks import Function, conv, images, network, norm, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


# ---- rules against what they should equal -------------------------------------------------------


def test_shared_module_is_two_steps() -> None:
    model: Any = network("shared")
    x = images()
    with torch.no_grad():
        first = torch.relu(model.a(x))
        second = torch.relu(model.b(first))
        third = torch.relu(model.b(second))
        pooled = third.mean((2, 3))
        score, target = model.fc(pooled).max(1)
        state = Relevance(
            *reference.relprop_first_linear(
                pooled, model.fc.weight, model.fc.bias, target, score, "absolute"
            )[:3]
        )
        values = state.values[:, :, None, None]
        state = Relevance(*reference.relprop_adaptive_avg_pool(third, values, *state[1:])[:3])
        for inner in (second, first):
            result = reference.relprop_conv(inner, model.b.weight, None, *state, padding=1)
            state = Relevance(*result[:3])
        low, high = x.amin((1, 2, 3), True), x.amax((1, 2, 3), True)
        result = reference.relprop_zbox_conv(x, model.a.weight, low, high, *state, padding=1)
        expected = reference.apply_shift(*result[:3])
    relevance = rk.attribute(model, x, backend="reference")
    torch.testing.assert_close(relevance, expected, rtol=1e-10, atol=1e-13)


def test_residual_shares_by_absolute_contribution() -> None:
    model = Function(lambda m, x: (torch.relu(m.a(x)) + m.b(x)).flatten(1), a=conv(3), b=conv(3))
    model = model.double().eval()
    x = images(1)
    _, layers = rk.RAP(model, backend="reference").attribute(x, 7, layers=["a", "b", ""])
    with torch.no_grad():
        a, b = torch.relu(model.a(x)), model.b(x)
    start = layers[""].reshape(a.shape)
    assert int((start != 0).sum()) == 1
    torch.testing.assert_close(layers["a"], start * a.abs() / (a.abs() + b.abs()))
    torch.testing.assert_close(layers["b"], start * b.abs() / (a.abs() + b.abs()))


def _same_relevance(one: nn.Module, other: nn.Module, variant: Any = "default") -> None:
    x = images()
    torch.testing.assert_close(
        rk.attribute(one, x, 1, variant=variant, backend="reference"),
        rk.attribute(other, x, 1, variant=variant, backend="reference"),
        rtol=1e-9,
        atol=1e-12,
    )


def test_batch_norm_is_folded() -> None:
    torch.manual_seed(0)
    inner, normalise, last = conv(3), norm(), conv()
    model = nn.Sequential(inner, normalise, nn.ReLU(), last, norm(), nn.Flatten()).double().eval()
    folded = copy.deepcopy(model)
    for position in (0, 3):
        fused = torch.nn.utils.fuse_conv_bn_eval(folded[position], folded[position + 1])
        folded[position], folded[position + 1] = fused, nn.Identity()
    _same_relevance(model, folded)
    _same_relevance(model, folded, "paper")


def test_batch_norm_read_by_two_is_not_folded() -> None:
    model = seeded(
        lambda: Function(lambda m, x: (m.bn(y := m.a(x)) + y).flatten(1), a=conv(3), bn=norm())
    )
    rules = {row.node: row.rule for row in rk.RAP(model, backend="reference").plan(images()).rows}
    assert rules["batch_norm"] == "identity"


def test_zero_pad_is_part_of_the_convolution() -> None:
    torch.manual_seed(0)
    first, second = conv(3, padding=0), conv(padding=0, stride=2)
    outside = nn.Sequential(
        nn.ZeroPad2d(1), first, nn.ReLU(), nn.ConstantPad2d((0, 2, 1, 1), 0.0), second, nn.Flatten()
    )
    inside = copy.deepcopy(outside)
    inside[1].padding = (1, 1)
    inside[0] = nn.Identity()
    outside.double().eval(), inside.double().eval()
    _same_relevance(outside, inside)
    plan = rk.RAP(outside, backend="reference").plan(images())
    assert [row.rule for row in plan.rows if row.operation == "aten.pad.default"] == ["folded"] * 2
    x = images()
    _, layers = rk.RAP(outside, backend="reference").attribute(x, 1, layers=["0", "3"])
    assert layers["0"].shape == (2, 3, 8, 8)
    assert layers["3"].shape == (2, 4, 8, 8)
    assert not layers["3"][..., -2:].any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pad_read_by_others_stays(value: float) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = functional.pad(x, (1, 1, 1, 1), value=value)
        return (m.a(y) + y.sum(1, keepdim=True)[:, :, 1:-1, 1:-1]).flatten(1)

    model = seeded(lambda: Function(run, a=conv(3, padding=0)))
    _, report = rk.RAP(model, backend="reference").attribute(images(), 1, return_report=True)
    rules = {row.operation: row.rule for row in report.rows}
    assert rules["aten.pad.default"] == "structure"
    assert float(report.worst().error.max()) < 1e-12


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: functional.pad(x, [1, 2, 3, 0], "reflect"),
        lambda x: functional.pad(x, [1, 2, 0, 7], "replicate"),
        lambda x: functional.pad(x, [1, 2, -1, 4], "replicate"),
        lambda x: functional.pad(x, [1, 2, 4, 0], "circular"),
        lambda x: torch.ops.aten.reflection_pad2d.default(x, [5, 1, 0, 2]),
        lambda x: torch.ops.aten.replication_pad2d.default(x, [0, 1, 9, 2]),
        lambda x: torch.ops.aten.replication_pad1d.default(x.flatten(1, 2), [3, 2]),
    ],
)
def test_borders_give_back_to_what_they_copy(pad: Callable[[Tensor], Tensor]) -> None:
    x = images().requires_grad_()
    padded = pad(x)
    last = seeded(lambda: nn.Linear(padded[0].numel(), 2))
    model = Function(lambda m, x: m.fc(pad(x).flatten(1)), fc=last)
    head = nn.Sequential(nn.Flatten(), last)
    received = rk.attribute(head, padded.detach(), 1, backend="reference")
    (expected,) = torch.autograd.grad(padded, x, received)
    relevance = rk.attribute(model, x.detach(), 1, backend="reference")
    torch.testing.assert_close(relevance, expected)


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 1), (2, 3), (3, 2)])
def test_same_padding_is_asymmetric_where_it_must_be(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    same = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, kernel, padding="same", dilation=dilation),
        nn.Flatten(),
    )
    same.double().eval()
    total = dilation * (kernel - 1)
    explicit = copy.deepcopy(same)
    pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2)
    explicit[2].padding = (0, 0)
    explicit[2] = nn.Sequential(pad, explicit[2])
    _same_relevance(same, explicit)


def test_in_place_equals_out_of_place() -> None:
    torch.manual_seed(0)
    layers = [conv(3), nn.ReLU(True), conv(), norm(), nn.ReLU6(True), nn.Dropout(inplace=True)]
    inside = nn.Sequential(*layers, nn.Flatten()).double().eval()
    outside = copy.deepcopy(inside)
    for module in outside:
        if hasattr(module, "inplace"):
            module.inplace = False
    _same_relevance(inside, outside)


def test_mean_equals_global_average_pool() -> None:
    torch.manual_seed(0)
    layer, last = conv(3), nn.Linear(4, 3)
    pooled = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    means = [
        lambda m, x: m.fc(torch.relu(m.a(x)).mean((2, 3))),
        lambda m, x: m.fc(torch.relu(m.a(x)).mean((-1, -2), keepdim=True).flatten(1)),
        lambda m, x: m.fc(torch.relu(m.a(x)).permute(0, 2, 3, 1).mean((1, 2))),
        lambda m, x: m.fc(torch.relu(m.a(x)).flatten(2).mean(-1)),
    ]
    for mean in means:
        model = Function(mean, a=layer, fc=last)
        _same_relevance(model.double().eval(), pooled.double().eval())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_layout_changes_nothing(memory_format: torch.memory_format, backend: Any) -> None:
    model = network("residual")
    x = images().contiguous(memory_format=memory_format)
    relevance = rk.attribute(model, x, backend=backend)
    assert relevance.is_contiguous(memory_format=memory_format)
    strided = torch.zeros(2, 6, 6, 6, dtype=x.dtype)[:, ::2]
    strided.copy_(x)
    for other in (strided, x.clone(memory_format=torch.contiguous_format)):
        torch.testing.assert_close(rk.attribute(model, other, backend=backend), relevance)


# ---- roles --------------------------------------------------------------------------------------


def test_plan_shows_rules_and_roles() -> None:
    plan = rk.RAP(network("layers"), backend="reference").plan(images(4))
    shown = [(row.operation.split(".")[1], row.rule, row.role, row.shape) for row in plan.rows]
    assert shown == [
        ("feature_dropout", "identity", "", (4, 3, 6, 6)),
        ("conv2d", "z_box", "input", (4, 4, 6, 6)),
        ("batch_norm", "folded", "", (4, 4, 6, 6)),
        ("hardtanh", "identity", "", (4, 4, 6, 6)),
        ("flatten", "structure", "", (4, 144)),
        ("dropout", "identity", "", (4, 144)),
        ("linear", "rap", "", (4, 6)),
        ("batch_norm", "identity", "", (4, 6)),
        ("relu", "identity", "", (4, 6)),
        ("linear", "first_absolute", "output", (4, 5)),
        ("unflatten", "structure", "", (4, 5, 1)),
        ("flatten", "structure", "", (4, 5)),
    ]
    lines = str(plan).splitlines()
    assert lines[0].split() == ["node", "module", "operation", "rule", "kernel", "shape", "role"]
    assert "4x144" in lines[-1] or "4x5" in lines[-1]
    assert len({line.index(word) for line, word in zip(lines, ["rule", "----"], strict=False)}) <= 2


def _roles(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    rows = rk.RAP(model, backend="reference").plan(x).rows
    return {role: [row.module for row in rows if row.role == role] for role in ("input", "output")}


def test_every_first_layer_is_an_input_layer() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = (x - 0.5) * 2
        return m.fc(torch.cat([m.a(y), m.b(m.bn(y[:, :, :3]))], 2).relu().mean((2, 3)))

    model = seeded(lambda: Function(run, a=conv(3), b=conv(3), bn=norm(3), fc=nn.Linear(4, 2)))
    assert _roles(model, images()) == {"input": ["a", "b"], "output": ["fc"]}


def test_a_layer_behind_a_pool_or_activation_is_no_input_layer() -> None:
    model = seeded(lambda: nn.Sequential(nn.MaxPool2d(2), conv(3), nn.Flatten()))
    assert _roles(model, images()) == {"input": [], "output": []}
    model = seeded(lambda: nn.Sequential(nn.ReLU(), conv(3), nn.Flatten()))
    assert _roles(model, images()) == {"input": [], "output": []}


def test_the_first_step_wins_where_one_layer_is_both() -> None:
    model = network("linear alone")
    assert _roles(model, images()) == {"input": [], "output": ["1"]}
    x = images()
    with torch.no_grad():
        score, target = model(x).max(1)
        result = reference.relprop_first_linear(
            x.flatten(1), model[1].weight, model[1].bias, target, score, "absolute"
        )
    expected = reference.apply_shift(*result[:3]).reshape(x.shape)
    torch.testing.assert_close(rk.attribute(model, x, backend="reference"), expected)


def test_two_heads_are_both_last_layers() -> None:
    model = seeded(
        lambda: Function(
            lambda m, x: torch.cat([m.a(y := torch.relu(m.fc(x.flatten(1)))), m.b(y)], 1),
            a=nn.Linear(4, 2),
            b=nn.Linear(4, 3),
            fc=nn.Linear(108, 4),
        )
    )
    assert _roles(model, images()) == {"input": ["fc"], "output": ["a", "b"]}
    _, layers = rk.RAP(model, backend="reference").attribute(images(), 3, layers=["a", "b"])
    assert not layers["a"].any()
    assert torch.equal((layers["b"] != 0).sum(1), torch.tensor([1, 1]))


# ---- bounds -------------------------------------------------------------------------------------


def test_bounds_default_to_each_samples_extremes() -> None:
    model = network("pools")
    x = images()
    low, high = x.amin((1, 2, 3), True), x.amax((1, 2, 3), True)
    explicit = rk.RAP(model, bounds=(low, high), backend="reference").attribute(x)
    torch.testing.assert_close(explicit, rk.attribute(model, x, backend="reference"))
    wider = rk.RAP(model, bounds=(-9.0, 9.0), backend="reference").attribute(x)
    assert not torch.allclose(wider, explicit)


def test_bounds_are_in_units_of_x() -> None:
    """A network that normalises by itself and one that gets normalised input agree."""
    torch.manual_seed(0)
    layer, last = conv(3), nn.Linear(144, 3)
    mean = torch.tensor([0.3, -0.2, 0.1]).double().view(3, 1, 1)
    inside = Function(
        lambda m, x: m.fc(torch.relu(m.a((mean - x) / 0.25)).flatten(1)), a=layer, fc=last
    )
    outside = Function(lambda m, x: m.fc(torch.relu(m.a(x)).flatten(1)), a=layer, fc=last)
    inside.double().eval(), outside.double().eval()
    x = images()
    low, high = -4.0, torch.full((3, 1, 1), 4.0, dtype=torch.float64)
    one = rk.RAP(inside, bounds=(low, high), backend="reference").attribute(x, 1)
    mapped = (mean - high) / 0.25, (mean - low) / 0.25
    other = rk.RAP(outside, bounds=mapped, backend="reference").attribute((mean - x) / 0.25, 1)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)

"""The walk: every rule at its place, relevance conserved, nothing overwritten, nothing kept."""

from __future__ import annotations

import copy
import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import rapkernels as rk
from rapkernels import reference
from rapkernels.errors import NonPositiveTargetWarning
from rapkernels.relevance import Relevance
from rapkernels.rules import unregister_rule
from rapkernels.rules.base import Context

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Function(nn.Module):
    """A function of ``x`` and of the modules given by name."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **settings: Any) -> nn.Conv2d:
    settings.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **settings)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1.0, 1.5, channels))
        module.bias.copy_(torch.linspace(-0.5, 0.5, channels))
        module.running_mean.copy_(torch.linspace(-0.3, 0.3, channels))
        module.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    return module


def seeded(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return build().to(dtype).eval()


@functools.cache
def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One of NETWORKS, exported once for all tests: they must not change it."""
    return seeded(NETWORKS[name], dtype)


def images(batch: int = 2, size: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def head(y: Tensor) -> Tensor:
    return y.flatten(1)


def _residual(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.bn(m.a(x)))
    z = m.b(y)
    z += y
    return m.fc(head(functional.relu(z, inplace=True)))


def _concatenated(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    return m.fc(torch.cat([m.b(y), y, m.c(y)], 1).mean((2, 3)))


def _sliced(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    first, second = y.chunk(2, 1)
    part = torch.cat([second, first[:, :1], y[:, 3:4]], 1)
    part = part.permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1, 4).transpose(1, 2)
    return m.fc(part.narrow(2, 1, 7).select(2, 3))


def _pads(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(functional.pad(x, (0, 1, 2, 0))))
    y = functional.max_pool2d(functional.pad(y, (1, 1, 1, 1)), 2)
    y = m.b(functional.pad(y, (1, 0, 0, 1), mode="reflect"))
    y = m.c(functional.pad(y, (1, 1, 1, 1), value=0.5))
    return m.fc(functional.avg_pool2d(functional.pad(y, (-1, 0, 0, 0)), 2).mean((-1, -2)))


def _pools(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = functional.max_pool2d(y, 3, 1, 1, dilation=1)
    y = functional.avg_pool2d(y, 2, 1, ceil_mode=True, count_include_pad=False)
    y = functional.adaptive_max_pool2d(m.b(y), 4)
    return m.fc(functional.adaptive_avg_pool2d(y, (3, 2)).mean(3).sum(dim=2))


def _shared(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = functional.relu(m.b(y))
    return m.fc(functional.relu(m.b(y)).mean((2, 3)))


def _affine(m: Any, x: Tensor) -> Tensor:
    x = (x - 0.2) / 0.5
    y = m.a(-x * m.scale.weight[0]) * 2 + 1
    y = 3 - y
    return m.fc((m.bn(y) / m.scale.weight[0, 0]).mean((2, 3)))


def _sums(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    pooled = y.mean((2, 3), keepdim=True)
    y = y + pooled
    y = torch.sub(y, m.b(y), alpha=0.5)
    y = torch.add(y, y, alpha=2)
    return m.fc((y + y).mean((2, 3)))


def _sequence(m: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    y = functional.relu(m.a(tokens.reshape(-1, 3)))
    y = y.view(x.shape[0], -1, 4)
    return m.fc(torch.stack([y, y], 1).mean((1, 2)))


def _volumes(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x.flatten(2)))
    y = functional.max_pool1d(m.b(y), 2)
    z = y.view(x.shape[0], 4, 2, 3, 3)
    z = functional.avg_pool3d(functional.relu(m.c(z)), 2, 1)
    return m.fc(functional.adaptive_avg_pool3d(functional.max_pool3d(z, 2, 1, 1), 1).flatten(1))


def _moved(m: Any, x: Tensor) -> Tensor:
    y = functional.pixel_shuffle(m.a(x), 2)
    y = y.expand(x.shape[0], 1, 12, 12).repeat(1, 4, 1, 1)
    y = torch.roll(torch.flip(m.b(y), [2]), 1, 3).unsqueeze(1).squeeze(1)
    return m.fc(y.unflatten(1, (2, 2)).flatten(1, 2).mean((2, 3)))


def _conv_head(m: Any, x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(functional.relu(m.b(functional.relu(m.a(x)))), 1).flatten(
        1
    )


def _geometry(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(m.a(x))
    y = m.b(y) + m.c(y)
    return m.fc(m.d(functional.hardtanh(y, -0.5, 0.5)).mean((2, 3)))


def _matmul(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(torch.matmul(x.flatten(1), m.a.weight.T))
    y = functional.relu6(torch.mm(y, m.b.weight.t()))
    return torch.addmm(m.b.bias, y, m.b.weight.t())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Function(_residual, a=conv(3), bn=norm(), b=conv(), fc=nn.Linear(144, 5)),
    "concatenated": lambda: Function(
        _concatenated, a=conv(3), b=conv(4, 2, 1), c=conv(4, 3), fc=nn.Linear(9, 5)
    ),
    "sliced": lambda: Function(_sliced, a=conv(3), fc=nn.Linear(4, 5)),
    "pads": lambda: Function(
        _pads, a=conv(3, padding=0), b=conv(), c=conv(padding=1), fc=nn.Linear(4, 5)
    ),
    "pools": lambda: Function(_pools, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "shared": lambda: Function(_shared, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "affine": lambda: Function(
        _affine, a=conv(3), bn=norm(), scale=nn.Linear(1, 3), fc=nn.Linear(4, 5)
    ),
    "sums": lambda: Function(_sums, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "sequence": lambda: Function(_sequence, a=nn.Linear(3, 4), fc=nn.Linear(4, 5)),
    "volumes": lambda: Function(
        _volumes,
        a=nn.Conv1d(3, 4, 3, padding=1),
        b=nn.Conv1d(4, 4, 1),
        c=nn.Conv3d(4, 4, 2, padding=1),
        fc=nn.Linear(4, 5),
    ),
    "moved": lambda: Function(_moved, a=conv(3), b=conv(), fc=nn.Linear(4, 5)),
    "conv head": lambda: Function(_conv_head, a=conv(3), b=conv(4, 5, 1)),
    "geometry": lambda: Function(
        _geometry,
        a=nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding="valid", bias=False),
        b=nn.Conv2d(4, 4, 2, padding="same", groups=2),
        c=nn.Conv2d(4, 4, 2, padding="same", dilation=2, padding_mode="zeros"),
        d=nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        fc=nn.Linear(4, 5),
    ),
    "matmul": lambda: Function(_matmul, a=nn.Linear(108, 4), b=nn.Linear(4, 4)),
    "linear alone": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5)),
    "layers": lambda: nn.Sequential(
        nn.Dropout2d(),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 5),
        nn.Unflatten(1, (5, 1)),
        nn.Flatten(),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_conserves(name: str, variant: Any, dtype: torch.dtype, backend: Any) -> None:
    model = network(name, dtype)
    x = images(dtype=dtype)
    relevance, report = rk.RAP(model, variant, backend=backend).attribute(x, return_report=True)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    worst = report.worst()
    assert float(worst.error.max()) <= tolerance, worst
    assert relevance.shape == x.shape
    assert bool(torch.isfinite(relevance).all())
    with torch.no_grad():
        expected = model(x).amax(1)
    torch.testing.assert_close(report.score, expected)
    absorbed = sum(row.absorbed for row in report.rows)
    largest = max(float(row.magnitude.max()) for row in report.rows)
    lost = (report.total + absorbed - report.score).abs().max()
    assert float(lost) <= len(report.rows) * tolerance * largest


@pytest.mark.parametrize("name", NETWORKS)
def test_author_variant_runs_everywhere(name: str, backend: Any) -> None:
    model = network(name)
    relevance = rk.attribute(model, images(), variant="author", backend=backend)
    assert bool(torch.isfinite(relevance).all())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "volumes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay_finite(name: str, dtype: torch.dtype, backend: Any) -> None:
    """For "volumes" torch itself has no average pool in half precision."""
    model = network(name, dtype)
    relevance, report = rk.RAP(model, backend=backend).attribute(
        images(dtype=dtype), return_report=True
    )
    assert relevance.dtype == dtype
    assert bool(torch.isfinite(relevance).all())
    assert not any(int(row.non_finite.sum()) for row in report.rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_mix(name: str, backend: Any) -> None:
    model = network(name)
    x = images(3)
    explainer = rk.RAP(model, backend=backend)
    together = explainer.attribute(x)
    apart = torch.cat([explainer.attribute(sample[None]) for sample in x])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", ["default", "author"])
def test_native_equals_reference(name: str, variant: Any, native: Any) -> None:
    assert native is rk.ops
    model = network(name)
    maps = [
        rk.attribute(model, images(), variant=variant, backend=backend)
        for backend in ("native", "reference")
    ]
    scale = float(maps[1].abs().max())
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-9 * scale)


def _one_pixel() -> Tensor:
    x = torch.zeros(2, 3, 6, 6)
    x[:, 1, 2, 3] = 1
    return x


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, 6, 6),
        torch.full((2, 3, 6, 6), 0.7),
        _one_pixel(),
        images(dtype=torch.float32) * 1e-25,
        images(dtype=torch.float32) * 1e15,
        -images(dtype=torch.float32).abs(),
    ],
    ids=["zeros", "constant", "one pixel", "tiny", "huge", "negative"],
)
@pytest.mark.parametrize("name", ["residual", "pools", "conv head", "pads"])
def test_unusual_inputs_stay_finite(name: str, x: Tensor, backend: Any) -> None:
    model = network(name, torch.float32)
    for target in range(5):
        relevance, report = rk.RAP(model, backend=backend).attribute(x, target, return_report=True)
        assert bool(torch.isfinite(relevance).all())
        assert float(report.worst().error.max()) <= 1e-5


def test_all_is_absorbed_where_nothing_answers(backend: Any) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
        model[3].bias.fill_(1.0)
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    relevance, report = rk.RAP(model, backend=backend).attribute(x, 1, return_report=True)
    assert not relevance.any()
    assert torch.equal(report.rows[0].absorbed, report.score)


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
    assert lines[0].split() == ["node", "module", "operation", "rule", "shape", "role"]
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


# ---- rules of the user --------------------------------------------------------------------------


class Half(rk.Rule):
    """Keeps half of the relevance and absorbs the other."""

    name = "half"

    def forward(self, ctx: Context, *args: Any, **kwargs: Any) -> Tensor:
        ctx.save(args[0].shape)
        return super().forward(ctx, *args, **kwargs)

    def backward(self, ctx: Context, relevance: Relevance) -> Relevance:
        values = ctx.materialise(relevance)
        assert values.shape == ctx.saved[0]
        lost = values.flatten(1).sum(1, dtype=torch.float64) / 2
        ctx.absorb(lost)
        return Relevance(values / 2)


def test_registered_rules_are_used() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.GELU(), conv(), nn.Flatten()))
    x = images()
    explainer = rk.RAP(model, backend="reference")
    with pytest.raises(rk.errors.UnsupportedOperationError):
        explainer.attribute(x)
    try:
        rk.register_rule("aten.gelu.default", "identity")
        passed, report = explainer.attribute(x, 1, return_report=True)
        assert [row.rule for row in report.rows][1:3] == ["rap_conv", "identity"]
        rk.register_rule("aten.gelu.default", Half)
        halved, report = explainer.attribute(x, 1, return_report=True)
        torch.testing.assert_close(halved, passed / 2)
        assert [row.rule for row in report.rows][2] == "half"
        assert float(report.worst().error.max()) < 1e-12
    finally:
        unregister_rule("aten.gelu.default")
    with pytest.raises(rk.errors.UnsupportedOperationError):
        explainer.attribute(x)


def test_a_built_in_rule_can_be_replaced_and_brought_back() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), norm(), nn.ReLU(), conv(), nn.Flatten()))
    x = images()
    explainer = rk.RAP(model, backend="reference")
    built_in = explainer.attribute(x, 1)
    try:
        rk.register_rule("aten.batch_norm.default", "identity")
        rk.register_rule("aten.relu.default", Half)
        rules = [row.rule for row in explainer.plan(x).rows]
        assert rules == ["z_box", "identity", "half", "rap_conv", "structure"]
        assert not torch.allclose(explainer.attribute(x, 1), built_in)
    finally:
        unregister_rule("aten.batch_norm.default")
        unregister_rule("aten.relu.default")
    assert torch.equal(explainer.attribute(x, 1), built_in)


# ---- memory -------------------------------------------------------------------------------------


class _Tensors(TorchDispatchMode):
    """Remembers, weakly, every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor):
                self.seen.append(weakref.ref(item))
        return result

    def alive(self) -> int:
        tensors = (reference() for reference in self.seen)
        return len({id(tensor) for tensor in tensors if tensor is not None})


@pytest.mark.parametrize("name", ["residual", "concatenated", "sliced", "pads"])
def test_nothing_survives_the_call(name: str, backend: Any) -> None:
    model = network(name)
    explainer = rk.RAP(model, backend=backend)
    x = images()
    explainer.attribute(x)
    gc.collect()
    gc.disable()
    try:
        with _Tensors() as tensors:
            relevance = explainer.attribute(x)
        assert len(tensors.seen) > 20
        assert tensors.alive() <= 1, "no reference cycle may keep tensors until the next collection"
        del relevance
        assert tensors.alive() == 0
    finally:
        gc.enable()


def test_nothing_survives_an_exception(backend: Any) -> None:
    class Breaks(rk.Rule):
        def backward(self, *_: Any) -> Relevance:
            raise ZeroDivisionError("on purpose")

    model = seeded(lambda: nn.Sequential(conv(3), nn.GELU(), conv(), nn.Flatten()))
    rk.register_rule("aten.gelu.default", Breaks)
    try:
        explainer = rk.RAP(model, backend=backend)
        tensors = _Tensors()
        x = images()
        explainer.plan(x)
        with pytest.raises(ZeroDivisionError) as caught, tensors:
            explainer.attribute(x)
        del caught
        gc.collect()
        assert tensors.seen
        assert tensors.alive() == 0
    finally:
        unregister_rule("aten.gelu.default")


def test_activations_are_freed_on_the_way() -> None:
    """Half way back, what the layers above saved is gone."""
    model = seeded(
        lambda: nn.Sequential(conv(3), nn.GELU(), *[conv() for _ in range(6)], nn.Flatten())
    )
    alive: list[int] = []
    tensors = _Tensors()

    class Counts(rk.Rule):
        def backward(self, _: Context, relevance: Relevance) -> Relevance:
            alive.append(tensors.alive())
            return relevance

    rk.register_rule("aten.gelu.default", Counts)
    try:
        x = images()
        explainer = rk.RAP(model, backend="reference")
        explainer.plan(x)
        with tensors:
            explainer.attribute(x)
    finally:
        unregister_rule("aten.gelu.default")
    # The saved input of the first layer, parameters without gradient, the state and its sums.
    assert alive[0] < 40


def test_the_first_relu_overwrites_nothing_it_does_not_own() -> None:
    """ReLU on the input itself, on a value read twice, and on a view of the input."""
    functions = [
        lambda m, x: m.fc(torch.relu(x).flatten(1)),
        lambda m, x: m.fc((torch.relu(y := x * 2) + y).flatten(1)),
        lambda m, x: m.fc(torch.relu(x.flatten(1))),
        lambda m, x: m.fc(torch.relu(m.drop(x)).flatten(1)),
        lambda m, x: m.fc(torch.relu(m.a(x)).flatten(1)),
        lambda m, x: m.fc(torch.relu(y := m.a(x)).flatten(1)) + y.flatten(1)[:, :3],
    ]
    for function in functions:
        model = seeded(
            lambda function=function: Function(
                function, fc=nn.Linear(108, 3), drop=nn.Dropout(), a=conv(3, 3, bias=False)
            )
        )
        x = images()
        before = x.clone()
        _, report = rk.RAP(model, backend="reference").attribute(x, return_report=True)
        assert torch.equal(x, before)
        with torch.no_grad():
            torch.testing.assert_close(report.score, model(x).amax(1))
        assert float(report.worst().error.max()) < 1e-12


def test_warns_of_non_positive_logits_by_default() -> None:
    model = seeded(NETWORKS["linear alone"])
    with torch.no_grad():
        model[1].bias.fill_(-1000.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rk.attribute(model, images(), backend="reference")
    assert [warning.category for warning in caught] == [NonPositiveTargetWarning]

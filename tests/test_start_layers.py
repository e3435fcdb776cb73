"""Methods that start at a layer: its value, the gradient there, and what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rapkernels as rk
from rapkernels.calls import fast_layout
from rapkernels.errors import ArgumentError, UnsupportedOperationError
from rapkernels.methods.equilibrium import equilibrium_start
from rapkernels.methods.layer import gradients
from rapkernels.walker import Walk
from tests.networks import NETWORKS, Function, conv, drawn, images, network, norm, seeded

METHODS: dict[str, Callable[..., Any]] = {
    "equilibrium": rk.AttributionEquilibrium,
    "sharing_ratio": rk.SharingRatio,
}
pytestmark = pytest.mark.usefixtures("one_thread")


def _block(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.first(x))
    skip = m.skip(y)
    branch = m.bn(m.branch(y))
    return m.fc(torch.relu(skip * 0.5 + branch).flatten(1))


def _shared_pad(m: Any, x: Tensor) -> Tensor:
    y = functional.pad(torch.relu(m.first(x)), (1, 1, 1, 1))
    return m.fc(torch.relu(m.b(y) + torch.relu(m.a(y))).flatten(1))


def _twice(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.shared(torch.relu(m.first(x))))
    return m.fc(torch.relu(m.shared(y)).mean((2, 3)))


def _viewed(m: Any, x: Tensor) -> Tensor:
    y = m.b(torch.relu(m.a(x)))
    y += 1.5
    return m.fc(torch.relu(y).view(y.shape[0], -1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "block": lambda: Function(
        _block,
        first=conv(3),
        skip=conv(4, 4, 1),
        branch=conv(),
        bn=norm(),
        fc=nn.Linear(144, 5),
    ),
    "shared pad": lambda: Function(
        _shared_pad, first=conv(3), a=conv(padding=0), b=conv(padding=0), fc=nn.Linear(144, 5)
    ),
    "twice": lambda: Function(_twice, first=conv(3), shared=conv(), fc=nn.Linear(4, 5)),
    "viewed": lambda: Function(_viewed, a=conv(3), b=conv(), fc=nn.Linear(144, 5)),
    "residual": NETWORKS["residual"],
    "pools": NETWORKS["pools"],
}
# The network, the layer where relevance starts. "block": inside one branch, and a convolution
# whose BatchNorm comes after it; "first" and "a" of "residual": the input layer itself.
STARTS = [
    ("block", "branch"),
    ("block", "bn"),
    ("block", "skip"),
    ("block", "first"),
    ("shared pad", "a"),
    ("shared pad", "b"),
    ("shared pad", "first"),
    ("twice", "shared"),
    ("twice", "first"),
    ("viewed", "a"),
    ("viewed", "b"),
    ("residual", "a"),
    ("residual", "bn"),
    ("residual", "fc"),
    ("residual", ""),
    ("pools", "b"),
]


def value_and_gradient(model: nn.Module, layer: str, x: Tensor, target: int) -> tuple[Tensor, ...]:
    """The layer's last output, the logits and the gradient of one of them, by torch alone."""
    calls: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # Nothing later may overwrite it.
        leaf = output.detach().clone().requires_grad_()
        calls.append(output.detach().clone())
        outputs.append(leaf)
        return leaf.clone()

    handle = dict(model.named_modules())[layer].register_forward_hook(note)
    try:
        logits = model(x)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, target].sum(), outputs[-1])
    return calls[-1], logits.detach(), gradient


@pytest.mark.parametrize(("name", "layer"), STARTS)
@pytest.mark.parametrize("method", METHODS)
def test_value_logits_and_gradient_are_those_of_torch(
    method: str, name: str, layer: str, operations: Any
) -> None:
    model, x = seeded(NETS[name]), images()
    explainer = METHODS[method](model, layer=layer)
    value, logits, gradient = value_and_gradient(model, layer, x, 2)
    program = explainer._program(*explainer._check(x))
    with torch.no_grad():
        walk = Walk(program, program.graph.values(model), operations)
        output = walk.forward([fast_layout(x)])
        found = list(gradients(walk, output, torch.tensor([[2, 2], [2, 0]])))
    # Once: a BatchNorm that was folded and applied again would change both.
    torch.testing.assert_close(output.detach(), logits)
    torch.testing.assert_close(walk.value, value)
    torch.testing.assert_close(found[0], gradient)
    torch.testing.assert_close(found[1][0], gradient[0])
    _, _, other = value_and_gradient(model, layer, x, 0)
    torch.testing.assert_close(found[1][1], other[1])


@pytest.mark.parametrize(("name", "layer"), STARTS)
def test_the_start_is_activation_times_gradient(name: str, layer: str, backend: Any) -> None:
    """And is conserved down to the input, for which the ratios may not cancel exactly."""
    model, x = seeded(NETS[name]), images()
    value, _, gradient = value_and_gradient(model, layer, x, 2)
    explainer = rk.SharingRatio(model, layer, backend=backend)
    relevance, layers, report = explainer.attribute(x, 2, layers=[layer], return_report=True)
    torch.testing.assert_close(layers[layer], (value * gradient).sum(1))
    assert float(report.worst().error.max()) < 1e-9
    assert bool((relevance != 0).any())


@pytest.mark.parametrize("layer", ["fc", ""])
def test_starting_at_the_output_sends_the_logit_back(layer: str, backend: Any) -> None:
    model, x = network("residual"), images()
    with torch.no_grad():
        logit = model(x)[:, 3]
    relevance = rk.SharingRatio(model, layer, backend=backend).attribute(x, 3)
    torch.testing.assert_close(relevance.sum((1, 2)), logit)
    explainer = rk.AttributionEquilibrium(model, layer, backend=backend)
    _, layers = explainer.attribute(x, 3, layers=[layer])
    expected = torch.zeros(2, 5, dtype=torch.float64)
    expected[:, 3] = logit.sign()
    torch.testing.assert_close(layers[layer], expected)


def test_nothing_goes_back_through_the_other_branch(backend: Any) -> None:
    model, x = seeded(NETS["block"]), images()
    for explain in METHODS.values():
        explainer = explain(model, layer="branch", backend=backend)
        rules = {row.module: row.rule for row in explainer.plan(x).rows}
        assert rules["skip"] == rules["bn"] == rules["fc"] == "-"
        assert rules["branch"] != "-"
        with pytest.raises(ArgumentError, match="layers must name modules before the one"):
            explainer.attribute(x, 1, layers=["skip"])
        _, layers = explainer.attribute(x, 1, layers=["first", "branch"])
        assert all(bool((found != 0).any()) for found in layers.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_input_layer_alone(method: str, backend: Any) -> None:
    """The start at the input layer's own convolution: one rule, by the operations themselves."""
    model, x = network("residual"), images()
    conv = model.a
    explainer = METHODS[method](model, layer="a", backend=backend)
    relevance, layers = explainer.attribute(x, 2, layers=["a"])
    value, _, gradient = value_and_gradient(model, "a", x, 2)
    if method == "sharing_ratio":
        z = value - conv.bias.detach()[:, None, None]
        expected = rk.reference.relprop_sharing_conv(
            x, conv.weight.detach(), conv.bias.detach(), z, value * gradient, padding=1
        )[0].sum(1)
    else:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        expected = rk.reference.relprop_zbox_conv(
            x, conv.weight.detach(), low, high, layers["a"], padding=1
        )[0]
    torch.testing.assert_close(relevance, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_norm_after_the_start_makes_no_difference_to_the_walk_back(
    method: str, backend: Any
) -> None:
    """The convolution's own weight counts, not the one with the BatchNorm folded in."""

    def unfolded(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.first(x))
        scale = m.bn.weight / torch.sqrt(m.bn.running_var + m.bn.eps)
        centred = m.branch(y) - m.bn.running_mean[:, None, None]
        branch = centred * scale[:, None, None] + m.bn.bias[:, None, None]
        return m.fc(torch.relu(m.skip(y) * 0.5 + branch).flatten(1))

    model, x = seeded(NETS["block"]), images()
    other = Function(unfolded, **dict(model.named_children())).eval()
    one, two = (
        METHODS[method](m, layer="branch", backend=backend).attribute(x, 1) for m in (model, other)
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("method", METHODS)
def test_a_pad_shared_by_head_and_tail_is_part_of_neither(method: str, backend: Any) -> None:
    model, x = seeded(NETS["shared pad"]), images()
    plan = METHODS[method](model, layer="a", backend=backend).plan(x)
    rules = {row.operation: row.rule for row in plan.rows if "pad" in row.operation}
    assert list(rules.values()) == ["structure"]
    both = METHODS[method](model, layer="", backend=backend).plan(x)
    rules = {row.operation: row.rule for row in both.rows if "pad" in row.operation}
    assert list(rules.values()) == ["folded"]


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_values_may_be_viewed_after_the_start(method: str, backend: Any) -> None:
    """``view`` asks for the layout of the export, in which the walk does not run."""
    model, x = seeded(NETS["viewed"]), images()

    def flattened(m: Any, x: Tensor) -> Tensor:
        return m.fc(torch.relu(m.b(torch.relu(m.a(x))) + 1.5).flatten(1))

    other = Function(flattened, **dict(model.named_children())).eval()
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        explained = METHODS[method](model, layer="b", backend=backend).attribute(given, 1)
        expected = METHODS[method](other, layer="b", backend=backend).attribute(given, 1)
        torch.testing.assert_close(explained, expected)


def test_memory_layouts_cannot_be_named_after_the_start() -> None:
    def strided(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.a(x))
        return m.fc(torch.as_strided(y, (x.shape[0], 4), (144, 1)))

    model = seeded(lambda: Function(strided, a=conv(3), fc=nn.Linear(4, 5)))
    with pytest.raises(UnsupportedOperationError, match="memory in the layout of the export"):
        rk.SharingRatio(model, "a").attribute(images(), 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["0", "1"])
def test_gradients_that_do_not_reach_the_start_are_zero(
    method: str, layer: str, backend: Any
) -> None:
    """No relevance then, and no error."""
    model = seeded(
        lambda: nn.Sequential(conv(3), nn.ReLU(), Cut(), nn.Flatten(), nn.Linear(144, 5))
    )
    relevance = METHODS[method](model, layer=layer, backend=backend).attribute(images(), 1)
    assert torch.equal(relevance, torch.zeros_like(relevance))


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.mark.parametrize("name", ["shared", "residual"])
def test_many_targets_from_a_layer_are_one_call_each(name: str, backend: Any) -> None:
    model, x = network(name), images()
    for explain in METHODS.values():
        explainer = explain(model, backend=backend)
        together = explainer.attribute_targets(x, [4, 0, 4])
        for target, found in zip([4, 0, 4], together, strict=True):
            torch.testing.assert_close(found, explainer.attribute(x, target))


@pytest.mark.parametrize("excess", [1e-3, 2.0**-24])
def test_a_start_whose_contributions_nearly_cancel_stays_finite(excess: float) -> None:
    """Shares over a small sum can be larger than float16 holds: they saturate."""
    activations = torch.full((1, 2, 3, 3), 1000.0, dtype=torch.float16)
    activations[0, :, 0, 0] = torch.tensor([excess, 0])
    gradient = torch.ones_like(activations)
    gradient[:, 1] = -1
    start = equilibrium_start(activations, gradient)
    exact = equilibrium_start(activations.double(), gradient.double())
    # The factor 1 / |sum| once, the result once: two roundings to 11 bits.
    expected = exact.clamp(-65504, 65504)
    torch.testing.assert_close(start.double(), expected, rtol=2**-10, atol=0)


def test_a_half_precision_start_is_that_of_float64() -> None:
    """Gradients below float16's normal numbers lose digits; their products do not lose more."""
    activations, gradient = drawn(1, 8, 16, 16).abs().half(), drawn(1, 8, 16, 16, seed=1).half()
    gradient = gradient / 4096
    start = equilibrium_start(activations, gradient)
    exact = equilibrium_start(activations.double(), gradient.double())
    # Entries of 1e-4 and less have float16's absolute precision, 2^-24 and half of that.
    torch.testing.assert_close(start.double(), exact, rtol=2**-10, atol=2**-24)


def _tokens_first(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.a(x)).flatten(2).transpose(0, 1)
    return m.fc(torch.relu(m.b(y)).transpose(0, 1).flatten(1))


@pytest.mark.parametrize("method", METHODS)
def test_relevance_starts_where_samples_are_rows(method: str) -> None:
    layers = {"a": conv(3), "b": nn.Linear(36, 2), "fc": nn.Linear(8, 5)}
    model = seeded(lambda: Function(_tokens_first, **layers))
    # As many samples as channels: nothing would go wrong but the numbers.
    x = images(4)
    relevance = METHODS[method](model).attribute(x, 1)
    torch.testing.assert_close(relevance[:1], METHODS[method](model).attribute(x[:1], 1))
    with pytest.raises(ArgumentError, match="whose output has one row per sample, got 'b'"):
        METHODS[method](model, layer="b").attribute(x, 1)


def _gated(m: Any, x: Tensor) -> Tensor:
    y = m.active(m.a(x))
    return m.fc((m.b(y) * m.gate(m.squeeze(y.mean((2, 3), keepdim=True)))).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_the_default_start_is_no_gate(method: str) -> None:
    layers: dict[str, nn.Module] = {"a": conv(3), "b": conv(), "squeeze": conv(4, 4, 1)}
    layers |= {"active": nn.SiLU(), "gate": nn.Sigmoid(), "fc": nn.Linear(4, 5)}
    model, x = seeded(lambda: Function(_gated, **layers)), images()
    found = METHODS[method](model).attribute(x, 1)
    assert torch.equal(found, METHODS[method](model, layer="active").attribute(x, 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_gated_linear_unit_is_a_start(method: str) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).flatten(2).transpose(1, 2)
        return m.fc(m.unit(functional.silu(m.gate(y)) * m.up(y)).mean(1))

    layers: dict[str, nn.Module] = {"a": conv(3), "gate": nn.Linear(4, 4), "up": nn.Linear(4, 4)}
    layers |= {"unit": nn.Dropout(), "fc": nn.Linear(4, 5)}
    model, x = seeded(lambda: Function(run, **layers)), images()
    found = METHODS[method](model).attribute(x, 1)
    assert bool(found.any())
    assert torch.equal(found, METHODS[method](model, layer="unit").attribute(x, 1))


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_start_is_chosen_with_the_callers_rules(method: str) -> None:
    model = seeded(lambda: nn.Sequential(conv(3), Sine(), nn.Flatten(), nn.Linear(144, 5)))
    x, rules = images(), {"1": "identity"}
    found = METHODS[method](model, rules=rules).attribute(x, 1)
    assert torch.equal(found, METHODS[method](model, "1", rules=rules).attribute(x, 1))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 5)),
            ' such as "2"',
        ),
        (nn.Sequential(conv(3), nn.Flatten(), nn.Linear(144, 5)), ' such as "0"'),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), ""),
    ],
)
def test_where_there_is_no_default_an_example_is_given(model: nn.Module, example: str) -> None:
    message = f"layer must be given, as a module path{example}, where the model has no activation"
    with pytest.raises(ArgumentError, match=message):
        rk.AttributionEquilibrium(model.double().eval()).attribute(images(), 1)

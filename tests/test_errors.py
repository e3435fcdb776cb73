"""Bad input: each message names the argument, what was needed and what came."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels import errors
from rapkernels.rules import unregister_rule
from tests.networks import drawn, seeded


def classifier() -> nn.Module:
    layers = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Linear(4, 5)), torch.float32, seed=0
    )


def images(*shape: int) -> Tensor:
    return drawn(*(shape or (2, 3, 6, 6)))


def with_entry(value: float) -> Tensor:
    x = images()
    x[1, 2, 3, 4] = value
    return x


Call = Callable[[], Any]


def call(x: Any = None, target: Any = None, **settings: Any) -> Call:
    settings.setdefault("backend", "reference")
    return lambda: rk.attribute(classifier(), images() if x is None else x, target, **settings)


def explain(target: Any = None, layers: Any = None, **settings: Any) -> Call:
    settings.setdefault("backend", "reference")
    return lambda: rk.RAP(classifier(), **settings).attribute(images(), target, layers)


TARGETS = (
    "target must be an int, a list, tuple or tensor with one int per sample, "
    "or None for the predicted class, got "
)

CASES: list[tuple[str, Call, type[Exception], str]] = [
    (
        "not a module",
        lambda: rk.attribute("resnet", images()),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        "model must be a torch.nn.Module, got str",
    ),
    (
        "a function",
        lambda: rk.RAP(torch.relu),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        "model must be a torch.nn.Module, got builtin_function_or_method",
    ),
    ("a list", call([1.0]), errors.ArgumentTypeError, "x[0] must be a torch.Tensor, got float"),
    (
        "a number",
        call(1.0),
        errors.ArgumentTypeError,
        "x must be a torch.Tensor, or a dict or tuple of them, got float",
    ),
    (
        "bytes",
        call(torch.zeros(2, 3, 6, 6, dtype=torch.uint8)),
        errors.ArgumentTypeError,
        "x must have a floating-point dtype, got uint8: convert it with x.float()",
    ),
    (
        "sparse",
        call(torch.zeros(2, 3, device="cpu").to_sparse()),
        errors.ArgumentTypeError,
        "x must be a dense tensor, got layout torch.sparse_coo",
    ),
    (
        "one dimension",
        call(torch.zeros(3)),
        errors.ArgumentError,
        "x must have a batch dimension and at least one more, got shape [3]",
    ),
    (
        "nan",
        call(with_entry(float("nan"))),
        errors.ArgumentError,
        "x must be finite, got 1 NaN or infinite entries of 216",
    ),
    (
        "infinity",
        call(with_entry(float("-inf"))),
        errors.ArgumentError,
        "x must be finite, got 1 NaN or infinite entries of 216",
    ),
    (
        "other dtype",
        call(images().double()),
        errors.ArgumentTypeError,
        "x must have the dtype of the model's parameters, float32, got float64",
    ),
    (
        "other device",
        call(images().to("meta")),
        errors.ArgumentError,
        f"x must be on the device of the model, {images().device}, got meta",
    ),
    (
        "channels",
        call(images(2, 4, 6, 6)),
        errors.ArgumentError,
        "x must have the shape that the model takes, but for x of shape [2, 4, 6, 6] Sequential "
        "itself raised RuntimeError: Given groups=1, weight of size [4, 3, 3, 3], expected "
        "input[2, 4, 6, 6] to have 3 channels, but got 4 channels instead",
    ),
    (
        "target above",
        call(target=5),
        errors.ArgumentError,
        "target must be at least 0 and below the number of outputs 5, got 5",
    ),
    (
        "target below",
        call(target=[0, -1]),
        errors.ArgumentError,
        "target must be at least 0 and below the number of outputs 5, got -1",
    ),
    (
        "target length",
        call(target=[0, 1, 2]),
        errors.ArgumentError,
        "target must have one entry per sample, 2, got 3 entries",
    ),
    (
        "target tensor length",
        call(target=torch.tensor([1])),
        errors.ArgumentError,
        "target must have one entry per sample, 2, got 1 entries",
    ),
    ("target text", call(target="cat"), errors.ArgumentTypeError, TARGETS + "str"),
    ("target float", call(target=1.0), errors.ArgumentTypeError, TARGETS + "float"),
    ("target bool", call(target=True), errors.ArgumentTypeError, TARGETS + "bool"),
    (
        "target entries",
        call(target=[1, 2.5]),
        errors.ArgumentTypeError,
        TARGETS + "an entry 2.5",
    ),
    (
        "target nested",
        call(target=[[1], [2]]),
        errors.ArgumentTypeError,
        TARGETS + "an entry [1]",
    ),
    (
        "target dtype",
        call(target=torch.tensor([1.0, 2.0])),
        errors.ArgumentTypeError,
        TARGETS + "dtype float32",
    ),
    (
        "method",
        call(method="lime"),
        errors.ArgumentError,
        'method must be one of "rap", "equilibrium", "sharing_ratio", "lrp", '
        "\"class_distribution\", got 'lime'",
    ),
    (
        "variant",
        call(variant="published"),
        errors.ArgumentError,
        'variant must be one of "default", "paper", "author", got \'published\'',
    ),
    (
        "backend",
        call(backend="cuda"),
        errors.ArgumentError,
        'backend must be one of "auto", "native", "reference", got \'cuda\'',
    ),
    (
        "bounds number",
        explain(bounds=1.0),
        errors.ArgumentTypeError,
        "bounds must be a pair (low, high) or None, got float",
    ),
    (
        "bounds length",
        explain(bounds=(0.0, 0.5, 1.0)),
        errors.ArgumentTypeError,
        "bounds must be a pair (low, high) or None, got 3 entries",
    ),
    (
        "bounds type",
        explain(bounds=(0.0, "1")),
        errors.ArgumentTypeError,
        "bounds must be numbers or tensors, got str for high",
    ),
    (
        "bounds order",
        explain(bounds=(2.0, 1.0)),
        errors.ArgumentError,
        "bounds must have low <= high everywhere, got low 2.0 above high 1.0",
    ),
    (
        "bounds shape",
        explain(bounds=(torch.zeros(4, 1, 1), 1.0)),
        errors.ArgumentError,
        "bounds must broadcast to x of shape [2, 3, 6, 6], got low of shape [4, 1, 1]",
    ),
    (
        "bounds nan",
        explain(bounds=(0.0, float("nan"))),
        errors.ArgumentError,
        "bounds must be finite, got high with NaN or infinite entries",
    ),
    (
        "layers text",
        explain(layers="0"),
        errors.ArgumentTypeError,
        "layers must be a list of module paths or None, got str",
    ),
    (
        "layers entries",
        explain(layers=[0]),
        errors.ArgumentTypeError,
        "layers must hold module paths (str), got int",
    ),
    (
        "unknown layer",
        explain(layers=["features.0"]),
        errors.ArgumentError,
        "layers must name modules of the model, got 'features.0' (for example '0', '1', '2')",
    ),
    (
        "operation type",
        lambda: rk.register_rule(torch.relu, "identity"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        'operation must be a string such as "aten.sin.default", got builtin_function_or_method',
    ),
    (
        "operation name",
        lambda: rk.register_rule("sin", "identity"),
        errors.ArgumentError,
        "operation must be a full name (namespace, operation and overload) such as "
        "\"aten.sin.default\", got 'sin'",
    ),
    (
        "rule name",
        lambda: rk.register_rule("aten.sin.default", "pass"),
        errors.ArgumentError,
        'rule must be "identity" or "structure" or a subclass of Rule, got \'pass\'',
    ),
    (
        "rule type",
        lambda: rk.register_rule("aten.sin.default", nn.ReLU),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        "rule must be a name or a subclass of Rule, got type",
    ),
    (
        "not registered",
        lambda: unregister_rule("aten.sin.default"),
        errors.ArgumentError,
        "operation must have a registered rule, got 'aten.sin.default'",
    ),
]


@pytest.mark.parametrize(
    ("run", "kind", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_arguments(run: Call, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        run()
    assert str(caught.value) == message
    assert isinstance(caught.value, errors.RapError)


def test_bad_arguments_are_the_usual_kinds_of_error() -> None:
    assert issubclass(errors.ArgumentError, ValueError)
    assert issubclass(errors.ArgumentTypeError, TypeError)
    assert issubclass(errors.UnsupportedOperationError, NotImplementedError)
    for name in ("TrainingModeError", "ExportError", "NonFiniteOutputError", "BackendError"):
        assert issubclass(getattr(errors, name), RuntimeError)


def test_a_refused_shape_keeps_the_models_own_exception() -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        call(images(2, 4, 6, 6))()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "to have 3 channels" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        (
            None,
            errors.ArgumentError,
            "target must be given as an index tuple of 3 ints, or as a "
            "rapkernels.MaskedTarget(channel, mask) for a class over positions, where the output "
            "has more than one dimension per sample, got None for an output of shape [2, 4, 4, 4]",
        ),
        (
            3,
            errors.ArgumentTypeError,
            "target must be a tuple of 3 ints or a list with one such tuple per sample for outputs "
            "of shape [2, 4, 4, 4], got 3",
        ),
        (
            (4, 0, 0),
            errors.ArgumentError,
            "target must be a tuple of 3 ints or a list with one such tuple per sample, each from "
            "0 to below [4, 4, 4], got (4, 0, 0)",
        ),
        (
            [(0, 0), (0, 0)],
            errors.ArgumentError,
            "target must be a tuple of 3 ints or a list with one such tuple per sample, each from "
            "0 to below [4, 4, 4], got (0, 0)",
        ),
        (
            [(0, 0, 0)],
            errors.ArgumentError,
            "target must have one entry per sample, 2, got 1 entries",
        ),
    ],
)
def test_bad_targets_of_dense_outputs(target: Any, kind: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(kind) as caught:
        rk.attribute(model, images(), target, backend="reference")
    assert str(caught.value) == message


def test_train_mode_names_the_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    explainer = rk.RAP(model, backend="reference")
    for run in (explainer.attribute, explainer.plan):
        with pytest.raises(errors.TrainingModeError) as caught:
            run(images())
        assert str(caught.value) == (
            "model must be in eval mode where it has BatchNorm or Dropout: call model.eval(); "
            "2 such module(s) are in train mode: 1 (BatchNorm2d), 2 (Dropout)"
        )
    model.eval()
    model[2].train()
    with pytest.raises(errors.TrainingModeError, match=r"1 such module.*: 2 \(Dropout\)"):
        rk.attribute(model, images(), backend="reference")


@pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")
def test_train_mode_without_such_modules_is_fine() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).train()
    assert rk.attribute(model, images(), backend="reference").shape == (2, 3, 6, 6)


def test_functional_dropout_in_training_has_no_rule() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, training=True).flatten(1)

    with pytest.raises(errors.UnsupportedOperationError, match="dropout is active"):
        rk.attribute(Drops(), images(), backend="reference")


def test_a_model_that_cannot_be_exported() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(errors.ExportError) as caught:
        rk.attribute(Branches(), images(), backend="reference")
    assert str(caught.value).startswith(
        "model must be exportable by torch.export (no Python control flow that depends on the "
        "values of tensors), but exporting Branches for x of shape [2, 3, 6, 6] raised "
    )
    assert caught.value.__cause__ is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_cannot_be_exported() -> None:
    with pytest.raises(errors.ExportError, match=r"exporting \w*ScriptModule for x of shape"):
        rk.attribute(torch.jit.script(classifier()), images(), backend="reference")


def test_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x.mean((2, 3))

    with pytest.raises(errors.ArgumentError) as caught:
        rk.attribute(Two(), images(), backend="reference")
    assert str(caught.value) == (
        "model must return exactly one tensor where output is None, but Two returns 2: choose "
        "output=0 or output=1"
    )


def test_output_without_the_input() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(x.shape[0], 3)

    with pytest.raises(errors.ArgumentError) as caught:
        rk.attribute(Fixed(), images(), backend="reference")
    assert str(caught.value) == (
        "model must compute its output from x, but Fixed returns a tensor that does not depend on "
        "x, or by integers alone"
    )


def test_output_without_the_batch() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).t()

    with pytest.raises(errors.ArgumentError) as caught:
        rk.attribute(Mixed(), images(), 1, backend="reference")
    assert str(caught.value) == (
        "model must return one row of outputs per sample, but for a batch of 2 it returns shape "
        "[108, 2]"
    )


def test_operations_without_a_rule_are_all_named() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = Sine()
            self.wave = Sine()

        def forward(self, x: Tensor) -> Tensor:
            y = self.wave(nn.functional.relu(self.act(x)))
            return y.flatten(1).cumsum(1)

    explainer = rk.RAP(Odd(), backend="reference")
    for run in (explainer.attribute, explainer.plan):
        with pytest.raises(errors.UnsupportedOperationError) as caught:
            run(images())
        nodes = [(node.operation, node.module) for node in caught.value.nodes]
        assert nodes == [
            ("aten.sin.default", "act"),
            ("aten.sin.default", "wave"),
            ("aten.cumsum.default", ""),
        ]
        assert str(caught.value) == (
            "the model has operations that relevance cannot be propagated through:\n"
            "  sin: aten.sin.default in module 'act': no rule for this operation\n"
            "  sin_1: aten.sin.default in module 'wave': no rule for this operation\n"
            "  cumsum: aten.cumsum.default in module '(root)': no rule for this operation\n"
            "register a rule for each first, as in "
            'rapkernels.register_rule("aten.sin.default", rule), '
            'where rule is "identity", "structure" or a subclass of rapkernels.Rule, or give the '
            'explainer rules={"node or module path": rule}, or strict=False'
        )
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.nodes == caught.value.nodes
    assert str(again) == str(caught.value)


class Function(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda _, x: torch.einsum("nchw,ndhw->ncd", x, x), "both carry relevance"),
        (lambda _, x: torch.matmul(x, x.transpose(2, 3)), "both carry relevance"),
        (lambda _, x: (1 / x).flatten(1), "no rule|divides by a value"),
        (lambda m, x: (m.one.weight / x).flatten(1), "divides by a value"),
        (lambda _, x: nn.functional.conv2d(x, x[:, :, :2, :2]), "weight or bias"),
        (lambda _, x: nn.functional.batch_norm(x, None, None, training=True), "statistics"),
        (lambda _, x: x + x.mean(0), "batch dimension"),
        (lambda _, x: x + torch.mean(x, dim=None), "batch dimension"),
        (lambda _, x: x + x.amax(), "batch dimension"),
        (lambda m, x: nn.functional.linear(x, m.batched.weight[0]), "2 dim"),
        (lambda m, x: torch.addmm(m.batched.bias, x[:, 0, 0], m.batched.weight, beta=2), "beta=1"),
    ],
)
def test_operations_whose_rule_does_not_fit(
    function: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    model = Function(function, one=nn.Conv2d(1, 1, 1), batched=nn.Linear(6, 6)).eval()
    with pytest.raises(errors.UnsupportedOperationError, match=reason):
        rk.attribute(model, images(), 0, backend="reference")


def test_identity_is_for_one_activation_of_the_same_shape() -> None:
    rk.register_rule("aten.einsum.default", "identity")
    rk.register_rule("aten.cumsum.default", "identity")
    rk.register_rule("aten.amax.default", "identity")
    try:
        model = Function(lambda _, x: torch.einsum("nchw,nchw->nchw", x, x).flatten(1))
        with pytest.raises(errors.UnsupportedOperationError, match="one activation"):
            rk.attribute(model, images(), 0, backend="reference")
        model = Function(lambda _, x: x.amax(1).flatten(1))
        with pytest.raises(errors.UnsupportedOperationError, match="shaped like the input"):
            rk.attribute(model, images(), 0, backend="reference")
    finally:
        for name in ("einsum", "cumsum", "amax"):
            unregister_rule(f"aten.{name}.default")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_outputs(value: float) -> None:
    model = classifier()
    with torch.no_grad():
        model[4].bias[2] = value
    with pytest.raises(errors.NonFiniteOutputError) as caught:
        rk.attribute(model, images(), backend="reference")
    assert str(caught.value) == (
        "model must return finite outputs, got NaN or infinity for sample(s) 0, 1"
    )

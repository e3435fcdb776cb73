"""A call on a device reads values of it once, at its end.

There the host would wait at every read. Here nothing counts as at hand, so that the CPU is treated
like such a device, and a dispatch mode refuses what reads values. test_on_cuda asks a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rapkernels as rk
from rapkernels import host
from rapkernels.errors import (
    ArgumentError,
    ExportError,
    NonFiniteOutputError,
    NonPositiveTargetWarning,
)
from rapkernels.variants import VARIANTS
from tests.explainers import METHODS, STARTING_AT_LAYERS, WALKERS, explainer
from tests.networks import MODERN, NETWORKS, images, network, seeded

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]

READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_static", "equal"),
    *("masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("allclose", "bincount", "repeat_interleave"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def reads_values(function: Any, arguments: Sequence[Any]) -> bool:
    """Whether the host must know values of its arguments before an operation returns."""
    name = function._schema.name.removeprefix("aten::")
    if name in INDEXING:
        masks = (torch.bool, torch.uint8)
        return any(index is not None and index.dtype in masks for index in arguments[1])
    return name in READS


class Watch(TorchDispatchMode):
    """Refuses operations that read values, and all that come after the one permitted read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.permitted = False
        self.goes_on = False

    def __enter__(self) -> Watch:
        self.reads = 0
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if not self.permitted:
            assert not reads_values(func, args), f"{func} reads values"
            assert self.goes_on or not self.reads, f"{func} runs after the read at the end"
        return func(*args, **(kwargs or {}))

    @contextmanager
    def permit(self) -> Iterator[None]:
        before, self.permitted = self.permitted, True
        yield
        self.permitted = before


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "at_hand", lambda _: False)


@pytest.fixture
def watch(on_a_device: None, monkeypatch: pytest.MonkeyPatch) -> Watch:
    del on_a_device
    mode, read = Watch(), host.read_flags

    def read_once(flags: Sequence[Tensor]) -> list[bool]:
        with mode.permit():
            found = read(flags)
        mode.reads += 1
        return found

    monkeypatch.setattr(host, "read_flags", read_once)
    # To complain is to read what the complaint is about.
    monkeypatch.setattr("rapkernels.calls._warn_of_non_positive", lambda *_: None)
    return mode


@pytest.mark.parametrize(
    "operation", [Tensor.item, bool, float, Tensor.nonzero, lambda t: t[t > 0]]
)
def test_the_watch_sees_reads(operation: Callable[[Tensor], Any]) -> None:
    value = torch.ones((), dtype=torch.float64)
    with pytest.raises(AssertionError, match="reads values"), Watch():
        operation(value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_one_read_at_the_end(name: str, variant: Any, backend: Any, watch: Watch) -> None:
    model, x = network(name), images()
    rap = rk.RAP(model, variant, bounds=(-4.0, torch.full((3, 1, 1), 4.0)), backend=backend)
    runs = {row.module for row in rap.plan(x).rows}
    layers = [path for path, _ in model.named_modules() if path in runs]
    with watch:
        relevance, exposed = rap.attribute(x, layers=layers)
    assert watch.reads == 1
    assert relevance.shape == x.shape
    assert all(bool(torch.isfinite(part).all()) for part in (relevance, *exposed.values()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_that_of_early_checks(name: str, variant: Any, backend: Any) -> None:
    rap = rk.RAP(network(name), variant, backend=backend)
    x = images()
    early = rap.attribute(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "at_hand", lambda _: False)
        late = rap.attribute(x)
    # The author variant has propagated halves without messages, which adds a rounding.
    torch.testing.assert_close(late, early, rtol=1e-9, atol=1e-12 * float(early.abs().max()))


@pytest.mark.parametrize(
    "target",
    [2, [4, 0], (1, 1), torch.tensor(3), torch.tensor([4, 0]), torch.tensor([4, 0]).short()],
)
def test_targets_are_not_read(target: Any, backend: Any, watch: Watch) -> None:
    rap = rk.RAP(network("residual"), backend=backend)
    rap.plan(images())
    x = images()
    with watch:
        late = rap.attribute(x, target)
    assert watch.reads == 1
    listed = target.tolist() if isinstance(target, Tensor) else target
    assert torch.equal(late, rap.attribute(images(), listed))


def dense() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_index_tuples_are_not_read(watch: Watch) -> None:
    rap = rk.RAP(dense(), backend="reference")
    rap.plan(images())
    listed = [(3, 1, 2), (0, 0, 3)]
    x, indices = images(), torch.tensor(listed)
    with watch:
        late = rap.attribute(x, indices)
    assert torch.equal(late, rap.attribute(images(), listed))


def test_masks_and_several_inputs_are_not_read(backend: Any, watch: Watch) -> None:
    made, mask = rk.LRP(dense(), backend=backend), torch.ones(2, 4, 4) > 0
    with watch:
        made.attribute(images(), rk.MaskedTarget(2, mask))
    assert watch.reads == 1
    with watch:
        made.attribute_targets(images(), [rk.MaskedTarget([1, 3], mask), (0, 1, 2)])
    assert watch.reads == 1

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor, y: Tensor, kept: Tensor) -> Tensor:
            return self.layer(x[:, 0, 0] * kept[:, None]) + self.layer(y)

    x, y = images(), images()[:, 1, 1]
    with watch:
        rk.RAP(Scaled().double(), backend=backend).attribute((x, y, y[:, 0] > 0), 1)
    assert watch.reads == 1


def broken(value: float) -> nn.Module:
    model = seeded(NETWORKS["linear alone"])
    with torch.no_grad():
        model[1].bias[2] = value
    return model


def holed(value: float) -> Tensor:
    x = images()
    x[1, 0, 2, 3] = value
    return x


def explain(
    x: Tensor | None = None, target: Any = None, model: nn.Module | None = None, bounds: Any = None
) -> Callable[[], Any]:
    explained = network("residual") if model is None else model
    rap = rk.RAP(explained, bounds=bounds, backend="reference")
    return lambda: rap.attribute(images() if x is None else x, target)


@pytest.mark.parametrize(
    "call",
    [
        explain(holed(float("nan"))),
        explain(holed(float("inf")), target=1),
        explain(bounds=(0.0, float("nan"))),
        explain(bounds=(0.0, torch.full((3, 1, 1), float("inf")))),
        explain(bounds=(2.0, 1.0)),
        explain(bounds=(0.0, torch.tensor([1.0, -1.0, 0.5]).view(3, 1, 1))),
        explain(target=torch.tensor([0, 5])),
        explain(target=torch.tensor([-1, 0])),
        explain(target=torch.tensor(17)),
        explain(target=torch.tensor([0, 1, 2])),
        explain(target=torch.tensor([[0], [1]])),
        explain(target=torch.tensor([0.0, 1.0])),
        explain(target=torch.tensor([True, False])),
        explain(target=torch.tensor([[0, 0, 0], [0, 4, 0]]), model=dense()),
        explain(target=torch.tensor([0, 1]), model=dense()),
        explain(model=broken(float("nan"))),
        explain(model=broken(float("inf")), target=1),
        explain(target=5),
        explain(target=[0, 5]),
    ],
)
def test_what_is_found_late_is_said_in_the_same_words(call: Callable[[], Any]) -> None:
    with pytest.raises((ArgumentError, TypeError, NonFiniteOutputError)) as early:
        call()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "at_hand", lambda _: False)
        with pytest.raises(type(early.value)) as late:
            call()
    assert str(late.value) == str(early.value)


def test_the_first_check_speaks(on_a_device: None) -> None:
    """Of all that goes wrong after a NaN in the input."""
    del on_a_device
    with pytest.raises(
        ArgumentError, match="x must be finite, got 1 NaN or infinite entries of 216"
    ):
        explain(holed(float("nan")), model=broken(float("nan")), target=torch.tensor(9))()


def test_a_late_warning_names_the_line_of_the_call(on_a_device: None) -> None:
    del on_a_device
    model = broken(-1000.0)
    with pytest.warns(NonPositiveTargetWarning, match=r"sample\(s\) 0, 1 ") as caught:
        rk.attribute(model, images(), 2, backend="reference")
    assert caught[0].filename == __file__
    with pytest.warns(NonPositiveTargetWarning) as caught:
        rk.RAP(model, backend="reference").attribute(images(), [2, 2])
    assert caught[0].filename == __file__


def test_a_report_is_read_after_the_walk(backend: Any, watch: Watch) -> None:
    rap = rk.RAP(network("residual"), backend=backend)
    _, expected = rap.attribute(images(), return_report=True)
    with watch, watch.permit():
        # A report may be read then, and is.
        _, report = rap.attribute(images(), return_report=True)
    times = {"forward_seconds": 0.0, "backward_seconds": 0.0}
    timeless = [
        replace(found, rows=tuple(replace(row, **times) for row in found), other_seconds=0.0)
        for found in (report, expected)
    ]
    assert str(timeless[0]) == str(timeless[1])


# ---- all methods --------------------------------------------------------------------------------

# A class distribution checks before its base runs, the base checks, and it checks its maps.
READS_OF_DISTRIBUTIONS = 3


def expected_reads(method: str) -> int:
    return READS_OF_DISTRIBUTIONS if "class_distribution" in method else 1


@contextmanager
def watching(method: str, watch: Watch) -> Iterator[None]:
    """For class distributions what comes after a read is not refused, only reads elsewhere."""
    watch.goes_on = "class_distribution" in method
    with watch:
        yield
    watch.goes_on = False


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "rap"])
def test_methods_read_at_the_end(method: str, name: str, backend: Any, watch: Watch) -> None:
    made, x = explainer(method, network(name), name, backend=backend), images()
    for target in (None, 1, [1, 0], torch.tensor([1, 2])):
        with watching(method, watch):
            relevance = made.attribute(x, target)
        assert watch.reads == expected_reads(method)
        assert bool(torch.isfinite(relevance).all())


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_and_layers_are_not_read(method: str, backend: Any, watch: Watch) -> None:
    made, x = explainer(method, network("residual"), backend=backend), images()
    # Which targets lack a map of their own must be known first.
    extra = 1 if "class_distribution" in method else 0
    for targets in ([3, 1], torch.tensor([[0, 1], [4, 2]])):
        with watching(method, watch):
            made.attribute_targets(x, targets, layers=["a"])
        assert watch.reads == expected_reads(method) + extra


@pytest.mark.parametrize("method", [m for m in WALKERS if m not in STARTING_AT_LAYERS])
def test_given_relevance_is_not_read(method: str, backend: Any, watch: Watch) -> None:
    made, x = explainer(method, network("residual"), backend=backend), images()
    given = torch.ones(2, 5, dtype=torch.float64)
    made.plan(x)
    for relevance in ("ones", given):
        with watch:
            made.attribute(x, output_relevance=relevance)
        assert watch.reads == 1
    given[1, 1] = torch.nan
    with pytest.raises(ArgumentError, match="output_relevance must be finite"):
        made.attribute(x, output_relevance=given)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(MODERN)))
def test_receptive_fields_and_activation_patterns_read_once(
    name: str, backend: Any, watch: Watch
) -> None:
    model, x = network(name), images()
    calls: list[Callable[[], Tensor]] = [lambda: rk.activation_pattern_prediction(model, x)]
    if name in ("residual", "shared", "pools"):
        sharing = rk.SharingRatio(model, backend=backend)
        calls.append(lambda: sharing.receptive_field(x, "b", (1, 2)))
    for call in calls:
        with watch:
            call()
        assert watch.reads == 1


# ---- while a CUDA graph is captured -------------------------------------------------------------


@pytest.fixture
def capturing(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr(host, "is_capturing", lambda _: True)
    return watch


def exported(name: str = "residual") -> nn.Module:
    model = network(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "is_capturing", lambda _: False)
        rk.RAP(model, backend="reference").plan(images())
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_read_in_a_capture(
    name: str, variant: Any, backend: Any, capturing: Watch
) -> None:
    rap = rk.RAP(exported(name), variant, bounds=(-4.0, 4.0), backend=backend)
    x = images()
    for target in (None, 1, [0, 0], torch.tensor(3), torch.tensor([1, 0])):
        with capturing:
            rap.attribute(x, target)
        assert capturing.reads == 0


def test_checks_of_values_are_off_in_a_capture(capturing: Watch) -> None:
    model, x, target = exported(), holed(float("nan")), torch.tensor([0, 77])
    with capturing, warnings.catch_warnings():
        warnings.simplefilter("error")
        rk.attribute(model, x, target, backend="reference")
    assert capturing.reads == 0


def test_a_capture_needs_an_exported_model(capturing: Watch) -> None:
    del capturing
    model = seeded(NETWORKS["linear alone"])
    with pytest.raises(ExportError) as caught:
        rk.attribute(model, images(), backend="reference")
    assert str(caught.value) == (
        "model must have been exported before a CUDA graph is captured: call attribute once with "
        "x of shape [2, 3, 6, 6] before capturing"
    )


def test_a_capture_has_no_report(capturing: Watch) -> None:
    del capturing
    with pytest.raises(ArgumentError) as caught:
        rk.RAP(exported(), backend="reference").attribute(images(), return_report=True)
    assert str(caught.value) == (
        "return_report must be False while a CUDA graph is captured, got True: a report is read on "
        "the host, so ask for it in a call outside of the capture"
    )


@pytest.mark.parametrize("target", [[0, 1], (1, 0)])
def test_a_capture_copies_no_target(target: Any, capturing: Watch) -> None:
    del capturing
    with pytest.raises(ArgumentError) as caught:
        rk.attribute(exported(), images(), target, backend="reference")
    assert str(caught.value) == (
        "target must be None, an int or a tensor on the device of x while a CUDA graph is "
        f"captured, got {type(target).__name__}"
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_method_reads_in_a_capture(method: str, backend: Any, capturing: Watch) -> None:
    made, x = explainer(method, exported(), backend=backend), images()
    for target in (None, 1, torch.tensor([1, 0])):
        with capturing:
            made.attribute(x, target)
            made.attribute_targets(x, torch.tensor([[0, 1], [4, 2]]))
        assert capturing.reads == 0


def test_fields_and_patterns_in_a_capture(backend: Any, capturing: Watch) -> None:
    model, x = exported(), images()
    with capturing:
        rk.activation_pattern_prediction(model, x)
        rk.SharingRatio(model, backend=backend).receptive_field(x, "b", (1, 2))
    assert capturing.reads == 0
    unknown = seeded(NETWORKS["residual"])
    with pytest.raises(ExportError, match="call activation_pattern_prediction once with x of"):
        rk.activation_pattern_prediction(unknown, x)
    with pytest.raises(ExportError, match="call attribute once with x of"):
        rk.SharingRatio(unknown).receptive_field(x, "b", (1, 2))

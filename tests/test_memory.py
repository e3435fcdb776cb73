"""``max_memory``: what a call takes is known before, and parts of a batch give the same."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from bench.memory import settled_resident_bytes
from bench.profiled import counts
from rapkernels import cache as cache_module
from rapkernels import calls, memory
from rapkernels.cache import cache_of
from rapkernels.composites import Composite, Epsilon
from rapkernels.errors import (
    ArgumentError,
    ArgumentTypeError,
    NonPositiveTargetWarning,
    UnknownMemoryWarning,
)
from rapkernels.findings import Findings
from rapkernels.inputs import Inputs
from tests.explainers import METHODS, WALKERS, explainer
from tests.networks import MODERN, NETWORKS, conv, drawn, images, network, seeded
from tests.test_inputs import Fusion
from tests.test_inputs import batch as fused

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


# ---- the limit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, None),
        (1, 1),
        (2_000_000_000, 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 3 * 2**29),
        ("500mb", 500_000_000),
        ("64 KiB", 65536),
        ("3TB", 3 * 10**12),
        ("12", 12),
        ("12B", 12),
    ],
)
def test_limits_are_read(given: Any, wanted: int | None) -> None:
    assert memory.read_limit(given) == wanted


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (0, ArgumentError),
        (-5, ArgumentError),
        ("0MB", ArgumentError),
        ("two GB", ArgumentError),
        ("2 bananas", ArgumentError),
        ("", ArgumentError),
        (2.5, ArgumentTypeError),
        (True, ArgumentTypeError),
        ([1], ArgumentTypeError),
    ],
)
@pytest.mark.parametrize("method", WALKERS)
def test_bad_limits(method: str, given: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_memory must be"):
        explainer(method, nn.Linear(2, 2), max_memory=given)


@pytest.mark.parametrize("limit", [10, 17, 30, 99, 100, 1000])
@pytest.mark.parametrize("constant", [0, 7])
def test_the_largest_part_that_fits_is_found(limit: int, constant: int) -> None:
    """Needs that grow in proportion, beside a constant: the search may not stop too early."""

    def need(samples: int, targets: int) -> int:
        return constant + samples * (1 + 2 * targets)

    samples, targets = memory.fitting(need, 40, 3, limit)
    assert need(samples, targets) <= limit
    assert (samples, targets) == (40, 3) or need(samples + 1, targets) > limit
    assert targets == 3 or (samples == 1 and need(1, targets + 1) > limit)


# ---- the same results ---------------------------------------------------------------------------


def limited(made: Any, limit: int) -> Any:
    """A copy of an explainer, or of a class distribution's, of the same model, with a limit."""
    again = copy.copy(made)
    if isinstance(made, rk.ClassDistribution):
        base = limited(made.base, limit)
        return rk.ClassDistribution(base)
    again.max_memory = limit
    return again


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(samples, targets) of every run of a program on real tensors."""
    seen: list[tuple[int, int]] = []
    run = calls.run

    def watched(walk: Any, x: Inputs, chosen: Tensor | None, *rest: Any, **named: Any) -> Any:
        if x.device.type != "meta":
            seen.append((x.samples, 1 if chosen is None else len(chosen)))
        return run(walk, x, chosen, *rest, **named)

    monkeypatch.setattr(calls, "run", watched)
    return seen


def need_of(made: Any, x: Any, targets: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a call of ``targets`` targets takes, as the explainer itself finds it."""
    found: list[int] = []
    measure = memory.peak_bytes
    with monkeypatch.context() as patch:
        patch.setattr(
            memory, "peak_bytes", lambda *given: found.append(measure(*given)) or found[-1]
        )
        limited(made, 2**60).attribute_targets(x, list(range(targets)))
    return found[0]


@pytest.mark.parametrize("method", METHODS)
def test_parts_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    made, x = explainer(method, network("residual"), backend="reference"), images(5)
    once = made.attribute(x, [0, 1, 2, 3, 4], layers=["bn"])
    several = made.attribute_targets(x, [1, 0, 3], layers=["bn"])
    small = limited(made, need_of(made, x[:2], 1, monkeypatch))
    parts.clear()
    again = small.attribute(x, [0, 1, 2, 3, 4], layers=["bn"])
    assert len(parts) > 1
    several_again = small.attribute_targets(x, [1, 0, 3], layers=["bn"])
    for found, expected in ((again, once), (several_again, several)):
        # Sums of products are blocked by the size of the batch: rounding in float64.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1]["bn"], expected[1]["bn"], rtol=1e-9, atol=1e-12)
        assert found[0].stride() == expected[0].stride()
        assert found[1].keys() == expected[1].keys()


@pytest.mark.parametrize("method", ["rap", "EpsilonPlus"])
def test_reports_predictions_and_given_relevance_in_parts(
    method: str, monkeypatch: pytest.MonkeyPatch, parts: Any, backend: Any
) -> None:
    made, x = explainer(method, network("residual"), backend=backend), images(5)
    small = limited(made, 2 * need_of(made, x[:1], 1, monkeypatch))
    expected, report = made.attribute(x, return_report=True)
    parts.clear()
    found, merged = small.attribute(x, return_report=True)
    assert len(parts) > 1
    torch.testing.assert_close(found, expected)
    for name in ("target", "score", "total"):
        torch.testing.assert_close(getattr(merged, name), getattr(report, name))
    assert [row.node for row in merged.rows] == [row.node for row in report.rows]
    for row, wanted in zip(merged.rows, report.rows, strict=True):
        torch.testing.assert_close(row.received, wanted.received)
        assert torch.equal(row.zeros, wanted.zeros)
    given = drawn(5, 5).double()
    torch.testing.assert_close(
        small.attribute(x, output_relevance=given), made.attribute(x, output_relevance=given)
    )
    with pytest.raises(ArgumentError, match=r"shape \[5, 5\].*got \[4, 5\]"):
        small.attribute(x, output_relevance=given[:4])


def test_bounds_are_those_of_the_part(monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    x = images(4)
    bounds = (x.amin((1, 2, 3), keepdim=True) - 1, x.amax((1, 2, 3), keepdim=True) + 1)
    made = rk.RAP(network("residual"), bounds=bounds, backend="reference")
    small = limited(made, 1)
    small.max_memory = 2 * need_of(rk.RAP(made.model, backend="reference"), x[:1], 1, monkeypatch)
    expected = made.attribute(x, 1)
    parts.clear()
    torch.testing.assert_close(small.attribute(x, 1), expected)
    assert len(parts) > 1


def test_targets_are_split_where_one_sample_is_too_much(
    monkeypatch: pytest.MonkeyPatch, parts: Any
) -> None:
    made, x = rk.RAP(network("residual"), backend="reference"), images(2)
    limit = need_of(made, x[:1], 2, monkeypatch)
    assert need_of(made, x[:1], 5, monkeypatch) > limit
    expected = made.attribute_targets(x, [0, 1, 2, 3, 4])
    parts.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = limited(made, limit).attribute_targets(x, [0, 1, 2, 3, 4])
    assert len(parts) > 2
    assert {samples for samples, _ in parts} == {1}
    assert max(targets for _, targets in parts) == 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_too_low_a_limit_says_what_a_sample_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = rk.RAP(network("residual"), backend="reference"), images(3)
    limit = need_of(made, x[:1], 1, monkeypatch)
    limited(made, limit).attribute(x, 1)
    message = f"max_memory must be at least {limit} bytes, what one sample of x takes, got"
    with pytest.raises(ArgumentError, match=message):
        limited(made, limit - 1).attribute(x, 1)
    with pytest.raises(ArgumentError, match=message):
        limited(made, limit - 1).attribute_targets(x, [1, 2])
    assert limited(made, 1).attribute(x[:0], 1).shape == (0, 3, 6, 6)


def test_messages_count_samples_in_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU()))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0] * 4, [1e300] * 4], dtype=torch.float64))
    x = torch.ones(6, 1, 2, 2, dtype=torch.float64)
    x[4] = 1e20
    made = rk.RAP(model, backend="reference")
    small = limited(made, need_of(made, x[:1], 1, monkeypatch))
    with pytest.raises(rk.errors.NonFiniteOutputError, match=r"sample\(s\) 4$"):
        small.attribute(x, 0)
    x[4] = -1
    with pytest.warns(NonPositiveTargetWarning, match=r"sample\(s\) 4 "):
        small.attribute(x, 0)


class Fixed(nn.Module):
    """Its export holds for one batch size, since it asks for the size."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        if int(x.shape[0]) not in self.sizes:
            raise ValueError("not that many")
        return self.conv(x).mean((2, 3))


def test_models_that_fix_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(4)
    free, tied = (seeded(lambda sizes=sizes: Fixed(sizes)) for sizes in ((1, 2, 4), (4,)))
    expected = rk.RAP(free, backend="reference").attribute(x, 1)
    limit = need_of(rk.RAP(free, backend="reference"), x[:2], 1, monkeypatch)
    small = rk.RAP(free, backend="reference", max_memory=limit)
    torch.testing.assert_close(small.attribute(x, 1), expected)
    with pytest.raises(ArgumentError, match="enough for 4 samples of x at once, since the model"):
        rk.RAP(tied, backend="reference", max_memory=limit).attribute(x, 1)


# ---- everything that a call can be -------------------------------------------------------------


@pytest.mark.filterwarnings("error::rapkernels.errors.UnknownMemoryWarning")
@pytest.mark.parametrize("method", ["rap", "sharing_ratio"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_in_parts(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch, parts: Any
) -> None:
    """Its operations run on meta tensors, whatever they compute from the input."""
    options = {"attention": "attnlrp"} if name in MODERN and method == "rap" else {}
    made = explainer(method, network(name), name, backend="reference", **options)
    x = images(3)
    expected = made.attribute_targets(x, [1, 0])
    small = limited(made, need_of(made, x[:2], 2, monkeypatch))
    parts.clear()
    found = small.attribute_targets(x, [1, 0])
    assert parts in ([(2, 2), (1, 2)], [(1, 2)] * 3)
    # Sums of products are blocked by the size of the batch: rounding in float64.
    bound = 1e-12 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=bound)


def test_several_inputs_in_parts(monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    """All are cut, constants too, and come back in their containers."""
    made, x = rk.LRP(seeded(Fusion), backend="reference"), fused(5)
    first = {name: tensor[:1] for name, tensor in x.items()}
    small = limited(made, 2 * need_of(made, first, 1, monkeypatch))
    for given in (x, tuple(x.values())):
        expected = made.attribute(given, [0, 1, 2, 3, 4], ["photo.1"], return_report=True)
        parts.clear()
        found = small.attribute(given, [0, 1, 2, 3, 4], ["photo.1"], return_report=True)
        assert len(parts) > 1
        assert type(found[0]) is type(given)
        torch.testing.assert_close(found[:2], expected[:2])
        torch.testing.assert_close(found[2].total, expected[2].total)
    several = small.attribute_targets(x, [[0, 1]] * 5)
    torch.testing.assert_close(several, made.attribute_targets(x, [[0, 1]] * 5))
    with pytest.raises(ArgumentError, match="max_memory must be at least"):
        limited(made, 1).attribute(x, 1)


def test_masked_targets_in_parts(monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.ReLU(), conv(4, 5)))
    made, x = rk.RAP(model, backend="reference"), images(4)
    targets = [rk.MaskedTarget(c, drawn(4, 6, 6, seed=c) > 0) for c in range(3)]
    expected, report = made.attribute(x, targets[0], return_report=True)
    several = made.attribute_targets(x, targets)
    limit: list[int] = []
    measure = memory.peak_bytes
    with monkeypatch.context() as patch:
        patch.setattr(
            memory, "peak_bytes", lambda *given: limit.append(measure(*given)) or limit[-1]
        )
        limited(made, 2**60).attribute_targets(x[:1], [rk.MaskedTarget(0, x[0, 0] > 0)] * 2)
    small = limited(made, limit[0])
    parts.clear()
    found, joined = small.attribute(x, targets[0], return_report=True)
    assert len(parts) > 1
    torch.testing.assert_close(found, expected)
    assert torch.equal(joined.target, report.target)
    torch.testing.assert_close(joined.score, report.score)
    parts.clear()
    torch.testing.assert_close(small.attribute_targets(x, targets), several)
    assert max(parts) == (1, 2)


def test_joined_reports_sum_times(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = rk.RAP(network("residual"), backend="reference"), images(4)
    ones: list[rk.report.Report] = []
    join = rk.report.Report.joined
    monkeypatch.setattr(
        rk.report.Report, "joined", lambda reports: ones.extend(reports) or join(reports)
    )
    small = limited(made, 2 * need_of(made, x[:1], 1, monkeypatch))
    ones.clear()
    _, report = small.attribute(x, 1, return_report=True)
    assert len(ones) > 1
    assert report.other_seconds == sum(one.other_seconds for one in ones)
    for i, row in enumerate(report.rows):
        assert row.forward_seconds == sum(one.rows[i].forward_seconds for one in ones) > 0
        assert row.backward_seconds == sum(one.rows[i].backward_seconds for one in ones) > 0


class ReadsValues(rk.Rule):
    """Asks for a value, which a tensor without entries does not have."""

    def forward(self, ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x if float(x.sum()) < 0 else x.clone()

    def backward(self, ctx: Any, relevance: Any) -> tuple[Any]:
        del ctx
        return (relevance,)


def test_what_meta_tensors_do_not_pass_is_done_one_at_a_time(parts: Any) -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.Sigmoid(), nn.Flatten()))
    x, rules = images(3), {"1": ReadsValues}
    expected = rk.RAP(model, rules=rules, backend="reference").attribute_targets(x, [0, 1])
    parts.clear()
    small = rk.RAP(model, rules=rules, backend="reference", max_memory=10)
    with pytest.warns(UnknownMemoryWarning, match=r"not be kept: .*_local_scalar_dense.* raised"):
        found = small.attribute_targets(x, [0, 1])
    assert parts == [(1, 1)] * 6
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_limits_and_rules_are_copied(copied: Any) -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.Sigmoid(), nn.Flatten()))
    made = rk.RAP(model, rules={"1": "identity"}, max_memory="1MB", backend="reference")
    again = copied(made)
    assert again.max_memory == 1_000_000
    assert again.rules == made.rules
    assert torch.equal(again.attribute(images(), 1), made.attribute(images(), 1))


# ---- measured -----------------------------------------------------------------------------------


def allocated(call: Callable[[], Any], at_end: bool = False) -> int:
    """The most that torch's CPU allocator handed out at one time, workspaces included, or last."""
    found = counts(call)
    return found.left if at_end else found.peak


# torchvision's: plain, residual with BatchNorms, depthwise with gates, attention.
MEASURED = ["vgg11", "resnet18", "mobilenet_v3_small", "transformer"]


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    nets = {name: getattr(models, name)().eval() for name in MEASURED[:3]}
    # An input that is larger than its tokens: the input layer takes the most.
    nets["transformer"] = models.VisionTransformer(64, 8, 2, 4, 64, 128, num_classes=10).eval()
    # VGG's linear layers are 0.5 GB, of which nothing is copied.
    nets["vgg11"].classifier = nn.Linear(512 * 49, 10)
    return nets


# A step is counted as that of the worst rule and layout, at most about twice what it takes.
LARGEST_ESTIMATE = 3.0


@pytest.mark.cpu_only
@pytest.mark.built_extension
@pytest.mark.parametrize("method", ["rap", "equilibrium"])
@pytest.mark.parametrize("name", MEASURED)
def test_estimates_are_above_what_is_measured(
    name: str, method: str, nets: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, x = explainer(method, nets[name]), drawn(3, 3, 64, 64)
    estimated = need_of(made, x, 3, monkeypatch)
    measured = allocated(lambda: made.attribute_targets(x, [0, 1, 2]))
    assert measured <= estimated <= LARGEST_ESTIMATE * measured
    # Two samples at once are less than three: the limit holds in parts too.
    small = limited(made, need_of(made, x[:2], 3, monkeypatch))
    returned = 3 * x.nbytes
    assert allocated(lambda: small.attribute_targets(x, [0, 1, 2])) <= small.max_memory + returned


@pytest.mark.cpu_only
def test_estimates_of_the_reference_are_close(
    nets: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operations hide nothing but the workspaces of torch's convolutions."""
    made, x = rk.RAP(nets["resnet18"], backend="reference"), drawn(2, 3, 64, 64)
    measured = allocated(lambda: made.attribute_targets(x, [0, 1]))
    assert measured <= need_of(made, x, 2, monkeypatch) <= 1.5 * measured


class Added(nn.Module):
    """Any number of inputs through the same layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.last = nn.Linear(64, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(sum(self.layers(x) for x in inputs))


@pytest.mark.cpu_only
@pytest.mark.parametrize("count", [1, 3])
def test_estimates_count_every_input(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = rk.RAP(seeded(Added), backend="reference")
    x = tuple(drawn(512, 64, seed=i).double() for i in range(count))
    # The indices of the targets are the caller's: one int64 for each sample.
    measured = allocated(lambda: made.attribute(x, 1)) - 8 * 512
    assert measured <= need_of(made, x, 1, monkeypatch) <= 1.5 * measured


# ---- the bound ----------------------------------------------------------------------------------


def split_buffers(model: nn.Module, x: Tensor) -> int:
    """The largest layer's: two parts of its weights, its output and its input."""
    largest = 0

    def measure(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        parts = (module.weight, given[0], output)
        largest = max(largest, 2 * sum(part.nbytes for part in parts))

    hooks = [
        module.register_forward_hook(measure)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return largest


@pytest.mark.cpu_only
@pytest.mark.built_extension
@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("name", MEASURED[:3])
def test_the_peak_is_the_activations_and_one_layers_split(
    name: str, size: int, nets: dict[str, nn.Module]
) -> None:
    """docs/memory.md: what is kept for the way back, and 1.5 times the largest split buffers.

    At 64 pixels the largest buffers are weights, at 192 activations.
    """
    made, x = rk.RAP(nets[name]), drawn(2, 3, size, size)
    peak = allocated(lambda: made.attribute(x, 1))
    inputs = Inputs.of(made.model, x)
    program = made._program(inputs, Findings(x.device))
    walk = made._walk(program, inputs)
    with torch.no_grad():
        kept = allocated(lambda: walk.forward([calls.fast_layout(x)]), at_end=True)
    assert 0 < peak - kept <= 1.5 * split_buffers(nets[name], x)


# ---- many calls ---------------------------------------------------------------------------------

# 200 results of 6 x 6 images are 0.3 MB, 200 sets of their activations 5 MB.
LARGEST_GROWTH = 4e6


def tensors_alive() -> int:
    gc.collect()
    # torch's own lazily made attributes answer isinstance, and warn.
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


@pytest.mark.cpu_only
def test_nothing_grows_over_200_calls() -> None:
    """Sizes, batches and methods change, and each comes before what is counted begins."""
    model = seeded(NETWORKS["conv head"], torch.float32)
    explainers = [
        explainer(method, model)
        for method in ("rap", "EpsilonPlus", "equilibrium", "class_distribution")
    ]
    explainers.append(rk.LRP(model, max_memory="1MB"))
    inputs = [drawn(batch, 3, size, size) for batch in (1, 3) for size in (5, 6)]

    def run(calls: int) -> None:
        for i in range(calls):
            made, x = explainers[i % 5], inputs[i // 5 % 4]
            if i % 3:
                made.attribute(x, i % 5)
            else:
                made.attribute_targets(x, [0, 1])

    run(60)
    tensors, resident = tensors_alive(), settled_resident_bytes()
    run(200)
    assert tensors_alive() == tensors
    assert settled_resident_bytes() - resident < LARGEST_GROWTH


def test_caches_are_bounded() -> None:
    model = seeded(lambda: nn.Sequential(conv(3), nn.Flatten(2)), torch.float32)
    cache = cache_of(model)
    made = rk.LRP(model, backend="reference")
    for i in range(cache_module._CAPACITY + 3):
        made.composite = Composite(conv=Epsilon(0.1 + i))
        made.attribute(images(dtype=torch.float32), (0, 0))
    assert len(cache._programs) == cache_module._CAPACITY
    assert len(cache._graphs) == 1

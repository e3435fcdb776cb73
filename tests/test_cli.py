"""The command line, as a user meets it: what it prints, writes, and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

import rapkernels
from rapkernels.cli.app import app
from rapkernels.images import prepare_image, read_image
from rapkernels.models import load_classifier
from rapkernels.rules import registry

pytestmark = pytest.mark.cpu_only

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _two_photos_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()).save("cat.png")
    Image.fromarray(skimage.data.rocket()).save("rocket.jpg")


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small torchvision network with 7 classes, quick to explain."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    model = torchvision.models.squeezenet1_1(num_classes=7)
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def small(small_weights: str) -> list[str]:
    """The options that choose that network."""
    return ["--model", "torchvision:squeezenet1_1", "--weights", small_weights]


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def signed_class_distribution(model: nn.Module) -> rapkernels.ClassDistribution:
    base = rapkernels.RAP(model)
    return rapkernels.ClassDistribution(base, absolute=False, temperature=[1, 5, 100])


def fields(output: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+) +(.+)$", output, flags=re.MULTILINE))


def assert_fails(result: Result, message: str, code: int = 1) -> None:
    """One sentence on stderr and nothing that looks like a traceback."""
    assert result.exit_code == code
    assert isinstance(result.exception, SystemExit)
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output


def test_explain_a_cat(run: Run) -> None:
    result = run("explain", "cat.png", "--raw", "cat.npy")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    told = fields(result.stdout)
    assert told["class"] == "Egyptian cat (285)"
    assert told["logit"].startswith("8.9")
    assert re.fullmatch(r"\d+\.\d+ s attribution, \d+\.\d+ s network graph \(once\)", told["time"])
    assert told["written"] == "cat_rap.png, cat.npy"
    relevance = np.load("cat.npy")
    assert relevance.shape == (3, 224, 224)
    assert relevance.dtype == np.float32
    total, logit = (float(told[name].split()[0]) for name in ("relevance", "logit"))
    assert total == pytest.approx(relevance.sum(dtype=np.float64), abs=1e-3)
    assert total == pytest.approx(logit, rel=0.05)
    with Image.open("cat_rap.png") as figure:
        assert figure.width > 1.5 * figure.height


def test_the_relevance_is_that_of_the_library(run: Run) -> None:
    run("explain", "cat.png", "--target", "tabby", "--variant", "paper", "--raw", "cat.npy")
    classifier = load_classifier("efficientnet_lite0")
    x = prepare_image(read_image("cat.png"), classifier.preprocessing).pixels[None]
    expected = rapkernels.attribute(classifier.module, x, target=281, variant="paper")[0]
    np.testing.assert_array_equal(np.load("cat.npy"), expected.numpy())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("equilibrium", rapkernels.AttributionEquilibrium),
        ("sharing_ratio", rapkernels.SharingRatio),
        ("lrp", rapkernels.LRP),
        ("lrp_alpha2_beta1", partial(rapkernels.LRP, composite="EpsilonAlpha2Beta1")),
        ("class_distribution", signed_class_distribution),
    ],
)
def test_every_method(
    run: Run, small: list[str], method: str, expected: Callable[[nn.Module], Any]
) -> None:
    result = run("explain", "cat.png", "--method", method, "--raw", "maps/", *small)
    assert result.exit_code == 0, result.output
    told = fields(result.stdout)
    assert told["written"] == f"cat_{method}.png, maps/cat_{method}.npy"
    classifier = load_classifier(small[1], Path(small[3]))
    x = prepare_image(read_image("cat.png"), classifier.preprocessing).pixels[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rapkernels.errors.NonPositiveTargetWarning)
        (relevance,) = expected(classifier.module).attribute(x)
    np.testing.assert_array_equal(np.load(f"maps/cat_{method}.npy"), relevance.numpy())


def test_only_maps_that_start_at_the_logit_are_inverted(run: Run) -> None:
    for method, inverted in (("lrp", True), ("sharing_ratio", False)):
        result = run("explain", "rocket.jpg", "--target", "665", "--method", method)
        assert ("note" in fields(result.stdout)) == inverted


def test_several_photos_go_into_a_folder(run: Run) -> None:
    result = run("explain", "cat.png", "rocket.jpg", "-o", "maps", "--target", "missile")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("maps").iterdir()) == ["cat_rap.png", "rocket_rap.png"]
    assert result.stdout.count("missile (657)") == 2
    assert "a batch of 2 in" in result.stdout


def test_batches_do_not_change_the_result(run: Run, small: list[str]) -> None:
    photos = ["cat.png", "rocket.jpg", "cat.png"]
    for size in ("1", "2"):
        result = run("explain", *photos, "--raw", f"raw{size}", "--batch-size", size, *small)
        assert result.exit_code == 0, result.output
    names = sorted(path.name for path in Path("raw1").iterdir())
    assert names == ["cat-2_rap.npy", "cat_rap.npy", "rocket_rap.npy"]
    for name in names:
        alone, together = (np.load(Path(folder) / name) for folder in ("raw1", "raw2"))
        assert np.abs(together - alone).max() <= 1e-4 * np.abs(alone).max()


def test_a_class_with_a_negative_logit_is_told(run: Run) -> None:
    result = run("explain", "rocket.jpg", "--target", "665")
    assert result.exit_code == 0, result.output
    told = fields(result.stdout)
    assert told["class"] == "moped (665)"
    assert told["logit"].startswith("-")
    assert told["relevance"].startswith("-")
    assert told["note"].startswith("The logit is not positive: this map is the inverse")
    assert result.stderr == ""


def test_the_whole_photo_stretched(run: Run, small: list[str]) -> None:
    for resize in ("crop", "stretch"):
        result = run("explain", "cat.png", "-o", f"{resize}.png", "--resize", resize, *small)
        assert result.exit_code == 0, result.output
    with Image.open("crop.png") as crop, Image.open("stretch.png") as stretch:
        assert stretch.width / stretch.height > crop.width / crop.height


def test_a_network_without_class_names(run: Run, small: list[str]) -> None:
    result = run("explain", "cat.png", "--target", "3", *small)
    assert fields(result.stdout)["class"] == "class (3)"
    assert_fails(run("explain", "cat.png", "--target", "cat", *small), "have no names; give an ind")


def test_another_figure_format(run: Run, small: list[str]) -> None:
    assert run("explain", "cat.png", "-o", "new/cat.pdf", *small).exit_code == 0
    assert Path("new/cat.pdf").read_bytes().startswith(b"%PDF")


def test_an_unreadable_photo_does_not_stop_the_others(run: Run, small: list[str]) -> None:
    Path("text.png").write_text("no picture")
    result = run("explain", "text.png", "cat.png", "nowhere.png", *small)
    assert_fails(result, r"Error: text\.png: not an image that can be read; give a PNG, JPEG")
    assert_fails(result, r"Error: nowhere\.png: no such file\.")
    assert Path("cat_rap.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], r"^Error: nowhere\.png: no such file\.$"),
        (["cat.png", "--target", "1000"], r"--target must be between 0 and 999 .*, got 1000\.$"),
        (["cat.png", "--target", "-1"], r"--target must be between 0 and 999 .*, got -1\.$"),
        (["cat.png", "--target", "tigercat"], r"close matches: tiger cat \(282\)"),
        (["cat.png", "--model", "resnet50"], "^Error: unknown model 'resnet50'; give "),
        (["cat.png", "--model", "torchvision:vgg16"], "comes without weights: give --weights FILE"),
        (["cat.png", "--weights", "none.pth"], r"none\.pth: no such weights file\.$"),
        (["cat.png", "--weights", "rocket.jpg"], r"rocket\.jpg: not a state dict"),
        (["cat.png", "-o", "cat.png/maps/"], r"cat\.png/maps: the folder cannot be made"),
    ],
)
def test_failures_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    result = run("explain", *arguments)
    assert_fails(result, message)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_network_with_unsupported_operations_names_each_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(registry._BUILT_IN, "aten.layer_norm.default")
    torch.save(timm.create_model("test_vit").state_dict(), "vit.pth")
    result = run("explain", "cat.png", "--model", "timm:test_vit", "--weights", "vit.pth")
    assert_fails(result, "^Error: this network has operations without a rule: ")
    assert result.stderr.count("aten.layer_norm.default") == 1
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IMAGE...'"),
        (["cat.png", "--variant", "mine"], "'mine' is not one of 'default', 'paper', 'author'"),
        (["cat.png", "--backend", "gpu"], "'gpu' is not one of 'auto', 'native', 'reference'"),
        (["cat.png", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["cat.png", "rocket.jpg", "-o", "map.png"], "is one file but 2 images are given"),
        (["cat.png", "-o", "map.doc"], r"--output map\.doc must end in \.png, "),
        (["cat.png", "--raw", "map.png"], r"--raw map\.png must end in \.npy"),
        (["cat.png", "--method", "disc"], "'disc' is not one of 'rap', 'equilibrium', "),
        (
            ["cat.png", "--method", "lrp", "--variant", "paper"],
            "leave it out with --method lrp, or take --method rap or class_distribution",
        ),
        (["cat.png", "-o", "cat.png"], r"--output would overwrite the image .*cat\.png"),
    ],
)
def test_misuse_exits_with_2(run: Run, arguments: list[str], message: str) -> None:
    assert_fails(run("explain", *arguments), message, code=2)


def test_a_warning_is_one_line(run: Run, small: list[str]) -> None:
    def warn(*_: object) -> torch.Tensor:
        warnings.warn("the reference runs", rapkernels.errors.BackendWarning, stacklevel=1)
        return torch.zeros(1, 7)

    with mock.patch("rapkernels.cli.batches.logits_of", warn):
        result = run("explain", "cat.png", *small)
    assert result.stderr == "Warning: the reference runs\n"


def test_info(run: Run) -> None:
    result = run("info")
    assert result.exit_code == 0, result.output
    told = fields(result.stdout)
    assert told["torch"] == torch.__version__
    assert told["threads"] == str(torch.get_num_threads())
    assert told["device"].startswith("cpu")
    assert {"rapkernels", "extension", "compiler", "openmp", "cuda", "cuda_version"} <= set(told)
    built = rapkernels.build_info()["cuda_architectures"]
    assert told["cuda_architectures"] == (", ".join(built) or "none")


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"rapkernels, version {rapkernels.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "-h"], ["info", "--help"]])
def test_help(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_as_a_program(small: list[str]) -> None:
    program = [sys.executable, "-m", "rapkernels"]
    done = subprocess.run(
        [*program, "explain", "cat.png", *small], capture_output=True, text=True, check=True
    )
    assert fields(done.stdout)["written"] == "cat_rap.png"
    assert done.stderr == ""
    failed = subprocess.run(
        [*program, "explain", "nowhere.png", *small], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr == "Error: nowhere.png: no such file.\n"


def test_without_click_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['click'] = None; from rapkernels.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the command rapkernels needs the package click, which is not installed: "
        "run pip install 'rapkernels[cli]'.\n"
    )

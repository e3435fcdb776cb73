"""``rapkernels compare``, as a user meets it, and the figure that it draws."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image

from rapkernels.cli.app import app
from rapkernels.comparison import Panel, draw_comparison
from rapkernels.heatmap import HeatmapError

pytestmark = pytest.mark.cpu_only

VIEW = Image.new("RGB", (300, 200), "green")


@pytest.fixture(autouse=True)
def _photo_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()).save("cat.png")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a small torchvision network with 7 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), path)
    return ["--model", "torchvision:squeezenet1_1", "--weights", str(path)]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def assert_fails(result: Result, message: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output


def test_every_method_with_its_time(small: list[str]) -> None:
    result = run("cat.png", *small)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for label in ("RAP", "Equilibrium", "Sharing Ratio", "VAR on RAP", "input x gradient"):
        shown = rf"^  {label} +\d+\.\d{{3}} s, runner-up -?\d\.\d\d$"
        assert re.search(shown, result.stdout, re.MULTILINE)
    assert "centred disc" not in result.stdout
    assert re.search(r"^  written +cat_compare\.png$", result.stdout, re.MULTILINE)
    with Image.open("cat_compare.png") as figure:
        assert figure.width > figure.height


def test_chosen_methods_in_their_order_and_a_class(small: list[str]) -> None:
    result = run("cat.png", "--methods", "random, disc,rap", "--target", "3", "-o", "c.pdf", *small)
    assert result.exit_code == 0, result.output
    lines = [line.split("  ")[1] for line in result.stdout.splitlines()[3:6]]
    assert [line.strip() for line in lines] == ["random", "centred disc", "RAP"]
    assert "class (3)" in result.stdout
    assert Path("c.pdf").read_bytes().startswith(b"%PDF")


def test_failures_are_one_sentence(small: list[str]) -> None:
    assert_fails(run("none.png", *small), r"^Error: none\.png: no such file\.$")
    assert_fails(run("cat.png", "--methods", "cam", *small), "^Error: there is no method 'cam'; ")
    assert_fails(run("cat.png", "--target", "7", *small), "--target must be between 0 and 6 ")
    assert_fails(run("cat.png", "--target", "cat", *small), "have no names; give an index")
    assert_fails(run("cat.png", "-o", "cat.png", *small), "would overwrite the image", code=2)


def panels() -> list[Panel]:
    first, second = np.zeros((20, 30)), np.zeros((20, 30))
    first[0, 0], first[-1, -1] = 2.0, -8.0
    second[5, 5] = 1e-6
    return [Panel("one", "0.1 s", first), Panel("two", "0.2 s", second)]


def test_each_map_has_its_own_symmetric_scale() -> None:
    figure = draw_comparison(VIEW, "photo", "net", panels())
    photo, one, two = figure.axes[:3]
    assert photo.images[0].get_array().shape == (200, 300, 3)
    assert one.images[0].get_clim() == two.images[0].get_clim() == (-1.0, 1.0)
    assert one.images[0].get_array()[0, 0] == 0.25
    assert one.images[0].get_array()[-1, -1] == -1.0
    assert two.images[0].get_array()[5, 5] == 1.0
    assert one.images[0].cmap(0.5)[:3] == pytest.approx((1, 1, 1))
    assert [text.get_text() for text in one.texts] == ["one", "0.1 s"]
    boxes = [axes.get_position() for axes in (photo, one, two)]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0
    assert {round(box.y0, 6) for box in boxes} == {round(boxes[0].y0, 6)}


def test_many_methods_take_several_rows() -> None:
    figure = draw_comparison(VIEW, "photo", "net", [*panels()] * 3)
    tops = [round(axes.get_position().y1, 6) for axes in figure.axes[:7]]
    assert tops[:4] == [tops[0]] * 4
    assert tops[4:] == [tops[4]] * 3
    assert tops[4] < tops[0]
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(box.y0 >= 0 and box.x1 <= 1 for box in boxes)


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(HeatmapError, match="needs at least one method"):
        draw_comparison(VIEW, "", "", [])
    with pytest.raises(HeatmapError, match=r"maps must have shape \(H, W\), got \(3, 4, 4\)"):
        draw_comparison(VIEW, "", "", [Panel("", "", np.zeros((3, 4, 4)))])

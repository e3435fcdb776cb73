"""Heat maps: the colours, their scale, the place of the panels, the file."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rapkernels.figures import FigureError, save_figure
from rapkernels.heatmap import Caption, HeatmapError, colour_limit, draw, sum_channels

pytestmark = pytest.mark.cpu_only

VIEW = Image.new("RGB", (300, 200), "green")


def relevance() -> torch.Tensor:
    values = torch.zeros(3, 20, 30)
    values[:, 0, 0] = 1.0
    values[:, -1, -1] = -0.5
    return values


def pixels(figure: Figure, tmp_path: Path) -> np.ndarray:
    save_figure(figure, tmp_path / "map.png")
    return np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))


def test_channels_are_summed_in_float64() -> None:
    values = torch.randn(3, 5, 6, dtype=torch.float16)
    heat = sum_channels(values)
    assert heat.dtype == np.float64
    np.testing.assert_allclose(heat, values.double().sum(0).numpy())


def test_a_map_is_drawn_as_it_is() -> None:
    values = torch.randn(5, 6)
    np.testing.assert_array_equal(sum_channels(values), values.double().numpy())


@pytest.mark.parametrize("shape", [(6,), (1, 3, 5, 6)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(HeatmapError, match=r"relevance must have shape \(C, H, W\) or \(H"):
        sum_channels(torch.zeros(shape))


def test_the_scale_is_symmetric() -> None:
    figure = draw(VIEW, relevance())
    colours = figure.axes[1].images[0]
    assert colours.get_clim() == (-3.0, 3.0)
    assert colours.cmap.name.startswith("seismic")


def test_a_map_of_zeros_has_a_scale() -> None:
    assert colour_limit(np.zeros((2, 2))) == 1.0


def test_zero_is_exactly_white_and_the_ends_are_red_and_blue(tmp_path: Path) -> None:
    figure = draw(VIEW, relevance())
    shown = pixels(figure, tmp_path)
    box = figure.axes[1].get_window_extent()
    height = shown.shape[0]
    left, right = int(box.x0) + 4, int(box.x1) - 4
    top, bottom = height - int(box.y1) + 4, height - int(box.y0) - 4
    assert tuple(shown[(top + bottom) // 2, (left + right) // 2]) == (255, 255, 255)
    red, _, blue = (int(value) for value in shown[top, left])
    assert red > blue
    red, _, blue = (int(value) for value in shown[bottom, right])
    assert blue > red


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (40, 400)])
def test_photo_and_map_have_one_size_and_one_extent(size: tuple[int, int]) -> None:
    figure = draw(Image.new("RGB", size), relevance(), Caption(note="a note"))
    photo, heat = figure.axes[:2]
    photo_box, heat_box = photo.get_window_extent(), heat.get_window_extent()
    assert (photo_box.width, photo_box.height) == pytest.approx((heat_box.width, heat_box.height))
    assert photo_box.width / photo_box.height == pytest.approx(size[0] / size[1])
    assert photo_box.y0 == pytest.approx(heat_box.y0)
    assert photo.images[0].get_extent() == heat.images[0].get_extent()


def test_everything_lies_on_the_page() -> None:
    long = "a name that is far too long for the width of one panel " * 3
    figure = draw(VIEW, relevance() * 1e-7, Caption(long, long, long, long, long))
    page = figure.bbox
    drawn = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= page.x0
    assert drawn.x1 <= page.x1
    assert drawn.y0 >= page.y0
    assert drawn.y1 <= page.y1


def test_the_words_are_on_the_figure() -> None:
    figure = draw(VIEW, relevance(), Caption("photo", "left", "map", "right", "foot"))
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"photo", "left", "map", "right"} <= words
    assert [text.get_text() for text in figure.texts] == ["foot"]


def test_pyplot_has_no_figure_of_ours(tmp_path: Path) -> None:
    open_figures = plt.get_fignums()
    pixels(draw(VIEW, relevance()), tmp_path)
    assert plt.get_fignums() == open_figures


@pytest.mark.parametrize("name", ["no/such/folder/map.png", "map.nosuchformat"])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(FigureError, match="cannot be written"):
        save_figure(draw(VIEW, relevance()), tmp_path / name)

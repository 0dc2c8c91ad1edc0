"""What is drawn: the values on the axes, not the picture."""

import pytest
import torch

pytest.importorskip("matplotlib")

from vdiff.plots import band, figure, image_grid, schedule, weighting
from vdiff.plots import reports as module
from vdiff.schedule import Cosine, Linear
from vdiff.weighting import Sigmoid


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The axes of a figure that a report saves."""
    kept = []

    def kept_figure(*args, **options):
        kept.append(figure(*args, **options))
        return kept[-1]

    monkeypatch.setattr(module, "figure", kept_figure)

    def draw(report, *args):
        report(tmp_path / "figure.png", *args)
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        return kept[-1][1]

    return draw


def test_a_band_is_the_mean_and_two_standard_errors():
    _, (axes,) = figure()
    runs = torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    band(axes, torch.arange(2), runs)
    assert list(axes.lines[0].get_ydata()) == [2.0, 4.0]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((0.0, 4.0))  # 2 ± 2·√2/√2


def test_a_band_of_logarithms_is_the_geometric_mean():
    _, (axes,) = figure()
    band(axes, torch.arange(1), torch.tensor([[1.0], [4.0]]), log=True)
    assert axes.lines[0].get_ydata()[0] == pytest.approx(2.0)


def test_one_run_has_no_band():
    _, (axes,) = figure()
    band(axes, torch.arange(3), torch.rand(1, 3))
    assert (len(axes.lines), len(axes.collections)) == (1, 0)


@pytest.mark.parametrize(("channels", "shape"), [(1, (7, 10)), (3, (7, 10, 3))])
def test_images_are_laid_out_row_by_row(channels, shape):
    _, (axes,) = figure()
    images = torch.arange(5)[:, None, None, None].expand(5, channels, 2, 2) * 4
    image_grid(axes, images, "a title", columns=3, levels=17)
    pixels = axes.get_images()[0].get_array()
    assert pixels.shape == shape
    assert pixels[1, 4].flat[0] == pytest.approx(4 / 16)  # the second of the first row
    assert pixels[4, 1].flat[0] == pytest.approx(12 / 16)  # the first of the second
    assert pixels[0, 0].flat[0] == 0.5  # the gap between them
    assert axes.get_title() == "a title"


def test_schedules_are_drawn_with_their_densities(drawn):
    left, right = drawn(schedule, {"cosine": Cosine(), "linear": Linear()})
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    assert torch.equal(torch.as_tensor(left.lines[0].get_ydata()), Cosine()(t))
    at = torch.as_tensor(right.lines[1].get_xdata())
    assert torch.equal(torch.as_tensor(right.lines[1].get_ydata()), Linear().density(at))


def test_a_weighting_is_divided_by_its_largest_value(drawn):
    (axes,) = drawn(weighting, {"sigmoid": Sigmoid(2.0)})
    line = axes.lines[0]
    w = Sigmoid(2.0)(torch.as_tensor(line.get_xdata()).double())
    torch.testing.assert_close(torch.as_tensor(line.get_ydata()).double(), w / w.max())

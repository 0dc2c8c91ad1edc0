"""Figures: what is drawn, read from their axes and files."""

import pytest
import torch

from vdiff.diagnosis import diagnose
from vdiff.profile import Profile
from vdiff.schedule import Cosine, Linear

pytest.importorskip("matplotlib")

from vdiff import plots
from vdiff.plots import reports


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that a report makes."""
    made = []

    def keep(*args, **options):
        picture, axes = plots.figure(*args, **options)
        made.append(axes)
        return picture, axes

    monkeypatch.setattr(reports, "figure", keep)
    return made


def test_an_image_grid_has_thin_gaps_and_ink_on_white():
    _, (axes,) = plots.figure()
    images = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 16.0)])
    plots.image_grid(axes, images, "two", columns=2)
    pixels = torch.as_tensor(axes.get_images()[0].get_array())
    assert pixels.shape == (4, 7)
    assert pixels[1:3, 1:3].eq(0).all()
    assert pixels[1:3, 4:6].eq(1).all()
    assert pixels[:, [0, 3, 6]].eq(0.5).all()


@pytest.mark.parametrize("log", [False, True])
def test_a_band_has_two_standard_errors_of_the_mean(log):
    _, (axes,) = plots.figure()
    runs = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    plots.band(axes, torch.arange(2), runs, log=log)
    middle = runs.double().log().mean(0).exp() if log else runs.double().mean(0)
    assert torch.allclose(torch.as_tensor(axes.lines[0].get_ydata()), middle)
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    if not log:
        assert edges.min() == pytest.approx(-1.0)  # 5 − 2·√18/√2
        assert edges.max() == pytest.approx(11.0)  # 5 + 2·√18/√2


def test_a_schedules_density_is_drawn_between_its_ends(tmp_path, drawn):
    reports.schedule(tmp_path / "figure.png", {"cosine": Cosine(9.0, -7.0)})
    ((left, right),) = drawn
    logsnr, density = (torch.as_tensor(v) for v in right.lines[0].get_data())
    assert (logsnr[0], logsnr[-1]) == (-7.0, 9.0)
    assert torch.trapezoid(density, logsnr).item() == pytest.approx(1.0, abs=1e-3)
    assert left.lines[0].get_ydata()[0] == pytest.approx(9.0)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_variance_of_each_schedule_has_its_ratio_in_the_legend(tmp_path, drawn):
    profile = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    generator = torch.Generator().manual_seed(0)
    profile.update(torch.linspace(-5, 5, 100), torch.rand(100, generator=generator))
    diagnosis = diagnose(profile, Linear(5.0, -5.0))
    reports.variance(tmp_path / "figure.png", {"linear": diagnosis})
    ((left, right),) = drawn
    ratio = f"{diagnosis.variance / diagnosis.least:.3g}"
    assert left.get_legend().get_texts()[0].get_text() == f"linear: {ratio} × the least variance"
    drawn_best = torch.as_tensor(right.lines[-1].get_ydata())
    assert torch.equal(drawn_best.double(), diagnosis.best.double())


def test_a_moving_schedule_is_a_gif_with_a_frame_for_each_step(tmp_path):
    image = pytest.importorskip("PIL.Image")
    frames = [(0, Linear()), (10, Linear(9.0, -5.0))]
    plots.moving_schedule(tmp_path / "figure.gif", frames, best=Cosine())
    with image.open(tmp_path / "figure.gif") as gif:
        assert gif.n_frames == 2

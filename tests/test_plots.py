"""Figures: what is drawn, read from their axes and files, and whether lines can be told apart."""

import inspect
import itertools
import math
from pathlib import Path

import pytest
import torch
from color_distance import DEFICIENCIES, delta_e_2000, lab

from vdiff.describe import describe
from vdiff.diagnosis import diagnose
from vdiff.profile import Profile
from vdiff.recipes import RECIPES
from vdiff.schedule import Cosine, Linear
from vdiff.weighting import EDM, ELBO, InDI, Sigmoid

pytest.importorskip("matplotlib")

from vdiff import plots


def profile():
    made = Profile(logsnr_max=5.0, logsnr_min=-5.0, bins=10)
    generator = torch.Generator().manual_seed(0)
    made.update(torch.linspace(-5, 5, 100), torch.rand(100, generator=generator))
    return made


HISTORY = [
    {
        "step": 100 * i,
        "train_bits_per_dim": 2.0 / i,
        "selection_bits_per_dim": 2.5 / i,
        "selection_error": 0.01,
        "selection_error_over_images": 0.1,
    }
    for i in (1, 2, 3)
]
IMAGES = torch.zeros(20, 1, 8, 8)
CALLS = {  # each function that draws, on so many axes
    "band": (1, lambda ax, _: plots.band(ax, torch.arange(3), torch.rand(2, 3), label="x")),
    "curves": (1, lambda ax, _: plots.curves(HISTORY, ("histogram", 2.4), ax=ax)),
    "error_by_logsnr": (1, lambda ax, _: plots.error_by_logsnr({"x": profile()}, 1, ax=ax)),
    "finish": (1, lambda ax, _: plots.finish(ax, "a title")),
    "image_grid": (1, lambda ax, _: plots.image_grid(ax, IMAGES, "images")),
    "weighting": (1, lambda ax, _: plots.weighting({"elbo": ELBO(), "edm": EDM()}, ax=ax)),
    "samples": (2, lambda ax, _: plots.samples(IMAGES, IMAGES, ax=ax)),
    "schedule": (2, lambda ax, _: plots.schedule({"x": Cosine(), "y": Linear()}, ax=ax)),
    "variance": (
        2,
        lambda ax, _: plots.variance({"x": diagnose(profile(), Linear(5.0, -5.0))}, ax=ax),
    ),
    "objectives": (3, lambda ax, _: plots.objectives({"edm": describe("edm")}, ax=ax)),
    "animation": (2, lambda ax, to: plots.animation(to / "x.gif", ax, lambda i: None, 2)),
    "moving_schedule": (
        2,
        lambda ax, to: plots.moving_schedule(to / "x.gif", [(0, Linear()), (1, Cosine())], ax=ax),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_draws_on_the_axes_that_it_is_given_and_returns_them(name, tmp_path):
    count, call = CALLS[name]
    _, given = plots.figure(1, count)
    given = given[0] if count == 1 else given
    assert call(given, tmp_path) == given


def test_every_function_that_draws_takes_axes():
    functions = [name for name in plots.__all__ if inspect.isfunction(getattr(plots, name))]
    assert set(functions) - {"figure", "line_style", "save"} == set(CALLS)
    for name in CALLS:
        assert "ax" in inspect.signature(getattr(plots, name)).parameters


def test_other_axes_than_a_figure_needs_are_refused():
    _, (ax,) = plots.figure()
    with pytest.raises(ValueError, match=r"argument 'ax' must be 2 axes of matplotlib; got "):
        plots.schedule({"x": Cosine()}, ax=ax)


def test_delta_e_has_its_published_values():
    """Pairs 1, 7, 17 and 25 of table 1 of Sharma, Wu & Dalal 2005."""
    for one, other, expected in (
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ):
        assert delta_e_2000(one, other) == pytest.approx(expected, abs=1e-4)
    assert lab("#ffffff") == pytest.approx((100.0, 0.0, 0.0), abs=0.02)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_any_two_colors_are_told_apart_also_without_red_or_green(deficiency):
    """ΔE2000 of at least 15, and as much from the paper."""
    every = [lab(color, deficiency) for color in (*plots.COLORS, "#ffffff")]
    assert min(delta_e_2000(*pair) for pair in itertools.combinations(every, 2)) > 15


def test_no_line_differs_by_its_color_alone():
    styles = [plots.line_style(i) for i in range(25)]
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 25
    _, (ax,) = plots.figure()
    drawn = [ax.plot([0, 1])[0] for _ in range(12)]
    assert len({(str(one._unscaled_dash_pattern), one.get_marker()) for one in drawn}) == 12
    assert [one.get_color() for one in drawn[:5]] == list(plots.COLORS)


def test_an_image_grid_has_thin_gaps_and_level_zero_is_black():
    _, (ax,) = plots.figure()
    images = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 16.0)])
    plots.image_grid(ax, images, "two", columns=2)
    (shown,) = ax.get_images()
    pixels = torch.as_tensor(shown.get_array())
    assert pixels.shape == (4, 7)
    assert pixels[1:3, 1:3].eq(0).all()
    assert pixels[1:3, 4:6].eq(1).all()
    assert pixels[:, [0, 3, 6]].eq(0.5).all()
    assert shown.get_cmap()(0.0)[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("log", [False, True])
def test_a_band_has_two_standard_errors_of_the_mean(log):
    _, (ax,) = plots.figure()
    runs = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    plots.band(ax, torch.arange(2), runs, log=log)
    middle = runs.double().log().mean(0).exp() if log else runs.double().mean(0)
    assert torch.allclose(torch.as_tensor(ax.lines[0].get_ydata()), middle)
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    if not log:
        assert edges.min() == pytest.approx(-1.0)  # 5 − 2·√18/√2
        assert edges.max() == pytest.approx(11.0)  # 5 + 2·√18/√2


@pytest.mark.parametrize("names", [list(RECIPES)[:2], list(RECIPES)], ids=["two", "all"])
def test_a_legend_and_a_title_hide_no_line_and_lie_in_the_figure(names):
    three = plots.objectives({name: describe(name) for name in names})
    picture = three[0].figure
    picture.draw_without_rendering()
    shown = [ax.get_legend() for ax in three if ax.get_legend()]
    assert sum(len(legend.get_texts()) for legend in shown) == len(names)
    for ax in three:
        title = ax._left_title.get_window_extent()
        assert title.x1 <= picture.bbox.x1
        assert title.y0 >= ax.bbox.y1
    for legend in shown:
        box = legend.get_window_extent()
        assert box.y1 < min(ax.bbox.y0 for ax in three)
        assert box.y0 >= picture.bbox.y0
        assert box.x1 <= picture.bbox.x1


def test_a_schedules_density_is_drawn_between_its_ends(tmp_path):
    left, right = plots.schedule({"cosine": Cosine(9.0, -7.0)})
    logsnr, density = (torch.as_tensor(v) for v in right.lines[0].get_data())
    assert (logsnr[0], logsnr[-1]) == (-7.0, 9.0)
    assert torch.trapezoid(density, logsnr).item() == pytest.approx(1.0, abs=1e-3)
    assert left.lines[0].get_ydata()[0] == pytest.approx(9.0)
    plots.save(tmp_path / "figure.png", [left, right])
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_equal_schedules_are_one_line_with_both_names():
    every = {"before": Linear(8.0, -8.0), "other": Cosine(), "after": Linear(8.0, -8.0)}
    left, _ = plots.schedule(every)
    assert [line.get_label() for line in left.lines] == ["before = after", "other"]
    assert left.get_title(loc="left") == "half of the draws of other have λ from -1.8 to 1.8"


def test_a_weight_does_not_depend_on_the_range_that_is_drawn():
    named = {"falling": InDI(), "peaked": EDM(), "flat": Sigmoid(2.0)}
    drawn = [plots.weighting(named, logsnr_max=end, logsnr_min=-end).lines for end in (6.0, 12.0)]
    for narrow, wide in zip(*drawn, strict=True):
        values = [
            dict(zip(*(v.round(6) for v in one.get_data()), strict=True)) for one in (narrow, wide)
        ]
        for level in (-6.0, -3.0, 0.0, 3.0):
            assert values[0][level] == pytest.approx(values[1][level])
        assert values[0][0.0] == pytest.approx(1.0)


def test_the_diffusion_term_stands_in_the_title():
    made = Profile(logsnr_max=4.0, logsnr_min=-4.0, bins=8)
    made.update(made.centers, torch.tensor([0.0] * 4 + [2.0] * 4, dtype=torch.float64))
    title = plots.error_by_logsnr({"x": made}, 2).get_title(loc="left").replace("\n", " ")
    assert title == "half of the diffusion term, 2 nats/dim, is at λ > 2.0"  # ½ · 4 · 2/2


def test_a_training_curve_has_the_errors_of_the_log():
    ax = plots.curves(HISTORY, ("histogram", 2.4))
    (bars,) = [one for one in ax.containers if one.has_yerr]
    segments = bars.lines[2][0].get_segments()
    assert [float(s[1][1] - s[0][1]) for s in segments] == pytest.approx([0.04] * 3)
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(2.5 + 0.2)
    title = ax.get_title(loc="left").replace("\n", " ")
    assert title == "lowest on the selection set, averaged weights: 0.833 at step 300"


def test_the_loss_of_a_run_without_a_decoder_is_drawn():
    history = [
        {"step": 1, "train_loss": 3.0, "selection_loss": 2.0, "selection_error": 0.1},
        {"step": 2, "train_loss": 2.0, "selection_loss": None, "selection_error": None},
    ]
    ax = plots.curves(history)
    train, selection = (one.lines[0].get_ydata().tolist() for one in ax.containers)
    assert (train, selection) == ([3.0, 2.0], [2.0])
    assert ax.get_ylabel() == "loss, nats over d ln 2"
    assert plots.curves([]).get_title(loc="left") == "nothing is logged yet"


def test_the_variance_of_each_schedule_has_its_ratio_in_the_legend():
    diagnosis = diagnose(profile(), Linear(5.0, -5.0))
    left, right = plots.variance({"linear": diagnosis})
    ratio = f"{diagnosis.variance / diagnosis.least:.3g}"
    assert left.get_legend().get_texts()[0].get_text() == f"linear: {ratio} × the least variance"
    drawn_best = torch.as_tensor(right.lines[-1].get_ydata())
    assert torch.equal(drawn_best.double(), diagnosis.best.double())


def test_a_moving_schedule_has_a_frame_for_each_step_and_time_to_be_seen(tmp_path):
    image = pytest.importorskip("PIL.Image")
    frames = [(0, Linear()), (10, Linear(9.0, -5.0))]
    plots.moving_schedule(tmp_path / "figure.gif", frames, best=Cosine())
    with image.open(tmp_path / "figure.gif") as gif:
        assert gif.n_frames == 2
        seconds = []
        for i in range(2):
            gif.seek(i)
            seconds.append(gif.info["duration"] / 1000)
    assert math.isclose(seconds[0], 2.5, abs_tol=0.1)
    assert seconds[1] >= 4.5


@pytest.mark.parametrize("kind", ["figure.png", "figure.gif"])
def test_a_figure_that_cannot_be_written_leaves_the_older_one(kind, tmp_path, monkeypatch):
    def full(picture, file, *_, **__):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    _, (ax,) = plots.figure()
    path, victim = tmp_path / kind, tmp_path / "victim"
    path.write_text("older")
    writer = "PIL.Image.Image.save" if kind.endswith("gif") else "matplotlib.figure.Figure.savefig"
    monkeypatch.setattr(writer, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_figure(path, ax)
    monkeypatch.undo()
    assert path.read_text() == "older"
    assert [*tmp_path.iterdir()] == [path]
    path.unlink()
    victim.write_text("precious")
    path.symlink_to(victim)
    write_figure(path, ax)
    assert not path.is_symlink()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("folder", ["examples", "benchmarks"])
def test_every_script_writes_its_figures_whole(folder):
    """By `plots.save`: matplotlib's own `savefig` leaves half a figure on a full disk."""
    scripts = [*(Path(__file__).parent.parent / folder).rglob("*.py")]
    assert len(scripts) > 5
    direct = [p.name for p in scripts if ".savefig(" in p.read_text(encoding="utf-8")]
    assert not direct


def write_figure(path, ax):
    if path.suffix == ".gif":
        plots.animation(path, ax, lambda frame: ax.set_title(f"frame {frame}"), 2)
    else:
        plots.save(path, ax)

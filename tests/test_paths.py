"""`path_gap`, and the bound along a path: what depends on it and what does not."""

import json
import math
from functools import partial

import pytest
import torch
from conditionals import Bent, Told, Tossed, exact_bound

from vdiff.decoder import Gaussian
from vdiff.likelihood import (
    NoiseNorm,
    VarianceReduction,
    evaluate,
    immse,
    ode_likelihood,
    path_gap,
    path_importance,
)
from vdiff.likelihood._controls import control_values
from vdiff.likelihood.chunks import StateMismatch
from vdiff.likelihood.integrand import Integrand
from vdiff.oracle import Gaussian as Gaussian3
from vdiff.profile import Profile
from vdiff.schedule import (
    Cosine,
    Custom,
    InTurn,
    Linear,
    MuLAN,
    MultivariateSpline,
    Path,
    PerDimension,
    Shifted,
)

HIGH, LOW = 8.0, -10.0
COVARIANCE = [[1.0, 0.8, 0.3], [0.8, 1.5, 0.5], [0.3, 0.5, 0.7]]
OTHER = [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.5]]
STRONG = [[1.0, 0.95, 0.9], [0.95, 1.0, 0.95], [0.9, 0.95, 1.0]]
EXACT = Told([1.0], [[0.0] * 3], [COVARIANCE])
WRONG = Told([1.0], [[0.0] * 3], [OTHER])
X = EXACT.sample(24, 0)
PATHS = [Linear(HIGH, LOW), Bent(HIGH, LOW, [0.9, -0.9, 0.3]), Bent(HIGH, LOW, [-0.9, 0.0, 0.9])]
SETTING = {"decoder": Gaussian(), "draws": 32, "plan": VarianceReduction(pilot=2048)}
pytestmark = pytest.mark.filterwarnings("ignore:(evaluate|compare|path_gap). .*draws?")


def diffusion(covariance, scale, path):
    """The diffusion term along a path of the linear denoiser x̂ = scale·Σ(Σ + e^{−λ})⁻¹ z/α on X,
    nats: e = e^{λ/2} (x̂ − x), whose square has a mean over ε in closed form."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    at = path.at(t, ndim=2)
    level, rate = (v.view(len(t), -1).expand(-1, 3) for v in at[:2])
    covariance = torch.tensor(covariance, dtype=torch.float64)
    noise = (-level).exp()
    gain = scale * covariance @ torch.linalg.inv(covariance + noise.diag_embed())
    left = (X @ (gain - torch.eye(3)).mT).square() * level.exp()[:, None]  # (t, images, 3)
    square = left.mean(1) + (gain.square() * noise[:, None]).sum(2) * level.exp()
    return 0.5 * (rate * square).sum(1).mean()


@pytest.mark.parametrize("model", [EXACT, WRONG], ids=["exact", "another Gaussian's"])
def test_the_denoiser_of_a_gaussian_has_no_gap(model):
    report = path_gap(model, X, paths=PATHS, **SETTING)
    assert len(report.gaps) == 2
    for gap in report.gaps:
        assert abs(gap.difference.value) < 4 * gap.difference.monte_carlo
        assert gap.difference.monte_carlo < 0.1


@pytest.mark.parametrize("scale", [0.7, 1.3])
def test_the_gap_of_a_wrong_denoiser_is_found(scale):
    """Wrong by its covariance and by a scale, in closed form."""
    bends = torch.tensor([0.95, -0.95, 0.3])
    paths = [Bent(4.0, LOW, -bends), Bent(4.0, LOW, bends)]
    (gap,) = path_gap(Told([1.0], [[0.0] * 3], [STRONG], scale), X, paths=paths, **SETTING).gaps
    first, second = (diffusion(STRONG, scale, path) for path in paths)
    known, e = (second - first).item() / (3 * math.log(2)), gap.difference
    assert abs(e.value - known) < 4 * e.monte_carlo
    assert abs(known) > 5 * e.monte_carlo


def test_a_gap_given_the_other_dimensions():
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    report = path_gap(EXACT, X, paths=PATHS[:2], mask=mask, **SETTING)
    (gap,) = report.gaps
    assert abs(gap.difference.value) < 4 * gap.difference.monte_carlo
    assert gap.protocol["modelled"]["dims"] == int(mask.sum())


def test_a_report_is_a_small_table_and_plain_data():
    paths = [*PATHS, Bent(HIGH, LOW, [0.1] * 60)]
    setting = SETTING | {"draws": 4, "plan": VarianceReduction.plain()}
    long = Bent(HIGH, LOW, [[0.1, 0.2, 0.3]] * 1)
    long.extra_repr = lambda: "bends=[" + "0.1, " * 40 + "]"
    report = path_gap(EXACT, X, paths=[*paths[:3], long], **setting)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split("  ")[0] for line in lines[:4]] == [
        "bits/dim", "path 1 − 0", "path 2 − 0", "path 3 − 0",
    ]  # fmt: skip
    assert report.paths[0] == repr(PATHS[0])
    known = json.loads(json.dumps(report.asdict(), allow_nan=False))
    assert known["gaps"][0]["difference"]["value"] == report.gaps[0].difference.value
    assert "bits/dim above Linear" in report._repr_html_()
    assert path_gap(EXACT, X, paths=paths[:2], **setting).gaps[0].difference == (
        report.gaps[0].difference
    )


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (PATHS[:1], "argument 'paths' must be two schedules or more; got 1"),
        (PATHS[0], "argument 'paths' must be a Sequence; got "),
        ([PATHS[0], 3], "argument 'paths' must be a Schedule; got "),
        ([PATHS[0], Linear(HIGH, LOW - 1)], "argument 'paths' must have the same ends; got Lin"),
        (
            [PATHS[1], Tossed(HIGH, LOW, [0.5] * 3)],
            "must not depend on the data; got Toss",
        ),
    ],
)
def test_paths_that_do_not_fit(paths, text):
    with pytest.raises((ValueError, TypeError), match=f"path_gap: .*{text}"):
        path_gap(EXACT, X, paths=paths, **SETTING)


def test_the_bound_of_the_exact_denoiser_is_the_same_along_every_path():
    law = EXACT.given(X[0], torch.ones(3) > 0, torch.ones(3) < 0)
    known = sum(exact_bound(law, x, HIGH, LOW) for x in X[:6]) / (6 * 3 * math.log(2))
    for path in (*PATHS[1:], Cosine(HIGH, LOW)):
        report = evaluate(EXACT, X[:6], schedule=path, **SETTING)
        assert abs(report.total.value - known) < 4 * report.total.monte_carlo
    report = evaluate(EXACT, X[:6], schedule=PATHS[1], **SETTING)
    assert report.protocol["schedule"] == repr(PATHS[1])
    assert "diffusion by log-SNR, the mean over dimensions\n" in str(report)
    assert report.diagnostics.curve.logsnr_max[-1] == HIGH


@pytest.mark.parametrize("steps", [None, 8])
def test_a_noise_that_depends_on_the_data_adds_what_its_latent_costs(steps):
    """The latent is drawn anew for each draw: the prior has a Monte Carlo error, which the total
    counts. Nothing depends on torch's own generator, nor on the batches."""
    x, schedule = X[:8], Tossed(HIGH, LOW, [0.9, -0.9, 0.3])
    setting = SETTING | {"steps": steps, "draws": 8, "replicates": 8}
    report = evaluate(EXACT, x, schedule=schedule, **setting)
    torch.manual_seed(1)
    again = evaluate(EXACT, x, schedule=schedule, **setting, batch=7)
    assert again.total.value == pytest.approx(report.total.value, rel=1e-12)
    prior, total = report.prior, report.total
    assert prior.monte_carlo > 0
    latent = Tossed.kl(x).mean().item() / (3 * math.log(2))
    assert abs(prior.value - latent) < 4 * prior.monte_carlo + 1e-4
    if steps is None:
        law = EXACT.given(x[0], torch.ones(3) > 0, torch.ones(3) < 0)
        known = sum(exact_bound(law, one, HIGH, LOW) for one in x) / (8 * 3 * math.log(2))
        assert abs(total.value - known - latent) < 4 * total.monte_carlo
    assert report.diagnostics.curve.logsnr_max.diff().min() > 0
    assert "mean over dimensions" in str(report)


def test_a_control_along_a_path_has_the_rate_of_each_dimension():
    """½ Σ rate (ε² − 1)."""
    rows, t = torch.tensor([1, 0]), torch.tensor([0.2, 0.7], dtype=torch.float64)
    eps, path = X[5:7], PATHS[1]
    integrand = Integrand(EXACT, X, path, Gaussian())
    found = control_values(integrand, (NoiseNorm(),), rows, t, eps)
    known = 0.5 * (path.at(t, ndim=2).rate * (eps.square() - 1)).sum(1)
    torch.testing.assert_close(found[:, 0], known)


def test_controls_along_a_path_reduce_the_variance():
    plan = VarianceReduction(pilot=4096, antithetic=False)
    every = evaluate(EXACT, X, schedule=PATHS[1], **SETTING | {"plan": plan})
    none = VarianceReduction(pilot=4096, antithetic=False, controls=())
    without = evaluate(EXACT, X, schedule=PATHS[1], **SETTING | {"plan": none})
    assert every.total.monte_carlo < 0.6 * without.total.monte_carlo


@pytest.mark.parametrize(
    "path",
    [
        InTurn(Linear(HIGH, LOW), 3),
        PerDimension([Linear(HIGH, LOW), Cosine(HIGH, LOW), Linear(HIGH, LOW)]),
        MultivariateSpline([3], HIGH, LOW, learn_ends=False),
    ],
    ids=lambda path: type(path).__name__,
)
def test_the_librarys_paths(path):
    """One after another, with rates of zero; each by a law of its own; learned."""
    law = EXACT.given(X[0], torch.ones(3) > 0, torch.ones(3) < 0)
    known = sum(exact_bound(law, x, HIGH, LOW) for x in X[:8]) / (8 * 3 * math.log(2))
    before = {name: v.clone() for name, v in path.state_dict().items()}
    report = evaluate(EXACT, X[:8], schedule=path, **SETTING)
    assert abs(report.total.value - known) < 4 * report.total.monte_carlo < 0.8
    assert all(torch.equal(v, before[name]) for name, v in path.state_dict().items())
    assert "path" in report.protocol


def test_a_learned_noise_of_each_image():
    encoder = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout())
    schedule = MuLAN(encoder, [3], HIGH, LOW, latents=4, learn_ends=False)
    report = evaluate(EXACT, X[:4], schedule=schedule, **SETTING)
    assert report.total == evaluate(EXACT, X[:4], schedule=schedule, **SETTING).total
    assert schedule.training
    assert encoder.training
    schedule.eval()
    prior = schedule.for_data(X[:4])[1].mean().item() / (3 * math.log(2))
    assert report.prior.value == pytest.approx(prior, abs=1e-3)


def test_a_schedule_that_does_not_fit_the_images():
    four = InTurn(Linear(HIGH, LOW), 4)
    with pytest.raises(ValueError, match="evaluate: argument 'schedule' must have a λ for each"):
        evaluate(EXACT, X, schedule=four, **SETTING)
    with pytest.raises(ValueError, match="path_gap: argument 'schedule' must have a λ for each"):
        path_gap(EXACT, X, paths=[PATHS[0], four], **SETTING)
    shifted = Shifted(Linear(HIGH, LOW), torch.linspace(0, 1, len(X)))
    with pytest.raises(ValueError, match="argument 'schedule' must be one for all images"):
        evaluate(EXACT, X, schedule=shifted, **SETTING)


def test_what_needs_one_level_for_all_dimensions_is_refused():
    profile = Profile(logsnr_max=HIGH, logsnr_min=LOW)
    with pytest.raises(ValueError, match="'profile' must be left out for a schedule over dim"):
        evaluate(EXACT, X, schedule=PATHS[1], **SETTING, profile=profile)
    with pytest.raises(ValueError, match="immse: argument 'schedule' must have one λ for all dim"):
        immse(EXACT, X, schedule=PATHS[1], gaussian=Gaussian3([0.0] * 3, COVARIANCE))
    along = VarianceReduction(importance=Cosine(HIGH, LOW))
    with pytest.raises(ValueError, match="'importance' must be left out for a path over dim"):
        evaluate(EXACT, X, schedule=PATHS[1], **SETTING | {"plan": along})


def powers(*p):
    p = torch.tensor(p)
    return Path(lambda t: HIGH + (LOW - HIGH) * t**p, shape=[3])


def learned(first):
    schedule = MultivariateSpline([3], HIGH, LOW, learn_ends=False)
    schedule.log_density.data[0, 0] = first
    return schedule


OTHERS = {
    "function": (powers(1.0, 1.0, 1.0), powers(1.0, 2.0, 3.0)),
    "fourth schedule": (
        PerDimension([Linear(HIGH, LOW)] * 4),
        PerDimension([*[Linear(HIGH, LOW)] * 3, Cosine(HIGH, LOW)]),
    ),
    "turns": (InTurn(Linear(HIGH, LOW), [0, 1, 2]), InTurn(Linear(HIGH, LOW), [2, 1, 0])),
    "weights": (learned(0.0), learned(2.0)),
    "scalar function": (
        Custom(lambda t: HIGH + (LOW - HIGH) * t),
        Custom(lambda t: HIGH + (LOW - HIGH) * t * (1 + t) / 2),
    ),
}


def bound(model, schedule, x, **options):
    return evaluate(model, x, schedule=schedule, decoder=Gaussian(), draws=4, **options)


def chain(model, schedule, x, **options):
    return bound(model, schedule, x, steps=4, **options)


def importance(model, schedule, x, **options):
    chain = {"steps": 4, "samples": 2, "decoder": Gaussian()}
    return path_importance(model, x, schedule=schedule, **chain, **options)


def flow(model, schedule, x, **options):
    return ode_likelihood(model, x, schedule=schedule, tolerance=1e-2, **options)


@pytest.mark.filterwarnings("ignore:ode_likelihood|half the tolerance")
@pytest.mark.parametrize("verb", [bound, chain, importance, flow])
@pytest.mark.parametrize("name", OTHERS)
def test_a_state_and_a_protocol_belong_to_one_path(name, verb):
    one, other = OTHERS[name]
    if name == "scalar function" and verb in (bound, flow):
        pytest.skip("the ends alone count")
    four = name == "fourth schedule"
    model, x = (Gaussian3([0.0] * 4, torch.eye(4).tolist()), torch.zeros(4, 4)) if four else (
        EXACT, X[:4]
    )  # fmt: skip
    states = []
    verb = partial(verb, model)
    first = verb(one, x, batch=8, checkpoint=states.append)
    again = verb(one, x, batch=8, resume=states[0])
    assert first.protocol["path"] == again.protocol["path"]
    assert first.protocol["path"] != verb(other, x, batch=8).protocol["path"]
    with pytest.raises(StateMismatch):
        verb(other, x, batch=8, resume=states[0])


def test_paths_of_the_same_words_have_names_of_their_own():
    one, other = OTHERS["turns"]
    assert repr(one) == repr(other)
    long = PerDimension([Linear(HIGH, LOW), Cosine(HIGH, LOW), Linear(HIGH, LOW)])
    gap = path_gap(EXACT, X[:4], paths=[one, other, long], decoder=Gaussian(), draws=4)
    assert len(set(gap.paths)) == 3
    assert all(path.startswith(repr(one)) for path in gap.paths[:2])
    assert gap.paths[2] == repr(long)
    text = str(gap)
    assert repr(long) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_path_importance_refuses_a_shift_for_each_image():
    chain = {"decoder": Gaussian(), "steps": 4, "samples": 2}
    shifted = Shifted(Linear(HIGH, LOW), torch.zeros(4))
    with pytest.raises(ValueError, match="'schedule' must be one for all images"):
        path_importance(EXACT, X[:4], schedule=shifted, **chain)

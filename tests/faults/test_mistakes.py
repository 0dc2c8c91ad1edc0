"""Mistakes that first users made, each of which once passed in silence or met an error that did
not help."""

import functools

import pytest
import torch
from registry import ORACLES
from torch import nn

from vdiff import Denoiser, elbo, sample, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.likelihood import evaluate
from vdiff.nn import MLP, UNet
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Parameterization, V
from vdiff.sampling import heun
from vdiff.schedule import Adaptive, Cosine, Karras, Linear, Schedule, Spline, Tabulated
from vdiff.weighting import MSE, MinSNR, Sigmoid, Weighting, loss_factor

from .common import assert_refused, assert_refused_with

ORACLE = ORACLES["plane"]()
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
network = MLP(2)


def test_a_table_that_is_loaded_brings_its_ends():
    other, table = Tabulated.cosine_betas(), Tabulated.linear_betas()
    other.load_state_dict(table.state_dict())
    assert (other.logsnr_max, other.logsnr_min) == (table.logsnr_max, table.logsnr_min)
    decoder = Categorical(17)
    model, pixels = Denoiser(lambda z, logsnr: 0 * z, Eps()), torch.randint(0, 17, (4, 3))
    t, eps = torch.rand(4), torch.randn(4, 3)
    bounds = [
        elbo(model, pixels, schedule=s, decoder=decoder, t=t, eps=eps).total
        for s in (other, table)
    ]
    assert torch.equal(*bounds)


def test_a_table_that_is_loaded_is_checked_again():
    table = Tabulated([3.0, 1.0, -1.0])
    weighted_elbo(ORACLE, X, schedule=table)
    table.load_state_dict({"table": torch.tensor([3.0, -1.0, -1.0], dtype=torch.float64)})
    with pytest.raises(ValueError, match="strictly decreasing"):
        weighted_elbo(ORACLE, X, schedule=table)


class Holder:
    def __init__(self):
        self.inner = MLP(2)

    def __call__(self, z, logsnr):
        return self.inner(z, logsnr)

    def method(self, z, logsnr):
        return self.inner(z, logsnr)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda z, t: network(z, t),
        functools.partial(network),
        functools.partial(lambda z, t: network(z, t)),
        Holder(),
        network.forward,
    ],
    ids=["global", "partial", "partial of a function", "attribute", "method"],
)
def test_a_function_that_hides_a_network_is_named(hidden):
    with pytest.warns(UserWarning, match="whose parameters are hidden from optimizers"):
        Denoiser(hidden, Eps())


def test_a_function_may_refer_to_what_is_not_set_yet():
    def function(z, t):
        return later * z

    model = Denoiser(function, Eps())
    later = 0.5
    assert model(X, torch.zeros(8)).eps.shape == X.shape


@pytest.mark.parametrize(
    ("options", "argument", "came"),
    [
        ({"time": "edm"}, "time", "str"),
        ({"time": torch.zeros(3)}, "time", "Tensor"),
        ({"time": None}, "time", "None"),
        ({"output": "sample"}, "output", "str"),
        ({"call": "timestep"}, "call", "str"),
        ({"call": nn.Linear}, "call", "the class Linear"),
    ],
)
def test_what_a_network_is_told_and_returns_are_functions(options, argument, came):
    with assert_refused(TypeError, "Denoiser", argument, "be a function", came):
        Denoiser(network, V(), **options)


def test_one_label_does_not_stand_for_all():
    model = Denoiser(UNet(channels=1, width=8, labels=3), V())
    x = torch.randn(4, 1, 8, 8)
    for labels in (torch.zeros(1, dtype=torch.long), torch.zeros(3, dtype=torch.long)):
        with assert_refused(
            ValueError, "Denoiser", "label", "have shape (batch,) = (4,)", f"({len(labels)},)"
        ):
            weighted_elbo(model, x, schedule=Cosine(), condition={"label": labels})
    assert weighted_elbo(
        model, x, schedule=Cosine(), condition={"label": torch.zeros(4, dtype=torch.long)}
    ).shape == (4,)


def test_a_network_without_labels_refuses_them():
    with assert_refused(ValueError, "UNet", "label", "be left out", "UNet(…, labels=n)"):
        weighted_elbo(
            Denoiser(UNet(channels=1, width=8), V()),
            torch.randn(2, 1, 8, 8),
            schedule=Cosine(),
            condition={"label": torch.zeros(2).long()},
        )


def test_a_factor_is_a_function_of_log_snr():
    factor = loss_factor(Sigmoid(2.0), Cosine(), V())
    with assert_refused(
        TypeError, "LossFactor", "logsnr", "be a floating tensor", "λ is schedule(t)"
    ):
        factor(torch.tensor([100, 500]))
    with assert_refused(TypeError, "LossFactor", "logsnr", "be a torch.Tensor", "float"):
        factor(0.5)


class Wrong(Schedule):
    def __init__(self, time=0.0, density=1.0):
        super().__init__(10.0, -10.0)
        self.time, self.factor = time, density

    def logsnr_at(self, t):
        return 10 - 20 * t

    def rate_at(self, t, logsnr):
        return torch.full_like(t, 20.0)

    def time_at(self, logsnr):
        return (10 - logsnr) / 20 + self.time

    def density_at(self, logsnr):
        return torch.full_like(logsnr, self.factor / 20)


def test_a_wrong_inverse_or_density_is_found():
    Wrong().check()
    with pytest.raises(ValueError, match="have time_at"):
        Wrong(time=1e-3).check()
    with pytest.raises(ValueError, match=r"have density_at.*p\(λ\) · rate = 1.1"):
        Wrong(density=1.1).check()


class Unborn(Linear):
    def __init__(self):
        nn.Module.__init__(self)


class UnbornWeighting(Weighting):
    def __init__(self):
        pass

    def weight_at(self, logsnr):
        return logsnr.exp()


def test_a_class_that_forgets_its_parent_is_told():
    with assert_refused_with(
        TypeError,
        "weighted_elbo: schedule must be initialised .. super().__init__(logsnr_max, logsnr_min)",
    ):
        weighted_elbo(ORACLE, X, schedule=Unborn())
    with assert_refused(
        TypeError, "weighted_elbo", "weighting", "be initialised", "super().__init__()"
    ):
        weighted_elbo(ORACLE, X, schedule=Cosine(), weighting=UnbornWeighting())


@pytest.mark.parametrize(
    ("weight", "came"), [(lambda v: -torch.sigmoid(2 - v), "-"), (lambda v: v.log(), "nan")]
)
def test_a_function_that_is_no_weight_is_refused(weight, came):
    with assert_refused(
        ValueError, "weighted_elbo", "weighting", "be finite and at least 0", came
    ):
        weighted_elbo(ORACLE, X, schedule=Cosine(), weighting=weight)


class Row(Parameterization):
    def __init__(self, *entries):
        self.entries = entries

    def row(self, logsnr):
        return tuple(e(logsnr) if callable(e) else e for e in self.entries)


@pytest.mark.parametrize(
    "row",
    [
        Row(lambda v: torch.sigmoid(v).sqrt(), lambda v: torch.sigmoid(-v).sqrt()),
        Row(0.0, 0.0),
        Row(lambda v: torch.full_like(v, torch.inf), 1.0),
    ],
    ids=["z itself", "nothing", "infinite"],
)
def test_a_row_that_says_nothing_is_refused(row):
    with assert_refused_with(
        ValueError,
        "Denoiser: parameterization must have a row that determines ε̂ "
        "from z and the output .. κ² from",
    ):
        Denoiser(network, row)


def test_a_product_is_the_same_in_any_order():
    base = MSE(Linear(), Eps())
    for product in (base * MinSNR(5.0), MinSNR(5.0) * base):
        assert product.monotone
        assert product.support() == base.support()


def test_noise_of_another_process_is_named():
    z = 80 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match=r"z has a root mean square of [78]\d.*noise is N\(0, I\) here"
    ):
        sample(ORACLE, z, schedule=Karras(), steps=3, step=heun)


def test_a_bare_network_is_recognised_by_its_error():
    with pytest.raises(RuntimeError) as caught:
        weighted_elbo(nn.Bilinear(2, 1, 2), X, schedule=Cosine())
    assert "If it is a bare network, wrap it" in caught.value.__notes__[0]

    def broken(z, logsnr):
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        weighted_elbo(Denoiser(broken, Eps()), X, schedule=Cosine())
    assert "bare network" not in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "data",
    [[torch.zeros(2, 2)], torch.utils.data.DataLoader([torch.zeros(2)])],
    ids=["list", "loader"],
)
def test_data_is_one_tensor(data):
    with assert_refused(
        TypeError, "evaluate", "data", "be a torch.Tensor", "one tensor of all examples"
    ):
        evaluate(ORACLE, data, schedule=Cosine(), decoder=Categorical(17))


def test_a_model_worse_than_none_is_named():
    model = Denoiser(lambda z, logsnr: 0 * z, Eps())
    with pytest.warns(UserWarning, match="more than uniform noise over 17 levels has, 4.087"):
        evaluate(
            model,
            torch.randint(0, 17, (8, 3)),
            schedule=Linear(),
            decoder=Categorical(17),
            draws=8,
        )


@pytest.mark.parametrize(
    "make",
    [lambda: Adaptive(10.0, -10.0), lambda: Spline(10.0, -10.0, learn_ends=False)],
    ids=["adaptive", "spline"],
)
def test_a_schedule_that_is_never_updated_says_so(make, monkeypatch):
    monkeypatch.setattr("vdiff.schedule.base.UNREAD", 3)
    schedule = make()
    for _ in range(2):
        weighted_elbo(ORACLE, X, schedule=schedule)
    schedule.update()
    for _ in range(2):
        weighted_elbo(ORACLE, X, schedule=schedule)
    with pytest.warns(UserWarning, match="call update"):
        weighted_elbo(ORACLE, X, schedule=schedule)
    weighted_elbo(ORACLE, X, schedule=schedule)  # once


def test_a_covariance_is_symmetric():
    with assert_refused(
        ValueError, "GaussianMixture", "covariances", "be symmetric", "of a factor L it is L @ L.T"
    ):
        GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.9], [0.0, 1.0]]])

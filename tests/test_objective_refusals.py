"""What an objective refuses: losses that do not go together, and what the loss itself refuses."""

import warnings

import pytest
import torch
from chains import DECODER, LEVELS, NOISE, STEPS, TABLE, Heads, Told, chain

from vdiff import Denoiser, Objective, hybrid_loss
from vdiff.chain import vlb
from vdiff.decoder import Categorical, Levels
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.objective import VLB, Hybrid, Weighted
from vdiff.parameterization import Eps, V
from vdiff.resampling import LossSecondMoment
from vdiff.schedule import Adaptive, Cosine, LearnedLinear, Monotone, Tabulated
from vdiff.variance import LearnedRange


@pytest.mark.parametrize(("build", "message"), [
    (lambda: chain(bound_weight=-1.0), "'bound_weight' must be finite and at least 0"),
    (lambda: chain(resampling=LossSecondMoment(STEPS)),
    (
        f"'resampling' must have as many steps as the bound has terms, with the decoder's, "
        f"{STEPS + 1}; got {STEPS}"
    )),
])  # fmt: skip
def test_losses_that_do_not_go_together(build, message):
    with pytest.raises(ValueError, match=r"(Hybrid|VLB): argument " + message):
        build()


def test_one_term_is_refused_where_another_loss_is_meant():
    model = Denoiser(Heads(), Eps(), variance=LearnedRange())
    with pytest.raises(
        ValueError, match=r"vlb: argument 'decoder' must use the network; got .*elbo takes it"
    ):
        vlb(model, LEVELS, schedule=TABLE, steps=STEPS, decoder=Categorical(17))
    with pytest.raises(
        ValueError,
        match=(
            r"vlb: argument 'schedule' must have fixed ends; got "
            r".*elbo\(…, steps=T\) trains them"
        ),
    ):
        vlb(model, LEVELS, schedule=LearnedLinear(), steps=STEPS, decoder=DECODER)
    with pytest.raises(
        ValueError,
        match=(
            r"hybrid_loss: argument 'model' must learn its reverse variance; .* bound_weight=0 is "
            r"the simple loss"
        ),
    ):
        hybrid_loss(
            Denoiser(Heads(1), Eps()), LEVELS, schedule=TABLE, steps=STEPS, decoder=DECODER
        )


NO_SIGNAL = Tabulated([3.0, 1.0, 0.0, -2.0, -float("inf")])
DRAWN = {"decoder": DECODER, "steps": STEPS, "resampling": LossSecondMoment(STEPS + 1)}
REFUSED = {  # learned heads, schedule, loss, arguments, message
    "a squared error and a variance": (
        2,
        Cosine(),
        Weighted(),
        {},
        "'model' must have no learned",
    ),
    "its chain": (2, Cosine(), Weighted(steps=5), {}, "'model' must have no learned"),
    "a variance in time": (
        2,
        Cosine(),
        VLB(GaussianDecoder()),
        {},
        "'model' must have no learned",
    ),
    "a bound without a variance": (1, TABLE, Hybrid(STEPS), {}, "'model' must learn its reverse"),
    "a shape": (2, Monotone(learn_ends=False), Hybrid(5), {}, "'schedule' must have a fixed"),
    "ends": (1, LearnedLinear(), VLB(**DRAWN), {}, "'schedule' must have a? ?fixed"),
    "a weight at pure noise": (1, NO_SIGNAL, Weighted(steps=4), {}, "'weighting' must be finite"),
    "times before the data": (
        1,
        TABLE,
        Weighted(steps=STEPS),
        {"t": 0.01},
        "'t' must be at least",
    ),
    "t = 0": (1, Cosine(), VLB(GaussianDecoder(), steps=4), {"t": 0.0}, "'t' must be at least"),
    "numbers above 1": (1, Cosine(), Weighted(), {"u": 1.3}, r"'u' must lie within \[0, 1\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_function_refuses_its_objective_refuses(name):
    heads, schedule, loss, given, message = REFUSED[name]
    model = Denoiser(Heads(heads), Eps(), **({"variance": LearnedRange()} if heads == 2 else {}))
    data = LEVELS if isinstance(loss.decoder, Levels) else NOISE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = Objective(model, schedule=schedule, loss=loss)
        with pytest.raises(ValueError, match=f"Objective: argument {message}"):
            objective(data, **{word: torch.full((len(data),), v) for word, v in given.items()})


def test_a_schedule_that_learns_from_losses_refuses_independent_times():
    model = Denoiser(Told(), V(), field=True)
    objective = Objective(model, schedule=Adaptive(9, -9), loss=Weighted(independent=(1,)))
    with pytest.raises(ValueError, match="be one time per example for a schedule that learns"):
        objective(torch.randn(4, 3))

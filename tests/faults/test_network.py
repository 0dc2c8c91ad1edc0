"""Faults 26 to 32: what a network returns, and what it is given. (In 28 the policy is the training
loop's.)"""

import warnings
from dataclasses import dataclass

import pytest
import torch
from registry import TARGETS
from torch import Tensor, nn

from vdiff import Denoiser, Objective, elbo, recipe, weighted_elbo
from vdiff.decoder import Categorical, Gaussian
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep, edm_time, flow_time, sigma_time
from vdiff.gaussian import alpha, sigma
from vdiff.objective import VLB
from vdiff.parameterization import Eps, V
from vdiff.schedule import Cosine, Linear, Tabulated
from vdiff.variance import LearnedRange
from vdiff.weighting import Sigmoid

from .common import SCHEDULE, Net, assert_refused, assert_refused_with, assert_same, batch, model


def loss_of(network: object, x: Tensor | None = None, **options: object) -> Tensor:
    return weighted_elbo(
        Denoiser(network, V()), batch()[0] if x is None else x, schedule=SCHEDULE, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "came", "hint"),
    [
        (
            lambda z, t: torch.cat([z, z], 1),
            "(4, 6, 2)",
            (
                "(twice the channels, as with a learned variance: Denoiser(…, "
                "variance=LearnedRange()), or keep the first half, out.chunk(2, 1)[0])"
            ),
        ),
        (lambda z, t: z[:, :1], "(4, 1, 2)", "(it would broadcast in silence)"),
        (lambda z, t: z[:1], "(1, 3, 2)", "(it would broadcast in silence)"),
        (lambda z, t: z[:, 0], "(4, 2)", "(it would broadcast in silence)"),
        (lambda z, t: z.mean(), "()", "(it would broadcast in silence)"),
        (lambda z, t: z.mT, "(4, 2, 3)", ""),
        (lambda z, t: z[..., None], "(4, 3, 2, 1)", ""),
    ],
    ids=["2C", "channel", "batch", "missing dim", "scalar", "transposed", "extra dim"],
)
def test_fault_26_output_of_another_shape(network: object, came: str, hint: str) -> None:
    x = torch.zeros(4, 3, 2)
    with assert_refused(
        ValueError,
        "Denoiser",
        "network",
        "return the shape of z, (4, 3, 2)",
        f"got {came}" + (f" {hint}" if hint else ""),
    ):
        loss_of(network, x)
    with assert_refused(
        ValueError, "Denoiser", "network", "return the shape of z, (4, 3, 2)", f"got {came}"
    ):
        elbo(Denoiser(network, V()), x, schedule=SCHEDULE, decoder=Gaussian())  # type: ignore[arg-type]


@dataclass
class Output:
    sample: Tensor


@pytest.mark.parametrize(
    ("wrap", "came", "take"),
    [
        (lambda z: (z,), "tuple", "[0]"),
        (lambda z: [z], "list", "[0]"),
        (lambda z: {"out": z}, "dict", "['out']"),
        (Output, "Output", ".sample"),
    ],
    ids=["tuple", "list", "dict", "dataclass"],
)
def test_fault_27_output_in_a_wrapper(wrap: object, came: str, take: str) -> None:
    hint = f"got {came} (take the tensor out: Denoiser(network, …, output=lambda out: out{take}))"
    with assert_refused(TypeError, "Denoiser", "network", "return a tensor", hint):
        loss_of(lambda z, t: wrap(z))  # type: ignore[operator]
    x, t, eps = batch()
    adapted = {
        "[0]": lambda z, t, **c: wrap(z)[0],
        "['out']": lambda z, t, **c: wrap(z)["out"],
        ".sample": lambda z, t, **c: wrap(z).sample,
    }[take]  # type: ignore[operator]
    assert torch.equal(loss_of(adapted, x, t=t, eps=eps), loss_of(lambda z, t: z, x, t=t, eps=eps))


def test_fault_27_a_network_without_what_it_predicts() -> None:
    x = batch()[0]
    with assert_refused_with(
        TypeError,
        "weighted_elbo: model must return a Prediction .. got Tensor (wrap the network, which "
        "says what it predicts: Denoiser(network, V()))",
    ):
        weighted_elbo(Net(), x, schedule=SCHEDULE)
    with assert_refused_with(
        TypeError,
        "Denoiser: parameterization must be a Parameterization .. got the class V (an instance",
    ):
        Denoiser(Net(), V)  # type: ignore[arg-type]
    with assert_refused_with(
        TypeError,
        "Denoiser: parameterization must be a Parameterization .. got 'v' "
        "(an instance, for instance V())",
    ):
        Denoiser(Net(), "v")  # type: ignore[arg-type]
    with assert_refused_with(
        TypeError,
        "Denoiser: network must be called as network(z, time) .. got the class Net (an instance)",
    ):
        Denoiser(Net, V())
    with assert_refused(
        TypeError, "Denoiser", "network", "be called as network(z, time)", "got 3"
    ):
        Denoiser(3, V())  # type: ignore[arg-type]
    for wrong in (None, Denoiser):
        with assert_refused_with(
            TypeError,
            "weighted_elbo: model must be called as model(z, logsnr) and return a Prediction "
            ".. for instance Denoiser(network, V())",
        ):
            weighted_elbo(wrong, x, schedule=SCHEDULE)  # type: ignore[arg-type]


def test_fault_28_a_network_that_returns_nan_spoils_its_own_examples_alone() -> None:
    x, t, eps = batch()

    def broken(z: Tensor, time: Tensor) -> Tensor:
        return torch.where((torch.arange(4) == 2)[:, None], torch.nan, z)

    loss, clean = loss_of(broken, x, t=t, eps=eps), loss_of(lambda z, time: z, x, t=t, eps=eps)
    assert loss.isnan().tolist() == [False, False, True, False]
    assert torch.equal(loss[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_fault_28_output_that_is_not_real(dtype: torch.dtype) -> None:
    with assert_refused(
        TypeError, "Denoiser", "network", "return real floating values", str(dtype)
    ):
        loss_of(lambda z, t: z.to(dtype))


def test_fault_28_output_on_another_device() -> None:
    with assert_refused_with(
        ValueError,
        "Denoiser: network must return its output on the device of z, cpu .. "
        "got meta (network.to(z.device))",
    ):
        loss_of(lambda z, t: z.to("meta"))


def test_fault_29_a_network_that_ignores_the_noise_level() -> None:
    """½ w (−λ') ‖ε − ½z‖², by hand."""
    x, t, eps = batch(dtype=torch.float64)
    loss = weighted_elbo(
        Denoiser(lambda z, _: 0.5 * z, Eps()),
        x,
        schedule=SCHEDULE,
        weighting=Sigmoid(1.0),
        t=t,
        eps=eps,
    )
    logsnr = SCHEDULE(t)
    z = alpha(logsnr)[:, None] * x + sigma(logsnr)[:, None] * eps
    assert_same(
        loss,
        0.5 * torch.sigmoid(1 - logsnr) * SCHEDULE.rate(t) * (eps - 0.5 * z).square().sum(1),
        rtol=1e-12,
    )


def test_fault_30_eval_and_no_grad_are_every_validation_curve() -> None:
    x, t, eps = batch()
    net = model(dropout=0.5)
    reference = weighted_elbo(model(), x, schedule=SCHEDULE, t=t, eps=eps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.eval()
        for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
            with context:
                assert torch.equal(
                    weighted_elbo(net, x, schedule=SCHEDULE, t=t, eps=eps), reference
                )
                bound = elbo(
                    net,
                    torch.zeros(4, 2, dtype=torch.long),
                    schedule=SCHEDULE,
                    decoder=Categorical(17),
                    t=t,
                    eps=eps,
                )
        assert bound.total.requires_grad
        with torch.no_grad():
            assert not weighted_elbo(net, x, schedule=SCHEDULE).requires_grad
    assert caught == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fault_31_output_of_another_dtype(dtype: torch.dtype) -> None:
    x, t, eps = batch()
    for row in TARGETS.values():
        loss = weighted_elbo(
            Denoiser(lambda z, time: z.tanh().to(dtype), row), x, schedule=SCHEDULE, t=t, eps=eps
        )
        rounded = weighted_elbo(
            Denoiser(lambda z, time: z.tanh().to(dtype).float(), row),
            x,
            schedule=SCHEDULE,
            t=t,
            eps=eps,
        )
        assert loss.dtype == torch.float32
        assert torch.equal(loss, rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fault_31_a_network_in_half_precision_is_told_the_time_in_float32(
    dtype: torch.dtype,
) -> None:
    x, t, eps = batch()
    for time in (edm_time, flow_time, sigma_time, ScaledGamma(), ScheduleTime(Cosine())):
        net = Net().to(dtype)
        loss = weighted_elbo(Denoiser(net, V(), time=time), x, schedule=SCHEDULE, t=t, eps=eps)
        assert (net.told, loss.dtype) == (torch.float32, torch.float32)
        assert_same(
            loss,
            weighted_elbo(Denoiser(Net(), V(), time=time), x, schedule=SCHEDULE, t=t, eps=eps),
            rtol=0.1,
        )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("edn", "edm"),
        ("flow-matchin", "flow-matching"),
        ("vprediction", "v-prediction"),
        ("minsnr", "min-snr"),
        ("ddmp", "ddpm"),
    ],
)
def test_fault_32_a_misspelt_recipe(word: str, meant: str) -> None:
    with assert_refused(
        ValueError,
        "recipe",
        "name",
        "be one of ddpm, ",
        "indi",
        f"got '{word}' (did you mean '{meant}'?)",
    ):
        recipe(word)


def test_fault_32_a_recipe_like_no_other() -> None:
    with pytest.raises(ValueError, match=r"got 'wholly different'$"):
        recipe("wholly different")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("weightning", "weighting"),
        ("shedule", "schedule"),
        ("step", "steps"),
        ("generater", "generator"),
        ("Weighting", "weighting"),
    ],
)
def test_fault_32_a_misspelt_keyword_is_no_condition(word: str, meant: str) -> None:
    x = batch()[0]
    for call in (
        lambda **k: weighted_elbo(model(), x, schedule=SCHEDULE, **k),
        lambda **k: elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), **k),
    ):
        with pytest.raises(
            TypeError,
            match=(
                rf"^(weighted_elbo|elbo): argument '{word}' is unknown; did you mean "
                rf"'{meant}'\?|the bound's weighting is ELBO"
            ),
        ):
            call(**{word: 1})


def test_fault_32_a_keyword_of_the_other_verb() -> None:
    x = batch()[0]
    with pytest.raises(
        TypeError, match=r"^weighted_elbo: argument 'decoder' is unknown; elbo takes a decoder"
    ):
        weighted_elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian())
    with pytest.raises(
        TypeError,
        match=(
            r"^elbo: argument 'weighting' is unknown; the bound's weighting is ELBO\(\); "
            r"weighted_elbo takes another"
        ),
    ):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), weighting=Sigmoid())
    with pytest.raises(TypeError, match=r"'draws' is unknown; elbo\(…, draws=\) averages"):
        weighted_elbo(model(), x, schedule=SCHEDULE, draws=3)
    for decoder in (Categorical, "categorical"):
        for name, call in (
            ("elbo", lambda d: elbo(model(), x, schedule=SCHEDULE, decoder=d)),
            ("VLB", VLB),
        ):
            with assert_refused(
                TypeError,
                name,
                "decoder",
                "be a Decoder",
                "for instance Categorical(levels=256), or Gaussian() for continuous data",
            ):
                call(decoder)
    with assert_refused_with(
        ValueError,
        "Objective.bound: decoder must be given to the loss .. got None (a "
        "weighted loss has no reconstruction term)",
    ):
        Objective(model(), schedule=SCHEDULE).bound(x)


def test_fault_32_conditions_reach_the_network() -> None:
    def network(z: Tensor, time: Tensor, label: Tensor, guidance: float = 0.0) -> Tensor:
        return z * label[:, None] + guidance

    x, t, eps = batch()
    label = torch.tensor([0.0, 1.0, 2.0, 3.0])
    loss = loss_of(network, x, t=t, eps=eps, condition={"label": label, "guidance": 0.3})
    assert_same(loss, loss_of(lambda z, time: z * label[:, None] + 0.3, x, t=t, eps=eps))
    with pytest.raises(TypeError, match="unexpected keyword argument 'lebel'"):
        loss_of(network, x, condition={"lebel": label})


def test_fault_29_steps_of_what_is_no_table() -> None:
    with assert_refused_with(
        TypeError,
        "TableStep: schedule must be a Tabulated; got Linear( .. ScheduleTime takes any schedule",
    ):
        TableStep(Linear())  # type: ignore[arg-type]
    with assert_refused(
        TypeError, "TableStep", "schedule", "be a Tabulated; got the class Tabulated"
    ):
        TableStep(Tabulated)  # type: ignore[arg-type]
    with assert_refused_with(
        TypeError,
        "Denoiser: variance must be a ReverseVariance; got the class "
        "LearnedRange .. an instance: LearnedRange()",
    ):
        Denoiser(nn.Identity(), Eps(), variance=LearnedRange)  # type: ignore[arg-type]

"""What an evaluation says beside its number: where the bits lie, from what it can be computed
again, and how it leaves the machine."""

import math
import subprocess
import sys

import pytest
import torch
from registry import ORACLES

from vdiff import Denoiser
from vdiff.decoder import Categorical
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood import (
    Plan,
    Uniform,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    ode_likelihood,
)
from vdiff.oracle import Gaussian
from vdiff.parameterization import Eps
from vdiff.schedule import Linear

NARROW, WIDE = Gaussian([0.0], [0.25]), Gaussian([0.0], [0.36])
X = NARROW.sample(100, torch.Generator().manual_seed(0))
SETTING = {"schedule": Linear(9.0, -7.0), "decoder": GaussianDecoder()}
PLANS = {
    "all": Plan(),
    "no baseline": Plan(baseline=False),
    "uniform": Plan(importance=False),
    "baseline alone": Plan(controls=()),
}


def exact(model: Gaussian, cells: int = 8) -> torch.Tensor:
    """½ ∫ E[‖e‖² | x] dλ by parts of the range, in bits, averaged over X: e = ε − σ (z/(α² s² +
    σ²)) for data N(0, s²)."""
    lam = torch.linspace(-7, 9, 1000 * cells + 1, dtype=torch.float64)
    s = torch.sigmoid(lam + model.variances.log().item())
    error = s**2 + s * (1 - s) * (X**2).mean() / model.variances.item()
    parts = [
        torch.trapezoid(error[i * 1000 : (i + 1) * 1000 + 1], lam[i * 1000 : (i + 1) * 1000 + 1])
        for i in range(cells)
    ]
    return 0.5 * torch.stack(parts) / math.log(2)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_each_part_of_the_range_has_its_own_bits(plan):
    curve = evaluate(NARROW, X, draws=64, plan=plan, **SETTING).diagnostics.curve
    assert curve.value.view(8, -1).sum(1) == pytest.approx(exact(NARROW), rel=0.03, abs=2e-3)


def test_each_part_of_the_range_has_its_own_difference():
    curve = compare(WIDE, NARROW, X, draws=64, **SETTING).curve
    assert curve.value.view(8, -1).sum(1) == pytest.approx(exact(WIDE) - exact(NARROW), abs=1e-3)


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_a_number_is_computed_again_from_its_protocol(tolerance):
    mixture = ORACLES["mixture"]()
    first = evaluate(mixture, X, tolerance=tolerance, seed=3, **SETTING)
    said = first.protocol
    asked = said["asked for"]
    plan = Plan(
        antithetic=asked["antithetic"],
        pilot=asked["pilot"],
        baseline=said["baseline"],
        importance=said["importance"],
    )
    effort = {
        "draws": asked["draws"],
        "replicates": asked["replicates"],
        "budget": asked["budget"],
    }
    again = evaluate(
        mixture,
        X,
        tolerance=said["tolerance"],
        seed=said["seed"],
        plan=plan,
        batch=said["batch"],
        **effort,
        **SETTING,
    )
    assert again.total == first.total
    assert said["model"] == again.protocol["model"]
    assert said["model"] != evaluate(NARROW, X, **SETTING).protocol["model"]


def test_a_state_of_another_model_is_refused():
    kept = []
    whole = evaluate(NARROW, X, checkpoint=kept.append, **SETTING)
    assert evaluate(NARROW, X, resume=kept[-1], **SETTING).total == whole.total
    with pytest.raises(ValueError, match="be the state of this evaluation"):
        evaluate(WIDE, X, resume=kept[-1], **SETTING)
    kept = []
    ode_likelihood(NARROW, X[:3], schedule=SETTING["schedule"], checkpoint=kept.append)
    with pytest.raises(ValueError, match="be the state of this evaluation"):
        ode_likelihood(WIDE, X[:3], schedule=SETTING["schedule"], resume=kept[-1])


def test_states_are_snapshots():
    kept = []
    evaluate(NARROW, X, draws=8, batch=160, checkpoint=kept.append, **SETTING)
    assert [int(state["count"].sum()) for state in kept] == [
        80,
        160,
        240,
        320,
        400,
    ]  # 20 images and 4 replicates at a time


def test_a_law_of_other_dimensions_does_not_broadcast():
    plane = Gaussian([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(
        ValueError,
        match="ode_likelihood: argument 'prior' must have the 1 dimensions of an example; got 2",
    ):
        ode_likelihood(NARROW, X, schedule=SETTING["schedule"], prior=plane)
    with pytest.raises(
        ValueError,
        match="immse: argument 'gaussian' must have the 1 dimensions of an example; got 2",
    ):
        immse(NARROW, X, schedule=SETTING["schedule"], gaussian=plane)
    levels, data = Categorical(2), torch.zeros(3, 1).long()
    noise = {"dequantization": Uniform(levels), "schedule": Linear(4.0, -8.0)}
    with pytest.raises(ValueError, match="dequantized_ode: argument 'prior' must have the 1 dim"):
        dequantized_ode(NARROW, data, prior=plane, **noise)


def test_an_image_keeps_its_number_where_others_are_left_out():
    data = X[:10].clone()
    data[2], data[7] = math.nan, 0.123

    def network(z, logsnr):  # at the clean end z says which image it is
        return torch.where((z - 0.123).abs() < 0.02, math.nan, 0.0) + 0 * z

    with pytest.raises(ValueError, match=r"NaN or infinity on image 7 at λ"):
        evaluate(Denoiser(network, Eps()), data, skip_nonfinite=True, **SETTING)


def test_a_first_stage_beyond_the_budget_draws_nothing():
    told = []
    with pytest.raises(
        ValueError, match="its first stage takes 12,800 alone; fewer draws or replicates"
    ):
        evaluate(
            NARROW,
            X,
            budget=100,
            tolerance=0.01,
            draws=32,
            progress=lambda *done: told.append(done),
            **SETTING,
        )
    assert told == []


def test_more_processes_than_images():
    from vdiff.likelihood.pieces import Share

    alone = evaluate(NARROW, X[:1], **SETTING)
    said: list[torch.Tensor] = []
    evaluate(NARROW, X[:1], share=Share(0, 2, lambda v: said.append(v.clone()) or v), **SETTING)
    others = iter(said)
    both = evaluate(
        NARROW, X[:1], share=Share(1, 2, lambda v: v + next(others)), **SETTING
    )  # it has no image of its own
    assert both.total == alone.total


ROUNDING = """
import torch
b = torch.backends
{setting}
parts = [b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn]
parts += [b.mkldnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn]
before = [p.fp32_precision for p in parts]
from vdiff.schedule import Linear
from vdiff.decoder import Gaussian as Decoder
from vdiff.likelihood import evaluate
from vdiff.oracle import Gaussian
inside = []
class Told(Gaussian):
    def forward(self, z, logsnr):
        inside.append({{p.fp32_precision for p in parts}})
        return super().forward(z, logsnr)
evaluate(Told([0.0], [1.0]), torch.zeros(2, 1), schedule=Linear(), decoder=Decoder(), draws=2)
assert inside and all(one == {{"ieee"}} for one in inside), inside
assert [p.fp32_precision for p in parts] == before
{after}
"""


@pytest.mark.parametrize(
    ("setting", "after"),
    [
        ("b.fp32_precision = 'tf32'", ""),
        (
            "torch.set_float32_matmul_precision('medium')",
            "assert torch.get_float32_matmul_precision() == 'medium'",
        ),
    ],
    ids=["new", "old"],
)
def test_float32_is_whole_meanwhile_and_as_it_was_afterwards(setting, after):
    run = subprocess.run(
        [sys.executable, "-c", ROUNDING.format(setting=setting, after=after)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr

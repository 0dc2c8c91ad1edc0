"""The loop over a grid: what it counts, hands to a step, yields, and leaves as it was."""

import pytest
import torch
from mixtures import EVERY, MIXTURE, PLANE, noise

from vdiff import Denoiser, sample, trajectory
from vdiff.parameterization import V
from vdiff.sampling import (
    Clipped,
    Counted,
    adams_bashforth,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    invert,
    trailing,
    uniform,
)
from vdiff.schedule import Cosine, Karras, Linear


@pytest.mark.parametrize(
    ("step", "evaluations"),
    [(ancestral, 18), (ddim, 18), (dpmpp_2m, 18), (adams_bashforth, 18), (heun, 35)],
)
def test_steps_lead_through_one_more_level_and_evaluations_are_counted_apart(step, evaluations):
    model = Counted(PLANE)
    visited = list(trajectory(model, noise(dims=2), schedule=Karras(), steps=17, step=step))
    assert (len(visited), model.evaluations) == (18, evaluations)
    assert [p.logsnr[0].item() for _, p in visited] == pytest.approx(
        uniform(Karras(), 17).tolist()
    )


def test_one_level_is_the_mean_of_the_data():
    one = sample(PLANE, noise(dims=2), levels=trailing(Linear(10.0, -20.0), 1))
    torch.testing.assert_close(
        one, (PLANE.weights @ PLANE.means).expand(64, 2), rtol=0.0, atol=5e-4
    )


def test_the_past_is_handed_to_a_step_newest_last():
    handed = []

    def step(model, z, logsnr_t, logsnr_s, history):
        handed.append([p.logsnr[0].item() for p in history.predictions])
        return ddim(model, z, logsnr_t, logsnr_s)

    sample(PLANE, noise(dims=2), schedule=Linear(10.0, -10.0), steps=6, step=step)
    levels = uniform(Linear(10.0, -10.0), 6).tolist()
    assert handed == [levels[max(0, i - 4) : i] for i in range(6)]


def test_a_half_precision_start_is_sampled_in_float32():
    made = sample(PLANE, noise(dims=2).to(torch.bfloat16), schedule=Linear(), steps=3, step=ddim)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("step", EVERY.values(), ids=EVERY)
def test_what_a_trajectory_yields_can_be_changed(step):
    """Neither the next steps nor the user's own noise see it."""

    class Kept(torch.nn.Module):
        def forward(self, z, logsnr):
            self.last = PLANE(z, logsnr)
            return self.last

    model, z = Kept(), noise(dims=2)
    options = {"schedule": Cosine(9.0, -9.0), "steps": 5, "step": step}
    wanted = sample(PLANE, z, generator=torch.Generator().manual_seed(1), **options)
    for state, prediction in trajectory(
        model, z, generator=torch.Generator().manual_seed(1), **options
    ):
        made = prediction.x.clone()
        for tensor in (state, prediction.z, prediction.output, prediction.logsnr):
            tensor.zero_()
        assert model.last.output.abs().min() > 0
    assert torch.equal(z, noise(dims=2))
    path = trajectory(PLANE, z, generator=torch.Generator().manual_seed(1), **options)
    z.zero_()
    *_, (_, last) = path
    assert torch.equal(last.x, wanted)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, Counted, Clipped, lambda model: Clipped(Counted(model))]
)
def test_a_model_is_in_evaluation_mode_meanwhile(wrap):
    """As in an evaluation: dropout is off, and on again afterwards, also between the levels of a
    trajectory."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5)).double()

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, z, time):
            return self.network(z)

    model = wrap(Denoiser(Told(), V()))
    z, options = noise(dims=2), {"schedule": Linear(9.0, -9.0), "steps": 3, "step": heun}
    network.eval()
    wanted, back = sample(model, z, **options), invert(model, z, schedule=Linear(9.0, -9.0))
    network.train()
    for _ in range(2):
        assert torch.equal(sample(model, z, **options), wanted)
    assert torch.equal(invert(model, z, schedule=Linear(9.0, -9.0)), back)
    for _ in trajectory(model, z, **options):
        assert network[1].training
    assert all(module.training for module in network.modules())


def test_a_sample_is_the_estimate_at_the_end_of_the_trajectory():
    z = noise()
    options = {"schedule": Linear(13.3, -5.0), "steps": 19}
    *_, (_, last) = trajectory(MIXTURE, z, generator=torch.Generator().manual_seed(1), **options)
    assert torch.equal(
        sample(MIXTURE, z, generator=torch.Generator().manual_seed(1), **options), last.x
    )

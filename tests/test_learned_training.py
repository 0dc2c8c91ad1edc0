"""Learned schedules under real training: AdamW with weight decay on everything else, autocast,
many steps."""

import pytest
import torch

from vdiff import Denoiser, Objective
from vdiff.groups import parameter_groups
from vdiff.nn import MLP
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps
from vdiff.schedule import Adaptive, Monotone, Schedule, Spline
from vdiff.times import generator_of, offset_of, stratified

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [[0.01, 0.02], [0.02, 0.01]])
SCHEDULES = {
    "monotone": lambda: Monotone(13.3, -5.0, learn_ends=False),
    "spline": lambda: Spline(13.3, -5.0, learn_ends=False),
    "adaptive": lambda: Adaptive(13.3, -5.0),
}


def trained(schedule: Schedule, steps: int) -> Schedule:
    torch.manual_seed(0)
    objective = Objective(Denoiser(MLP(2), Eps()), schedule=schedule)
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, lr=1e-3, weight_decay=0.1, schedule_lr=0.02), lr=1e-3
    )
    for step in range(steps):
        generator = generator_of(0, step)
        with torch.autocast("cpu", torch.bfloat16):
            t = stratified(64, offset=offset_of(0, step))
            loss = objective(DATA.sample(64, generator).float(), t=t, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.schedule.update()
    return schedule


@pytest.mark.parametrize("steps", [200, pytest.param(10_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
@torch.no_grad()
def test_after_training_the_ends_stand_and_the_schedule_falls(make, steps):
    start = make()
    with torch.enable_grad():
        schedule = trained(make(), steps)
    t = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    logsnr = schedule(t)
    assert (logsnr - start(t)).abs().max() > 0.05  # it did move
    assert (logsnr.diff() < 0).all()
    assert logsnr[[0, -1]].tolist() == pytest.approx([13.3, -5.0], abs=1e-6)
    assert (schedule.rate(t) > 0).all()
    torch.testing.assert_close(schedule.inverse(logsnr[::1000]), t[::1000], rtol=0, atol=1e-9)

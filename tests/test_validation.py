"""A validation curve: the same times and noise at every point."""

import json
import math

import pytest
import torch
from points import data_of, points
from torch import nn

from vdiff import Denoiser, Objective
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.likelihood import Share
from vdiff.losses import VLB, Weighted
from vdiff.oracle import Gaussian
from vdiff.parameterization import V, X
from vdiff.schedule import Linear, Tabulated
from vdiff.training import Run, Validation, train
from vdiff.weighting import Sigmoid


def test_two_calls_give_the_same_bound_and_another_seed_another():
    config = points()
    objective, data = config.objective(), data_of(config)[:8]
    validate = Validation(data, draws=4)
    first = validate(objective)
    assert validate(objective).value == first.value
    assert first.monte_carlo > 0
    assert Validation(data, draws=4, seed=1)(objective).value != first.value


class NaNInEvaluation(nn.Module):
    def forward(self, z, logsnr):
        return z if self.training else z * math.nan


def test_a_bound_that_is_not_finite_is_a_number_for_the_log():
    """The network trains, and its average cannot be evaluated: training goes on."""
    data = torch.randn(8, 2)
    objective = Objective(
        Denoiser(NaNInEvaluation(), V()), schedule=Linear(), loss=VLB(GaussianDecoder())
    )
    found = Validation(data, draws=4)(objective)
    assert math.isnan(found.value)

    def broken(z, logsnr):
        raise RuntimeError("a bug of the network")

    objective = Objective(Denoiser(broken, V()), schedule=Linear(), loss=VLB(GaussianDecoder()))
    with pytest.raises(RuntimeError, match="a bug of the network"):
        Validation(data, draws=4)(objective)


LATENTS = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
LOSSES = {
    "weighted": {"weighting": {"name": "Sigmoid"}},
    "flow matching": {
        "parameterization": {"name": "Flow"},
        "schedule": {"name": "OptimalTransport"},
        "weighting": {
            "name": "MSE",
            "schedule": {"name": "OptimalTransport"},
            "parameterization": {"name": "Flow"},
        },
    },
    "chain": {"schedule": {"name": "Cosine"}, "weighting": {"name": "ELBO"}, "chain": 20},
    "simple": {
        "schedule": {"name": "Tabulated.linear_betas"},
        "bound_weight": 0.0,
        "chain": 999,
        "parameterization": {"name": "Eps"},
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_decoder_it_is_the_loss_with_its_errors(name):
    objective = points(decoder=None, **LOSSES[name]).objective().eval()
    found = Validation(LATENTS, draws=16, replicates=4)(objective)
    with torch.no_grad():  # many independent draws
        generator = torch.Generator().manual_seed(5)
        drawn = torch.stack([objective(LATENTS, generator=generator) for _ in range(600)])
    dims = 64 * math.log(2)
    mean, error = drawn.mean().item() / dims, drawn.mean(1).std().item() / dims / 600**0.5
    assert abs(found.value - mean) < 4 * math.hypot(found.monte_carlo, error)
    assert 0 < found.monte_carlo < 0.05 * found.value
    assert found.images is not None
    assert sum(band.loss.value for band in found.bands) == pytest.approx(found.value)
    assert [band.logsnr_min for band in found.bands[1:]] == [
        band.logsnr_max for band in found.bands[:-1]
    ]


def test_the_error_is_the_spread_over_seeds():
    objective = points(decoder=None, **LOSSES["weighted"]).objective().eval()
    found = [Validation(LATENTS, draws=2, seed=seed)(objective) for seed in range(60)]
    spread = torch.tensor([each.value for each in found]).std().item()
    said = sum(each.monte_carlo**2 for each in found) / len(found)
    assert spread == pytest.approx(said**0.5, rel=0.3)
    for i in (1, 4):
        parts = torch.tensor([each.bands[i].loss.value for each in found])
        errors = [each.bands[i].loss.monte_carlo ** 2 for each in found]
        assert parts.std().item() == pytest.approx((sum(errors) / 60) ** 0.5, rel=0.4)


def test_a_band_is_the_loss_of_its_log_snr():
    """The exact denoiser of N(0, I) loses sigmoid(λ) in each dimension."""
    model = Gaussian(torch.zeros(3), torch.ones(3))
    objective = Objective(model, schedule=Linear(8.0, -8.0), loss=Weighted(Sigmoid(1.0)))
    data = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    found = Validation(data, draws=8)(objective)
    for band in found.bands:
        logsnr = torch.linspace(band.logsnr_min, band.logsnr_max, 1001, dtype=torch.float64)
        density = 0.5 * torch.sigmoid(1.0 - logsnr) * torch.sigmoid(logsnr)  # nats for a dimension
        expected = torch.trapezoid(density, logsnr).item() / math.log(2)
        error = math.hypot(band.loss.monte_carlo, band.loss.images)
        assert abs(band.loss.value - expected) < 4 * error
        assert error < 0.03 * expected


def test_it_is_the_same_at_each_call_in_any_batch_and_leaves_the_objective_as_it_is():
    objective = points(decoder=None, **LOSSES["weighted"]).objective()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    first = Validation(LATENTS)(objective)
    assert Validation(LATENTS)(objective) == first
    assert objective.training
    small = Validation(LATENTS, batch=7)(objective)
    assert small.value == pytest.approx(first.value, rel=1e-6)
    assert Validation(LATENTS, seed=1)(objective).value != first.value
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())


def test_a_table_that_ends_in_pure_noise_has_finite_bands():
    schedule = Tabulated.linear_betas(zero_terminal_snr=True)
    model = Denoiser(nn.Linear(4, 4), V(), call=lambda network, z, t: network(z))
    objective = Objective(model, schedule=schedule, loss=Weighted(Sigmoid(), steps=999))
    found = Validation(torch.randn(8, 4))(objective)
    assert math.isfinite(found.value)
    assert all(math.isfinite(band.logsnr_min) for band in found.bands)
    assert sum(band.loss.value for band in found.bands) == pytest.approx(found.value)


def test_conditions_go_with_their_examples():
    class Shifts(nn.Module):
        def forward(self, z, t, label):
            return z - z + label[:, None]

    label = torch.arange(5.0)
    objective = Objective(Denoiser(Shifts(), X()), schedule=Linear(5.0, -5.0))
    data = label[:, None].expand(5, 2).contiguous()
    found = Validation(data, batch=4, condition={"label": label})(objective)
    assert found.value == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(TypeError, match="Validation: argument 'label' must"):
        Validation(data, condition={"label": set(label.tolist())})


def test_training_logs_it(tmp_path):
    config = points(decoder=None, **LOSSES["weighted"], steps=4)
    history = []
    options = {"every": 2, "quiet": True, "log": history.append}
    with Run.open(tmp_path, config) as run:
        train(
            config.objective(), LATENTS, config, run=run, validate=Validation(LATENTS), **options
        )
    for entry in history:
        assert "selection_bits_per_dim" not in entry
        assert entry["selection_loss"] == pytest.approx(
            sum(loss for _, _, loss, _ in entry["selection_loss_by_logsnr"])
        )
        assert entry["selection_error"] > 0
    assert [e["selection_loss"] for e in run.history()] == [e["selection_loss"] for e in history]
    assert 0.2 < history[0]["selection_loss"] / history[0]["train_loss"] < 5  # one unit


def test_a_loss_that_is_nan_is_logged_as_none():
    config = points(decoder=None, **LOSSES["weighted"], steps=1)
    latents, history = LATENTS.clone(), []
    held_out = Validation(latents.masked_fill(torch.arange(40)[:, None] == 3, 1e30))
    with pytest.warns(UserWarning, match="the validation at step 1 is"):
        train(
            config.objective(), LATENTS, config, validate=held_out, quiet=True, log=history.append
        )
    assert history[-1]["selection_loss"] is None
    json.dumps(history[-1], allow_nan=False)


def test_processes_share_the_examples(monkeypatch):
    objective = points(decoder=None, **LOSSES["weighted"]).objective()
    whole = Validation(LATENTS)(objective)
    sums: list[torch.Tensor] = []

    def record(part: torch.Tensor) -> torch.Tensor:
        sums.append(part.clone())
        return part

    for index in range(2):
        share = Share(index, 2, record)
        monkeypatch.setattr("vdiff.training.validation.share_of_rank", lambda share=share: share)
        Validation(LATENTS)(objective)
    parts = sum(part for part in sums if part.ndim == 3)
    value = parts.sum(2).mean().item() / (64 * math.log(2))
    assert value == pytest.approx(whole.value, rel=1e-6)


def test_integers_without_a_decoder_are_refused():
    objective = points(decoder=None, **LOSSES["weighted"]).objective()
    with pytest.raises(TypeError, match="'x' must be real and floating"):
        Validation(torch.ones(4, 64, dtype=torch.uint8))(objective)

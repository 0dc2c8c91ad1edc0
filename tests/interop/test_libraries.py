"""Networks of torchcfm, k-diffusion and azula as models here, and a model of ours there: losses of
the same draws and samples from the same noise agree number by number."""

import sys
from pathlib import Path

import pytest
import torch
from torchdiffeq import odeint

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peers import PEERS, stand_ins

with stand_ins(PEERS["torchcfm"][2]):
    pytest.importorskip("torchcfm")
    from torchcfm import ConditionalFlowMatcher
    from torchcfm.models import MLP as TorchCFM
with stand_ins(PEERS["k-diffusion"][2]):
    pytest.importorskip("k_diffusion")
    from k_diffusion import Denoiser as KDenoiser
    from k_diffusion import sampling as k_sampling
    from k_diffusion.external import DiscreteEpsDDPMDenoiser, VDenoiser
pytest.importorskip("azula")
from azula import denoise, noise, sample

import vdiff
from vdiff.denoiser import TableStep, flow_time, sigma_time
from vdiff.gaussian import alpha, per_example, sigma
from vdiff.parameterization import Eps, Flow, V, VarianceExploding, X
from vdiff.sampling import ddim, dpmpp_2m, heun
from vdiff.schedule import Cosine, Custom, Linear, Normal, OptimalTransport, Tabulated
from vdiff.weighting import EDM, MSE


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


X0, DATA, NOISE = draws(16, 2), 0.5 * draws(16, 2).flip(0) + 0.2, draws(64, 2)


class Network(torch.nn.Module):
    """A network of points and of a time up to `largest`."""

    def __init__(self, largest=1.0):
        super().__init__()
        self.largest = largest
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2)
        )

    def forward(self, z, time):
        time = (time / self.largest).to(z).expand(len(z))
        return self.layers(torch.cat([z, time[:, None]], 1))


def loss_of(model, schedule, target, logsnr, eps=X0):
    """The plain squared error of a target at given log-SNRs, summed over dimensions."""
    options = {"weighting": MSE(schedule, target), "t": schedule.inverse(logsnr.double())}
    return vdiff.weighted_elbo(
        model, DATA.double(), schedule=schedule, eps=eps.double(), **options
    )


def velocity_model():
    """A velocity network of torchcfm, where data are at t = 1: dx/dt = x − ε."""
    torch.manual_seed(0)
    return vdiff.Denoiser(
        TorchCFM(dim=2, w=32, time_varying=True),
        Flow(),
        time=lambda logsnr: 1 - flow_time(logsnr),
        call=lambda network, z, t: network(torch.cat([z, t[:, None]], 1)),
        output=torch.neg,
    )


def test_torchcfm_loss():
    model = velocity_model().double()
    t = torch.linspace(0.01, 0.99, 16).double()
    matcher = ConditionalFlowMatcher(sigma=0.0)
    t, z, velocity = matcher.sample_location_and_conditional_flow(X0.double(), DATA.double(), t)
    theirs = (model.network(torch.cat([z, t[:, None]], 1)) - velocity).square().sum(1)
    ours = loss_of(model, OptimalTransport(), Flow(), 2 * torch.log(t / (1 - t)))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


def test_torchcfm_samples():
    """Euler's rule from t = 0 to 1, as in torchcfm's examples."""
    model, times = velocity_model(), torch.linspace(0, 1, 21)

    def field(t, z):
        return model.network(torch.cat([z, t.expand(len(z))[:, None]], 1))

    with torch.no_grad():
        theirs = odeint(field, NOISE, times, method="euler")[-1]
    t = times[:-1].double()  # from t = 0, which is λ = −∞; the last step is x̂
    ours = vdiff.sample(model, NOISE, levels=2 * torch.log(t / (1 - t)), step=ddim)
    assert torch.allclose(ours, theirs, atol=1e-4)


def k_model(denoiser):
    """k-diffusion's D(x + σ ε, σ) as a model."""
    return vdiff.Denoiser(denoiser, VarianceExploding(X()), time=sigma_time)


def for_k(model):
    """A model as k-diffusion's samplers call one."""

    def denoised(x, sigma):
        logsnr = -2 * sigma.log()
        return model(x * per_example(alpha(logsnr), x), logsnr).x

    return denoised


def test_k_diffusion_loss():
    theirs = KDenoiser(Network(), sigma_data=0.5).double()
    schedule, logsnr = Normal(2.4, 2.4), torch.linspace(-6.0, 10.0, 16).double()
    loss = theirs.loss(DATA.double(), X0.double(), torch.exp(-0.5 * logsnr))
    ours = loss_of(k_model(theirs), schedule, V(0.5), logsnr)
    assert torch.allclose(ours / 2, loss, rtol=1e-6, atol=0)  # theirs is a mean over dimensions
    options = {"t": schedule.inverse(logsnr), "eps": X0.double(), "weighting": EDM()}
    ours = vdiff.weighted_elbo(k_model(theirs), DATA.double(), schedule=schedule, **options)
    assert torch.allclose(ours / 2, loss, rtol=1e-5, atol=0)  # EDM's law has no ends


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_k_diffusion_samples(name):
    step = {"euler": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}[name]
    theirs = KDenoiser(Network(), sigma_data=0.5)
    sampler, sigmas = (
        getattr(k_sampling, f"sample_{name}"),
        k_sampling.get_sigmas_karras(20, 0.02, 20),
    )
    x = sigmas[0] * NOISE
    samples = sampler(theirs, x, sigmas, disable=True)
    levels = -2 * sigmas[:-1].double().log()  # the zero at the end is our last step, x̂
    model = k_model(theirs)
    z = x * alpha(levels[0]).float()
    assert torch.allclose(vdiff.sample(model, z, levels=levels, step=step), samples, atol=1e-4)
    again = sampler(for_k(model), x, sigmas, disable=True)  # and back
    assert torch.allclose(again, samples, atol=1e-4)


WRAPPERS = {  # of k-diffusion: the model of the inner network, and its schedule
    "DDPM": lambda: (vdiff.Denoiser(Network(1000), Eps(), time=TableStep(TABLE)), TABLE),
    "v": lambda: (
        vdiff.Denoiser(Network(), V(), time=lambda v: torch.exp(-0.5 * v).atan() * 2 / torch.pi),
        Cosine(logsnr_max=13.0, logsnr_min=-13.0),
    ),
}
TABLE = Tabulated.linear_betas()


@pytest.mark.parametrize("name", WRAPPERS)
def test_k_diffusion_wrapper(name):
    """The network inside a wrapper of k-diffusion, as a model, has the wrapper's loss."""
    model, schedule = WRAPPERS[name]()
    network, signal = model.double().network, torch.sigmoid(TABLE.table)
    theirs = VDenoiser(network)
    if name == "DDPM":
        theirs = DiscreteEpsDDPMDenoiser(network, signal, quantize=False)
    logsnr = TABLE.table[::62][:16]
    loss = theirs.loss(DATA.double(), X0.double(), torch.exp(-0.5 * logsnr))
    ours = loss_of(model, schedule, model.parameterization, logsnr)
    assert torch.allclose(ours / 2, loss, rtol=1e-6, atol=0)


AZULA = {  # the model of the backbone inside a denoiser
    "KarrasDenoiser": (denoise.KarrasDenoiser, V(), torch.neg),
    "SimpleDenoiser": (denoise.SimpleDenoiser, X(), None),
}
SCHEDULES = {
    "VE": noise.VESchedule(0.02, 20.0),
    "VP": noise.VPSchedule(),
    "cosine": noise.CosineSchedule(0.01, 0.01),
    "rectified": noise.RectifiedSchedule(0.01, 0.01),
    "decay": noise.DecaySchedule(0.01, 0.01),
}


def from_azula(theirs):
    """A schedule of azula, whose α² + σ² need not be 1, by its log-SNR."""
    return Custom(lambda t: 2 * (theirs.alpha(t) / theirs.sigma(t)).log())


class OursForAzula(denoise.Denoiser):
    """A model and a schedule of ours as a denoiser of azula."""

    def __init__(self, model, schedule):
        super().__init__()
        self.model, self.vdiff_schedule = model, schedule

    def schedule(self, t):
        logsnr = self.vdiff_schedule(t)
        return alpha(logsnr), sigma(logsnr)

    def forward(self, x_t, t, **condition):
        logsnr = self.vdiff_schedule(t).expand(len(x_t))
        return denoise.DiracPosterior(self.model(x_t, logsnr, **condition).x)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", AZULA)
def test_azula_loss(name, schedule):
    made, target, output = AZULA[name]
    theirs, schedule = (
        made(Network(), SCHEDULES[schedule]).double(),
        from_azula(SCHEDULES[schedule]),
    )
    model = vdiff.Denoiser(theirs.backbone, target, time=lambda v: -0.5 * v, output=output)
    t = torch.linspace(0.15, 0.95, 16).double()
    torch.manual_seed(5)
    loss = theirs.loss(DATA.double(), t)  # a mean over the batch and dimensions
    torch.manual_seed(5)
    eps = torch.randn(16, 2, dtype=torch.float64)
    ours = loss_of(model, schedule, V(), schedule(t), eps)  # its weight is v's for any output
    assert torch.allclose(ours.mean() / 2, loss, rtol=1e-6, atol=0)


def assert_same_samples(theirs, model, schedule, scale=lambda t: 1.0):
    """Azula's last state over `scale`, and ours. In float32 its Heun loses digits in noise."""
    for sampler, step in ((sample.DDIMSampler, ddim), (sample.HeunSampler, heun)):
        run = sampler(theirs.double(), steps=20, silent=True, dtype=torch.float64)
        first, *_, last = run.timesteps
        x = run(scale(first) * NOISE.double())
        levels = schedule(run.timesteps)
        *_, (z, _) = vdiff.trajectory(model.double(), NOISE.double(), levels=levels, step=step)
        assert torch.allclose(scale(last) * z, x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_azula_samples(name):
    made, target, output = AZULA["KarrasDenoiser"]
    theirs, schedule = made(Network(), SCHEDULES[name]), from_azula(SCHEDULES[name])
    model = vdiff.Denoiser(theirs.backbone, target, time=lambda v: -0.5 * v, output=output)
    assert_same_samples(theirs, model, schedule, lambda t: torch.hypot(*SCHEDULES[name](t)))


@pytest.mark.parametrize("schedule", [Linear(8.0, -8.0), Cosine(), OptimalTransport(10.0, -10.0)])
def test_a_model_of_ours_in_azula(schedule):
    model = vdiff.Denoiser(Network(), V())
    assert_same_samples(OursForAzula(model, schedule), model, schedule)

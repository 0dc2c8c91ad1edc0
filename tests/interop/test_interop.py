"""Schedulers, networks and pipelines of diffusers against the library: what is added, lost and
sampled agrees number by number."""

from dataclasses import replace

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

import vdiff  # noqa: E402
from vdiff.denoiser import TableStep, flow_time  # noqa: E402
from vdiff.errors import InvalidType, InvalidValue  # noqa: E402
from vdiff.gaussian import alpha, diffuse, per_example, sigma  # noqa: E402
from vdiff.interop import FlowStep, from_diffusers, to_diffusers  # noqa: E402
from vdiff.parameterization import Eps, Flow, V, X  # noqa: E402
from vdiff.sampling import Clipped, ancestral, ddim, dpmpp_2m  # noqa: E402
from vdiff.schedule import Cosine, OptimalTransport, Tabulated  # noqa: E402
from vdiff.variance import FixedLarge, LearnedRange  # noqa: E402
from vdiff.weighting import MSE  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:levels. .* (ends at|has clip_sample)"
)
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
TARGETS = {"epsilon": Eps(), "sample": X(), "v_prediction": V()}


def unet(channels_out=1, **options):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=channels_out,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **options,
    )
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.fixture
def noise():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def pipeline_samples(scheduler, network, noise, steps, of_step=(), **options):
    """The loop of every pipeline of diffusers."""
    scheduler.set_timesteps(steps, **options)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t).sample, t, x, return_dict=False, **dict(of_step))[0]
    return x


def our_samples(kit, network, noise, steps, step):
    levels, z = kit.levels(steps), kit.start(noise, steps)
    return vdiff.sample(kit.denoiser(network), z, levels=levels, step=step)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("betas", BETAS)
def test_noise_and_losses_of_a_table(betas, rescaled, kind, images, noise):
    network, images, noise = unet().double(), images.double(), noise.double()
    scheduler = DDPMScheduler(
        beta_schedule=betas, prediction_type=kind, rescale_betas_zero_snr=rescaled
    )
    kit, steps = from_diffusers(scheduler), torch.tensor([1, 10, 500, 998])
    schedule, target = kit.schedule, kit.parameterization
    assert repr(target) == repr(TARGETS[kind])
    noisy = scheduler.add_noise(images, noise, steps)
    ours = diffuse(images, noise, schedule.table[steps])
    assert torch.allclose(ours, noisy, atol=1e-6, rtol=0)
    said = {
        "epsilon": noise,
        "sample": images,
        "v_prediction": scheduler.get_velocity(images, noise, steps),
    }[kind]
    with torch.no_grad():
        theirs = (network(noisy, steps).sample - said).square().flatten(1).sum(1)
        chain = 999 if rescaled else None  # a zero terminal SNR has no continuous time
        loss = vdiff.weighted_elbo(
            kit.denoiser(network),
            images,
            schedule=schedule,
            weighting=MSE(schedule, target, steps=chain),
            steps=chain,
            t=steps.double() / 999,
            eps=noise,
        )
    share = 999 / 1000 if rescaled else 1  # the chain's mean includes its decoder's level
    assert torch.allclose(loss, share * theirs, rtol=1e-6)


SAMPLERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}, ddim),
    "ddim-v": (DDIMScheduler, {"clip_sample": False, "prediction_type": "v_prediction"}, ddim),
    "ddim-trailing": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, ddim),
    "ddim-zero-snr": (
        DDIMScheduler,
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
        ddim,
    ),
    "euler": (EulerDiscreteScheduler, {}, ddim),
    "euler-trailing": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, ddim),
    "euler-leading": (
        EulerDiscreteScheduler,
        {"timestep_spacing": "leading", "steps_offset": 1},
        ddim,
    ),
    "euler-karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}, ddim),
    "euler-v": (EulerDiscreteScheduler, {"prediction_type": "v_prediction"}, ddim),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}, dpmpp_2m),
    "dpm-solver++-v": (
        DPMSolverMultistepScheduler,
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        dpmpp_2m,
    ),
    "edm": (EDMEulerScheduler, {}, ddim),
    "edm-v": (EDMEulerScheduler, {"prediction_type": "v_prediction"}, ddim),
    "edm-exponential": (EDMEulerScheduler, {"sigma_schedule": "exponential"}, ddim),
    "edm-dpm": (EDMDPMSolverMultistepScheduler, {}, dpmpp_2m),
    "flow": (FlowMatchEulerDiscreteScheduler, {}, ddim),
    "flow-shift": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, ddim),
    "deis-1": (DEISMultistepScheduler, {"solver_order": 1}, ddim),
    "unipc-1": (
        UniPCMultistepScheduler,
        {"solver_order": 1, "disable_corrector": list(range(20))},
        ddim,
    ),
}


def assert_close(ours, theirs, tolerance=1e-4):
    """A random network's samples grow: the tolerance is relative to the largest pixel."""
    assert (ours - theirs).abs().max() < tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_from_the_same_noise(name, network, noise):
    made, options, step = SAMPLERS[name]
    theirs = pipeline_samples(made(**options), network, noise, 20)
    assert_close(our_samples(from_diffusers(made(**options)), network, noise, 20, step), theirs)


def test_dpm_solver_rounds_the_time_on_karras_levels(network, noise):
    """The network is given whole steps between the levels of the table: `integer=True`."""
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    kit = from_diffusers(scheduler)
    rounded = replace(kit, time=TableStep(kit.schedule, integer=True))
    theirs = pipeline_samples(scheduler, network, noise, 20)
    assert_close(our_samples(rounded, network, noise, 20, dpmpp_2m), theirs)
    ours = our_samples(kit, network, noise, 20, dpmpp_2m)
    assert 1e-4 < (ours - theirs).abs().max() / theirs.abs().max() < 1e-2


def test_dpm_solver_truncates_the_time_of_flow_matching(network, noise):
    options = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    kit = from_diffusers(DPMSolverMultistepScheduler(**options))
    truncated = replace(kit, time=lambda logsnr: (1000 * flow_time(logsnr)).floor())
    theirs = pipeline_samples(DPMSolverMultistepScheduler(**options), network, noise, 20)
    assert_close(our_samples(truncated, network, noise, 20, dpmpp_2m), theirs)
    assert_close(our_samples(kit, network, noise, 20, dpmpp_2m), theirs, 1e-2)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind, network, noise):
    options = {"use_dynamic_shifting": True, "time_shift_type": kind}
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    with pytest.raises(InvalidValue, match="'tokens' must be given for dynamic shifting"):
        from_diffusers(scheduler)
    kit = from_diffusers(scheduler, tokens=1024)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    theirs = pipeline_samples(scheduler, network, noise, 20, mu=mu)
    assert_close(our_samples(kit, network, noise, 20, ddim), theirs)
    t = torch.linspace(0.1, 0.9, 5).double()  # the schedule is the one of training
    expected = scheduler.time_shift(
        mu, 1.0, 0.001 + 0.998 * t
    )  # its ends are σ and 1 − σ = 1/1000
    assert torch.allclose(kit.time(kit.schedule(t)), 1000 * expected)


def test_clipped_samples(network, noise):
    clipped = {"use_clipped_model_output": True}  # ε̂ belongs to the clipped x̂
    theirs = pipeline_samples(DDIMScheduler(), network, noise, 20, of_step=clipped)
    kit = from_diffusers(DDIMScheduler())
    levels = kit.levels(20)
    ours = vdiff.sample(Clipped(kit.denoiser(network)), noise, levels=levels, step=ddim)
    assert_close(ours, theirs)


def test_noise_of_edm_and_of_flow_matching(images, noise):
    edm = EDMEulerScheduler()
    kit, edm_steps = from_diffusers(edm), edm.timesteps[[0, 300, 999]]
    noisy = edm.add_noise(images[:3], noise[:3], edm_steps)
    logsnr = -2 * edm.sigmas[[0, 300, 999]].double().log()
    assert torch.allclose(kit.time(logsnr).float(), edm_steps, atol=1e-6)
    scaled = noisy * per_example(alpha(logsnr), noisy)
    assert torch.allclose(diffuse(images[:3], noise[:3], logsnr), scaled.float(), atol=1e-6)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    kit, steps = from_diffusers(flow), flow.timesteps[[10, 500, 990]]
    noisy = flow.scale_noise(images[:3], steps, noise[:3])
    logsnr = 2 * ((1000 - steps.double()) / steps).log()
    assert torch.allclose(kit.time(logsnr).float(), steps)
    scale = per_example(alpha(logsnr) + sigma(logsnr), noisy)
    assert torch.allclose(
        diffuse(images[:3], noise[:3], logsnr), (noisy * scale).float(), atol=1e-6
    )


def test_the_bound_of_a_pipeline_s_network(images):
    """Bits per dimension of a network by name and by hand are the same; the decoder sees x̂."""
    network = unet(channels_out=2)
    kit = from_diffusers(DDPMScheduler(variance_type="learned_range"))
    model = kit.denoiser(network)
    assert isinstance(model.variance, LearnedRange)
    decoder = vdiff.decoder.DiscretizedGaussian(levels=256)
    data = ((images + 1) * 127.5).round().long()
    options = {"schedule": kit.schedule, "decoder": decoder, "steps": kit.schedule.steps}
    report = vdiff.evaluate(model, data, draws=4, replicates=2, **options)
    table = Tabulated.linear_betas()
    by_hand = vdiff.Denoiser(
        network,
        Eps(),
        time=TableStep(table),
        output=lambda said: said.sample,
        variance=LearnedRange(),
    )
    other = vdiff.evaluate(by_hand, data, draws=4, replicates=2, **options | {"schedule": table})
    assert report.total.value == pytest.approx(other.total.value, rel=1e-3)


def test_a_pipeline_of_a_model_that_was_trained_here():
    """Trained with a table, sampled by DDPMPipeline from the same noise as by `sample`."""
    table, network = Tabulated.linear_betas(1e-3, 0.2, levels=100), unet()
    model = vdiff.Denoiser(
        network,
        V(),
        time=TableStep(table),
        output=lambda said: said.sample,
        variance=FixedLarge(),
    )
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    before = None
    for _ in range(20):
        loss = vdiff.weighted_elbo(model, x, schedule=table, weighting=MSE(table, V())).mean()
        before = before or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * before
    scheduler = to_diffusers(model, table)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.variance_type == "fixed_large"
    back = from_diffusers(scheduler)
    assert torch.allclose(back.schedule.table, table.table, atol=1e-3)
    pipeline = DDPMPipeline(unet=network.eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        batch_size=2, num_inference_steps=100, generator=torch.manual_seed(0), output_type="np"
    ).images
    ddim_scheduler = DDIMScheduler.from_config(
        scheduler.config, clip_sample=False, timestep_spacing="trailing"
    )
    z = torch.randn(2, 1, 8, 8)
    theirs = pipeline_samples(ddim_scheduler, network, z, 25)
    ours = vdiff.sample(model, z, levels=from_diffusers(ddim_scheduler).levels(25), step=ddim)
    assert_close(ours, theirs)
    assert made.shape == (2, 8, 8, 1)
    ancestral_samples = vdiff.sample(model, z, levels=table.table.flip(0), step=ancestral)
    inside = ancestral_samples.clamp(-1, 1).mean().item()
    assert abs(2 * float(made.mean()) - 1 - inside) < 0.2


def test_the_way_back():
    network = unet()
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        EDMEulerScheduler(sigma_data=1.0, sigma_max=40.0),
        EDMEulerScheduler(prediction_type="v_prediction"),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
        DDPMScheduler(variance_type="fixed_large"),
    ):
        kit = from_diffusers(scheduler)
        back = to_diffusers(kit.denoiser(network), kit.schedule)
        assert type(back) is type(scheduler)
        names = (
            "shift",
            "sigma_min",
            "sigma_max",
            "sigma_data",
            "prediction_type",
            "variance_type",
        )
        for name in names:
            assert back.config.get(name) == pytest.approx(scheduler.config.get(name))
        if hasattr(scheduler, "betas"):
            assert torch.allclose(back.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6)


REFUSED = {
    "schedule' must be Tabulated": (Eps(), {}, Cosine()),
    "model.time' must be TableStep": (Eps(), {}, Tabulated.linear_betas()),
    "model.parameterization' must predict ε, x or v": (Flow(), {}, Tabulated.linear_betas()),
    "model.time' must be FlowStep": (Flow(), {}, OptimalTransport()),
    "model.output' must keep its sign": (
        Flow(),
        {"time": FlowStep(), "output": torch.neg},
        OptimalTransport(),
    ),
    "model.time' must be edm_time": (V(0.5), {}, vdiff.schedule.Karras()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_no_scheduler_can_say(message, network):
    target, options, schedule = REFUSED[message]
    with pytest.raises(InvalidValue, match=message):
        to_diffusers(vdiff.Denoiser(network, target, **options), schedule)


def test_a_table_that_float32_cannot_hold(network):
    table = Tabulated(torch.linspace(25.0, -10.0, 50).double())
    model = vdiff.Denoiser(network, Eps(), time=TableStep(table))
    with pytest.raises(InvalidValue, match="products of float32"):
        to_diffusers(model, table)


def test_what_is_no_scheduler(network):
    with pytest.raises(
        InvalidType, match="from_diffusers: argument 'scheduler' must be a scheduler"
    ):
        from_diffusers(network)
    with pytest.raises(InvalidType, match="must be a scheduler"):
        from_diffusers(DDPMScheduler)
    with pytest.raises(InvalidValue, match="variance_type' must be one of fixed_small"):
        from_diffusers(DDPMScheduler(variance_type="learned"))
    with pytest.raises(InvalidValue, match="must have a table of β"):
        from_diffusers(diffusers.ScoreSdeVeScheduler())
    with pytest.raises(InvalidValue, match="invert_sigmas"):
        from_diffusers(FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def test_levels_of_schedulers_that_visit_twice():
    for made in (HeunDiscreteScheduler, PNDMScheduler, LMSDiscreteScheduler):
        levels = from_diffusers(made()).levels(10)
        assert (levels.diff() > 0).all()
    assert len(from_diffusers(HeunDiscreteScheduler()).levels(10)) == 10

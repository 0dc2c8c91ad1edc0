"""Samples under each option that changes them, from the same noise as those of diffusers. The
network is smooth and its samples are of order one, so that a tolerance of 1e-4 means a pixel's."""

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")

import numpy as np
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

import vdiff
from vdiff.denoiser import flow_time
from vdiff.errors import InvalidType
from vdiff.interop import from_diffusers, to_diffusers
from vdiff.sampling import Clipped, ancestral, ddim
from vdiff.schedule import Karras

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:levels. .* (ends at|has clip_sample)"
)
NOISE = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def target(z, signal, noise, kind):
    """What a network says that believes in smooth, bounded data."""
    x = 0.25 * signal * z / (0.25 * signal**2 + noise**2) + 0.1 * torch.sin(z)
    if kind == "sample":
        return x
    if kind == "v_prediction":  # α ε − σ x, finite at α = 1 and α = 0
        return signal * (z - signal * x) / noise - noise * x
    return (z - signal * x) / noise


def table_network(scheduler, kind):
    """A network that is told the steps of a table, between two of them by their log-SNR."""
    table = torch.logit(scheduler.alphas_cumprod.double()).clamp(-30, 30).numpy()

    def network(z, timestep):
        logsnr = np.interp(float(timestep.flatten()[0]), np.arange(len(table)), table)
        signal, noise = (1 / (1 + math.exp(-sign * logsnr)) for sign in (1, -1))
        return target(z, signal**0.5, noise**0.5, kind)

    return network


def flow_network(z, timestep):
    t = float(timestep.flatten()[0]) / 1000
    scale = (t**2 + (1 - t) ** 2) ** 0.5
    x = target(z / scale, (1 - t) / scale, t / scale, "sample")
    return (z - x) / max(t, 1e-6)


def theirs(scheduler, network, steps, generator=None, **options):
    scheduler.set_timesteps(steps, **options)
    x, own = NOISE * getattr(scheduler, "init_noise_sigma", 1.0), {}
    if generator is not None:
        own["generator"] = generator
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t), t, x, return_dict=False, **own)[0]
    return x


def ours(kit, network, steps, step=ddim, model=None, **options):
    """The last x̂, or the last state where the scheduler ends at a level, as it keeps it."""
    model, z = model or kit.denoiser(network), kit.start(NOISE, steps)
    path = vdiff.trajectory(model, z, levels=kit.levels(steps), step=step, **options)
    *_, (z, last) = path
    ends = kit._levels(kit._set(steps))[1] is not None
    scale = kit.scale(last.logsnr[:1]).float() if ends and kit.scale is not None else 1.0
    return z / scale if ends else last.x


def assert_same(scheduler, network, steps=20, **options):
    kit = from_diffusers(scheduler, tokens=1024)
    found, expected = ours(kit, network, steps), theirs(scheduler, network, steps, **options)
    assert expected.abs().max() < 10
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)


TARGETS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim(kind, zero_snr):
    for spacing, offset, to_one, betas in itertools.product(
        ("leading", "trailing"), (0, 1), (True, False), ("scaled_linear", "squaredcos_cap_v2")
    ):
        options = {"timestep_spacing": spacing, "steps_offset": offset, "beta_schedule": betas}
        options |= {"set_alpha_to_one": to_one, "rescale_betas_zero_snr": zero_snr}
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, **options)
        noisy = spacing == "trailing" and (zero_snr or betas == "squaredcos_cap_v2")
        if noisy and kind == "epsilon":
            continue  # ε says nothing of x at λ = −∞, nor at −20 in float32
        assert_same(scheduler, table_network(scheduler, kind))


SIGMAS = ("", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigmas", SIGMAS)
def test_euler(kind, sigmas):
    for spacing, final in itertools.product(
        ("linspace", "leading", "trailing"), ("zero", "sigma_min")
    ):
        options = {"timestep_spacing": spacing, "final_sigmas_type": final, "steps_offset": 1}
        if spacing != "leading":
            options.pop("steps_offset")
        options |= {sigmas: True} if sigmas else {}
        scheduler = EulerDiscreteScheduler(prediction_type=kind, **options)
        assert_same(scheduler, table_network(scheduler, kind))


@pytest.mark.parametrize("made", [EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_zero_terminal_snr_with_sigmas(made):
    """v at pure noise, for which diffusers has α² = 2⁻²⁴."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    if made is UniPCMultistepScheduler:
        options |= {"solver_order": 1, "disable_corrector": list(range(20))}
    scheduler = made(timestep_spacing="trailing", **options)
    kit, network = from_diffusers(scheduler), table_network(scheduler, "v_prediction")
    assert kit.schedule.logsnr_min == -math.inf
    assert kit.levels(12)[0] == -math.inf
    assert kit.time(kit.levels(12)[:1]) == 999
    expected = theirs(scheduler, network, 12)
    assert torch.allclose(ours(kit, network, 12), expected, atol=1e-3)


@pytest.mark.parametrize("sigmas", ["", *SIGMAS[1:]])
@pytest.mark.parametrize("more", [{}, {"shift": 3.0}, {"shift_terminal": 0.02}])
def test_flow_matching(sigmas, more):
    assert_same(
        FlowMatchEulerDiscreteScheduler(**more, **({sigmas: True} if sigmas else {})), flow_network
    )


@pytest.mark.parametrize(
    "made", [UniPCMultistepScheduler, DPMSolverMultistepScheduler, DEISMultistepScheduler]
)
def test_dynamic_shift_of_a_solver(made):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 1}
    if made is UniPCMultistepScheduler:
        options["disable_corrector"] = list(range(20))
    scheduler = made(use_dynamic_shifting=True, time_shift_type="exponential", **options)
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)  # the pipelines' defaults
    kit = from_diffusers(scheduler, tokens=1024)
    kit = replace(kit, time=lambda logsnr: (1000 * flow_time(logsnr)).floor())  # as they do
    expected = theirs(scheduler, flow_network, 12, mu=mu)
    assert torch.allclose(ours(kit, flow_network, 12), expected, atol=1e-4)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_with_the_same_draws(kind, variance):
    """Ancestral sampling, clipped as the scheduler clips."""
    for clip, most in ((False, 1.0), (True, 1.0), (True, 0.7)):
        scheduler = DDPMScheduler(
            prediction_type=kind,
            variance_type=variance,
            clip_sample=clip,
            clip_sample_range=most,
            timestep_spacing="leading",  # with others, fixed_large adds noise in the last step
        )
        kit, network = from_diffusers(scheduler), table_network(scheduler, kind)
        model = kit.denoiser(network)
        found = ours(
            kit,
            network,
            50,
            ancestral,
            Clipped(model, -most, most) if clip else model,
            generator=torch.Generator().manual_seed(5),
        )
        expected = theirs(scheduler, network, 50, torch.Generator().manual_seed(5))
        assert torch.allclose(found, expected, atol=1e-4, rtol=0)


def test_what_a_scheduler_clips_is_said_and_not_what_another_class_clipped():
    for scheduler in (DDPMScheduler(), DDIMScheduler(clip_sample_range=2.0)):
        with pytest.warns(UserWarning, match="clip_sample=True, and a Denoiser clips nothing"):
            from_diffusers(scheduler).levels(10)
    with pytest.warns(UserWarning, match=r"Clipped\(model, -2, 2\)"):
        from_diffusers(scheduler).levels(10)
    with pytest.warns(UserWarning, match="thresholding=True, which nothing here has"):
        from_diffusers(DPMSolverMultistepScheduler(thresholding=True)).levels(10)
    with pytest.warns(UserWarning, match=r"ends at λ = 9.21, in the last state of trajectory"):
        from_diffusers(DDIMScheduler(clip_sample=False, set_alpha_to_one=False)).levels(10)
    converted = EulerDiscreteScheduler.from_config(DDIMScheduler().config)  # it clips nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from_diffusers(converted).levels(10)


def test_log_sigma_as_time():
    """Stable Video Diffusion's scheduler, whose levels are not those of its table."""
    options = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    options |= {"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}
    scheduler = EulerDiscreteScheduler(interpolation_type="linear", **options)

    def network(z, timestep):  # is told ¼ log σ
        ratio = math.exp(4 * float(timestep.flatten()[0]))
        scale = (1 + ratio**2) ** 0.5
        return target(z, 1 / scale, ratio / scale, "v_prediction")

    assert_same(scheduler, network)
    kit = from_diffusers(scheduler)
    assert isinstance(kit.schedule, Karras)
    assert kit.schedule.sigma_max == 700.0


def test_a_table_with_zero_terminal_snr_goes_back():
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    kit = from_diffusers(scheduler)
    back = to_diffusers(kit.denoiser(table_network(scheduler, "v_prediction")), kit.schedule)
    assert torch.allclose(back.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6)
    assert back.alphas_cumprod[-1] == 0


def test_what_is_not_a_scheduler_is_named():
    network = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    pipeline = DDPMPipeline(unet=network, scheduler=DDPMScheduler())
    for other in (pipeline, dict(DDPMScheduler().config), DDPMScheduler().config):
        with pytest.raises(
            InvalidType, match=r"must be a scheduler of diffusers.*pipeline\.scheduler"
        ):
            from_diffusers(other)

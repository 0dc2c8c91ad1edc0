"""Every option of the schedulers that are read is used, belongs to the step, warns, or is refused:
no option of diffusers is left out in silence."""

import inspect
import itertools
import warnings

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from vdiff.errors import InvalidValue
from vdiff.interop import from_diffusers
from vdiff.interop.options import CLIPPING, READ, REFUSED, STEP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
READABLE = [
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "CogVideoXDDIM", "CogVideoXDPM", "PNDM",
    "RePaint", "UnCLIP", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
    "LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep",
    "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "SASolver", "EDMEuler",
    "EDMDPMSolverMultistep", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM",
]  # fmt: skip
UNREADABLE = [
    "LCM", "TCD", "DDIMInverse", "DPMSolverMultistepInverse", "HeliosDMD", "Helios",
]  # fmt: skip
OTHER = {  # another value than the default, or two
    "algorithm_type": ["dpmsolver", "sde-dpmsolver++"], "base_image_seq_len": [128],
    "base_shift": [0.4], "beta_end": [0.03], "beta_schedule": ["scaled_linear",
    "squaredcos_cap_v2"], "beta_start": [2e-4], "clip_sample": [True, False],
    "clip_sample_range": [2.0], "corrector_order": [1], "disable_corrector": [[0, 1]],
    "dynamic_thresholding_ratio": [0.9], "eta": [0.5], "euler_at_final": [True],
    "final_sigmas_type": ["sigma_min"], "flow_shift": [3.0], "interpolation_type":
    ["log_linear"], "invert_sigmas": [True], "lambda_min_clipped": [-3.0], "lower_order_final":
    [True, False], "max_image_seq_len": [2048], "max_shift": [1.3], "num_train_timesteps":
    [500], "predict_x0": [False], "predictor_order": [1], "prediction_type": ["epsilon",
    "sample", "v_prediction", "flow_prediction"], "rescale_betas_zero_snr": [True], "rho":
    [5.0], "sample_max_value": [2.0], "scale_factors": [[0.5, 1.0]], "set_alpha_to_one": [True,
    False], "shift": [3.0], "shift_terminal": [0.02], "sigma_data": [1.0], "sigma_max": [40.0],
    "sigma_min": [0.01], "sigma_schedule": ["exponential"], "skip_prk_steps": [True],
    "snr_shift_scale": [2.0], "solver_order": [1, 3], "solver_p": [None], "solver_type":
    ["heun", "bh1"], "steps_offset": [1], "stochastic_sampling": [True], "tau_func": [None],
    "thresholding": [True], "time_shift_type": ["linear", "exponential"], "timestep_spacing":
    ["leading", "trailing"], "timestep_type": ["continuous"], "trained_betas": [[0.01 * (i + 1)
    / 1000 for i in range(1000)]], "upscale_mode": ["nearest"], "use_beta_sigmas": [True],
    "use_dynamic_shifting": [True], "use_exponential_sigmas": [True], "use_flow_sigmas":
    [True], "use_karras_sigmas": [True], "use_lu_lambdas": [True], "variance_type":
    ["fixed_large", "fixed_large_log", "learned_range", "learned"],
}  # fmt: skip


def class_of(name):
    return getattr(diffusers, f"{name}Scheduler")


def options_of(name):
    return [key for key in inspect.signature(class_of(name)).parameters if key != "kwargs"]


@pytest.mark.parametrize("name", READABLE)
def test_every_option_has_its_list(name):
    lists = (READ, STEP, CLIPPING, set(REFUSED))
    assert {key: sum(key in keys for keys in lists) for key in options_of(name)} == dict.fromkeys(
        options_of(name), 1
    )


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_scheduler_of_another_kind_is_refused(name):
    with pytest.raises(InvalidValue, match="scheduler"):
        from_diffusers(class_of(name)())


def assert_called_alike(scheduler, kit, name):
    """The network's first input and its times are the scheduler's, to its rounding of times."""
    seen, noise = [], torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))

    def network(z, timestep):
        seen.append(z)
        return torch.cat([z, z], 1) if kit.denoiser(network).variance.learned else z

    scheduler.set_timesteps(10, **dict(kit.options))
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    if hasattr(scheduler, "scale_model_input"):
        x = scheduler.scale_model_input(x, scheduler.timesteps[0])
    levels = kit.levels(10)
    kit.denoiser(network)(kit.start(noise, 10), levels[:1].expand(2))
    assert torch.allclose(seen[0], x, rtol=1e-4)
    theirs, ours = scheduler.timesteps.float(), kit.time(levels).float()
    theirs = theirs[~theirs.isnan()]  # KDPM2Ancestral has one at levels that are far apart
    rounding = 1.0 if any(word in name for word in ("Multistep", "Solver", "KDPM2")) else 0.01
    nearest = (ours[:, None] - theirs).abs()
    assert len(ours) in (len(theirs.unique()), len(theirs.unique()) + 1) or "KDPM2" in name
    assert (nearest.amin(1) <= rounding).sum() >= len(ours) - 1  # it may end at a level
    assert (nearest.amin(0) <= rounding).all() or "KDPM2" in name  # that has levels between


@pytest.mark.parametrize("name", READABLE)
def test_every_option_is_used_or_harmless_or_said(name):
    """For another value of each option, alone: refused by name, or the network is called alike."""
    made = class_of(name)
    assert set(options_of(name)) <= OTHER.keys()
    for key, value in itertools.chain(
        *(zip(itertools.repeat(key), OTHER[key], strict=False) for key in options_of(name))
    ):
        try:
            scheduler = made(**{key: value})
            scheduler.set_timesteps(10, **({"mu": 0.6} if "dynamic" in key else {}))
        except Exception:  # diffusers refuses it
            continue
        refused = refusal(scheduler)
        if refused:
            assert f"scheduler.{key}" in refused or "flow_prediction" in refused
            continue
        kit = from_diffusers(scheduler, tokens=1024)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_called_alike(scheduler, kit, name)
        said = " ".join(str(warning.message) for warning in caught)
        if key in ("clip_sample", "thresholding") and value:
            assert f"{key}=True" in said
        if key == "clip_sample_range" and scheduler.config.clip_sample:
            assert "Clipped(model, -2, 2)" in said


def refusal(scheduler):
    """Why a scheduler is not read; none for one that is."""
    try:
        from_diffusers(scheduler, tokens=1024)
    except InvalidValue as error:
        return str(error)
    return ""

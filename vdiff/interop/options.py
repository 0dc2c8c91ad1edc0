"""What each option of a scheduler of diffusers is here: read, left to the `step=` of a sampler, or
refused. An option that is in none of the lists raises no error, and a warning if it is changed."""

import inspect
import warnings
from typing import Any

from vdiff._validate import require
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.variance import FixedLarge, FixedSmall, LearnedRange, ReverseVariance

PREDICTIONS = {"epsilon": Eps(), "sample": X(), "v_prediction": V(), "flow_prediction": Flow()}
VARIANCES: dict[str, ReverseVariance] = {
    "fixed_small": FixedSmall(),
    "fixed_small_log": FixedSmall(),
    "fixed_large": FixedLarge(),
    "fixed_large_log": FixedLarge(),
    "learned_range": LearnedRange(),
}  # "learned" is left out: diffusers takes the output as Σ itself, without a softplus

# in the scheduler's own `alphas_cumprod`, `sigmas` and `timesteps`, or read by name
READ = {
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "snr_shift_scale", "timestep_spacing", "steps_offset",
    "timestep_type", "interpolation_type", "sigma_min", "sigma_max", "sigma_data",
    "sigma_schedule", "rho", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "use_flow_sigmas", "lambda_min_clipped", "shift", "flow_shift",
    "shift_terminal", "use_dynamic_shifting", "time_shift_type", "base_shift", "max_shift",
    "base_image_seq_len", "max_image_seq_len", "prediction_type", "variance_type",
    "final_sigmas_type", "set_alpha_to_one",
}  # fmt: skip
# how a scheduler goes from one level to the next: `sample` has steps of its own
STEP = {
    "algorithm_type", "solver_order", "solver_type", "solver_p", "predict_x0",
    "lower_order_final", "euler_at_final", "disable_corrector", "predictor_order",
    "corrector_order", "tau_func", "skip_prk_steps", "eta", "stochastic_sampling",
    "upscale_mode",
}  # fmt: skip
# what is done to x̂: `levels` warns
CLIPPING = {
    "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
    "sample_max_value",
}  # fmt: skip
_DISTILLED = "a consistency model is no denoiser"
REFUSED = {  # unless the option is None or false
    "timestep_scaling": _DISTILLED,
    "stages": "its stages have other resolutions",
    "scale_factors": "its levels have other resolutions",
    "invert_sigmas": "build the Denoiser by hand: docs/networks.md",
}


def check_options(scheduler: Any) -> None:
    """Raise for an option that no kit can say, and warn of one that is unknown and changed."""
    options = scheduler.config
    for name, why in REFUSED.items():
        value = options.get(name)
        require(not value, f"scheduler.{name}", "be None or false", value, why)
    for name, parameter in inspect.signature(type(scheduler)).parameters.items():
        known = name in READ | STEP | CLIPPING | set(REFUSED)
        if not known and options.get(name, parameter.default) != parameter.default:
            text = f"from_diffusers: {name}={options[name]!r} of {type(scheduler).__name__}"
            warnings.warn(f"{text} is unknown here and left out", stacklevel=4)


def differences(scheduler: Any, last: float | None) -> list[str]:
    """How the samples of a scheduler differ from those of `sample` on its levels; `last` is the
    log-SNR where it ends, None where it ends at x̂."""
    options, name = scheduler.config, type(scheduler).__name__
    found = list[str]()
    if options.get("thresholding"):
        found.append(f"{name} has thresholding=True, which nothing here has")
    elif options.get("clip_sample"):
        most = options.get("clip_sample_range", 1.0)
        ends = "" if most == 1 else f", {-most:g}, {most:g}"
        found.append(
            f"{name} has clip_sample=True, and a Denoiser clips nothing: sample from "
            f"Clipped(model{ends}), or read {name}.from_config(scheduler.config, "
            "clip_sample=False)"
        )
    if last is not None:
        found.append(
            f"{name} ends at λ = {last:.3g}, in the last state of trajectory(…), where sample(…) "
            "returns x̂"
        )
    return found

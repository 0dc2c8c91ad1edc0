"""The protocol from which a number can be computed again."""

import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata

import torch
from torch import Tensor, nn

from vdiff._arguments import original
from vdiff.likelihood.measurement import Evaluation, Measurement
from vdiff.likelihood.pieces import Share, condition_digest, data_hash, weights_of


def protocol_of(
    run: Evaluation, found: Measurement, extra: Mapping[str, object]
) -> dict[str, object]:
    """Everything that a number depends on, as plain data; `extra` is what the caller alone knows,
    such as the EMA's decay.

    >>> from vdiff.decoder import Categorical
    >>> from vdiff.oracle import Lattice
    >>> from vdiff.schedule import Linear
    >>> from vdiff.likelihood.integrand import Integrand
    >>> from vdiff.likelihood.measurement import Effort
    >>> from vdiff.likelihood.plan import Plan
    >>> decoder = Categorical(levels=2)
    >>> model, data = Lattice(decoder.level_values, [0.5, 0.5]), torch.tensor([[0], [1]])
    >>> integrand = Integrand(model, data, Linear(), decoder)
    >>> run = Evaluation(integrand, Plan(), Effort())
    >>> protocol_of(run, run(), {"ema": 0.999})["evaluations"]            # 2 · 4 · 32, and the pilot's
    1280
    """
    integrand, effort, design = run.integrand, run.effort, run.design
    (first, *others), replicates = integrand.sides, found.terms.replicates
    density, each = run.plan.importance, integrand.evaluations
    other = others and others[0].name("") != first.name("")
    return {
        **of_data(integrand.data),
        **first.name(""),
        "levels": getattr(integrand.decoder, "levels", None),
        **(others[0].name("second") if other else {}),
        "draws": run.draws,
        "replicates": replicates,
        "evaluations": replicates * run.images * run.draws * each + design.evaluations,
        "pilot": design.evaluations,
        "times": repr(run.plan.times),
        "importance": density if isinstance(density, bool) else repr(density),
        "controls": [repr(control) for control in run.plan.controls],
        "antithetic": design.antithetic,
        "baseline": run.plan.baseline,
        "asked for": {
            "draws": effort.draws,
            "replicates": effort.replicates,
            "budget": effort.budget,
            "antithetic": run.given.antithetic,
            "pilot": run.given.pilot,
        },
        "condition": condition_digest(integrand.condition),
        "tolerance": effort.tolerance,
        "batch": effort.batch,
        "seed": effort.seed,
        **of_computation(integrand.x.dtype, integrand.x.device, integrand.models, run.share),
        **extra,
    }


def of_data(data: Tensor) -> dict[str, object]:
    """How many images of what shape, and their hash.

    >>> of_data(torch.zeros(2, 1))["images"]
    2
    """
    return {"images": len(data), "shape": list(data.shape[1:]), "data": data_hash(data)}


def of_model(model: object) -> dict[str, object]:
    """What a model says was done to it, as `Guided` and `Clipped` do.

    >>> of_model(abs)
    {}
    """
    return dict(getattr(original(model), "protocol", {}))


def of_computation(
    dtype: torch.dtype, device: torch.device, models: Sequence[object], share: Share
) -> dict[str, object]:
    """Numbers, weights, device, processes, threads and versions.

    >>> of_computation(torch.float32, torch.device("cpu"), [], Share())["processes"]
    1
    """
    modules = [model for model in map(original, models) if isinstance(model, nn.Module)]
    parameters = [p for module in modules for p in module.parameters()]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "model": weights_of(*models),
        "weights": sorted({str(p.dtype).removeprefix("torch.") for p in parameters}),
        "TF32": False,
        "device": str(device),
        "processes": share.count,
        **versions(),
    }


def versions() -> dict[str, object]:
    """On what the last bits of a number depend, beside the device: threads split sums.

    >>> sorted(versions())
    ['threads', 'torch', 'vdiff']
    """
    return {"threads": torch.get_num_threads(), "vdiff": version(), "torch": torch.__version__}


def warn_of_others(what: str, before: object) -> None:
    """Warn where something resumes with other versions, or another number of threads, than it
    began with. Facts that an older file does not hold are ignored.

    >>> warn_of_others("the run", versions())
    """
    now, known = versions(), before if isinstance(before, dict) else {}
    if now | known != now:
        warnings.warn(f"{what} continues with {now} after {known}: not bit for bit", stacklevel=3)


def version() -> str:
    """The version of vdiff that is installed.

    >>> version()[0].isdigit()
    True
    """
    try:
        return metadata.version("vdiff-torch")
    except metadata.PackageNotFoundError:
        return "not installed"


__all__ = [
    "of_computation",
    "of_data",
    "of_model",
    "protocol_of",
    "version",
    "versions",
    "warn_of_others",
]

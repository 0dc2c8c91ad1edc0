"""The protocol, from which a number can be computed again."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vdiff._arguments import original
from vdiff._version import __version__
from vdiff.likelihood._controls import controls_of
from vdiff.likelihood.chunks import Share
from vdiff.likelihood.conditions import condition_digest
from vdiff.likelihood.digest import data_hash, weights_digest
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.stages import Evaluation
from vdiff.likelihood.tally import Tally


def evaluation_protocol(evaluation: Evaluation, tally: Tally) -> dict[str, object]:
    """Everything that an evaluation's number depends on, as plain data."""
    integrand, plan, budget = evaluation.integrand, evaluation.plan, evaluation.budget
    run, fitted, replicates = evaluation.run, evaluation.fitted, tally.terms.replicates
    first, *second, unit = *integrand.names, integrand.process.unit
    differ = len(second) > 0 and second[0] != first
    density, draws = plan.importance, replicates * evaluation.counted * evaluation.draws
    return {
        **data_protocol(integrand.data, unit.example),
        **first,
        "levels": getattr(integrand.decoder, "levels", None),
        **({f"{word}, second": fact for word, fact in second[0].items()} if differ else {}),
        "draws": evaluation.draws,
        "replicates": replicates,
        "evaluations": draws * integrand.evaluations + fitted.evaluations,
        "pilot": fitted.evaluations,
        "times": repr(plan.times),
        "importance": density if isinstance(density, bool) else repr(density),
        "controls": [repr(control) for control in controls_of(plan, integrand)],
        "antithetic": fitted.antithetic,
        "baseline": plan.baseline,
        "asked for": {
            "draws": budget.draws,
            "replicates": budget.replicates,
            "budget": budget.evaluations,
            "antithetic": evaluation.given.antithetic,
            "pilot": evaluation.given.pilot,
            **({} if integrand.process.continuous else {"any order": plan.any_order}),
        },
        "condition": condition_digest(integrand.condition),
        **mask_protocol(integrand),
        "tolerance": budget.tolerance,
        "batch": run.batch,
        "seed": run.seed,
        **computation_protocol(integrand.x.dtype, integrand.x.device, integrand.models, run.share),
        **evaluation.record,
    }


def data_protocol(data: Tensor, example: str = "image") -> dict[str, object]:
    """The number of images, their shape and hash."""
    return {f"{example}s": len(data), "shape": list(data.shape[1:]), "data": data_hash(data)}


def mask_protocol(integrand: Integrand) -> dict[str, object]:
    """Hashes of a mask and of what is absent, and how many dimensions are modelled; empty without
    both."""
    hashes: dict[str, object] = {word: data_hash(m) for word, m in integrand.given.items()}
    if not hashes:
        return hashes
    dims = torch.as_tensor(integrand.dims).expand(len(integrand.x))
    some, (unit, example) = int((dims > 0).sum()), integrand.process.unit
    word = unit.removeprefix("bits/") + "s"
    counts = {word: int(dims.sum()), "of": integrand.x.numel(), f"{example}s": some}
    return {**hashes, "modelled": counts}


def model_protocol(model: object) -> dict[str, object]:
    """How a model changes another one, as `Guided` and `Clipped` do: its attribute `protocol`."""
    return dict(getattr(original(model), "protocol", {}))


def computation_protocol(
    dtype: torch.dtype, device: torch.device, models: Sequence[object], share: Share
) -> dict[str, object]:
    """Dtypes, weights, device, processes, threads and versions."""
    modules = [model for model in map(original, models) if isinstance(model, nn.Module)]
    parameters = [p for module in modules for p in module.parameters()]
    return {
        "dtype": str(dtype).removeprefix("torch."), "model": weights_digest(*models),
        "weights": sorted({str(p.dtype).removeprefix("torch.") for p in parameters}),
        "TF32": False, "device": str(device), "processes": share.count, **versions(),
    }  # fmt: skip


def versions() -> dict[str, object]:
    """Beside the device, what decides the last bits of a number: threads split sums."""
    return {"threads": torch.get_num_threads(), "vdiff": __version__, "torch": torch.__version__}


def warn_if_versions_differ(what: str, before: object) -> None:
    """Warn where something resumes with other versions or another number of threads. Facts that an
    older file does not hold are ignored."""
    now, earlier = versions(), before if isinstance(before, dict) else {}
    if now | earlier != now:
        warnings.warn(
            f"{what} continues with {now} after {earlier}: not bit for bit", stacklevel=3
        )

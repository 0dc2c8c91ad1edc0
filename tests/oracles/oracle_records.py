"""The records of `records.json` (values computed elsewhere, each with its tolerance), and how they
are asked of vdiff.

A record is {id, case, quantity, params, value, tol, method}: `tol` is absolute unless `method`
says RELATIVE, and a dict or a list is compared entry by entry. Conventions: variance preserving, λ
= log SNR, sums over dimensions, nats, t = 0 at `lam_max`. Expectations over (x, ε) are
quadratures, handed to vdiff as `x`, `t` and `eps`: no seeds, no sampling error.
"""

import decimal
import functools
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff import Prediction
from vdiff.oracle import Gaussian, GaussianMixture, Lattice
from vdiff.parameterization import Eps, Flow, V, X
from vdiff.schedule import Cosine, Laplace, Linear, LinearBeta, Normal, OptimalTransport, Schedule
from vdiff.weighting import (
    EDM,
    ELBO,
    MSE,
    P2,
    Custom,
    Debiased,
    InDI,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
)

Record = dict[str, Any]
Model = Callable[..., Prediction]
DATA = json.loads((Path(__file__).parent / "records.json").read_text())
RECORDS: list[Record] = DATA["records"]
# quantities that wait for the capability that computes them
LATER = {}
# entries of tested records that no public name of vdiff answers yet
LATER_ENTRIES = {
    "vp": ("log_alpha2", "log_sigma2", "subvp_alpha")  # logsigmoid(±λ); the sub-VP process
}


def _prior_of_a_straight_path(t: str, square: str, dims: int) -> float:
    with decimal.localcontext(prec=40):
        variance = Decimal(t) ** 2
        return float(
            (dims * (variance - 1 - variance.ln()) + (1 - Decimal(t)) ** 2 * Decimal(square)) / 2
        )


def _likelihood_of_one_step(record: Record) -> dict[str, Any]:
    """The chain of one step, 6 → −5, at x = −1: z_0 integrated out by hand, z_1 on a grid to
    ±16."""
    case = DATA["cases"][record["case"]]
    weights, means, variances = (
        torch.tensor(case[k], dtype=torch.float64).flatten() for k in ("weights", "means", "vars")
    )
    z = torch.linspace(-16, 16, 8001, dtype=torch.float64)
    signal, noise = 1 / (1 + math.exp(5)), 1 / (1 + math.exp(-5))
    spread = signal * variances + noise
    shift = z[:, None] - math.sqrt(signal) * means
    share = (weights.log() - 0.5 * spread.log() - 0.5 * shift.square() / spread).softmax(1)
    denoised = (share * (means + math.sqrt(signal) * variances / spread * shift)).sum(1)
    mean = math.exp(-11) * z / math.sqrt(signal) + (1 - math.exp(-11)) * denoised  # of z_0/α_0
    variance = (1 - math.exp(-11)) * math.exp(-6) + math.exp(-6)
    log_density = (
        -0.5 * (-1 - mean).square() / variance
        - 0.5 * z.square()
        - 0.5 * math.log(variance)
        - math.log(2 * math.pi)
    )
    value = torch.logsumexp(log_density, 0).item() + math.log(z[1] - z[0])
    return record["value"] | {"log_p_x": [value, *record["value"]["log_p_x"][1:]]}


# values that lost digits where they were computed, once more; tolerances as they are: t² − 1 − log
# t² in float64, 1e-11 off; and a grid for z_1 that ends at ±11, 4e-7 off where log p(x) = −73.6
# lies in its tail
CORRECTED = {
    "02742": _prior_of_a_straight_path("0.999", "0.64", 1),
    "02746": _prior_of_a_straight_path("0.999", "2.3", 3),
    "02678": next(_likelihood_of_one_step(r) for r in RECORDS if r["id"] == "02678"),
}
asked: set[str] = set()  # ids of the records that a test asks for


def of(quantity: str, *cases: str) -> Any:
    """`pytest.mark.parametrize` over the records of a quantity (of some cases), with their ids."""
    chosen = [
        r for r in RECORDS if r["quantity"] == quantity and (not cases or r["case"] in cases)
    ]
    asked.update(r["id"] for r in chosen)
    return pytest.mark.parametrize("record", chosen, ids=[r["id"] for r in chosen])


def assert_meets(record: Record, got: Any) -> None:
    """Raise AssertionError unless every entry of the record is met within the record's own
    tolerance."""
    value = CORRECTED.get(record["id"], record["value"])
    _assert_close(
        value,
        got,
        record["tol"],
        "RELATIVE" in record["method"],
        LATER_ENTRIES.get(record["quantity"], ()),
        "value",
    )


def _assert_close(
    value: Any, got: Any, tol: float, relative: bool, later: tuple[str, ...], place: str
) -> None:
    if isinstance(value, dict):
        assert set(got) == set(value) - set(later), (
            f"{place}: entries {sorted(got)}, record has {sorted(value)}"
        )
        for key in got:
            _assert_close(value[key], got[key], tol, relative, later, f"{place}[{key}]")
    elif isinstance(value, list):
        assert len(got) == len(value), f"{place}: {len(got)} entries, record has {len(value)}"
        for i, (v, g) in enumerate(zip(value, got, strict=True)):
            _assert_close(v, g, tol, relative, later, f"{place}[{i}]")
    else:
        bound = tol * abs(value) if relative else tol
        error = abs(float(got) - value)
        assert error <= bound, (
            f"{place}: {float(got)!r}, record {value!r}, off by {error:.3g} where {bound:.3g} "
            f"is allowed"
        )


@functools.cache
def oracle(case: str) -> GaussianMixture:
    """The data of a case, as its perfect denoiser."""
    if case.startswith("pixels"):
        return Lattice(
            torch.arange(256, dtype=torch.float64) * (2 / 255) - 1,
            torch.tensor(DATA["pixels_pmf"], dtype=torch.float64),
        )
    definition = DATA["cases"][case]
    if definition["kind"] == "gaussian":
        return Gaussian(definition["mean"], definition["var"])
    return GaussianMixture(
        definition["weights"], definition["means"], [[v] for v in definition["vars"]]
    )


def vector(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def denoiser(case: str, name: str) -> Model:
    """One of the records' denoisers on the data of a case."""
    perfect = oracle(case)
    scaled: dict[str, Model] = {
        "opt": perfect,
        "eps_scale_0.9": lambda z, logsnr: Prediction(
            z, logsnr, 0.9 * perfect(z, logsnr).eps, Eps()
        ),
        "eps_zero": lambda z, logsnr: Prediction(z, logsnr, torch.zeros_like(z), Eps()),
        "eps_bias_0.1": lambda z, logsnr: Prediction(
            z, logsnr, perfect(z, logsnr).eps + 0.1, Eps()
        ),
        "x_zero": lambda z, logsnr: Prediction(z, logsnr, torch.zeros_like(z), X()),
        "x_scale_3": lambda z, logsnr: Prediction(z, logsnr, 3.0 * perfect(z, logsnr).x, X()),
    }
    return scaled[name]


SCHEDULES: dict[str | None, Callable[[], Schedule]] = {
    None: lambda: Linear(13.3, -5.0),
    "linear_gamma[13.3,-5]": lambda: Linear(13.3, -5.0),
    "cosine[13.3,-5]": lambda: Cosine(13.3, -5.0),
    "cosine[15,-15]": lambda: Cosine(15.0, -15.0),
    "vp_linear_beta[t0=1e-3]": LinearBeta,
    "fm_ot[13.3,-5]": lambda: OptimalTransport(13.3, -5.0),
}


def schedule_of(record: Record) -> Schedule:
    """The schedule of a record; without a name it is VDM's linear one."""
    return SCHEDULES[record["params"].get("schedule")]()


def _cosine_eps() -> Weighting:
    return MSE(Cosine().law, Eps())


TOTALS: dict[
    str, Callable[[], Weighting]
] = {  # with the constants of plain losses; the records leave `const_train` out
    "elbo": ELBO,
    "iddpm_cosine_eps": _cosine_eps,
    "ddpm_linear_eps": lambda: MSE(LinearBeta().law, Eps()),
    "iddpm_cosine_s0.008_eps": lambda: MSE(Cosine(offset=0.008).law, Eps()),
    "edm": EDM,
    "v_cosine": lambda: MSE(Cosine().law, V()),
    "fm_ot": lambda: MSE(OptimalTransport().law, Flow()),
    "indi": InDI,
    "p2_0.5_cosine": lambda: _cosine_eps() * P2(gamma=0.5),
    "p2_1_cosine": lambda: _cosine_eps() * P2(gamma=1.0),
    "min_snr_5_cosine": lambda: _cosine_eps() * MinSNR(5.0),
    "soft_min_snr_5_cosine": lambda: _cosine_eps() * SoftMinSNR(5.0),
    "sigmoid_b2": lambda: Sigmoid(2.0),
    "sigmoid_b0": lambda: Sigmoid(0.0),
    "edm_monotonic": lambda: EDM(monotone=True),
    "x_mse_cosine": lambda: MSE(Cosine().law, X()),
    "snr_plus1_x_cosine": lambda: MSE(Cosine().law, X()) * Custom(lambda logsnr: 1 + logsnr.exp()),
    "trunc_snr_x_cosine": lambda: _cosine_eps() * TruncatedSNR(),
    "laplace_0_0.5_eps": lambda: MSE(Laplace(0.0, 0.5).law, Eps()),
    "sd3_lognorm_0_1": lambda: MSE(Normal(0.0, 2.0).law, Flow()),
    "debiased_cosine": lambda: _cosine_eps() * Debiased(),
}


@functools.cache
def total(name: str) -> Weighting:
    return TOTALS[name]()


def shape_constant(name: str) -> float:
    """What a total is divided by to be the table's shape."""
    return DATA["weightings"][name]["const_train"]


def chain(steps: int) -> Tensor:
    """t = i/T, i = 1 … T."""
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps

"""The validity suite: every estimator on data whose −log p is known, in one table.

An oracle has its −log p(x) in closed form and is its own exact denoiser. A large z-score shows an
error in what stands between the two: the estimator, the decoder, or the class of the model.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vdiff import _html
from vdiff._arguments import Model
from vdiff._network import weights_dtype
from vdiff._validate import Count, Function, require, validated
from vdiff.decoder import Categorical
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.errors import did_you_mean
from vdiff.likelihood.chunks import Progress
from vdiff.likelihood.dequantise import TruncatedNormal, dequantized_ode
from vdiff.likelihood.evaluation import evaluate
from vdiff.likelihood.immse import immse
from vdiff.likelihood.importance import chain_log_prob, path_importance
from vdiff.likelihood.ode import ode_likelihood
from vdiff.likelihood.replicated import Replicated
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.oracle import Gaussian, GaussianMixture, Lattice
from vdiff.prediction import Prediction
from vdiff.schedule import Linear
from vdiff.times import generator_of

_OF_ORACLE = Function("from an oracle to a model: lambda oracle: oracle")
SLACK = 1e-3  # nats: the allowed error of solvers and finite ends, beside the standard error
LIMIT = 4.0  # standard errors
WIDE = Linear(18.0, -12.0)  # its ends change a density of these cases by less than 1e-4 nats
CHAIN = Linear(6.0, -5.0)


@dataclass(frozen=True)
class Row:
    """One estimator on one case: nats per point, and the model's evaluations for each point.

    `error` is the message of an estimator that raised.

    >>> row = Row("gaussian", "bound", 1.52, 0.01, 1.5, 100.0)
    >>> round(row.z, 2), row.passed
    (1.99, True)
    """

    case: str
    estimator: str
    estimate: float
    standard_error: float
    truth: float
    evaluations: float
    error: str = ""

    @property
    def z(self) -> float:
        """(estimate − truth) over the standard error combined with a slack of 1e-3 nats."""
        return (self.estimate - self.truth) / math.hypot(self.standard_error, SLACK)

    @property
    def passed(self) -> bool:
        """Whether |z| ≤ 4."""
        return abs(self.z) <= LIMIT  # NaN is not


@dataclass(frozen=True)
class Verification:
    """The rows of the table.

    `calls` are network evaluations for each point.

    >>> print(Verification((Row("gaussian", "bound", 1.52, 0.01, 1.5, 100.0),)))
    nats                       estimate          ±     truth        z  calls
    gaussian
      bound                     1.52000    0.01000   1.50000     1.99    100
    1 of 1 passed
    """

    rows: tuple[Row, ...]

    def asdict(self) -> dict[str, object]:
        """As plain data, in nats and network evaluations for each point."""
        rows = [vars(row) | {"z": row.z, "passed": row.passed} for row in self.rows]
        return {"unit": "nats", "rows": rows}

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows with |z| > 4 or an error."""
        return tuple(row for row in self.rows if not row.passed)

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{row.case}: {row.estimator}",
                *map(_short, (row.estimate, row.standard_error, row.truth), (5, 5, 5)),
                _short(row.z, 2),
                f"{row.evaluations:.0f}",
                row.error or ("passed" if row.passed else "FAILED"),
            )
            for row in self.rows
        ]
        passed = f"{len(self.rows) - len(self.failed)} of {len(self.rows)} passed"
        return _html.table(rows, ("nats", "estimate", "±", "truth", "z", "calls", passed))

    def __str__(self) -> str:
        head = f"{'estimate':>11}{'±':>11}{'truth':>10}{'z':>9}{'calls':>7}"
        lines, case = [f"{'nats':<24}{head}"], ""
        for row in self.rows:
            numbers = f"{_short(row.estimate, 5):>11}{_short(row.standard_error, 5):>11}"
            numbers += f"{row.truth:>10.5f}{_short(row.z, 2):>9}{row.evaluations:>7.0f}"
            numbers += "" if row.passed else "  FAILED"
            numbers = f"FAILED: {row.error}" if row.error else numbers
            lines += [] if row.case == case else [row.case]
            lines.append(f"  {row.estimator:<22}{numbers}")
            case = row.case
        passed = f"{len(self.rows) - len(self.failed)} of {len(self.rows)} passed"
        return "\n".join([*lines, passed])


def _short(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if abs(number) < 1e4 else f"{number:.2e}"


def cases() -> dict[str, GaussianMixture]:
    """The data of the suite by name. Each is asymmetric, so that a wrong sign shows.

    >>> list(cases())
    ['gaussian', 'correlated gaussian', 'mixture', 'lattice']
    """
    half = torch.arange(17, dtype=torch.float64)
    pmf = (-(0.5 * (half - 5.0) / 3.0).square()).exp() + 0.02 * half
    return {
        "gaussian": Gaussian([0.3], [0.25]),
        "correlated gaussian": Gaussian(
            [0.3, -0.2, 0.1], [[0.5, 0.2, -0.1], [0.2, 0.4, 0.1], [-0.1, 0.1, 0.6]]
        ),
        "mixture": GaussianMixture([0.3, 0.7], [[-1.0], [0.5]], [[0.04], [0.09]]),
        "lattice": Lattice(Categorical(17).level_values, pmf / pmf.sum()),
    }


@validated
def verify_estimators(
    model: Annotated[Callable[[GaussianMixture], Model], _OF_ORACLE] = lambda oracle: oracle,
    *,
    names: Iterable[str] | None = None,
    points: Count = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Every estimator on every case it applies to: bound, whole paths, ODE, dequantised ODE,
    I-MMSE.

    The table marks a number that is off by more than four standard errors, and an estimator that
    raises. Neither stops the suite.

    Args:
        model: a function from an oracle to the model to verify: your own class of models with the
            exact answers, for instance `lambda oracle: Denoiser(network_that_returns(oracle),
            V())`. The table then shows errors of that class. It gets z in the dtype of its own
            parameters.
        names: of cases; by default all.
        points: data points of each case.
        seed: of the data and of every estimator.
        progress: called as progress(done, total) with numbers of cases.

    >>> table = verify_estimators(points=16)
    >>> table.failed
    ()
    """
    oracles, rows = cases(), []
    chosen = list(oracles if names is None else names)
    for done, case in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        requirement = f"be of {', '.join(oracles)}"
        require(case in oracles, "names", requirement, repr(case), did_you_mean(case, oracles))
        oracle = oracles[case]
        x = oracle.sample(points, generator_of(seed, 0, case))
        for name, truth, run in _estimators(oracle, x, seed):
            counted = None
            try:
                counted = _Counted(model(oracle))
                estimate, error, why = *run(counted), ""
            except Exception as failure:  # the table shows any error of the model's class
                estimate, error, why = math.nan, math.nan, f"{type(failure).__name__}: {failure}"
            cost = 0.0 if counted is None else counted.rows / points
            rows.append(Row(case, name, estimate, error, truth, cost, why))
    return Verification(tuple(rows))


Estimator = Callable[["_Counted"], tuple[float, float]]


def _estimators(
    oracle: GaussianMixture, x: Tensor, seed: int
) -> Iterable[tuple[str, float, Estimator]]:
    """The name, the true mean of −log p over these points, and the estimator of a model."""
    truth = -oracle.log_prob(x).mean().item()
    gaussian = oracle.matched()
    options: dict[str, Any] = {"seed": seed}
    if isinstance(oracle, Lattice):
        decoder = Categorical(len(oracle.weights))
        data, wide, noise = decoder.decode(x), Linear(13.3, -12.0), TruncatedNormal(decoder, 10.0)
        bound = options | {"schedule": wide, "decoder": decoder}
        ode = options | {
            "schedule": Linear(10.0, -12.0),
            "prior": gaussian,
            "dequantization": noise,
        }
        error = options | {"schedule": wide, "gaussian": gaussian, "discrete": True}
        yield "bound", truth, lambda m: _bound(evaluate(m, data, **bound).total, 1)
        yield "dequantised ODE", truth, lambda m: _numbers(dequantized_ode(m, data, **ode))
        yield "I-MMSE", truth, lambda m: _numbers(immse(m, x, **error))
        return
    options["schedule"] = WIDE
    bound, ode = options | {"decoder": GaussianDecoder()}, options | {"prior": gaussian}
    error, exact = options | {"gaussian": gaussian}, {**ode, "seed": 0, "trace": Exact()}
    yield "bound", truth, lambda m: _bound(evaluate(m, x, **bound).total, oracle.dims)
    yield "ODE, exact trace", truth, lambda m: _numbers(ode_likelihood(m, x, **exact))
    if oracle.dims > 1:
        random = ode | {"trace": Hutchinson()}
        yield "ODE, Hutchinson", truth, lambda m: _numbers(ode_likelihood(m, x, **random))
    yield "I-MMSE", truth, lambda m: _numbers(immse(m, x, **error))
    if oracle.dims == 1:
        chain: dict[str, Any] = {"schedule": CHAIN, "decoder": GaussianDecoder(), "steps": 16}
        of_chain = -chain_log_prob(oracle, x, **chain).mean().item()
        paths = {**chain, "samples": 256, "seed": seed}
        name = "paths, T = 16, K = 256"
        yield name, of_chain, lambda m: _numbers(path_importance(m, x, **paths))


def _bound(total: Any, dims: int) -> tuple[float, float]:
    nats = dims * math.log(2)
    return total.value * nats, total.monte_carlo * nats


def _numbers(estimate: Replicated) -> tuple[float, float]:
    return estimate.mean, estimate.mean_error


class _Counted(nn.Module):
    """A model that counts its rows and gets them in the dtype of its own parameters. It is a
    module, so that evaluation mode reaches the modules inside."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.rows = model, 0
        self.dtype = weights_dtype(model)

    def forward(self, z: Tensor, logsnr: Tensor, **condition: Any) -> Prediction:
        self.rows += len(z)
        return self.model(z.to(self.dtype or z.dtype), logsnr, **condition)

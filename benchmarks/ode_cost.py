"""What the exact likelihood of the probability-flow ODE costs: evaluations of the network against
the error in nats.

Data whose density is known, with the perfect denoiser: a ring of eight Gaussians (radius √2,
standard deviation 0.1), and two random mixtures of ten Gaussians in 16 dimensions; 256 points
each, twice. Between λ = 18 and λ = −9, from a prior with the data's moments, trace exact. What is
left at the tightest tolerances is the ends' own: 1.5e-6 nats on the ring. Four minutes on one
core:

    python benchmarks/ode_cost.py
"""

import math

import torch

from vdiff.cli.parser import Parser
from vdiff.likelihood.ode import ode_likelihood
from vdiff.oracle import GaussianMixture
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say

TOLERANCES = (1e-3, 3e-4, 1e-4, 5e-5, 2.5e-5, 1e-5, 5e-6, 2.5e-6, 1e-6)
BUDGETS = {1e-3: 110, 1e-4: 120, 1e-5: 180}  # of the ring


def ring() -> GaussianMixture:
    place = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return GaussianMixture(
        [1 / 8] * 8, 2**0.5 * torch.stack([place.cos(), place.sin()], 1), torch.full((8, 2), 0.01)
    )


def mixture(seed: int, dims: int = 16, components: int = 10) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.5
    means = torch.randn(components, dims, generator=generator, dtype=torch.float64)
    factors = torch.randn(components, dims, dims, generator=generator, dtype=torch.float64) / 8
    return GaussianMixture(
        weights / weights.sum(), means, factors @ factors.mT + 0.02 * torch.eye(dims)
    )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--method", default="dopri5", help="of torchdiffeq (default: %(default)s)")
    text = "of the solver's angle (default: %(default)s)"
    parser.add_argument("--unit", type=float, default=0.5, help=text)
    parser.add_argument("--points", type=int, default=256, help="(default: %(default)s)")
    options = parser.parse_args()
    say(
        f"torch {torch.__version__}, {options.method}, angle in units of {options.unit:g}; "
        f"evaluations: root-mean-square error in nats"
    )
    say(f"{'tolerance':<22}" + "".join(f"{tolerance:>14.1e}" for tolerance in TOLERANCES))
    for name, data in {
        "ring of eight": ring(),
        "16-D mixture 0": mixture(0),
        "16-D mixture 1": mixture(1),
    }.items():
        prior = data.matched()
        for seed in (0, 1):
            x = data.sample(options.points, torch.Generator().manual_seed(seed))
            truth, cells, met = -data.log_prob(x), [], {}
            for tolerance in TOLERANCES:
                found = ode_likelihood(
                    data,
                    x,
                    schedule=Linear(18.0, -9.0),
                    prior=prior,
                    tolerance=tolerance,
                    method=options.method,
                    unit=options.unit,
                )
                error, count = (
                    (found.nats - truth).square().mean().sqrt().item(),
                    int(found.evaluations.max()),
                )
                cells.append(f"{count}: {error:.1e}")
                for bound in BUDGETS:
                    if error > bound:
                        met.pop(bound, None)  # a tighter tolerance must hold too
                    else:
                        met.setdefault(bound, count)
            say(f"{name}, seed {seed:<6}" + "".join(f"{cell:>14}" for cell in cells))
            if data.dims == 2:
                say(
                    "    first met, and by every tighter one: "
                    + ", ".join(f"{b:g} with {met.get(b)} (budget {BUDGETS[b]})" for b in BUDGETS)
                )


if __name__ == "__main__":
    replace_unencodable()
    main()

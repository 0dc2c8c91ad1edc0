"""What a training loop sees of the bound: one of a chain's terms at a time, and the gradient of
learned ends."""

import torch
from torch import Tensor

from vdiff.chain import vlb
from vdiff.decoder import Categorical, normal_nodes
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.loss import elbo
from vdiff.oracle import Lattice
from vdiff.schedule import LearnedLinear
from vdiff.theorems.chains import CHAIN, STEPS
from vdiff.theorems.integral import panels, slope, squared
from vdiff.theorems.subject import Subject, biased
from vdiff.theorems.theorem import Sides, equal, theorem

SOURCE = "iDDPM, arXiv:2102.09672, sections 3.1 and 3.3"


def _one_term(subject: Subject, first: int) -> Sides:
    """The mean of `vlb` over the levels i/T, i = first … T, against `elbo` over all steps, row by
    row with the same noise."""
    x, decoder = subject.rows(32), GaussianDecoder(variance=0.1, denoise=True)
    eps = torch.randn(x.shape, generator=subject.generator("terms of vlb"), dtype=torch.float64)
    each = [
        vlb(
            subject.model,
            x,
            schedule=CHAIN,
            steps=STEPS,
            decoder=decoder,
            t=torch.full((len(x),), i / STEPS, dtype=torch.float64),
            eps=eps,
        ).total
        for i in range(first, STEPS + 1)
    ]
    whole = elbo(
        subject.model, x, schedule=CHAIN, steps=STEPS, decoder=decoder, draws=STEPS, eps=eps
    )
    return equal(torch.stack(each).mean(0), whole.total, rel=1e-8, why="float64 rounding")


@theorem(
    source=SOURCE, given="all T + 1 levels are equally likely, the decoder's too", any_network=True
)
def one_term_estimates_the_whole_bound(subject: Subject) -> Sides:
    """The prior and T + 1 times one term of the chain have the mean prior + Σ KL + L₀: over all
    levels, one by one, it is that bound."""
    return _one_term(subject, 0)


@one_term_estimates_the_whole_bound.without(
    "all T + 1 levels are equally likely, the decoder's too"
)
def _(subject: Subject) -> Sides:
    return _one_term(subject, 1)


HIGH, LOW = 3.0, -2.0
DATA = Lattice(Categorical(3).grid, [0.2, 0.5, 0.3])


class _Wide(Categorical):
    """Encoded in float64."""

    def encode(self, data: Tensor) -> Tensor:
        return super().encode(data).double()


def _learned_ends(errors_of_the_model: bool) -> Sides:
    """d bound/dλ_max and d bound/dλ_min by autograd through `elbo`, of three levels of data,
    against the errors at the ends."""
    model, decoder, schedule = biased(DATA), _Wide(3), LearnedLinear(HIGH, LOW)
    node, mass = normal_nodes()
    level, eps = torch.arange(3).repeat_interleave(len(node))[:, None], node.repeat(3)[:, None]
    weight = DATA.weights.repeat_interleave(len(node)) * mass.repeat(3)
    t, dt = panels(torch.linspace(0, 1, 21, dtype=torch.float64))
    n = len(level)
    with torch.enable_grad():
        bound = elbo(
            model,
            level.repeat(len(t), 1),
            schedule=schedule,
            decoder=decoder,
            t=t.repeat_interleave(n),
            eps=eps.repeat(len(t), 1),
        )
        by_high, by_low = torch.autograd.grad(
            dt @ (bound.total.view(len(t), n) @ weight), [schedule.high, schedule.low]
        )
    share = torch.sigmoid(
        schedule.high - schedule.low
    )  # λ_max = low + softplus(high − low), λ_min = low
    at_high = by_high / share
    at_low = by_low - (1 - share) * at_high

    ends = torch.tensor([HIGH, LOW], dtype=torch.float64)
    x = decoder.encode(level)
    errors = squared(model if errors_of_the_model else DATA)
    error = torch.stack([weight @ errors(x, eps, v.expand(n)) for v in ends])

    def reconstruction(lam: Tensor) -> Tensor:
        return torch.stack([DATA.weights @ decoder.table(v) for v in lam.tolist()])

    square, signal = weight @ x[:, 0].square(), torch.sigmoid(ends[1])
    prior = 0.5 * (signal * (1 - signal) * (square - 1) + signal)
    right = torch.stack(
        [0.5 * error[0] + slope(reconstruction, ends[:1])[0], prior - 0.5 * error[1]]
    )
    return equal(
        torch.stack([at_high, at_low]),
        right,
        rel=1e-6,
        why="quadrature over t and ε, and a difference quotient of the decoder's",
    )


@theorem(
    source="VDM, arXiv:2107.00630, section 4 and appendix I: the ends follow the bound",
    given="the errors are those of this model",
)
def gradient_of_learned_ends(subject: Subject) -> Sides:
    """What `elbo` hands to learned ends is local: ½ E‖e‖² + dL₀/dλ_max at λ_max, and d
    prior/dλ_min − ½ E‖e‖² at λ_min."""
    return _learned_ends(errors_of_the_model=True)


@gradient_of_learned_ends.without("the errors are those of this model")
def _(subject: Subject) -> Sides:
    return _learned_ends(errors_of_the_model=False)


__all__: list[str] = []

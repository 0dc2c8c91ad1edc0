"""A mixture of Gaussians of which some dimensions are given: its exact denoiser, told a field of
log-SNR, and the bound of each example in closed form. For tests."""

import math

import torch
from torch import Tensor

from vdiff import Prediction
from vdiff.decoder import Gaussian as GaussianDecoder
from vdiff.decoder.base import normal_nodes
from vdiff.gaussian import per_example, prior_kl
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps
from vdiff.schedule import Schedule


class Told:
    """ε̂ = E[ε | z] of x ~ Σ w N(m, C) at a field of λ, (batch, d) examples, in float64; with
    `scale`, x̂ is so many times the exact one. `told` counts the calls and keeps the last λ."""

    def __init__(self, weights, means, covariances, scale=1.0):
        as_float = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        self.weights, self.means, self.covariances = as_float
        self.scale, self.calls, self.told = scale, 0, None

    def __call__(self, z, logsnr):
        self.calls, self.told = self.calls + 1, logsnr
        field = per_example(logsnr, z.double()).expand(z.shape)
        a, s = field.sigmoid().sqrt(), field.neg().sigmoid().sqrt()
        covariance = a[:, None, :, None] * self.covariances * a[:, None, None, :]
        covariance = covariance + s.square().diag_embed()[:, None]
        off = z.double()[:, None] - a[:, None] * self.means
        solved = torch.linalg.solve(covariance, off)
        log_joint = self.weights.log() - 0.5 * ((off * solved).sum(2) + covariance.logdet())
        eps = s * (log_joint.softmax(1)[..., None] * solved).sum(1)
        if self.scale != 1:
            eps = (z - self.scale * (z - s * eps)) / s
        return Prediction(z, logsnr, eps.to(z.dtype), Eps())

    def sample(self, n: int, seed: int) -> Tensor:
        """n examples."""
        generator = torch.Generator().manual_seed(seed)
        mixture = GaussianMixture(self.weights, self.means, self.covariances)
        return mixture.sample(n, generator)

    def given(self, x: Tensor, modelled: Tensor, given: Tensor) -> GaussianMixture:
        """The law of the modelled dimensions of one example (d,), given others of it."""
        slopes = [c[modelled][:, given] @ c[given][:, given].inverse() for c in self.covariances]
        off = x[given] - self.means[:, given]
        means = [m[modelled] + b @ o for m, b, o in zip(self.means, slopes, off, strict=True)]
        left = [
            c[modelled][:, modelled] - b @ c[given][:, modelled]
            for c, b in zip(self.covariances, slopes, strict=True)
        ]
        weights = self.weights
        if given.any():
            of_given = self.means[:, given], self.covariances[:, given][:, :, given]
            each = [
                GaussianMixture([1.0], m[None], c[None]).log_prob(x[None, given])
                for m, c in zip(*of_given, strict=True)
            ]
            weights = (weights.log() + torch.cat(each)).softmax(0)
        return GaussianMixture(weights, torch.stack(means), torch.stack(left))


def exact_bound(law: GaussianMixture, x: Tensor, high: float, low: float) -> float:
    """The bound of the exact denoiser of one example (d,) between two ends, a Gaussian decoder,
    nats: ½ ∫ E[‖ε − ε̂‖² | x] dλ = KL(q(z₀|x) ‖ q(z₀)) − KL(q(z₁|x) ‖ q(z₁)), by quadrature over
    ε."""
    nodes, weight = normal_nodes()
    nodes, weight = nodes[::2], 2 * weight[::2]
    eps = torch.cartesian_prod(*[nodes] * len(x)).view(-1, len(x))
    mass = torch.cartesian_prod(*[weight] * len(x)).view(-1, len(x)).prod(1)
    kl = []
    for end in (high, low):
        level = torch.full((len(eps),), end, dtype=torch.float64)
        a, s = level[0].sigmoid().sqrt(), level[0].neg().sigmoid().sqrt()
        log_given = -0.5 * (eps.square() + math.log(2 * math.pi)).sum(1) - len(x) * s.log()
        kl.append(mass @ (log_given - law.noisy_log_prob(a * x + s * eps, level)))
    prior = prior_kl(x[None], torch.tensor(low, dtype=torch.float64))[0]
    decoder = GaussianDecoder().expected_nll(x[None], torch.tensor(high, dtype=torch.float64))[0]
    return (kl[0] - kl[1] + prior + decoder).item()


class Bent(Schedule):
    """λ_i(t) = high − span (t + c_i t (1 − t)): a path over the last dimension, |c_i| < 1."""

    over_dims = True

    def __init__(self, high: float, low: float, bends):
        super().__init__(high, low)
        self.bends = torch.as_tensor(bends, dtype=torch.float64)

    def check(self, points: int = 0):
        return self

    def logsnr_at(self, t):
        high, low = self.ends()
        return high - (high - low) * (t + self.bends * t * (1 - t))

    def rate_at(self, t, logsnr):
        high, low = self.ends()
        return (high - low) * (1 + self.bends * (1 - 2 * t))

    def extra_repr(self):
        return f"{super().extra_repr()}, bends={self.bends.tolist()}"


class Tossed(Bent):
    """A path that depends on the data: a coin c ~ q(c|x), q(c = 1|x) = sigmoid(x₁), turns the
    bends round. Its part of the bound is one draw of log q(c|x) − log p(c), p(c) = ½."""

    depends_on_data = True

    def for_data(self, x, generator=None):
        chance = x[:, 0].double().sigmoid()
        coin = torch.rand(len(x), dtype=torch.float64, generator=generator) < chance
        nats = torch.where(coin, chance, 1 - chance).log() + math.log(2)
        sign = torch.where(coin, 1.0, -1.0)[:, None]
        return Bent(*self.ends(), sign * self.bends), nats

    @staticmethod
    def kl(x):
        """The mean of its part, nats (n,)."""
        chance = x[:, 0].double().sigmoid()
        return math.log(2) + chance * chance.log() + (1 - chance) * (1 - chance).log()

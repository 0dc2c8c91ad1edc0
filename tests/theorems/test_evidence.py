"""Each theorem is evidence for the library: with a public function 1.05 times too large, its row
is red."""

import inspect
import sys
from copy import copy
from functools import partial, reduce
from types import FunctionType
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import vdiff
from vdiff.theorems import THEOREMS, Subject

EVIDENCE = {  # the theorems that must see it where this function of the library is wrong
    "augmentation.Augmentation.__call__": "weighted-loss-is-a-bound-of-noisier-data",
    "augmentation.augmented_elbo": "training-on-noisier-data",
    "bound.Bound.mean_bits_per_dim": "bits-of-a-set",
    "chain.hybrid_loss": "hybrid-loss-trains-the-variance-by-the-bound",
    "chain.path_bound": """
        importance-weight telescoped-bound variances-along-a-path path-variance-vanishes
    """,
    "chain.vlb": "one-term-estimates-the-whole-bound",
    "decoder.Categorical.log_prob": "decoders-sum-to-one reconstruction-is-a-table",
    "decoder.DiscretizedGaussian.log_prob": "decoders-sum-to-one bins-in-the-tails",
    "decoder.Gaussian.log_prob": "gaussian-reconstruction",
    "discrete.AnyOrder.integrand": "masks-of-any-order",
    "discrete.Masked.step_kl": "chain-loses-what-falls-together",
    "discrete.Posterior.leave_one_out": "posterior-and-leave-one-out-are-one-model",
    "discrete.Process.integrand": "bound-of-exact-conditionals",
    "discrete.Process.prior": "ends-of-tokens-are-divergences",
    "discrete.Process.reconstruction": "ends-of-tokens-are-divergences",
    "discrete.TokenPrediction.loss": "bound-of-exact-conditionals",
    "flow.angle": "flow-has-the-marginals",
    "gaussian.Step.coefficient_x": "posterior posterior-marginal",
    "gaussian.Step.forward_variance": "markov-consistency",
    "gaussian.Step.log_variance_ratio": "best-variance-lies-between-the-two",
    "gaussian.Step.variance": "ancestral-samples-have-the-chains-law",
    "gaussian.alpha": "forward-marginal",
    "gaussian.bits_per_dim": "bits-of-a-density",
    "gaussian.kl_to_normal": "scheduled-walk-rate",
    "gaussian.prior_kl": "prior-term naive-walk-is-variance-exploding",
    "gaussian.step_kl": """
        kl-of-equal-covariances kl-of-unequal-covariances tight-at-every-number-of-steps
    """,
    "likelihood.Exact.divergence": "likelihood-along-the-flow",
    "likelihood.evaluate": "bound-of-a-data-set",
    "likelihood.importance.chain_log_prob": "likelihood-of-a-chain",
    "likelihood.path_importance": "importance-weighted-bound",
    "likelihood.immse": "density-is-an-integral-of-errors",
    "likelihood.ode_likelihood": "likelihood-along-the-flow",
    "loss.elbo": """
        bound-of-discrete-data bound-of-the-exact-denoiser
        slack-is-the-posteriors-divergence end-derivatives bound-from-t-on
        bound-from-t-on-is-an-elbo-of-noisy-data bound-without-slack
        gradient-of-learned-ends one-term-estimates-the-whole-bound
        masked-bound-is-conditional noise-that-depends-on-the-data
        bound-of-exact-conditionals chain-loses-what-falls-together
    """,
    "loss.weighted_elbo": """
        variance-of-the-loss least-variance-is-attained gradient-of-the-variance
        adaptive-density-is-the-best-for-gaussian-errors
        adaptive-density-makes-the-loss-even
        one-backward-gives-the-gradient-of-the-variance plain-loss-of-a-chain
        factor-of-a-loop-over-steps jensen bound-of-each-example
        derivative-of-the-bound-from-t-on weighted-loss-is-a-bound-of-noisier-data
        weighted-loss-is-a-signed-mixture simple-loss-is-a-weighted-bound
        simple-loss-in-continuous-time plain-loss-is-a-weighting min-snr-in-each-target
        refinement discrete-bound-is-looser rate-of-discretization continuous-limit
        denoiser-that-says-zero best-placement-of-steps schedule-invariance
        learned-schedule-invariance schedule-invariance-of-any-network
        importance-sampling-invariance parameterization-invariance process-invariance
        published-networks-are-one-model scale-of-the-data-is-a-shift factor-of-a-loop
        simple-loss-is-multi-scale-score-matching paths-of-the-exact-denoiser
        paths-of-a-gaussian-denoiser chain-rule-along-a-path path-is-a-sum-of-masked-losses
    """,
    "oracle.Gaussian.information": "noise-that-depends-on-the-data",
    "oracle.GaussianMixture.conditional_nll": "masked-bound-is-conditional",
    "oracle.GaussianMixture.mmse": """
        best-variance-exceeds-the-posteriors derivative-of-the-exact-error
        scale-of-the-data-is-a-shift
    """,
    "oracle.GaussianMixture.mutual_information": """
        i-mmse paths-of-the-exact-denoiser chain-rule-along-a-path
    """,
    "parameterization.Parameterization.target": """
        targets-are-derivatives plain-loss-is-a-weighting
    """,
    "prediction.Prediction.score": "tweedie denoising-score-matching",
    "prediction.Prediction.squared_error": """
        i-mmse what-an-inexact-denoiser-adds gaussian-data-is-the-hardest
        denoising-score-matching conditioning-reduces-variance
    """,
    "prediction.Prediction.v": "flow-has-the-marginals",
    "profile.Profile.at": "best-variance-of-any-network",
    "resampling.LossSecondMoment.at": "resampled-steps-keep-the-mean",
    "reverse.MonteCarlo.__call__": "estimators-share-their-mean",
    "reverse.RaoBlackwell.__call__": "estimators-share-their-mean raw-terms-differ-by-an-entropy",
    "reverse.Raw.__call__": "raw-terms-differ-by-an-entropy",
    "reverse.reverse_kl": """
        rao-blackwell-law rao-blackwell-never-adds-variance
        rao-blackwell-law-of-any-network step-is-a-squared-error
        step-with-the-forward-variance simple-loss-with-the-large-variance
        kl-at-the-best-variance learned-range-reaches-the-best
        best-variance-of-any-network tight-at-every-number-of-steps
    """,
    "reverse.reverse_log_ratio": """
        rao-blackwell-law rao-blackwell-never-adds-variance
        rao-blackwell-law-of-any-network order-of-the-reduction
        path-estimators-share-their-mean sampled-step-has-the-mean-of-the-kl
        telescoped-bound
    """,
    "reverse.reverse_sample": """
        samples-have-the-chosen-variance reverse-diffusion-has-the-marginals
        ddim-with-noise-is-ancestral
    """,
    "sampling.Guided.forward": "guidance-sharpens-the-posterior",
    "sampling.step.ddim": "ddim-is-eulers-step ddim-with-noise-is-ancestral",
    "sampling.step.move": "samplers-follow-the-flow order-of-the-samplers",
    "schedule.Cosine.rate_at": "schedule-invariance-of-tokens",
    "schedule.InTurn.rate_at": "paths-of-a-gaussian-denoiser chain-rule-along-a-path",
    "schedule.Normal.density": "importance-sampling-invariance",
    "schedule.Normal.rate_at": "schedule-invariance-of-any-network",
    "schedule.PerDimension.rate_at": "paths-of-the-exact-denoiser",
    "schedule.base.Schedule.density": """
        variance-of-the-loss adaptive-schedule-finds-the-least-variance
    """,
    "schedule.mulan.coin_kl": "noise-that-depends-on-the-data",
    "schedule.tabulated.Tabulated.from_betas": "scheduled-walk",
    "weighting.MSE.weight_at": "implied-weightings flow-matching-is-v-prediction",
    "weighting.MinSNR.weight_at": "min-snr-in-each-target",
    "weighting.Weighting.monotone": "monotone-weightings",
    "weighting.Weighting.peak": "peaks-of-weightings",
    "weighting.loss_factor": "factor-of-a-loop-over-steps factor-of-a-loop",
}


def larger(value: Any) -> Any:
    """1.05 times every number in it, or that it returns; the opposite of a truth value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, FunctionType | partial):
        return lambda *args: larger(value(*args))
    if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
        value = copy(value)  # it may hold a schedule that other theorems use
        for name, part in vars(value).items():
            object.__setattr__(value, name, larger(part))
        return value

    def number(v: Any) -> Any:
        real = isinstance(v, float) or (isinstance(v, torch.Tensor) and v.is_floating_point())
        return 1.05 * v if real else v

    return _pytree.tree_map(number, value)


def enlarge(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Make a function, method or property of the library too large, in each module that has it."""
    *place, name = path.split(".")
    owner = reduce(getattr, place, vdiff)
    right = inspect.getattr_static(owner, name)
    if isinstance(right, property):
        wrong: Any = property(lambda self: larger(right.fget(self)))
    elif isinstance(right, classmethod):
        wrong = classmethod(
            lambda cls, *args, **options: larger(right.__func__(cls, *args, **options))
        )
    else:
        wrong = lambda *args, **options: larger(right(*args, **options))  # noqa: E731
    if isinstance(owner, type):
        monkeypatch.setattr(owner, name, wrong)
        return
    for module in list(sys.modules.values()):
        if module.__name__.startswith("vdiff") and vars(module).get(name) is right:
            monkeypatch.setattr(module, name, wrong)


@torch.no_grad()
def holds(name: str) -> bool:
    """Whether the row is green; an error is red."""
    try:
        return THEOREMS[name].sides(Subject()).holds
    except Exception:
        return False


@pytest.mark.parametrize("path", EVIDENCE)
def test_a_factor_of_105_turns_the_row_red(monkeypatch, path):
    names = EVIDENCE[path].split()
    enlarge(monkeypatch, path)
    assert [name for name in names if holds(name)] == []


def test_every_theorem_is_evidence_for_something():
    named = {name for names in EVIDENCE.values() for name in names.split()}
    topics = {THEOREMS[name].topic for name in named}
    assert named == {theorem.name for theorem in THEOREMS.values() if theorem.topic in topics}

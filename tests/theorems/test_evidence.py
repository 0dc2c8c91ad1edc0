"""Each theorem is evidence for the library: with a public function 1.05 times too large, its row is
red."""

import sys
from functools import reduce
from types import FunctionType
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import vdiff
from vdiff.theorems import THEOREMS, verify

EVIDENCE = {  # the theorems that must see it where this function of the library is wrong
    "augmentation.Augmentation.__call__": "weighted-loss-is-a-bound-of-noisier-data",
    "augmentation.augmented_elbo": "training-on-noisier-data",
    "chain.path_bound": "importance-weight telescoped-bound",
    "decoder.Categorical.log_prob": "decoders-sum-to-one reconstruction-is-a-table",
    "decoder.DiscretizedGaussian.log_prob": "decoders-sum-to-one bins-in-the-tails",
    "decoder.Gaussian.log_prob": "gaussian-reconstruction",
    "gaussian.Step.coefficient_x": "posterior posterior-marginal",
    "gaussian.Step.forward_variance": "markov-consistency",
    "gaussian.alpha": "forward-marginal",
    "gaussian.bits_per_dim": "bits-of-a-density",
    "gaussian.kl_to_normal": "scheduled-walk-rate",
    "gaussian.step_kl": "kl-of-equal-covariances kl-of-unequal-covariances",
    "gaussian.prior_kl": "prior-term naive-walk-is-variance-exploding",
    "likelihood.immse": "density-is-an-integral-of-errors",
    "loss.elbo": "bound-of-discrete-data bound-of-the-exact-denoiser slack-is-the-posteriors-divergence end-derivatives "
    "bound-from-t-on bound-from-t-on-is-an-elbo-of-noisy-data",
    "loss.weighted_elbo": "plain-loss-of-a-chain factor-of-a-loop-over-steps jensen bound-of-each-example derivative-of-the-bound-from-t-on "
    "weighted-loss-is-a-bound-of-noisier-data weighted-loss-is-a-signed-mixture",
    "oracle.GaussianMixture.mutual_information": "i-mmse",
    "parameterization.Prediction.squared_error": "i-mmse what-an-inexact-denoiser-adds "
    "gaussian-data-is-the-hardest",
    "reverse.MonteCarlo.__call__": "estimators-share-their-mean",
    "reverse.RaoBlackwell.__call__": "estimators-share-their-mean raw-terms-differ-by-an-entropy",
    "reverse.Raw.__call__": "raw-terms-differ-by-an-entropy",
    "reverse.reverse_kl": "step-is-a-squared-error step-with-the-forward-variance",
    "reverse.reverse_log_ratio": "sampled-step-has-the-mean-of-the-kl telescoped-bound",
    "weighting.loss_factor": "factor-of-a-loop-over-steps",
    "schedule.tabulated.Tabulated.from_betas": "scheduled-walk",
}


def larger(value: Any) -> Any:
    """1.05 times every number in it, or that it returns."""
    if isinstance(value, FunctionType):
        return lambda *args: larger(value(*args))
    if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor):
        for name, part in vars(value).items():
            object.__setattr__(value, name, larger(part))
        return value
    return _pytree.tree_map(
        lambda v: 1.05 * v if isinstance(v, torch.Tensor) and v.is_floating_point() else v, value
    )


def enlarge(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Make a function, method or property of the library too large, in each module that has it."""
    *module, name = path.split(".")
    owner = reduce(getattr, module, vdiff)
    right = vars(owner)[name]
    if isinstance(right, property):
        wrong: Any = property(lambda self: larger(right.fget(self)))
    elif isinstance(right, classmethod):
        wrong = classmethod(
            lambda cls, *args, **options: larger(right.__func__(cls, *args, **options))
        )
    else:
        wrong = lambda *args, **options: larger(right(*args, **options))  # noqa: E731
    owners = [
        m for m in list(sys.modules.values()) if getattr(m, "__name__", "").startswith("vdiff")
    ]
    for one in [owner] if isinstance(owner, type) else owners:
        if vars(one).get(name) is right:
            monkeypatch.setattr(one, name, wrong)


@pytest.mark.parametrize("path", EVIDENCE)
def test_a_factor_of_105_turns_the_row_red(monkeypatch, path):
    names = EVIDENCE[path].split()
    enlarge(monkeypatch, path)
    rows = {verdict.name: verdict for verdict in verify(names=names) if verdict.must_hold}
    assert [name for name in names if rows[name].ok] == []


def test_every_theorem_is_evidence_for_something():
    named = {name for names in EVIDENCE.values() for name in names.split()}
    topics = {THEOREMS[name].topic for name in named}
    assert named == {theorem.name for theorem in THEOREMS.values() if theorem.topic in topics}

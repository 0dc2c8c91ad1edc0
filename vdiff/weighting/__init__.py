"""w(λ) ≥ 0, the weight of each log-SNR in the ε-loss: L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ.

A total is a complete weighting (`ELBO`, `Sigmoid`, `MSE`, or any function of λ). A factor
multiplies a total, as in `MSE(Cosine(), Eps()) * MinSNR(5)`, and is refused alone. Every factor
applies to the ε-loss, whatever the network predicts.
"""

from vdiff._inputs import WeightFunction as WeightFunction
from vdiff.weighting.base import Custom, Product, Weighting, loss_factor
from vdiff.weighting.factors import P2, Debiased, Factor, MinSNR, SoftMinSNR, TruncatedSNR
from vdiff.weighting.published import EDM, ELBO, MSE, InDI, Sigmoid

__all__ = [
    "EDM", "ELBO", "MSE", "P2", "Custom", "Debiased", "Factor", "InDI", "MinSNR", "Product",
    "Sigmoid", "SoftMinSNR", "TruncatedSNR", "Weighting", "loss_factor",
]  # fmt: skip

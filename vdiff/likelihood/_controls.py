"""Control variates of an integrand: which a plan has, fitted to its images, and their values."""

import torch
from torch import Tensor

from vdiff._validate import require
from vdiff.likelihood._rules import is_path
from vdiff.likelihood.control import Control, FittedControl
from vdiff.likelihood.integrand import Drawn, Integrand
from vdiff.likelihood.variance_reduction import GAUSSIAN_CONTROLS, VarianceReduction


def controls_of(plan: VarianceReduction, integrand: Integrand) -> tuple[Control, ...]:
    """The control variates of a plan. By default tokens have none; others are refused there."""
    if integrand.process.continuous:
        return plan.controls
    default = plan.controls is GAUSSIAN_CONTROLS or not plan.controls
    hint = "their means are over Gaussian noise: controls=()"
    require(default, "controls", "be left out for tokens", list(plan.controls), hint)
    return ()


def fitted_to(control: Control, integrand: Integrand) -> FittedControl:
    """A control of an integrand's images. One without masks or paths need not know of them."""
    path, part = any(is_path(side.base) for side in integrand.sides), integrand.part
    whole = part.modelled is None and not path
    return control.fit(integrand.x) if whole else control.fit(integrand.x, part, path)


def control_values(
    integrand: Integrand,
    controls: tuple[FittedControl, ...],
    rows: Tensor,
    t: Tensor,
    eps: Tensor,
    drawn: Drawn | None = None,
) -> Tensor:
    """(n, controls): ½ m times each control, the unit of the diffusion term, at each of the
    integrand's levels. The mean given (image, t) is zero."""
    if not controls:
        return t.new_zeros(len(t), 0, dtype=torch.float64)
    values = []
    for logsnr, measure in integrand.all_levels(t, drawn):
        for control in controls:
            if logsnr.ndim == 1:
                values.append(0.5 * measure * control.centered(rows, eps, logsnr).double())
            else:
                values.append(0.5 * control.centered(rows, eps, logsnr, measure).double())
    return torch.stack(values, 1)

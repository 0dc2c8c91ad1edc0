"""A validation curve: the bound of held-out images, always on the same times and noise."""

import warnings
from typing import Any

from torch import Tensor

from vdiff._arguments import Condition
from vdiff._validate import Count, validated
from vdiff.errors import InvalidValue
from vdiff.likelihood import VarianceReduction, evaluate
from vdiff.likelihood.estimate import Estimate
from vdiff.objective import Objective
from vdiff.training.ranks import share_of_rank

FIXED = VarianceReduction(importance=False, controls=(), antithetic=False, baseline=False)


class Validation:
    """The bound of held-out images with its errors, for `train(…, validate=Validation(images))`.

    Every call uses the same noise and the same times, stratified for each image: two points of a
    curve differ only by what was learned between them. Processes share the images. `condition` is
    as in `evaluate`.

    >>> from vdiff.training import Config
    >>> config = Config(network={"name": "UNet", "channels": 1, "channels_out": 17, "width": 8})
    >>> validate = Validation(torch.randint(0, 17, (8, 1, 8, 8)))
    >>> validate(config.objective()).value > 3.0
    True
    """

    @validated
    def __init__(
        self,
        data: Tensor,
        *,
        draws: Count = 8,
        replicates: Count = 2,
        batch: Count = 1024,
        seed: int = 0,
        condition: Condition = None,
    ) -> None:
        self.data, self.condition = data, dict(condition or {})
        self.effort = {"draws": draws, "replicates": replicates, "batch": batch, "seed": seed}

    @validated
    def __call__(self, averaged: Objective) -> Estimate:
        """The total in bits/dim. Raises ValueError if there is no decoder."""
        if averaged.decoder is None:
            raise InvalidValue("averaged", "have a decoder", None, "without one there is no bound")
        options: dict[str, Any] = {"plan": FIXED, "share": share_of_rank(), **self.effort}
        options |= {"schedule": averaged.schedule, "decoder": averaged.decoder}
        options |= {"steps": averaged.steps, "condition": self.condition}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*more than uniform noise")  # a curve begins there
            return evaluate(averaged.model, self.data, **options).total


__all__ = ["Validation"]

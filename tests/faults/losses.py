"""An objective of each kind, with data for it."""

from registry import DECODERS, TARGETS
from torch import Tensor

from vdiff import Objective
from vdiff.decoder import Categorical
from vdiff.objective import VLB, Weighted
from vdiff.schedule import LearnedLinear, Linear
from vdiff.weighting import Sigmoid

from .common import SCHEDULE, batch, data_of, model


def objectives() -> dict[str, tuple[Objective, Tensor]]:
    weighted = {
        name: (Objective(model(row), schedule=SCHEDULE, loss=Weighted(Sigmoid())), batch()[0])
        for name, row in TARGETS.items()
    }
    bounds = {
        name: (Objective(model(), schedule=Linear(), loss=VLB(make())), data_of(make()))
        for name, make in DECODERS.items()
        if not make().uses_network
    }
    learned = {
        "learned": (
            Objective(model(), schedule=LearnedLinear(), loss=VLB(Categorical(17))),
            data_of(Categorical(17)),
        )
    }
    return {
        **weighted,
        **bounds,
        **learned,
        "chain": (Objective(model(), schedule=SCHEDULE, loss=Weighted(steps=10)), batch()[0]),
    }

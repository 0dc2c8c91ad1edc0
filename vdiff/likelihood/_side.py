"""A model and the bound that is measured of it."""

from typing import NamedTuple

from vdiff._arguments import Model, decoder_fits, finite_end, original
from vdiff._diffusion import Diffusion, diffusion_of, takes_time
from vdiff.decoder import Decoder
from vdiff.likelihood._rules import is_path, known_range
from vdiff.likelihood.digest import schedule_digest
from vdiff.schedule import Schedule
from vdiff.weighting._check import divides_table


class Side(NamedTuple):
    """A model and its bound: between the ends of `base`, along its path where it is one over
    dimensions, or of a chain of `steps`. `process` corrupts and scores the data."""

    model: Model
    base: Schedule
    decoder: Decoder | None
    steps: int | None
    process: Diffusion

    @property
    def evaluations(self) -> int:
        """Calls of the network for each draw."""
        return 2 if self.decoder is not None and self.decoder.uses_network else 1

    def name(self, ndim: int) -> dict[str, object]:
        """What the bound of an x of `ndim` dimensions depends on, for a protocol."""
        chain, path = self.steps is not None, is_path(self.base)
        decodes = self.process.continuous
        part = {"decoder": self.decoder} if decodes else {"process": self.process}
        return {
            **{word: repr(v) for word, v in part.items()},
            "logsnr": [self.base.logsnr_min, self.base.logsnr_max],
            "T": self.steps if chain else "∞",
            "schedule": repr(self.base) if chain or path else None,
            **({"path": schedule_digest(self.base, ndim)} if chain or path else {}),
        }


def side_of(
    model: Model,
    schedule: Schedule,
    decoder: Decoder | None,
    steps: int | None,
    process: Diffusion,
) -> Side:
    """A model and its bound. Validates that they fit, and warns beyond what the model knows."""
    finite_end(schedule)
    divides_table(schedule, steps)
    decoder_fits(decoder, schedule)
    base = schedule
    if steps is None and not is_path(schedule):
        base = process.even(schedule.logsnr_max, schedule.logsnr_min)
    known_range(model, base, steps)
    return Side(model, base, decoder, steps, process)


def same_in_any_order(
    model: Model, schedule: Schedule, decoder: Decoder | None, steps: int | None
) -> Diffusion | None:
    """The process with the same bound, if there is one, in which λ alone decides how many
    dimensions are corrupted. A network that gets a time has another bound with it."""
    same = steps is None and not is_path(schedule) and not takes_time(original(model))
    return diffusion_of(model).any_order() if same else None

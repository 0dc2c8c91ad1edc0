"""An evaluation over several processes: which images are this one's."""

from vdiff.likelihood import Share
from vdiff.training.ranks import here, over_ranks


def share_of_rank() -> Share:
    """This rank's share of an evaluation; all of it in a single process.

    >>> share_of_rank().count
    1
    """
    place = here()
    return Share(place.index, place.count, over_ranks) if place.count > 1 else Share()


__all__ = ["share_of_rank"]

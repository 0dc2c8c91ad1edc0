"""An evaluation over several processes: which images are this one's."""

from vdiff.likelihood import Share
from vdiff.training.ranks import all_reduce, here


def share_of_rank() -> Share:
    """This rank's share of an evaluation; all of it in a single process.

    >>> share_of_rank().count
    1
    """
    place = here()
    return Share(place.index, place.count, all_reduce) if place.count > 1 else Share()


__all__ = ["share_of_rank"]

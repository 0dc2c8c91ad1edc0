"""An evaluation over several processes: which images are this one's."""

import torch.distributed as dist

from vdiff.likelihood import Share
from vdiff.training.ranks import over_ranks


def share_of_rank() -> Share:
    """This rank's share of an evaluation; all of it where there is a single process. `evaluate(…, share=share_of_rank())`.

    >>> share_of_rank().count
    1
    """
    if not (dist.is_available() and dist.is_initialized()):
        return Share()
    return Share(dist.get_rank(), dist.get_world_size(), over_ranks)


__all__ = ["share_of_rank"]

"""One quarantine budget for all ranks.

Each rank reads its own share of the samples and meets only some of the unusable ones. Their number
is added to a sum that every step computes anyway, and the ranks exchange their lists only after a
step with new ones. A sample that two ranks met in different epochs counts once. At a start the
ranks share the work of reading listed samples again, so that repaired ones do not count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch.distributed as dist

from autoselect.data.faults import Fault
from autoselect.data.quarantine import Quarantine
from autoselect.ranks.exchange import gather_objects

logger = logging.getLogger(__name__)


class SharedQuarantine:
    """Keeps the quarantines of all ranks at the same count.

    Args:
        quarantine: the list of this rank; lists from before a restart are exchanged (a collective).
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self.quarantine = quarantine
        self._shared = 0
        self._exchange()

    @property
    def new(self) -> int:
        """Number of unusable samples that this rank met since the last exchange."""
        return self.quarantine.count - self._shared

    def check(self, new_anywhere: float) -> None:
        """Check the budget over all ranks (a collective unless `new_anywhere` is 0).

        Args:
            new_anywhere: sum of `new` over the ranks.

        Raises:
            QuarantineBudgetError: too many samples are unusable; raised on every rank.
        """
        if new_anywhere:
            self._exchange()
            self.quarantine.check()

    def reread(self, still_unusable: Callable[[Sequence[Fault]], list[Fault]], anew: bool) -> None:
        """Drop listed samples that are usable now (a collective).

        Args:
            still_unusable: reads the samples of some faults again and returns the present faults.
            anew: True if the run begins at step 0, without any sample left out yet: the files are
                written anew. Otherwise they stay as they are.
        """
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        listed = sorted(self.quarantine.faults, key=lambda fault: fault.place)
        if not listed:
            return
        if anew:
            self.quarantine.clear_files()
        own = still_unusable(listed[rank::ranks])
        self.quarantine.keep(fault for faults in gather_objects(own) for fault in faults)
        self._shared = self.quarantine.count
        if anew:
            self.quarantine.write(own)
        logger.info(
            "%d samples are listed as unusable; read again, %d still are", len(listed), self._shared
        )

    def _exchange(self) -> None:
        for faults in gather_objects(self.quarantine.faults[self._shared :]):
            self.quarantine.merge(faults)
        self._shared = self.quarantine.count

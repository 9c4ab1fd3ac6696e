"""One quarantine budget for all ranks.

Each rank reads its own share of the samples, so it meets only some of the unusable ones. How many
new ones a rank has travels with a sum that the step makes anyway; only after a step in which there
were some do the ranks exchange their lists. A sample that two ranks met in different epochs counts
once.
"""

from __future__ import annotations

import torch.distributed as dist

from autoselect.data.faults import Fault
from autoselect.data.quarantine import Quarantine


class SharedQuarantine:
    """Keeps the quarantines of all ranks at one count.

    Args:
        quarantine: of this rank.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        """Exchanges what is listed from before a restart (a collective)."""
        self.quarantine = quarantine
        self._shared = 0
        self._exchange()

    @property
    def new(self) -> int:
        """Unusable samples that this rank met since the last exchange."""
        return self.quarantine.count - self._shared

    def check(self, new_anywhere: float) -> None:
        """Checks the budget over all ranks (a collective when there is something new).

        Args:
            new_anywhere: sum of `new` over the ranks.

        Raises:
            QuarantineBudgetError: too many samples are unusable; raised on every rank.
        """
        if new_anywhere:
            self._exchange()
            self.quarantine.check()

    def _exchange(self) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            own = self.quarantine.faults[self._shared :]
            lists: list[list[Fault]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(lists, own)
            for faults in lists:
                self.quarantine.merge(faults)
        self._shared = self.quarantine.count

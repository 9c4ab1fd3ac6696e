"""The list of unusable samples, its counter, and the budget that ends a run."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from autoselect.data.faults import Fault

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 0.001
_LOGGED = 20


class QuarantineBudgetError(RuntimeError):
    """More samples are unusable than the budget allows."""


class Quarantine:
    """Counts unusable samples, each once, and stops the run when there are too many.

    Args:
        total: samples in the data set, usable or not.
        budget: largest tolerated fraction of unusable ones.
        path: JSON-lines file to append to, one fault a line; one per rank. What it holds already
            (from before a restart) counts.
    """

    def __init__(
        self, total: int, budget: float = DEFAULT_BUDGET, path: str | Path | None = None
    ) -> None:
        self.total = total
        self.budget = budget
        self._faults: dict[tuple[str, str, int], Fault] = {}
        self._path = Path(path) if path is not None else None
        if self._path is not None and self._path.exists():
            text, newline, cut = self._path.read_text().rpartition("\n")
            if cut:
                # A kill came while the last line was written; the fault will be found again.
                self._path.write_text(text + newline)
            for line in text.splitlines():
                self._remember(Fault(**json.loads(line)))

    @property
    def faults(self) -> list[Fault]:
        return list(self._faults.values())

    @property
    def count(self) -> int:
        return len(self._faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """Notes faults that are new, then checks the budget.

        Raises:
            QuarantineBudgetError: see `check`.
        """
        new = [fault for fault in faults if self._remember(fault)]
        if new and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as stream:
                stream.writelines(json.dumps(fault.as_dict()) + "\n" for fault in new)
        for fault in new[: max(0, _LOGGED - (self.count - len(new)))]:
            logger.warning("quarantined: %s", fault)
        if new and self.count >= _LOGGED > self.count - len(new):
            logger.warning("%d samples quarantined; further ones are only listed", self.count)
        self.check()

    def check(self, elsewhere: int = 0) -> None:
        """Checks the budget.

        Args:
            elsewhere: unusable samples that other ranks counted and this one did not.

        Raises:
            QuarantineBudgetError: the fraction of unusable samples exceeds the budget.
        """
        count = self.count + elsewhere
        if count > self.budget * self.total:
            last = self.faults[-1] if self._faults else "found on another rank"
            raise QuarantineBudgetError(
                f"quarantine_budget={self.budget:g} is exceeded: {count} of {self.total} samples "
                f"are unusable (last: {last}); repair the shards (`autoselect shards verify` "
                "lists the damage) or raise the budget"
            )

    def _remember(self, fault: Fault) -> bool:
        place = (fault.shard, fault.key, fault.offset)
        if place in self._faults:
            return False
        self._faults[place] = fault
        return True

"""Count unusable samples, list them in a file, and stop training if there are too many."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoselect.data.faults import MODEL_FAULTS, Fault
from autoselect.files.atomic import write_text

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 0.001
_LOGGED = 20


def sufficient_budget(count: int, total: int) -> float:
    """Return the smallest multiple of a thousandth of `total` that covers `count`."""
    return math.ceil(1000 * count / total) / 1000


class QuarantineBudgetError(RuntimeError):
    """More samples are unusable than the budget allows."""


class Quarantine:
    """Counter of unusable samples, each counted once, that stops training beyond a budget.

    Args:
        total: samples in the data set, usable or not.
        budget: largest tolerated fraction of unusable samples.
        path: this rank's JSON-lines file, to which faults are appended. Faults that it holds
            from an earlier start count until `keep` is called.
        others: files of other ranks, whose faults count too.
    """

    def __init__(
        self,
        total: int,
        budget: float = DEFAULT_BUDGET,
        path: str | Path | None = None,
        others: Iterable[Path] = (),
    ) -> None:
        self.total = total
        self.budget = budget
        self._faults: dict[tuple[str, str, int], Fault] = {}
        self._path = Path(path) if path is not None else None
        self._listings = [*([self._path] if self._path else []), *others]
        for listing in self._listings:
            if listing.exists():
                found, damaged = _listed(listing)
                self.merge(found)
                if damaged and listing == self._path:
                    write_text(listing, "".join(map(_line, found)))

    @property
    def faults(self) -> list[Fault]:
        return list(self._faults.values())

    @property
    def count(self) -> int:
        return len(self._faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """Record faults that are new, then `check` the budget."""
        new = [fault for fault in faults if self._remember(fault)]
        self.write(new)
        for fault in new[: max(0, _LOGGED - (self.count - len(new)))]:
            logger.warning("quarantined: %s", fault)
        if new and self.count >= _LOGGED > self.count - len(new):
            logger.warning("%d samples quarantined; further ones are only listed", self.count)
        self.check()

    def merge(self, faults: Iterable[Fault]) -> None:
        """Count faults that are listed already, by other ranks or by an earlier start."""
        for fault in faults:
            self._remember(fault)

    def keep(self, faults: Iterable[Fault]) -> None:
        """Count only these faults; the file still lists the others, which were left out once."""
        self._faults = {fault.place: fault for fault in faults}

    def clear_files(self) -> None:
        """Delete the files of all ranks; the faults in them still count."""
        for listing in self._listings:
            listing.unlink(missing_ok=True)

    def write(self, faults: Sequence[Fault]) -> None:
        """Append faults to the file, even if it lists them already."""
        if faults and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as stream:
                stream.writelines(map(_line, faults))

    def check(self) -> None:
        """Raise QuarantineBudgetError if the fraction of unusable samples exceeds the budget."""
        if self.count > self.budget * self.total:
            damaged = any(fault.kind not in MODEL_FAULTS for fault in self.faults)
            restore = (
                "or restore the damaged shards, which `autoselect shards verify --decode` lists"
            )
            enough = sufficient_budget(self.count, self.total)
            raise QuarantineBudgetError(
                f"data.quarantine_budget={self.budget:g} is exceeded: {self.count} of {self.total} "
                f"samples are unusable (last: {self.faults[-1]}); this run goes on with "
                f"data.quarantine_budget={enough:g} or more, which covers those met so far; "
                f"{restore + '; ' if damaged else ''}or write shards without these samples, "
                "which quarantine-*.jsonl in the output lists: they are other data, so train on "
                "them from the start, with another output"
            )

    def _remember(self, fault: Fault) -> bool:
        if fault.place in self._faults:
            return False
        self._faults[fault.place] = fault
        return True


def _line(fault: Fault) -> str:
    return json.dumps(fault.as_dict()) + "\n"


def _listed(path: Path) -> tuple[list[Fault], bool]:
    """Return the faults of a file, and whether it has lines that are not one.

    A crash cuts the last line short, a power cut fills lines with zeros; such a fault will be found
    again.
    """
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found, damaged = [], bool(rest)
    for line in lines:
        try:
            found.append(Fault(**json.loads(line)))
        except (ValueError, TypeError):
            damaged = True
    return found, damaged

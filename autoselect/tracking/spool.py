"""What could not be delivered to the tracking server yet: one file of JSON lines per run.

Events keep their order. Delivering one twice must do no harm, because a process may die between the
delivery and the note that it happened. Before the events of a process stands a line that names it
and the store they are for: only that process delivers them while it lives, and only to that store.
"""

import errno
import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoselect.tracking.processes import is_gone, own_process

Event = dict[str, Any]
OFFLINE = "offline-"
OWNER = "owner"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Spool:
    """Waiting events of one run.

    Args:
        folder: where the spools of all runs lie.
        name: the run's id, or `offline_name()` while the server has given none.
        address: of the store that gets what is added here.
    """

    def __init__(self, folder: Path, name: str, address: str | None = None) -> None:
        self.folder, self.name, self._address = folder, name, address
        self.path = folder / f"{name}.jsonl"
        self._files = folder / f"{name}-files"
        self._resolved = folder / f"{name}.run"
        self._lock = folder / f"{name}.lock"
        self._owned = False

    @staticmethod
    def offline_name() -> str:
        """A name for a run that the server does not know yet."""
        return f"{OFFLINE}{uuid.uuid4().hex}"

    @classmethod
    def waiting(cls, folder: Path) -> Iterator["Spool"]:
        """Every spool with events, oldest first."""
        paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        return (cls(folder, path.stem) for path in paths)

    def __bool__(self) -> bool:
        return self.path.exists()

    @property
    def run_id(self) -> str | None:
        """The id that the server gave to an offline run, None while it has none."""
        return self._resolved.read_text() if self._resolved.exists() else None

    def final(self, run_id: str) -> str:
        """The id that the server gave to a run that began offline; any other is returned as is."""
        if not run_id.startswith(OFFLINE):
            return run_id
        return Spool(self.folder, run_id).run_id or run_id

    def resolve(self, run_id: str) -> None:
        """Note the id that the server gave."""
        self._resolved.write_text(run_id)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes and threads out; on a file system without locks nothing is kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            yield

    def append(self, event: Event) -> None:
        """Add an event at the end; from now on this process delivers the spool."""
        with self.alone():
            if not (self._owned and self.path.exists()):
                owner = {"kind": OWNER, "address": self._address, "tags": own_process()}
                self._write([*self._lines(), owner])
                self._owned = True
            with self.path.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def keep_file(self, path: Path) -> Path:
        """Copy a file or folder that an event names, since the original may go away."""
        kept = self._files / uuid.uuid4().hex / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copy2(path, kept)
        return kept

    @property
    def address(self) -> str | None:
        """Of the store that the events are for, None when nobody wrote it down."""
        owners = [line["address"] for line in self._lines() if line["kind"] == OWNER]
        return owners[-1] if owners else None

    @property
    def is_left(self) -> bool:
        """True when no living process will deliver it: its run ended, or the process is gone."""
        owner, ended = None, False
        for line in self._lines():
            if line["kind"] == OWNER:
                owner, ended = line["tags"], False
            ended = ended or line["kind"] == "status"
        return ended or owner is None or is_gone(owner)

    def events(self) -> list[Event]:
        """All events in order."""
        return [line for line in self._lines() if line["kind"] != OWNER]

    def drop(self, count: int) -> None:
        """Forget the first `count` events; without any the spool is removed, the given id stays.

        Call it inside `alone`, which the events were read in.
        """
        lines = self._lines()
        places = [place for place, line in enumerate(lines) if line["kind"] != OWNER]
        gone = set(places[:count])
        if len(gone) == len(places):
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
        elif gone:
            self._write([line for place, line in enumerate(lines) if place not in gone])

    def _lines(self) -> list[Event]:
        """Every line; a last one that a killed process left half written is dropped."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().split("\n")[:-1]]

    def _write(self, lines: list[Event]) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(self.path)

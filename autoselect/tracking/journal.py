"""The journal of a run: its events that the tracking server does not have yet, as JSON lines.

Every event is appended here first and leaves when the server has it, in order. Delivering an event
twice must do no harm, because a process may die between the delivery and the removal. Before the
events of a process stands a line that names the process and the store they are for: only this
process delivers them while it lives, and only to this store.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoselect.files.atomic import write_text
from autoselect.tracking.processes import is_gone, own_process

logger = logging.getLogger(__name__)
Event = dict[str, Any]
JOURNAL_FOLDER = "mlruns/spool"
OFFLINE = "offline-"
OWNER = "owner"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Journal:
    """The events of one run that wait for delivery; true if there are any.

    Args:
        folder: folder that holds the journals of all runs.
        name: id of the run, or an `offline_name()` if the server has not given one yet.
        address: address of the store that gets the events added here.
    """

    def __init__(self, folder: Path, name: str, address: str | None = None) -> None:
        folder = folder.absolute()  # the process may change its current folder
        self.folder, self.name, self._address = folder, name, address
        self.path = folder / f"{name}.jsonl"
        self.refused = folder / f"{name}-refused"
        self._files = folder / f"{name}-files"
        self._resolved = folder / f"{name}.run"
        self._owned = False
        self._thread_lock = threading.RLock()
        self._is_held = False

    @staticmethod
    def offline_name() -> str:
        """Return a name for a run that the server does not know yet."""
        return f"{OFFLINE}{uuid.uuid4().hex}"

    @classmethod
    def waiting(cls, folder: Path) -> Iterator["Journal"]:
        """Yield every journal with events, oldest first."""
        ages: dict[Path, float] = {}
        for path in folder.glob("*.jsonl"):
            try:
                ages[path] = path.stat().st_mtime
            except FileNotFoundError:
                pass  # its own process delivered it meanwhile
        return (cls(folder, path.stem) for path in sorted(ages, key=ages.__getitem__))

    def __bool__(self) -> bool:
        return self.path.exists()

    @property
    def run_id(self) -> str | None:
        """Return the id that the server gave to the run, or None."""
        if not self.name.startswith(OFFLINE):
            return self.name
        return self._resolved.read_text() if self._resolved.exists() else None

    def final(self, run_id: str) -> str:
        """Return the id that the server gave to a run that began offline; others stay."""
        return Journal(self.folder, run_id).run_id or run_id

    def resolve(self, run_id: str) -> None:
        """Note the id that the server gave to a run that began offline."""
        write_text(self._resolved, run_id)

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """Keep every other delivery of this journal out, of any process; appending goes on."""
        with _locked(self.folder / f"{self.name}.delivery"):
            yield

    def append(self, event: Event) -> None:
        """Add an event at the end; from now on this process delivers the journal.

        A file or folder that the event names under `path` is copied, because the original may go
        away or change before it is delivered.

        Raises:
            OSError: the file that the event names or the journal's folder is not usable.
        """
        if "path" in event:
            event = {**event, "path": str(self._copy(Path(event["path"])))}
        with self._writing():
            lines = [event]
            if not (self._owned and self.path.exists()):
                owner = {"kind": OWNER, "address": self._address, "tags": own_process()}
                lines.insert(0, owner)
                if self.path.exists():  # without the half line that a killed process may have left
                    self._write(self._lines())
            self._owned = False
            with self.path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            self._owned = True

    def _copy(self, path: Path) -> Path:
        kept = self._files / uuid.uuid4().hex / path.name
        with self._writing():  # so that nothing removes the folder meanwhile
            kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copy2(path, kept)
        return kept

    @property
    def address(self) -> str | None:
        """Address of the store that the events are for, or None if no line says so."""
        owners = [line["address"] for line in self._lines() if line["kind"] == OWNER]
        return owners[-1] if owners else None

    @property
    def is_left(self) -> bool:
        """True if no living process will deliver it: its run ended, or the process is gone."""
        owner, ended = None, False
        for line in self._lines():
            if line["kind"] == OWNER:
                owner, ended = line["tags"], False
            ended = ended or line["kind"] == "status"
        return ended or owner is None or is_gone(owner)

    def events(self) -> list[Event]:
        """Return all events in order."""
        return [line for line in self._lines() if line["kind"] != OWNER]

    def drop(self, count: int) -> None:
        """Remove the first `count` events, which `events` gave inside `delivering`."""
        with self._writing():
            lines = self._lines()
            places = [place for place, line in enumerate(lines) if line["kind"] != OWNER]
            for place in places[:count]:
                kept = Path(lines[place].get("path", "/")).parent
                if kept.parent == self._files:
                    shutil.rmtree(kept, ignore_errors=True)
            gone = set(places[:count])
            if len(gone) == len(places):
                self.path.unlink(missing_ok=True)
                if self._files.is_dir() and not any(self._files.iterdir()):
                    self._files.rmdir()
            elif gone:
                self._write([line for place, line in enumerate(lines) if place not in gone])

    def give_up_damaged(self) -> None:
        """Move a journal that cannot be read, as after a power cut, into `refused`, and warn."""
        try:
            self.events()
        except ValueError as error:
            kept = self.refused / self.path.name
            self.refused.mkdir(parents=True, exist_ok=True)
            self.path.replace(kept)
            logger.warning(
                "%s is damaged (%s); it is kept as %s, and the run goes on without what it held",
                self.path,
                error,
                kept,
            )

    def set_aside(self, event: Event, why: str) -> None:
        """Keep an event that the server refuses for its own sake, with its file, in `refused`."""
        self.refused.mkdir(parents=True, exist_ok=True)
        kept = Path(event.get("path", "/"))
        if kept.parent.parent == self._files and kept.exists():
            target = self.refused / kept.parent.name
            shutil.copytree(kept.parent, target, dirs_exist_ok=True)
            event = {**event, "path": str(target / kept.name)}
        with (self.refused / "events.jsonl").open("a") as file:
            file.write(json.dumps({"why": why, "event": event}) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the journal's locks; a handler of signals may write while its thread holds them."""
        with self._thread_lock:
            if self._is_held:
                yield
                return
            with _locked(self.folder / f"{self.name}.lock"):
                self._is_held = True
                try:
                    yield
                finally:
                    self._is_held = False

    def _lines(self) -> list[Event]:
        """Return every line, except a last one that a killed process left half written."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def _write(self, lines: list[Event]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards; on file systems without locks do nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            else:
                if not _is_at(path, lock.fileno()):
                    continue  # the holder before removed the file that was locked here
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False

"""What could not be delivered to the tracking server yet: one file of JSON lines per run.

Events keep their order. Delivering one twice must do no harm, because a process may die between the
delivery and the note that it happened.
"""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
OFFLINE = "offline-"


class Spool:
    """Waiting events of one run.

    Args:
        folder: where the spools of all runs lie.
        name: the run's id, or `offline_name()` while the server has given none.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._path = folder / f"{name}.jsonl"
        self._files = folder / f"{name}-files"
        self._resolved = folder / f"{name}.run"

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
        return self._path.exists()

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

    def append(self, event: Event) -> None:
        """Add an event at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
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

    def events(self) -> list[Event]:
        """All events in order; a last line that a killed process left half written is dropped."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def replace(self, events: list[Event]) -> None:
        """Keep only `events`; without any the spool is removed, the given id stays."""
        if not events:
            self._path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(event) + "\n" for event in events))
        partial.replace(self._path)
